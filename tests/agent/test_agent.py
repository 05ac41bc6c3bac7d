"""What an agent makes of claims and devices, on a simulated kernel."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import pytest

from agent import simulated
from agent.health import verdict
from agent.locks import AgentLock
from agent.slots import Bounds
from agent.workers import Answer, Workers
from coordinator.errors import InUse
from coordinator.model import FindingKind, Wish
from coordinator.states import ClaimState
from coordinator.store import Put, Txn
from tests.agent.host import Host
from tests.support.desk import HOST, NAME, OTHER, TYPE, name, wish

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.workers import Order

ACTIVE, CREATING, REMOVING = ClaimState.ACTIVE, ClaimState.CREATING, ClaimState.REMOVING


async def test_what_is_reserved_is_made_and_what_is_retired_is_removed(host: Host) -> None:
    """The line: reserved, creating, active with its device; removing, free without it."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        assert host.devices() == {NAME}
        await host.retire()
        await host.wait(lambda: host.is_in(None))
        assert host.devices() == set()


async def test_what_was_asked_for_while_no_agent_ran_is_made_at_its_start(host: Host) -> None:
    """A reservation survives the agent's absence; the start lists, looks and goes on."""
    await host.ask()
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))


async def test_a_refused_attribute_undoes_the_device(tmp_path: Path) -> None:
    """The device is taken back, the name is free, and whoever waits is told which and why."""
    host = Host(tmp_path / "h", attributes={"first": True, "second": True})
    simulated.fail_attribute(host.directory, "second")
    async with host.agent():
        await host.ask(host.wish(attrs=(("first", "1"), ("second", "2"))))
        await host.wait(lambda: host.outcome() is not None and host.is_in(None))
    outcome = host.outcome()
    assert outcome is not None
    assert (outcome.errno, outcome.attribute) == ("EINVAL", "second")
    assert host.devices() == set()


async def test_attributes_are_written_before_the_claim_is_active(tmp_path: Path) -> None:
    """Whoever is told of the device finds it as it was asked for."""
    host = Host(tmp_path / "h", attributes={"first": True})
    async with host.agent():
        await host.ask(host.wish(attrs=(("first", "one"),)))
        await host.wait(lambda: host.is_in(ACTIVE))
        device = host.directory / "sys/bus/mdev/devices" / NAME
        assert (device / "first").read_text().strip() == "one"


@pytest.mark.parametrize("errno", ["EIO", "ENOSPC", "EUSERS"])
async def test_a_create_that_the_driver_refuses_leaves_nothing(host: Host, errno: str) -> None:
    """The kernel's errno is the outcome, the name is free, and no device is there."""
    simulated.fail_creates(host.directory, host.parents[0], errno)
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.outcome() is not None)
        outcome = host.outcome()
        assert outcome is not None
        assert (outcome.errno, outcome.host, outcome.parent) == (errno, HOST, host.parents[0])
        assert host.is_in(None)
        assert host.devices() == set()


async def test_a_definition_survives_a_refused_start(host: Host) -> None:
    """It is defined as before, so that it can be started again, and the error stands in it."""
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.remove(host.directory, NAME)
        await host.wait(lambda: host.is_in(ClaimState.DEFINED))
        simulated.fail_creates(host.directory, host.parents[0], "EIO")
        lost = host.claim()
        assert lost is not None
        await host.desk.make(host.desk.claims.start(lost, now="t"))
        await host.wait(lambda: host.is_in(ClaimState.DEFINED))
        claim = host.claim()
        assert claim is not None
        assert claim.error is not None
        assert claim.error.errno == "EIO"


async def test_a_parent_that_is_not_there_refuses_the_reservation(host: Host) -> None:
    """Nothing is begun: ENODEV is told and the name is free."""
    async with host.agent():
        await host.ask(wish(HOST, "no-such-parent"))
        await host.wait(lambda: host.outcome() is not None)
        outcome = host.outcome()
        assert outcome is not None
        assert outcome.errno == "ENODEV"
        assert host.is_in(None)


