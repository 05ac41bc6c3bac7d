"""Callers on the host, mdevctl and the journal, with something else happening in between."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.journal import Journal, JournalFailed, journal_path
from agent.local.mdevctl import Call
from agent.makers import maker_of
from agent.notes import Notes
from agent.simulated import SimulatedBus
from agent.workers import Workers
from coordinator.errors import Fenced, MdevnsError, NameTaken, TryAgain, Unreachable
from coordinator.model import AfterRemoval, Removal, Wish
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn
from tests.agent.host import SOON, Host, process
from tests.agent.test_local import device, served
from tests.agent.test_mdevctl import Away, Tool, after_a_reboot, persistent, tool
from tests.support.desk import HOST, NAME, OTHER, TYPE, name, wish
from tests.support.faulty import Fate, FaultyStore, FirstLate
from tests.unit.test_journal import claim as journal_claim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from agent.bus import Scan

ACTIVE, CREATING, DEFINED = ClaimState.ACTIVE, ClaimState.CREATING, ClaimState.DEFINED
REMOVING = ClaimState.REMOVING


def locked(host: Host) -> AbstractContextManager[sqlite3.Connection]:
    """Somebody who has the journal's file locked, as a disk that is full or hangs has it."""
    path = journal_path(host.state, "test", HOST)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return closing(other)


async def looked_at(host: Host, mdevctl: Tool) -> None:
    """Wait until the agent has done with the name what it wants to."""
    enrolment = mdevctl.agent.local.enrolment
    assert enrolment is not None
    for _ in range(2):
        enrolment.reconciler.poke((NAME,))
        await host.wait(lambda: not enrolment.reconciler.is_at(NAME))


def epoch(host: Host) -> object:
    """The epoch as it is now, which a late copy compares."""
    return host.desk.kv(host.desk.keys.epoch(HOST))


async def enrolled_anew(host: Host, before: object) -> None:
    """Wait until that epoch is gone; it is read before anything ends it."""
    await host.wait(lambda: epoch(host) != before)


async def test_a_repeated_request_with_another_maker_is_not_leave_to_write(host: Host) -> None:
    """Whoever asks again in another process is no maker: the agent waits for the first alone."""
    async with process() as first, process() as second, served(host) as agent:
        one = await agent.ask("POST", "/v1/claims", device(host, request="r", maker=first.pid))
        assert one.status == 202
        again = await agent.ask("POST", "/v1/claims", device(host, request="r", maker=second.pid))
        first.kill()
        await host.wait(lambda: host.claim() is None)
        assert again.status == 409  # else it writes to create now, and the name is free


async def test_what_another_process_tells_does_not_end_the_wait(host: Host) -> None:
    """A second mdevctl whose write got EEXIST says nothing of the first one's write."""
    async with process() as second, tool(host) as mdevctl:
        await mdevctl.pre("start")
        await mdevctl.answers.answer(
            Call(
                event="post",
                action="start",
                state="failure",
                name=NAME,
                parent=host.parents[0],
                type=TYPE,
                holder=second.pid,
            ),
            maker_of(second.pid),
        )
        assert host.is_in(CREATING)


async def test_a_claim_that_is_newer_than_the_mark_is_lost_with_the_store(tmp_path: Path) -> None:
    """A killed agent has written the claim and not the mark; the store is behind the claim."""
    path = journal_path(tmp_path, "test", HOST)
    before = Notes(Journal(path))
    before.listed(90, ())
    before.learnt(NAME, journal_claim(revision=100))
    await before.written()
    before.told(100)  # killed here
    after = Notes(Journal(path))
    after.listed(97, ())
    assert NAME in after.lost


