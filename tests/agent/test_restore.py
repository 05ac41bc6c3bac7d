"""What an agent does when its store was set back: it holds the namespace, notes, and tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from agent import simulated
from agent.local.mdevctl import Call, Mdevctl
from agent.makers import maker_of
from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.errors import MdevnsError, Unreachable
from coordinator.evicting import evict, forget
from coordinator.model import (
    AfterRemoval,
    FindingKind,
    IdentityValue,
    Removal,
    RestoredValue,
    RestoreValue,
    decode,
    encode,
)
from coordinator.restoring import begin
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn
from tests.agent.host import process
from tests.support.desk import HOST, NAME, OTHER, TYPE, Desk, name, wish
from tests.support.faulty import Fate, FaultyStore

if TYPE_CHECKING:
    import asyncio

    from agent.daemon import Agent
    from coordinator.model import Claim
    from tests.agent.host import Host

ACTIVE, DEFINED, REMOVING = ClaimState.ACTIVE, ClaimState.DEFINED, ClaimState.REMOVING
FIRST, SECOND = name(1), name(2)


def held(host: Host) -> RestoreValue | None:
    """The restore that holds the namespace."""
    kv = host.desk.kv(host.desk.keys.hold)
    value = None if kv is None else decode(kv, RestoreValue)
    assert value is None or isinstance(value, RestoreValue)
    return value


def word(host: Host) -> RestoredValue | None:
    """What the agent has told of the restore."""
    kv = host.desk.kv(host.desk.keys.restored(HOST))
    value = None if kv is None else decode(kv, RestoredValue)
    assert value is None or isinstance(value, RestoredValue)
    return value


def is_done(host: Host) -> bool:
    """Whether the agent says that all is noted."""
    told = word(host)
    return told is not None and told.waits is None


async def begun(host: Host) -> RestoreValue:
    """A restore that an operator begins."""
    desk = host.desk
    client = Client(desk.store, desk.keys, SystemClock(), desk.rng, patience=5, asked_by="me")
    try:
        return (await begin(client)).restore
    finally:
        await client.close()


def set_back(host: Host, snapshot: object = None) -> None:
    """Let the store be what a snapshot says, or an empty one."""
    if snapshot is None:
        host.desk = Desk()
        host.store = host.desk.store
    else:
        host.desk.core.restore(snapshot)  # type: ignore[arg-type]  # a snapshot of this core
        host.desk.store.begin_anew()


@pytest.mark.parametrize("empty", [False, True])
async def test_an_agent_holds_the_namespace_itself(host: Host, *, empty: bool) -> None:
    """It puts its devices back, says so, and begins nothing until the restore is finished."""
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
        before = host.claim()
    set_back(host, None if empty else snapshot)
    async with host.agent() as agent:
        await host.wait(lambda: is_done(host))
        restore, claim = held(host), host.claim()
        assert restore is not None
        assert restore.host == HOST
        assert before is not None
        assert claim is not None
        assert claim.value() == msgspec.structs.replace(before.value(), since=claim.since)
        assert "mdevns restore finish" in str(agent.vitals.facts().restoring)
        await host.ask(name=SECOND)
        await looked_again(host)
        assert host.devices() == {NAME}
        assert not (await host.finish()).left
        assert held(host) is None
        await host.wait(lambda: host.is_in(ACTIVE, SECOND))
        assert agent.vitals.facts().restoring is None


async def looked_again(host: Host) -> None:
    """A device that is made now is noted, so what was asked before it was looked at."""
    simulated.create(host.directory, host.parents[1], TYPE, name(99))
    await host.wait(lambda: host.is_in(ACTIVE, name(99)))
    simulated.remove(host.directory, name(99))
    claim = host.claim(name(99))
    assert claim is not None
    await host.wait(lambda: (told := word(host)) is not None and name(99) in told.absent)
    await host.desk.make(host.desk.claims.evict(claim, definitions=True, now="t"))
    await host.wait(lambda: (told := word(host)) is not None and name(99) not in told.absent)


async def test_an_agent_that_lives_on_holds_the_namespace_too(host: Host) -> None:
    """The store goes back under it: it enrols anew, with the hold in the same revision."""
    async with host.agent():
        snapshot = host.desk.core.snapshot()
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        host.desk.core.restore(snapshot)
        await host.wait(lambda: is_done(host))
        kv, epoch = (host.desk.kv(key) for key in (host.desk.keys.hold, host.desk.keys.epoch(HOST)))
        assert kv is not None
        assert epoch is not None
        assert kv.mod_revision == epoch.mod_revision
        assert host.is_in(ACTIVE)


async def test_an_agent_that_was_enrolled_enrols_again_for_a_restore(host: Host) -> None:
    """What it had ordered before must not come late into the restore."""
    async with host.agent():
        epoch = host.desk.kv(host.desk.keys.epoch(HOST))
        restore = await begun(host)
        await host.wait(lambda: is_done(host))
        told, now = word(host), host.desk.kv(host.desk.keys.epoch(HOST))
        assert told is not None
        assert told.restore == restore.restore
        assert now is not None
        assert now != epoch
        assert not (await host.finish()).left


async def test_a_removal_of_the_snapshot_waits_for_the_end(host: Host) -> None:
    """Nothing is removed while the restore is under way; what was asked for is done after it."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    await host.retire()
    await begun(host)
    async with host.agent():
        await host.wait(lambda: is_done(host))
        await looked_again(host)
        assert (host.is_in(REMOVING), host.devices()) == (True, {NAME})
        assert not (await host.finish()).left
        await host.wait(lambda: host.is_in(None))
        assert host.devices() == set()