async def test_a_device_that_is_held_open_is_ebusy_at_once(host: Host) -> None:
    """The claim is active again and says so; once it is let go the remove works."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.hold(host.directory, NAME)
        await host.retire()
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert claim.error is not None
        assert claim.error.errno == "EBUSY"
        simulated.let_go(host.directory, NAME)
        await host.retire()
        await host.wait(lambda: host.is_in(None))


async def test_a_device_that_cannot_be_probed_is_not_removed(host: Host) -> None:
    """Device rules that forbid the probe make a remove EBUSY with the reason; force goes ahead."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.refuse_probe(host.directory, "EPERM")
        await host.retire()
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert claim.error is not None
        assert claim.error.errno == "EBUSY"
        assert "EPERM" in claim.error.text
        assert NAME in host.devices()
        await host.retire(force=True)
        await host.wait(lambda: host.is_in(None))


async def test_a_driver_that_hangs_silences_no_other_parent(host: Host) -> None:
    """Its parent is not usable and says why; the others' reports go on, and readyz says it."""
    async with host.agent() as agent:
        first, second = host.parents
        file = host.bus.root / "sys/class/mdev_bus" / first / "mdev_supported_types" / TYPE
        (file / "available_instances").unlink()
        os.mkfifo(file / "available_instances")
        await host.wait(lambda: not host.reported(first).usable)
        assert "has not returned" in host.reported(first).troubles[0]
        simulated.create(host.directory, second, TYPE, NAME)
        await host.wait(lambda: host.reported(second).types[0].available == 3)
        await host.wait(lambda: agent.vitals.facts().degraded)
        assert verdict(agent.vitals.facts()).ready
        os.close(os.open(file / "available_instances", os.O_WRONLY))  # it returns


async def test_a_bus_that_cannot_be_seen_offers_nothing(host: Host) -> None:
    """Its parents stay known, without room, until it is seen again; a remove is refused."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        bus = host.directory / "sys/bus/mdev/devices"
        bus.rename(bus.with_name("gone"))
        await host.wait(lambda: not any(host.reported(p).usable for p in host.parents))
        for parent in host.parents:
            assert [t.available for t in host.reported(parent).types] == [0]
            assert "mdev is not loaded" in host.reported(parent).troubles[0]
        await host.retire()
        await host.wait(lambda: host.is_in(ACTIVE))  # refused, and not waited for
        claim = host.claim()
        assert claim is not None
        assert claim.error is not None
        assert claim.error.errno == "EIO"
        bus.with_name("gone").rename(bus)
        await host.wait(lambda: all(host.reported(p).usable for p in host.parents))
        assert [t.available for t in host.reported(host.parents[1]).types] == [4]


async def test_a_parent_that_refuses_names_is_counted_until_it_takes_one(host: Host) -> None:
    """Two names that a driver says EIO to are two failures; a create that works forgets them."""
    async with host.agent():
        first = host.parents[0]
        simulated.fail_creates(host.directory, first, "EIO", 2)
        for number in (1, 2):
            await host.ask(name=name(number))
            await host.wait(lambda number=number: host.is_in(None, name(number)))
        await host.wait(lambda: host.reported(first).failures == 2)
        await host.ask(name=name(3))
        await host.wait(lambda: host.is_in(ACTIVE, name(3)))
        await host.wait(lambda: host.reported(first).failures == 0)


async def test_a_driver_unbound_under_a_vm_makes_a_remove_ebusy(host: Host) -> None:
    """The device goes when the VM lets go; a remove is refused meanwhile, and does not wait."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.hold(host.directory, NAME)
        await asyncio.to_thread(simulated.unplug, host.directory, host.parents[0])
        await host.retire()
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert claim.error is not None
        assert claim.error.errno == "EBUSY"
        simulated.let_go(host.directory, NAME)
        await host.wait(lambda: host.is_in(None))


class _SoonStuck(Workers):
    """Workers of which one write that hangs makes a parent stuck, when `hurry` says so."""

    there: ClassVar[list[_SoonStuck]] = []

    def __init__(self, spec: str, run_dir: Path) -> None:
        super().__init__(spec, run_dir, bounds=Bounds(per_parent=1, hung=1, extra=1, total=8))
        self.there[:] = [self]

    def hurry(self) -> None:
        """From here on a write hangs that has not returned at once."""
        self._stuck_after = 0.0