async def test_a_store_set_back_and_written_since_has_still_lost_the_claim(host: Host) -> None:
    """Other hosts enrol first and write more than was lost."""
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.ask(persistent(host))
        await host.wait(lambda: host.is_in(ACTIVE))
    seen = host.desk.core.revision
    host.desk.core.restore(snapshot)
    host.desk.store.begin_anew()
    number = 10
    while host.desk.core.revision <= seen:
        await host.desk.active(name(number), wish(OTHER))
        number += 1
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert (claim.persistent, claim.adopted) == (True, False)


async def test_a_definition_that_is_to_start_by_itself_does_not_start_when_defined(
    host: Host,
) -> None:
    """`mdevctl define --auto` makes no device, and `mdevctl start` after it does."""
    async with tool(host) as mdevctl:
        await mdevctl.define(start="auto")
        await looked_at(host, mdevctl)
        assert host.devices() == set()
        await mdevctl.start()


async def test_a_caller_whose_enrolment_ends_is_told_that_the_outcome_is_unknown(
    host: Host,
) -> None:
    """A transaction that was given up may be applied: 504 as an error of ours, not a bare 500."""
    dropped: list[Txn] = []

    def fate(txn: Txn) -> Fate:
        if NAME not in repr(txn):
            return Fate.DELIVER
        dropped.append(txn)
        return Fate.DROP

    host.store = FaultyStore(host.store, fate)
    async with served(host) as agent:
        asking = asyncio.create_task(agent.told("POST", "/v1/claims", device(host)))
        enrolment = agent.agent.local.enrolment
        assert enrolment is not None
        await host.wait(lambda: dropped)
        enrolment.reconciler.fence(Fenced("host", "a newer agent took over"))
        answer = await asking
        assert (answer.status, answer.body[:9]) == (504, "ETIMEDOUT")


async def test_a_claim_that_the_journal_did_not_take_is_not_told_as_nothing(host: Host) -> None:
    """A documented answer, and no claim that stays for as long as its refused maker lives."""
    async with process() as maker, served(host) as agent:
        with locked(host):
            answer = await agent.ask("POST", "/v1/claims", device(host, maker=maker.pid))
        document = (await agent.ask("GET", "/openapi.json")).body
        described = document["paths"]["/v1/claims"]["post"]["responses"]
        assert (answer.status, answer.body["error"]) == (504, "ETIMEDOUT")
        assert "504" in described
        await host.wait(lambda: host.claim() is None)


async def test_a_claim_whose_caller_gave_up_takes_nothing_for_nobody_later(host: Host) -> None:
    """The caller is gone after its deadline, a copy is refused, and the first one comes late."""
    fates: Iterator[Fate] = iter([Fate.DELAY])
    is_dropping = True

    def fate(txn: Txn) -> Fate:
        if NAME not in repr(txn):
            return Fate.DELIVER
        return next(fates, Fate.DROP if is_dropping else Fate.DELIVER)

    faulty = FaultyStore(host.store, fate)
    host.store = faulty
    async with served(host) as agent:
        answer = await agent.ask("POST", "/v1/claims", device(host))
        assert answer.status == 504
        taken = await host.desk.active(NAME, wish(OTHER))
        before = epoch(host)
        is_dropping = False
        enrolment = agent.agent.local.enrolment
        assert enrolment is not None
        await host.wait(lambda: enrolment.enrolled.commit.is_idle)
        await enrolled_anew(host, before)
        await host.desk.make(host.desk.claims.evict(taken, definitions=True, now="t"))
        await faulty.release_late()
        assert host.desk.records(NAME) == (None, None)


async def test_what_is_told_of_a_stop_that_was_not_ours_refuses_no_later_remove(
    host: Host,
) -> None:
    """An operator's remove is tried, whatever mdevctl could not do some time before."""
    away = Away(host)
    async with tool(host) as mdevctl:
        await mdevctl.start()
        enrolment = mdevctl.agent.local.enrolment
        assert enrolment is not None
        await host.wait(lambda: not enrolment.reconciler.is_at(NAME))
        away.is_away = True
        await mdevctl.post("stop", done=False)  # its pre went by while the store was away
        away.is_away = False
        await host.retire()
        await host.wait(lambda: (claim := host.claim()) is None or claim.state is ACTIVE)
        assert host.claim() is None


