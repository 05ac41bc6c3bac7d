"""Enrolment, the epoch and the session, on virtual time."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import pytest

from coordinator.clock import SystemClock
from coordinator.errors import NotAllowed
from coordinator.model import IdentityValue, SessionValue, decode
from coordinator.session import Enroller, Session
from coordinator.store import Put, Txn
from tests.support.desk import HOST, Desk
from tests.support.faulty import Fate, FaultyStore
from tests.support.virtual_time import pass_time, run_virtual

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from coordinator.store import Lease, Store, TxnResult

T = TypeVar("T")
TTL = 9


@pytest.fixture
def desk() -> Desk:
    return Desk()


def enroller(
    desk: Desk,
    *,
    host: str = HOST,
    machine: str = "m1",
    product: str | None = "p1",
    boot: str = "b1",
    seed: int = 1,
    store: Store | None = None,
) -> Enroller:
    return Enroller(
        store or desk.store,
        desk.keys,
        desk.clock,
        random.Random(seed),
        host=host,
        identity=IdentityValue(machine_id=machine, product_uuid=product),
        boot_id=boot,
        version="0",
        ttl=TTL,
    )


def epoch(desk: Desk) -> bytes | None:
    kv = desk.kv(desk.keys.epoch(HOST))
    return None if kv is None else kv.value


def test_an_enrolment_writes_epoch_session_and_identity_in_one_revision(desk: Desk) -> None:
    """After it the host has a living session of this agent, which hangs on its lease."""
    session = run_virtual(enroller(desk).enrol(), desk.core)
    assert epoch(desk) == session.instance.encode()
    kvs = [desk.kv(key) for key in (desk.keys.epoch(HOST), desk.keys.session(HOST))]
    assert len({kv.mod_revision for kv in kvs if kv}) == 1
    assert kvs[1] is not None
    assert kvs[1].lease == session.lease
    value = decode(kvs[1], SessionValue)
    assert isinstance(value, SessionValue)
    assert (value.instance, value.boot_id) == (session.instance, "b1")


def test_a_crashed_predecessor_of_this_boot_is_taken_over_at_once(desk: Desk) -> None:
    """A living session of the same boot is our own crashed agent's: no waiting for its lease."""
    first = run_virtual(enroller(desk).enrol(), desk.core)
    second = run_virtual(enroller(desk, seed=2).enrol(), desk.core)
    assert desk.core.now < 1
    assert epoch(desk) == second.instance.encode() != first.instance.encode()
    desk.core.expire(first.lease)
    assert desk.kv(desk.keys.session(HOST)) is not None


def test_a_session_of_another_boot_is_waited_for(desk: Desk) -> None:
    """It may be a clone of this machine that is alive; only its lapse shows that it is not."""
    run_virtual(enroller(desk).enrol(), desk.core)
    run_virtual(enroller(desk, boot="b2", seed=2).enrol(), desk.core)
    assert TTL <= desk.core.now < 2 * TTL


@pytest.mark.parametrize(
    ("host", "machine", "product"),
    [(HOST, "m2", "p2"), (HOST, "m1", "p2"), ("gpu09", "m1", "p1")],
    ids=["another machine", "a clone of it", "another name for it"],
)
def test_no_second_machine_and_no_second_name(
    desk: Desk, host: str, machine: str, product: str
) -> None:
    """Two machines under one host name, or one under two, are refused: exit 12, by name."""
    run_virtual(enroller(desk).enrol(), desk.core)
    before = desk.core.revision
    with pytest.raises(NotAllowed) as caught:
        run_virtual(enroller(desk, host=host, machine=machine, product=product).enrol(), desk.core)
    assert caught.value.exit_code == 12
    assert host in caught.value.line or machine in caught.value.line
    assert desk.core.revision == before


def test_a_product_uuid_that_cannot_be_read_makes_no_other_machine(desk: Desk) -> None:
    """A machine is known by what both sides know, and what was read once is kept."""
    run_virtual(enroller(desk, product=None).enrol(), desk.core)
    run_virtual(enroller(desk, product="p1", seed=2).enrol(), desk.core)
    run_virtual(enroller(desk, product=None, seed=3).enrol(), desk.core)
    kv = desk.kv(desk.keys.identity(HOST))
    assert kv is not None
    assert decode(kv, IdentityValue) == IdentityValue(machine_id="m1", product_uuid="p1")
    with pytest.raises(NotAllowed, match="product UUID"):
        run_virtual(enroller(desk, product="p2", seed=4).enrol(), desk.core)


@pytest.mark.parametrize("lost", [Fate.LOSE_ANSWER, Fate.DROP, Fate.DELAY])
def test_an_enrolment_whose_answer_is_lost_is_enrolled_once(desk: Desk, lost: Fate) -> None:
    """It asks again with the very same transaction and recognises its own instance."""
    writes: list[Txn] = []

    def fate(txn: Txn) -> Fate:
        if not txn.compares:
            return Fate.DELIVER  # the reading before it
        writes.append(txn)
        return lost if len(writes) == 1 else Fate.DELIVER

    store = FaultyStore(desk.store, fate)

    async def enrol_and_let_the_late_one_in() -> Session:
        session = await enroller(desk, store=store).enrol()
        await store.release_late()
        return session

    session = run_virtual(enrol_and_let_the_late_one_in(), desk.core)
    assert len(set(writes)) == 1
    assert epoch(desk) == session.instance.encode()