async def test_a_parent_whose_writes_hang_refuses_and_others_go_on(host: Host) -> None:
    """A create there is EAGAIN and leaves nothing; a remove too, and its device stays."""
    host.workers = _SoonStuck
    async with host.agent():
        await host.ask()
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE) and host.is_in(ACTIVE, name(2)))
        simulated.hold(host.directory, NAME)
        _SoonStuck.there[0].hurry()
        await host.retire(force=True)
        await host.wait(lambda: _SoonStuck.there[0].stuck() == {host.parents[0]: 1})
        await host.ask(name=name(3))
        await host.wait(lambda: host.is_in(None, name(3)))
        await host.retire(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        claim = host.claim(name(2))
        assert claim is not None
        assert claim.error is not None
        assert (claim.error.errno, "hang" in claim.error.text) == ("EAGAIN", True)
        await host.ask(wish(HOST, host.parents[1]), name(4))
        await host.wait(lambda: host.is_in(ACTIVE, name(4)))
        simulated.let_go(host.directory, NAME)
        await host.wait(lambda: host.is_in(None))


async def test_a_forced_remove_waits_and_holds_nobody_up(host: Host) -> None:
    """While it sleeps in the kernel, other names of the parent are made and removed."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.hold(host.directory, NAME)
        await host.retire(force=True)
        await host.wait(lambda: NAME not in host.devices())
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.is_in(REMOVING)
        simulated.let_go(host.directory, NAME)
        await host.wait(lambda: host.is_in(None))


async def test_an_agent_stops_and_starts_while_a_write_hangs(host: Host) -> None:
    """The hung remove is in flight for the next agent, which waits for it and releases."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.hold(host.directory, NAME)
        await host.retire(force=True)
        await host.wait(lambda: NAME not in host.devices())
    assert host.is_in(REMOVING)
    async with host.agent():
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.is_in(REMOVING)
        simulated.let_go(host.directory, NAME)
        await host.wait(lambda: host.is_in(None))


async def test_somebody_elses_device_is_adopted_and_not_removed(host: Host) -> None:
    """Made by hand while the agent runs, it is claimed when it has settled; no more is done."""
    async with host.agent():
        simulated.create(host.directory, host.parents[1], TYPE, NAME)
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert (claim.adopted, claim.parent) == (True, host.parents[1])
        assert host.devices() == {NAME}


async def test_what_was_there_before_the_agent_is_adopted(host: Host) -> None:
    """Devices from before its first start are claimed, all of them."""
    names = [name(n) for n in range(1, 4)]
    for one in names:
        simulated.create(host.directory, host.parents[0], TYPE, one)
    async with host.agent():
        await host.wait(lambda: all(host.is_in(ACTIVE, one) for one in names))


async def test_a_device_whose_name_another_host_holds_is_a_conflict(host: Host) -> None:
    """It is reported and never touched; when it is gone, so is the report."""
    await host.desk.reserved(NAME, wish(OTHER))
    async with host.agent():
        simulated.create(host.directory, host.parents[0], TYPE, NAME)
        await host.wait(lambda: host.finding() is not None)
        finding = host.finding()
        assert finding is not None
        assert finding.kind is FindingKind.CONFLICT
        assert OTHER in finding.detail
        assert host.devices() == {NAME}
        simulated.remove(host.directory, NAME)
        await host.wait(lambda: host.finding() is None)


async def test_a_request_for_a_name_that_the_host_has_by_hand_fails_and_keeps_it(
    host: Host,
) -> None:
    """EEXIST is told, and the same transaction keeps the name for what is there."""
    simulated.create(host.directory, host.parents[1], TYPE, NAME)
    await host.ask()
    async with host.agent():
        await host.wait(lambda: host.outcome() is not None)
        outcome, claim = host.outcome(), host.claim()
        assert outcome is not None
        assert outcome.errno == "EEXIST"
        assert claim is not None
        assert (claim.state, claim.adopted, claim.parent) == (ACTIVE, True, host.parents[1])


async def test_a_device_that_is_removed_by_hand_is_lost(host: Host) -> None:
    """A transient name is free again."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.remove(host.directory, NAME)
        await host.wait(lambda: host.is_in(None))


async def test_a_record_that_cannot_be_read_is_left_alone_and_stops_nothing(host: Host) -> None:
    """Its device is neither adopted nor removed, and the next name is made."""
    damaged = Put(host.desk.keys.claim(HOST, NAME), b'{"v":99}')
    host.desk.core.txn(Txn(success=(Put(host.desk.keys.name(NAME), b"{"), damaged)))
    simulated.create(host.directory, host.parents[0], TYPE, NAME)
    async with host.agent():
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        kv = host.desk.kv(damaged.key)
        assert kv is not None
        assert kv.value == damaged.value
        assert NAME in host.devices()


async def test_while_a_store_is_being_restored_nothing_is_begun(host: Host) -> None:
    """With `hold` present a reservation waits, and a foreign device is adopted."""
    hold = Put(host.desk.keys.hold, b"{}")
    host.desk.core.txn(Txn(success=(hold,)))
    await host.ask()
    async with host.agent():
        simulated.create(host.directory, host.parents[0], TYPE, name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.is_in(ClaimState.RESERVED)
        assert NAME not in host.devices()


async def test_an_evicted_agent_enrols_again_and_goes_on(host: Host) -> None:
    """A new epoch fences it; it drops what it had, enrols, and makes what is still asked for."""
    async with host.agent():
        epoch = host.desk.keys.epoch(HOST)
        host.desk.core.txn(Txn(success=(Put(epoch, b"an evict"),)))
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        kv = host.desk.kv(epoch)
        assert kv is not None
        assert kv.value != b"an evict"


def _no_machine_id(host: Host) -> Path:
    path = host.directory / "etc/machine-id"
    path.write_text("uninitialized\n")
    return path


def _no_boot_id(host: Host) -> Path:
    path = host.directory / "proc/sys/kernel/random/boot_id"
    path.unlink()
    return path


def _no_generation(host: Host) -> Path:
    path = host.bus.run_dir / "generation"
    path.unlink()
    path.symlink_to("generation")  # ELOOP, for root too
    return path


def _no_events(host: Host) -> Path:
    path = host.directory / "kernel/events"
    path.rename(path.with_name("kept"))
    path.symlink_to("events")
    return path


@pytest.mark.parametrize("spoil", [_no_machine_id, _no_boot_id, _no_generation, _no_events])
async def test_what_the_machine_fails_at_an_enrolment_ends_no_agent(
    host: Host, capsys: pytest.CaptureFixture[str], spoil: Callable[[Host], Path]
) -> None:
    """It says why it is not ready, once in the log, and goes on when that has passed."""
    async with host.agent() as agent:
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        whole = {
            path: path.read_bytes()
            for path in (
                host.directory / "etc/machine-id",
                host.directory / "proc/sys/kernel/random/boot_id",
            )
        }
        path = spoil(host)
        session = host.desk.kv(host.desk.keys.session(HOST))
        assert session is not None
        host.desk.core.expire(session.lease)
        await host.wait(lambda: agent.vitals.trouble)
        trouble, told = agent.vitals.trouble, verdict(agent.vitals.facts())
        assert told.live
        assert trouble in told.reasons
        assert capsys.readouterr().out.count("cannot enrol") == 1
        if path in whole:
            path.write_bytes(whole[path])
        else:
            path.unlink()
        if path.name == "events":
            path.with_name("kept").rename(path)
        await host.wait(lambda: agent.vitals.trouble is None and agent.vitals.listed)
        assert host.is_in(ACTIVE)
        assert "cannot enrol" not in capsys.readouterr().out


async def test_a_lost_session_is_replaced(host: Host) -> None:
    """An agent whose lease was revoked early enrols again; no claim is touched."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        session = host.desk.kv(host.desk.keys.session(HOST))
        assert session is not None
        host.desk.core.expire(session.lease)
        await host.wait(lambda: host.desk.kv(host.desk.keys.session(HOST)) is not None)
        assert host.is_in(ACTIVE)


async def test_a_stop_gives_the_session_back(host: Host) -> None:
    """The host is seen to be down at once, and its claims stay."""
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    assert host.desk.kv(host.desk.keys.session(HOST)) is None
    assert host.is_in(ACTIVE)


async def test_a_stop_finishes_what_the_kernel_was_given(tmp_path: Path) -> None:
    """A create that was begun ends with its device and an active claim."""
    host = Host(tmp_path / "h", latency=0.5)
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(CREATING) and host.bus.scan().devices)
    assert host.is_in(ACTIVE)
    assert host.devices() == {NAME}