async def test_a_removal_that_had_failed_is_over_during_the_restore(host: Host) -> None:
    """The journal knows better than the snapshot, and would not after a crash."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    await host.retire()
    simulated.hold(host.directory, NAME)
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))  # EBUSY, and so it was told
        simulated.let_go(host.directory, NAME)
    set_back(host, snapshot)
    async with host.agent():
        await host.wait(lambda: is_done(host))
        assert held(host) is not None
        assert host.is_in(ACTIVE)
    async with host.agent():
        assert not (await host.finish()).left
        await looked_at_once(host)
        assert (host.is_in(ACTIVE), host.devices()) == (True, {NAME})


async def test_a_removal_that_had_failed_is_over_for_the_next_agent_too(host: Host) -> None:
    """The first that meets the restored store can tell it nothing before its own end."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    await host.retire()
    simulated.hold(host.directory, NAME)
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.let_go(host.directory, NAME)
    set_back(host, snapshot)
    lost: list[Txn] = []

    def of_the_claim(txn: Txn) -> Fate:
        if host.desk.keys.claim(HOST, NAME) not in repr(txn):
            return Fate.DELIVER
        lost.append(txn)
        return Fate.DROP

    host.store = FaultyStore(host.desk.store, of_the_claim)
    async with host.agent():
        await host.wait(lambda: lost)
    assert host.is_in(REMOVING)
    host.store = host.desk.store
    async with host.agent():
        assert not (await host.finish()).left
        await looked_at_once(host)
        assert (host.is_in(ACTIVE), host.devices()) == (True, {NAME})


def other_is_done(host: Host) -> None:
    """The other host's agent reports that it has noted all that its kernel shows."""
    desk = host.desk
    hold = desk.kv(desk.keys.hold)
    assert hold is not None
    restore = decode(hold, RestoreValue)
    assert isinstance(restore, RestoreValue)
    done = RestoredValue(restore=restore.restore, instance="other", at="t", waits=None, absent={})
    desk.core.txn(
        Txn(
            success=(
                Put(desk.keys.identity(OTHER), encode(IdentityValue(machine_id="m-other"))),
                Put(desk.keys.epoch(OTHER), b"other"),
                Put(desk.keys.restored(OTHER), encode(done)),
            )
        )
    )


async def looked_at_once(host: Host) -> None:
    """What is asked for now is done, so what stood before was looked at."""
    await host.ask(name=name(98))
    await host.wait(lambda: host.is_in(ACTIVE, name(98)))
    await host.retire(name=name(98))
    await host.wait(lambda: host.is_in(None, name(98)))


async def test_a_name_that_had_moved_here_is_not_begun_where_it_was(host: Host) -> None:
    """The old host's definition gives way, and the device is claimed as the journal knows it."""
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
        before = host.claim()
    set_back(host)
    there = await host.desk.active(NAME, wish(OTHER, persistent=True, autostart=True))
    there = await host.desk.made(host.desk.claims.lose(there, now="t"))
    async with host.agent():
        await host.wait(lambda: is_done(host))
        finding = host.finding()
        assert finding is not None
        assert finding.kind is FindingKind.CONFLICT
        other_is_done(host)
        done = await host.finish()
        assert (done.yielded, done.left, done.conflicts) == ([NAME], [], [])
        claim = host.claim()
        assert claim is not None
        assert before is not None
        assert claim.value() == msgspec.structs.replace(before.value(), since=claim.since)
        assert host.desk.records(NAME, OTHER)[1] is None