async def test_two_processes_are_not_both_permitted(host: Host) -> None:
    """While one makes it under the journal's word, another is told to try again."""
    await after_a_reboot(host, persistent(host))
    async with process() as second, tool(host, enrols=False) as mdevctl:
        await mdevctl.pre("start")
        mdevctl.process, first = second, mdevctl.process
        with pytest.raises(TryAgain):
            await mdevctl.pre("start")
        mdevctl.process = first


async def test_what_another_process_tells_does_not_end_a_permit(host: Host) -> None:
    """The first one's write is under way; a second mdevctl that failed says nothing of it."""
    away = await after_a_reboot(
        host, Wish(host=HOST, parent=host.parents[0], type=TYPE, persistent=True)
    )
    async with process() as second, tool(host, enrols=False) as mdevctl:
        await mdevctl.pre("start")
        mdevctl.process, first = second, mdevctl.process
        await mdevctl.post("start", done=False)
        mdevctl.process = first
        away.is_away = False
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.is_in(ACTIVE)  # and not `defined`, which an operator may move


async def test_an_agent_killed_after_a_release_leaves_no_word_for_it(host: Host) -> None:
    """The same, to its end: the next agent does not reach the store and permits a second device."""
    away = Away(host)
    path = journal_path(host.state, "test", HOST)
    async with host.agent():
        await host.ask(persistent(host))
        await host.wait(lambda: host.is_in(ACTIVE))
        with locked(host):
            await host.retire()
            simulated.remove(host.directory, NAME)
            try:
                async with asyncio.timeout(19):
                    await host.wait(lambda: host.claim() is None)
            except TimeoutError:
                return
            # What a kill leaves on the disk here.
            files = {p: p.read_bytes() for p in path.parent.iterdir() if "journal" in p.name}
    await host.desk.active(NAME, wish(OTHER))
    for file, data in files.items():
        if not file.name.endswith("-shm"):
            file.write_bytes(data)
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    away.is_away = True
    async with tool(host, enrols=False) as mdevctl:
        with pytest.raises(Unreachable):
            await mdevctl.pre("start")


async def test_the_agent_does_not_remove_what_a_killed_mdevctl_has_not(host: Host) -> None:
    """Nobody asked the agent to remove it instead: the claim is active again."""
    async with tool(host) as mdevctl:
        await mdevctl.start()
        await mdevctl.pre("stop")
        await mdevctl.end()
        await host.wait(lambda: not host.is_in(REMOVING))
        assert (host.is_in(ACTIVE), host.devices()) == (True, {NAME})