async def test_parents_that_come_and_go_are_reported(host: Host) -> None:
    """What the cluster knows of a host's parents follows what the kernel has."""
    keys = host.desk.keys
    async with host.agent():
        simulated.unplug(host.directory, host.parents[1])
        await host.wait(lambda: host.desk.kv(keys.parent(HOST, host.parents[1])) is None)
        simulated.plug(host.directory, host.parents[1])
        await host.wait(lambda: host.desk.kv(keys.parent(HOST, host.parents[1])) is not None)


@pytest.mark.parametrize("other_run_dir", [False, True], ids=["the same", "its own"])
async def test_a_second_agent_on_the_machine_is_refused(
    host: Host, tmp_path: Path, *, other_run_dir: bool
) -> None:
    """One agent a machine, whatever its run directory: another one is told EBUSY."""
    run_dir, machine = host.bus.run_dir, host.directory / "sys"
    second = AgentLock(tmp_path / "other" if other_run_dir else run_dir, machine)
    with AgentLock(run_dir, machine):
        with pytest.raises(InUse) as caught, second:
            pass
        assert (caught.value.errno, caught.value.exit_code) == ("EBUSY", 5)
    with second:  # nothing of the first try is left
        pass


async def test_a_name_that_the_kernel_still_has_is_tried_again_and_says_why(host: Host) -> None:
    """EEXIST never aborts: it stands in the claim, and when the kernel lets go it is made."""
    simulated.fail_creates(host.directory, host.parents[0], "EEXIST", count=3)
    seen: list[str] = []

    def looked() -> bool:
        claim = host.claim()
        if claim is not None and claim.error is not None:
            seen.append(claim.error.errno)
        return claim is not None and claim.state is ACTIVE

    async with host.agent():
        await host.ask()
        await host.wait(looked)
    assert set(seen) == {"EEXIST"}
    assert host.outcome() is None


