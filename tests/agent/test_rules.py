"""The rules around the kernel's write, each where an agent that left it out would break it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

from agent import simulated
from agent.journal import Journal, journal_path
from agent.makers import maker_of
from agent.workers import Answer, Order, OrderKind, Workers
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn, prefix
from tests.agent.host import SOON, Host, process
from tests.agent.test_interleavings import HeldBus, locked
from tests.support.desk import HOST, NAME
from tests.support.faulty import Fate, FaultyStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from coordinator.store import Range, WatchBatch

ACTIVE, CREATING, REMOVING = ClaimState.ACTIVE, ClaimState.CREATING, ClaimState.REMOVING


async def test_what_is_being_made_outlives_the_session(tmp_path: Path) -> None:
    """Its claim is durable before the kernel is asked; a session that lapses frees nothing."""
    host = Host(tmp_path / "slow", latency=2.0)
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(CREATING))
        session = host.desk.kv(host.desk.keys.session(HOST))
        assert session is not None
        host.desk.core.expire(session.lease)
        assert host.is_in(CREATING)
        await host.wait(lambda: host.is_in(ACTIVE))


class Deaf(FaultyStore):
    """A store whose watches tell nothing."""

    @asynccontextmanager
    async def watch(
        self,
        ranges: Sequence[Range],
        start: int,
    ) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        """Watch, and hear of nothing."""
        async with self.inner.watch(ranges, start):
            yield _silence()


async def _silence() -> AsyncIterator[WatchBatch]:
    await asyncio.get_running_loop().create_future()
    yield  # type: ignore[misc]  # never reached; it makes this a generator


async def changes_nothing(host: Host, *and_then: Delete) -> None:
    """Give the host another epoch, of which its agent hears nothing, and see it enrol again.

    What it writes until then is told by a watch: between two looks it could do both.
    """
    keys = host.desk.keys
    taken = host.desk.core.txn(Txn(success=(Put(keys.epoch(HOST), b"evict-1"), *and_then)))
    whole = prefix(keys.of_host(HOST))
    async with (
        asyncio.timeout(SOON),
        host.desk.store.watch((whole,), taken.revision + 1) as batches,
    ):
        async for batch in batches:
            if batch.events:
                assert batch.events[0].kv.key == keys.epoch(HOST)
                return


def reports(host: Host, txn: Txn) -> bool:
    """Whether it tells what a parent has left."""
    parents = host.desk.keys.parents(HOST)
    return any(isinstance(op, Put) and op.key.startswith(parents) for op in txn.success)


async def test_an_agent_that_has_not_heard_of_its_end_activates_nothing(tmp_path: Path) -> None:
    """Its transaction compares the epoch: it is refused, and enrols again for that."""
    host = Host(tmp_path / "slow", latency=1.0)
    host.store = deaf = Deaf(host.store, lambda _: Fate.DELIVER)
    await host.ask()
    async with host.agent(rescan=60.0):
        # What it reports compares the epoch too, and would tell it first.
        deaf.decide = lambda txn: Fate.UNREACHABLE if reports(host, txn) else Fate.DELIVER
        await host.wait(lambda: host.is_in(CREATING))
        await changes_nothing(host)


async def test_an_agent_that_has_not_heard_of_its_end_begins_nothing(host: Host) -> None:
    """What it could not begin for a hold is no more its own to begin when that is lifted."""
    host.store = Deaf(host.store, lambda _: Fate.DELIVER)
    hold = host.desk.keys.hold
    host.desk.core.txn(Txn(success=(Put(hold, b"{}"),)))
    lease = host.desk.core.grant(600).id
    claims, now = host.desk.claims, host.desk.clock.now()
    await host.desk.made(claims.reserve(NAME, "r", host.wish(), lease=lease, now=now, by="me"))
    async with host.agent(rescan=60.0) as agent:
        await host.wait(lambda: agent.local.store_answers)
        assert host.is_in(ClaimState.RESERVED)
        await changes_nothing(host, Delete(hold))


async def test_a_claim_that_came_during_the_scan_is_not_decided_by_it(host: Host) -> None:
    """The scan saw no device; whoever claimed the name since is at making it."""
    host.bus = bus = HeldBus(host.directory)
    async with host.agent(rescan=60.0) as agent, process() as maker:
        await host.wait(lambda: agent.local.store_answers)
        enrolment = agent.local.enrolment
        assert enrolment is not None
        await enrolment.enrolled.scanner.fresh()
        bus.holds = True
        enrolment.reconciler.poke((NAME,))
        await host.wait(bus.held.is_set)
        makes = maker_of(maker.pid)
        await agent.local.take(host.wish(), name=NAME, request=None, by="me", maker=makes)
        bus.go.set()
        await host.wait(lambda: not enrolment.reconciler.is_at(NAME))
        assert host.is_in(CREATING)


class Noted(Workers):
    """Workers that look what the journal has on the disk when a write is ordered."""

    path: ClassVar[Path]
    states: ClassVar[list[ClaimState | None]] = []

    async def order(self, order: Order, *, deadline: Callable[[], float]) -> Answer:
        """Look, then do it."""
        journal = Journal(self.path)
        claim = journal.read().claims.get(order.name)
        journal.close()
        self.states.append(claim.state if claim else None)
        return await super().order(order, deadline=deadline)


async def test_what_is_written_to_the_kernel_is_in_the_journal_before(host: Host) -> None:
    """Whoever finds the device after a crash finds there whose it is, and what was to come."""
    host.workers = Noted
    Noted.path, Noted.states = journal_path(host.state, "test", HOST), []
    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        await host.retire()
        await host.wait(lambda: host.is_in(None))
    assert Noted.states == [CREATING, REMOVING]


async def test_a_claim_is_looked_at_while_it_goes_to_the_journal(host: Host) -> None:
    """A caller waits for the longer of the two; the kernel is asked after both."""
    host.workers, host.store = Noted, Deaf(host.store, lambda _: Fate.DELIVER)
    Noted.path, Noted.states = journal_path(host.state, "test", HOST), []
    async with host.agent(rescan=60.0) as agent:
        local = agent.local
        await host.wait(lambda: local.store_answers)
        with locked(host):
            taken = asyncio.create_task(
                local.take(host.wish(), name=NAME, request=None, by="me", maker=None)
            )
            await host.wait(lambda: local.enrolment and local.enrolment.reconciler.is_at(NAME))
            assert not taken.done()
        await taken
        await host.wait(lambda: host.is_in(ACTIVE))
    assert Noted.states == [CREATING]


class Forgetful(Workers):
    """Workers whose removes return and leave the device, as the kernel's do that come early."""

    removes = 0

    async def order(self, order: Order, *, deadline: Callable[[], float]) -> Answer:
        """Leave the device at the first remove."""
        if order.kind is OrderKind.REMOVE and not type(self).removes:
            type(self).removes = 1
            return Answer(begun=True, seconds=0.0)
        return await super().order(order, deadline=deadline)