class HeldBus(SimulatedBus):
    """A bus whose next scan is slow."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.holds = False
        self.held, self.go = threading.Event(), threading.Event()

    def scan(self) -> Scan:
        """One scan, that began when it was asked for."""
        seen = super().scan()
        if self.holds:
            self.holds = False
            self.held.set()
            assert self.go.wait(SOON)
        return seen


async def test_a_permit_rests_on_what_the_journal_says_when_it_is_given(host: Host) -> None:
    """Between the word and the permit the agent enrols and gives the device up."""
    away = await after_a_reboot(
        host, Wish(host=HOST, parent=host.parents[0], type=TYPE, persistent=True)
    )
    host.bus = bus = HeldBus(host.directory)
    async with tool(host, enrols=False) as mdevctl:
        bus.holds = True
        asking = asyncio.create_task(mdevctl.pre("start"))
        await host.wait(bus.held.is_set)
        away.is_away = False
        await host.wait(lambda: host.is_in(DEFINED))
        await looked_at(host, mdevctl)
        # What an operator may do from here on: move it, and start it there.
        bus.go.set()
        with pytest.raises((Unreachable, TryAgain)):
            await asking


async def test_an_agent_that_stops_claims_nothing_new(tmp_path: Path) -> None:
    """It would be durable, and nobody would make it."""
    host = Host(tmp_path / "slow", latency=4.0)
    async with served(host) as agent:
        waiting = asyncio.create_task(agent.ask("POST", "/v1/claims", device(host)))
        await host.wait(lambda: host.bus.scan().devices)
        agent.agent.stop.set()
        await host.wait(lambda: not agent.agent.local.store_answers)
        more = device(host, wait=0.5) | {"name": name(2)}
        answer = await agent.ask("POST", "/v1/claims", more)
        assert (answer.status, host.claim(name(2))) == (503, None)
        await asyncio.wait([waiting])


async def test_undefining_it_on_another_parent_gives_nothing_up_here(host: Host) -> None:
    """mdevctl lets one name be defined on two parents; its claim is of one."""
    async with tool(host) as mdevctl:
        await mdevctl.define()
        elsewhere = host.parents[1]
        await mdevctl.call("pre", "undefine", parent=elsewhere)
        await mdevctl.call("post", "undefine", "success", parent=elsewhere)
        assert host.is_in(DEFINED)


async def test_a_removal_that_was_refused_is_not_done_after_a_restore(host: Host) -> None:
    """The journal knows the claim as active, at a later revision than the restored `removing`."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    await host.retire()
    simulated.hold(host.directory, NAME)
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))  # EBUSY, and so it was told
        simulated.let_go(host.directory, NAME)
    host.desk.core.restore(snapshot)
    host.desk.store.begin_anew()
    async with host.agent():
        await host.wait(lambda: not host.is_in(REMOVING))
        assert (host.is_in(ACTIVE), host.devices()) == (True, {NAME})


async def test_a_definition_whose_mdevctl_was_killed_leaves_no_claim(host: Host) -> None:
    """It was killed before it wrote its file: nobody has defined it."""
    async with tool(host) as mdevctl:
        mdevctl.definition = {"mdev_type": TYPE, "start": "auto"}
        await mdevctl.pre("define")
        await mdevctl.end()
        await looked_at(host, mdevctl)
        assert (host.claim(), host.devices()) == (None, set())


async def test_a_journal_can_be_opened_where_nothing_can_be_written(host: Host) -> None:
    """A full disk ends no agent, nor keeps one from being started."""
    async with host.agent():
        pass
    with locked(host):
        Notes(Journal(journal_path(host.state, "test", HOST)))


async def test_an_evicted_host_that_reaches_the_store_permits_nothing(host: Host) -> None:
    """It is booted with its network up: mdevctl is faster than the enrolment, by a second."""
    away = await after_a_reboot(host, persistent(host))
    claim = host.claim()
    assert claim is not None
    await host.desk.make(host.desk.claims.evict(claim, definitions=True, now="t"))
    await host.desk.active(NAME, wish(OTHER))
    away.is_away = False
    for patience in (0.0, 60.0):
        async with tool(host, starts=True) as mdevctl:
            mdevctl.agent.local.starting = patience
            with pytest.raises((Unreachable, NameTaken)):
                await mdevctl.pre("start")


async def test_what_was_unsure_when_the_store_was_set_back_stays_lost(tmp_path: Path) -> None:
    """Its row was taken out before a transaction that was refused."""
    path = journal_path(tmp_path, "test", HOST)
    notes = Notes(Journal(path))
    notes.learnt(NAME, journal_claim(revision=5))
    notes.listed(5, [NAME])
    notes.unsure(NAME)
    await notes.written()
    notes.listed(3, ())
    assert NAME in notes.lost
    await notes.close()
    assert NAME in Notes(Journal(path)).lost