async def recalled(host: Host, before: Claim | None) -> None:
    """The agent notes all that exists, and the claim is as it was before."""
    async with host.agent():
        await host.wait(lambda: is_done(host))
        claim = host.claim()
        assert before is not None
        assert claim is not None
        assert claim.value() == msgspec.structs.replace(before.value(), since=claim.since)
        assert (await host.finish()).left == []
        assert host.devices() == {NAME}


async def test_a_reservation_that_came_before_the_hold_fails_for_the_device_that_is_there(
    host: Host,
) -> None:
    """The name was free in the store that was set back; the journal knows whose the device is."""
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
        before = host.claim()
    set_back(host)
    await host.desk.reserved(NAME, wish(), "another")
    await recalled(host, before)
    outcome = host.outcome("another")
    assert outcome is not None
    assert outcome.errno == "EEXIST"


async def test_the_reservation_that_a_store_was_set_back_to_is_its_devices_again(
    host: Host,
) -> None:
    """The request had been done, and is not failed."""
    await host.ask(host.wish(persistent=True))
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))
        before = host.claim()
    set_back(host, snapshot)
    await recalled(host, before)
    assert host.outcome() is None


async def test_a_name_that_another_host_has_taken_stays_a_conflict(host: Host) -> None:
    """Two devices of one name: nothing is removed, nothing is taken from anybody."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    set_back(host)
    theirs = await host.desk.active(NAME, wish(OTHER))
    async with host.agent():
        await host.wait(lambda: is_done(host))
        other_is_done(host)
        done = await host.finish()
        assert [(one.name, one.host) for one in done.conflicts] == [(NAME, HOST)]
        assert (done.yielded, done.left) == ([], [])
        assert host.desk.records(NAME, OTHER)[1] == theirs
        await looked_at_once(host)
        assert host.devices() == {NAME}
        assert host.finding() is not None


async def test_a_restore_tells_what_no_number_does(host: Host) -> None:
    """The store has counted past all that the agent had read: what it lacks is lost, not freed."""
    async with host.agent():
        snapshot = host.desk.core.snapshot()
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
    seen = host.desk.core.revision
    set_back(host, snapshot)
    while host.desk.core.revision <= seen:
        host.desk.core.txn(Txn(success=(Put("/elsewhere", b""),)))
    await begun(host)
    async with host.agent():
        assert not (await host.finish()).left
        claim = host.claim()
        assert claim is not None
        assert (claim.state, claim.persistent, claim.adopted) == (ACTIVE, True, False)


async def test_a_claim_without_its_device_is_told_with_its_revision(host: Host) -> None:
    """It was removed after the snapshot, or the host was rebooted."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    simulated.remove(host.directory, NAME)
    await begun(host)
    claim = host.claim()
    assert claim is not None
    async with host.agent():
        await host.wait(lambda: is_done(host))
        told = word(host)
        assert told is not None
        assert told.absent == {NAME: claim.revision}
        assert host.claim() == claim
        assert not (await host.finish()).left
        await host.wait(lambda: host.is_in(None))


async def test_what_was_told_as_without_a_device_is_not_started_without_the_store(
    host: Host,
) -> None:
    """It may have given way since, to a device that another host has."""
    away: list[bool] = []
    host.store = FaultyStore(host.store, lambda _: Fate.UNREACHABLE if away else Fate.DELIVER)
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
    await begun(host)
    simulated.remove(host.directory, NAME)
    async with host.agent():
        await host.wait(lambda: (told := word(host)) is not None and NAME in told.absent)
    away.append(True)
    async with process() as tool, host.agent(enrols=False) as agent:
        await host.wait(lambda: agent.local.store_is_away)
        with pytest.raises(Unreachable):
            await starts(host, agent, tool)
    assert host.is_in(ACTIVE)


async def starts(host: Host, agent: Agent, tool: asyncio.subprocess.Process) -> None:
    """mdevctl asks whether it may start the device."""
    call = Call(
        event="pre",
        action="start",
        state="none",
        name=NAME,
        parent=host.parents[0],
        type=TYPE,
        holder=tool.pid,
    )
    await Mdevctl(agent.local, host.directory / "mdevctl.d").answer(call, maker_of(tool.pid))