async def test_a_remove_that_returned_and_left_the_device_releases_nothing(host: Host) -> None:
    """The name is free only when the device was seen absent; until then it is removed again."""
    Forgetful.removes, host.workers = 0, Forgetful
    free_with_a_device: list[bool] = []

    def is_free() -> bool:
        free_with_a_device.append(host.is_in(None) and NAME in host.devices())
        return host.is_in(None)

    async with host.agent():
        await host.ask()
        await host.wait(lambda: host.is_in(ACTIVE))
        await host.retire()
        await host.wait(is_free)
        assert not any(free_with_a_device)


async def test_a_callers_claim_stands_for_one_begin(tmp_path: Path) -> None:
    """The first write met a name that the kernel had; the next follows a begin of its own."""
    host = Host(tmp_path / "slow", latency=0.3)
    simulated.fail_creates(host.directory, host.parents[0], "EEXIST")
    revisions: set[int] = set()

    def is_made() -> bool:
        claim = host.claim()
        if claim is not None and claim.state is CREATING:
            revisions.add(claim.revision)
        return host.is_in(ACTIVE)

    async with host.agent() as agent:
        await host.wait(lambda: agent.local.store_answers)
        await agent.local.take(host.wish(), name=NAME, request=None, by="me", maker=None)
        await host.wait(is_made)
    assert len(revisions) == 2