def test_of_two_enrolments_at_once_one_wins_and_the_other_takes_over(desk: Desk) -> None:
    """The epoch is compared by value, so they follow one another and never share one."""

    async def both() -> list[Session]:
        enrolling = [enroller(desk, seed=seed).enrol() for seed in (1, 2)]
        return list(await asyncio.gather(*enrolling))

    sessions = run_virtual(both(), desk.core)
    assert len({session.instance for session in sessions}) == 2
    assert epoch(desk) in [session.instance.encode() for session in sessions]


def test_a_session_lives_as_long_as_it_is_kept(desk: Desk) -> None:
    """Ten times its time to live later it is still there, and its deadline is in the future."""

    async def keep() -> Session:
        session = await enroller(desk).enrol()
        with suppress(TimeoutError):
            async with asyncio.timeout(10 * TTL):
                await session.keep(TTL)
        return session

    session = run_virtual(keep(), desk.core)
    assert session.alive
    assert desk.kv(desk.keys.session(HOST)) is not None


def test_a_session_that_is_gone_ends_the_keeping(desk: Desk) -> None:
    """Whoever keeps it learns from the answer that the lease is gone, and enrols again."""

    async def keep() -> None:
        session = await enroller(desk).enrol()
        desk.core.expire(session.lease)
        await session.keep(TTL)

    run_virtual(keep(), desk.core)
    assert desk.core.now <= TTL


def test_the_deadline_is_never_later_than_the_lease(desk: Desk) -> None:
    """It counts from before the keepalive was sent, so the lease outlives it."""

    async def enrol() -> Session:
        return await enroller(desk).enrol()

    session = run_virtual(enrol(), desk.core)
    desk.core.advance(session.deadline - desk.core.now - 0.01)
    assert desk.kv(desk.keys.session(HOST)) is not None
    desk.core.advance(0.02)
    assert not session.alive


def test_a_late_copy_of_an_enrolment_fences_nobody(desk: Desk) -> None:
    """It compares the epoch that was read, which its successor has replaced."""
    store = FaultyStore(desk.store, lambda txn: Fate.DELAY if txn.compares else Fate.DELIVER)

    async def killed() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await enroller(desk, store=store).enrol()
        assert store.late

    async def then_late() -> Session:
        await killed()
        session = await enroller(desk, seed=2).enrol()
        await store.release_late()
        return session

    session = run_virtual(then_late(), desk.core)
    assert epoch(desk) == session.instance.encode()


def test_a_machine_that_enrols_under_two_names_at_once_gets_one(desk: Desk) -> None:
    """Both find it free, and its record is compared where it is written."""

    async def both() -> list[Session | BaseException]:
        enrolling = (enroller(desk, host=host, seed=len(host)).enrol() for host in (HOST, "gpu009"))
        return list(await asyncio.gather(*enrolling, return_exceptions=True))

    ends = run_virtual(both(), desk.core)
    assert sorted(type(end).__name__ for end in ends) == ["NotAllowed", "Session"]


def test_another_machine_does_not_take_the_name_of_a_host_that_is_down(desk: Desk) -> None:
    """A host whose session has lapsed keeps its name, until it is forgotten."""
    first = run_virtual(enroller(desk).enrol(), desk.core)
    desk.core.expire(first.lease)
    with pytest.raises(NotAllowed, match="another machine"):
        run_virtual(enroller(desk, machine="m2", product="p2").enrol(), desk.core)
    assert epoch(desk) == first.instance.encode()


class Slow(FaultyStore):
    """A store whose answers take a while, after what was asked for is done."""

    async def txn(self, txn: Txn) -> TxnResult:
        """As the inner store, and late."""
        return await _late(super().txn(txn))

    async def grant(self, ttl: int) -> Lease:
        """As the inner store, and late."""
        return await _late(super().grant(ttl))

    async def keep_alive(self, lease: int) -> int:
        """As the inner store, and late."""
        return await _late(super().keep_alive(lease))


async def _late(answer: Awaitable[T]) -> T:
    told = await answer
    await pass_time(1.0)
    return told


def ends(desk: Desk, session: Session) -> float:
    """When the store ends the session, on its clock."""
    while desk.kv(desk.keys.session(HOST)) is not None:
        desk.core.advance(0.1)
    assert not session.alive, "it thinks itself alive when it is gone"
    return desk.core.now


def test_the_time_that_answers_take_is_not_added_to_the_deadline(desk: Desk) -> None:
    """A session is never thought alive that is gone, be its enrolment or its keepalives slow."""
    store = Slow(desk.store, lambda _: Fate.DELIVER)

    async def enrol_and_keep(seconds: float) -> Session:
        session = await enroller(desk, store=store).enrol()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await session.keep(TTL)
        return session

    for seconds in (0.1, 2.0 * TTL):
        session = run_virtual(enrol_and_keep(seconds), desk.core)
        assert session.deadline <= ends(desk, session)


def test_the_machines_clock_is_the_one_that_goes_on_while_it_sleeps() -> None:
    """CLOCK_BOOTTIME, on which workers and sessions count their deadlines; nobody can set it."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    read = SystemClock().boottime()
    assert before <= read <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_late_copy_of_an_enrolment_ends_no_evict(desk: Desk) -> None:
    """The evict has written another epoch than the one that was read, and nothing else."""
    store = FaultyStore(desk.store, lambda txn: Fate.DELAY if txn.compares else Fate.DELIVER)

    async def killed_evicted_and_late() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await enroller(desk, store=store).enrol()
        desk.core.txn(Txn(success=(Put(desk.keys.epoch(HOST), b"evict-1"),)))
        await store.release_late()

    run_virtual(killed_evicted_and_late(), desk.core)
    assert epoch(desk) == b"evict-1"
    assert desk.kv(desk.keys.session(HOST)) is None