async def test_a_device_that_was_made_again_after_a_reboot_is_taken_note_of(host: Host) -> None:
    """Not by us, so it is adopted; when it goes in this boot, autostart leaves it at that."""
    async with host.agent():
        await host.ask(
            Wish(host=HOST, parent=host.parents[0], type=TYPE, persistent=True, autostart=True)
        )
        await host.wait(lambda: host.is_in(ACTIVE))
    simulated.reboot(host.directory)
    simulated.create(host.directory, host.parents[0], TYPE, NAME)
    async with host.agent():
        await host.wait(lambda: (claim := host.claim()) is not None and claim.adopted)
        simulated.remove(host.directory, NAME)
        await host.wait(lambda: host.is_in(ClaimState.DEFINED))
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.is_in(ClaimState.DEFINED)


async def test_a_driver_that_does_not_speak_utf_8_stops_nothing(host: Host) -> None:
    """A description in whatever bytes is reported as well as it can be read."""
    parent = host.directory / "sys/class/mdev_bus" / host.parents[0]
    (parent / "mdev_supported_types" / TYPE / "description").write_bytes(b"Gr\xfc\xdfe")
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
    assert host.desk.kv(host.desk.keys.parent(HOST, host.parents[0])) is not None


async def test_a_store_that_was_set_back_is_enrolled_in_anew(host: Host) -> None:
    """An agent whose store is restored to an older state puts back what its journal knows."""
    async with host.agent():
        before = host.desk.core.snapshot()
        await host.ask()
        await host.wait(lambda: host.is_in(ClaimState.ACTIVE))
        epoch = host.desk.kv(host.desk.keys.epoch(HOST))
        host.desk.core.restore(before)
        await host.wait(lambda: host.desk.kv(host.desk.keys.epoch(HOST)) != epoch)
        await host.wait(lambda: host.is_in(ClaimState.ACTIVE))
    claim = host.claim()
    assert claim is not None
    assert (claim.request, claim.adopted) == ("r", False)
    assert host.devices() == {NAME}


class FullDisk(Workers):
    """Workers that find no room for a name's lock, until `room` is made."""

    room = False
    at: ClassVar[list[float]] = []

    async def order(self, order: Order, *, deadline: Callable[[], float]) -> Answer:
        """Refuse it as a worker on a full disk does."""
        if self.room:
            return await super().order(order, deadline=deadline)
        self.at.append(asyncio.get_running_loop().time())
        type(self).room = len(self.at) == 4
        return Answer(begun=False, why="no lock: No space left on device", seconds=0.0)


async def test_a_full_disk_under_the_locks_is_waited_for(host: Host) -> None:
    """What no worker can begin is begun again ever more rarely, and done once there is room."""
    host.workers = FullDisk
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ClaimState.ACTIVE))
    gaps = [later - earlier for earlier, later in pairwise(FullDisk.at)]
    assert len(gaps) == 3
    assert all(gap >= pause for gap, pause in zip(gaps, (0.2, 0.4, 0.8), strict=True))