async def test_a_recall_that_was_refused_takes_nothing_for_nobody_later(host: Host) -> None:
    """As a claim: after a doubt and a refusal its first copy has to be refused too."""
    snapshot = host.desk.core.snapshot()
    async with host.agent():
        await host.ask(Wish(host=HOST, parent=host.parents[0], type=TYPE, persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.remove(host.directory, NAME)
        await host.wait(lambda: host.is_in(DEFINED))
    host.desk.core.restore(snapshot)
    host.desk.store.begin_anew()
    fate = FirstLate(NAME)
    faulty = FaultyStore(host.store, fate)
    host.store = faulty
    async with host.agent(enrols=False) as agent:
        await host.wait(lambda: faulty.late)
        before = epoch(host)
        taken = await host.desk.active(NAME, wish(OTHER))
        fate.passes = True
        await host.wait(lambda: NAME not in agent._parts.notes.lost)
        await enrolled_anew(host, before)
        await host.desk.make(host.desk.claims.evict(taken, definitions=True, now="t"))
        await faulty.release_late()
        assert host.desk.records(NAME) == (None, None)


async def test_a_claim_in_doubt_that_met_a_hold_takes_nothing_when_it_is_lifted(
    host: Host,
) -> None:
    """The caller is told that nobody knows; the first copy arrives after the hold."""
    fate = FirstLate(NAME)
    faulty = FaultyStore(host.store, fate)
    host.store = faulty
    async with served(host) as agent:
        asking = asyncio.create_task(agent.ask("POST", "/v1/claims", device(host)))
        await host.wait(lambda: faulty.late)
        before = epoch(host)
        hold = host.desk.keys.hold
        await host.desk.store.txn(Txn(success=(Put(hold, b"{}"),)))
        fate.passes = True
        assert (await asking).status == 504
        await enrolled_anew(host, before)
        await host.desk.store.txn(Txn(success=(Delete(hold),)))
        await faulty.release_late()
        assert host.desk.records(NAME) == (None, None)


async def test_an_undefine_that_could_not_be_noted_is_made_good(host: Host) -> None:
    """mdevctl ignores what is answered after its action; the name must not stay for ever."""
    away = Away(host)
    async with tool(host) as mdevctl:
        await mdevctl.define()
        file = mdevctl.file()
        await mdevctl.pre("undefine")
        file.unlink()
        away.is_away = True
        with pytest.raises(MdevnsError):
            await mdevctl.post("undefine")
        away.is_away = False
        await mdevctl.end()
        await host.wait(lambda: host.claim() is None)


@pytest.mark.parametrize("then", list(AfterRemoval))
async def test_what_was_being_removed_for_good_is_not_defined_again(
    host: Host, then: AfterRemoval
) -> None:
    """A store that was set back has lost a name whose device is gone: only a stopped one stays."""
    before = host.desk.core.snapshot()
    async with host.agent():
        await host.ask(persistent(host))
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.hold(host.directory, NAME)
        claim = host.claim()
        assert claim is not None
        await host.desk.make(host.desk.claims.retire(claim, Removal(then, force=True), now="t"))
        await host.wait(lambda: NAME not in host.devices())
    host.desk.core.restore(before)
    host.desk.store.begin_anew()
    simulated.let_go(host.directory, NAME)
    await host.wait(lambda: not host.bus.scan().devices)
    async with host.agent():
        assert not (await host.finish()).left
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        await host.wait(lambda: host.is_in(DEFINED if then is AfterRemoval.DEFINED else None))


async def test_a_permit_that_the_journal_did_not_take_is_none(host: Host) -> None:
    """Whoever asked is refused, and the next one is not kept waiting for it."""
    await after_a_reboot(host, persistent(host))
    async with tool(host, enrols=False) as mdevctl:
        with locked(host), pytest.raises(JournalFailed):
            await mdevctl.pre("start")
        await mdevctl.start()
        assert host.devices() == {NAME}


async def test_an_agent_whose_generation_is_over_enrols_again(host: Host) -> None:
    """An agent that enrols after another one came and went makes what it is asked for."""
    async with host.agent():
        Workers(host.bus.spec, host.bus.run_dir).new_generation()
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