async def test_a_write_under_way_is_waited_for(host: Host) -> None:
    """A device that is going has no claim in the store any more, and its name is not given away."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        await remove_held_open(host)
    set_back(host)
    async with host.agent():
        await host.wait(lambda: (told := word(host)) is not None and told.waits is not None)
        told = word(host)
        assert told is not None
        assert "is being written to the kernel" in str(told.waits)
        simulated.let_go(host.directory, NAME)
        assert not (await host.finish()).left
        assert host.is_in(None)


async def test_a_process_that_makes_what_the_store_has_lost_is_waited_for(host: Host) -> None:
    """Its write may hang in the kernel, and its name is not given away before it has ended."""
    async with process() as tool:
        async with host.agent() as agent:
            maker = maker_of(tool.pid)
            await agent.local.take(host.wish(), name=NAME, request=None, by="me", maker=maker)
        set_back(host)
        await is_waited_for(host, tool)


async def test_a_process_that_makes_what_the_store_has_as_defined_again_is_waited_for(
    host: Host,
) -> None:
    """Its name could be moved to another host before its write has returned."""
    async with process() as tool:
        async with host.agent() as agent:
            await host.ask(host.wish(persistent=True))
            await host.wait(lambda: host.is_in(ACTIVE))
            simulated.remove(host.directory, NAME)
            await host.wait(lambda: (c := agent.local.claim(NAME)) and c.state is DEFINED)
            snapshot = host.desk.core.snapshot()
            await starts(host, agent, tool)
        set_back(host, snapshot)
        await is_waited_for(host, tool)


async def is_waited_for(host: Host, tool: asyncio.subprocess.Process) -> None:
    """The restore is not done before a process has ended, which has made a device then."""
    async with host.agent():
        await host.wait(lambda: word(host))
        told = word(host)
        assert told is not None
        assert "is made or removed by another process" in str(told.waits)
        simulated.create(host.directory, host.parents[0], TYPE, NAME)
        tool.kill()
        assert not (await host.finish()).left
        assert host.is_in(ACTIVE)


async def remove_held_open(host: Host) -> None:
    """A remove that waits in the kernel for whoever has the device open."""
    simulated.hold(host.directory, NAME)
    await host.retire(force=True)
    await host.wait(lambda: NAME not in host.devices())


async def test_a_write_that_hangs_under_its_claim_holds_nobody_up(host: Host) -> None:
    """The claim holds the name, and the device is not told as absent while it is going."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        await remove_held_open(host)
        await begun(host)
        await host.wait(lambda: is_done(host))
        told = word(host)
        assert told is not None
        assert told.absent == {}
        assert not (await host.finish()).left
        assert host.is_in(REMOVING)
        simulated.let_go(host.directory, NAME)
        await host.wait(lambda: host.is_in(None))


async def test_a_host_that_was_forgotten_holds_nobody_up_when_it_returns(host: Host) -> None:
    """Its journal knows the host, and the store does not: that was an operator's own doing."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    desk = host.desk
    client = Client(desk.store, desk.keys, SystemClock(), desk.rng, patience=5)
    await evict(client, HOST, reason="x", definitions=True)
    await forget(client, HOST, reason="x")
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))
        assert held(host) is None


async def test_a_removal_for_good_is_not_put_back(host: Host) -> None:
    """The store was set back to before a removal whose end only the kernel shows."""
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        removal = Removal(AfterRemoval.FREE)
        await host.desk.make(host.desk.claims.retire(claim, removal, now="t"))
        await host.wait(lambda: host.is_in(None))
    set_back(host, snapshot)
    async with host.agent():
        assert not (await host.finish()).left
        assert host.is_in(None)


async def test_a_restore_that_ends_by_itself_lets_the_agent_go_on(host: Host) -> None:
    """Its hold hung on a lease whose process had died."""
    await begun(host)
    async with host.agent():
        await host.wait(lambda: is_done(host))
        await host.ask(name=SECOND)
        host.desk.core.txn(Txn(success=(Delete(host.desk.keys.hold),)))
        await host.wait(lambda: host.is_in(ACTIVE, SECOND))


async def test_what_cannot_be_read_does_not_end_the_agent(host: Host) -> None:
    """A hold of a newer version holds, and is nobody's restore."""
    host.desk.core.txn(Txn(success=(Put(host.desk.keys.hold, b'{"v":99}'),)))
    async with host.agent():
        simulated.create(host.directory, host.parents[0], TYPE, SECOND)
        await host.wait(lambda: host.is_in(ACTIVE, SECOND))
        with pytest.raises(MdevnsError):
            await host.finish()
