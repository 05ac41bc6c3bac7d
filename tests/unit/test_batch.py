"""Group commit: how requests share transactions, and that a bad one fails alone."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from coordinator.batch import GroupCommit
from coordinator.errors import LeaseGone, NameTaken, StoreReadOnly, Unreachable
from coordinator.store import Put, Txn
from tests.support.desk import Desk, name, wish
from tests.support.faulty import Fate, FaultyStore
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from coordinator.store import TxnResult
    from coordinator.transactions import Change


class Counted:
    """A store in memory that counts transactions and can hold them up."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.count = desk, 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.store = FaultyStore(desk.store, self._counted)

    def _counted(self, _: Txn) -> Fate:
        self.count += 1
        return Fate.DELIVER


@pytest.fixture
def desk() -> Desk:
    return Desk()


def reserve(desk: Desk, number: int, lease: int | None = None) -> Change:
    lease = desk.core.grant(60).id if lease is None else lease
    return desk.claims.reserve(name(number), "r", wish(), lease=lease, now="t", by=None)


async def test_who_asks_at_the_same_time_shares_a_transaction(desk: Desk) -> None:
    """64 callers of one name each cost one transaction, and each gets its own answer."""
    counted = Counted(desk)
    commit = GroupCommit(counted.store, patience=None, rng=random.Random(1))
    lease = desk.core.grant(60).id
    answers = await asyncio.gather(
        *(commit.change((), reserve(desk, n % 60, lease)) for n in range(64))
    )
    # Names 0 to 3 are asked for twice: by the same request, so both are answered the same.
    assert counted.count == 2
    assert [answer.error for answer in answers] == [None] * 64


class Held(FaultyStore):
    """A store that answers when it is let, and shows what is in flight."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk.store, lambda _: Fate.DELIVER)
        self.in_flight: list[tuple[Txn, asyncio.Event]] = []
        self.sizes: list[int] = []

    async def txn(self, txn: Txn) -> TxnResult:
        let = asyncio.Event()
        self.in_flight.append((txn, let))
        self.sizes.append(len(txn.success))
        await let.wait()
        return await super().txn(txn)

    def answer(self) -> None:
        """Answer the oldest one in flight."""
        _, let = self.in_flight.pop(0)
        let.set()


async def test_few_that_come_while_one_is_in_flight_go_into_the_next(desk: Desk) -> None:
    """A second transaction is not sent beside the first for what a later one can take along."""
    store = Held(desk)
    commit = GroupCommit(store, patience=None, rng=random.Random(1))
    asking = [asyncio.create_task(commit.change((), reserve(desk, 0)))]
    await wait_until_async(lambda: store.in_flight)
    for number in range(1, 32):
        asking.append(asyncio.create_task(commit.change((), reserve(desk, number))))
        await asyncio.gather(_next_turn())
    assert store.sizes == [1]
    store.answer()
    await wait_until_async(lambda: store.in_flight)
    store.answer()
    assert [answer.error for answer in await asyncio.gather(*asking)] == [None] * 32
    assert store.sizes == [1, 31]


async def test_many_that_wait_have_two_transactions_in_flight(desk: Desk) -> None:
    """While etcd is at the one the other is made, and there is never a third."""
    store = Held(desk)
    commit = GroupCommit(store, patience=None, rng=random.Random(1))
    lease = desk.core.grant(60).id
    changes = [reserve(desk, number, lease) for number in range(400)]
    asking = [asyncio.create_task(commit.change((), change)) for change in changes]
    most = 0
    while not all(one.done() for one in asking):
        await wait_until_async(lambda: store.in_flight or all(one.done() for one in asking))
        await asyncio.gather(_next_turn())
        most = max(most, len(store.in_flight))
        if store.in_flight:
            store.answer()
            await asyncio.gather(_next_turn())
    assert [one.result().error for one in asking] == [None] * 400
    assert (most, sum(store.sizes), len(store.sizes)) == (2, 400, 4)


async def test_many_who_ask_again_at_once_take_turns_by_halves(desk: Desk) -> None:
    """While etcd is at the one half of them, the other half is answered and asks again."""
    store = Held(desk)
    commit = GroupCommit(store, patience=None, rng=random.Random(1))
    lease = desk.core.grant(60).id

    async def ask(first: int) -> None:
        for number in range(first, 4 * 64, 64):
            assert (await commit.change((), reserve(desk, number, lease))).error is None

    asking = [asyncio.create_task(ask(number)) for number in range(64)]
    await wait_until_async(lambda: store.in_flight)
    store.answer()
    for _ in range(5):
        await wait_until_async(lambda: len(store.in_flight) == 2)
        store.answer()
    await wait_until_async(lambda: store.in_flight)
    store.answer()
    await asyncio.gather(*asking)
    assert store.sizes == [64, 32, 32, 32, 32, 32, 32]


async def test_what_a_caller_asks_for_at_once_is_never_halved(desk: Desk) -> None:
    """A request of 126 names costs one transaction, also right after another."""
    store = Counted(desk)
    commit = GroupCommit(store.store, patience=None, rng=random.Random(1))
    lease = desk.core.grant(60).id
    for first in (0, 126, 252):
        changes = [reserve(desk, first + number, lease) for number in range(126)]
        answers = await commit.changes((), changes)
        assert [answer.error for answer in answers] == [None] * 126
    assert store.count == 3


async def test_a_name_is_in_one_transaction_at_a_time(desk: Desk) -> None:
    """What is asked for a name is done in the order in which it was asked, also beside others."""
    store = Held(desk)
    commit = GroupCommit(store, patience=None, rng=random.Random(1))
    reserved = asyncio.create_task(commit.change((), reserve(desk, 0)))
    await wait_until_async(lambda: store.in_flight)
    lease = desk.core.grant(60).id
    other = desk.claims.reserve(name(0), "other", wish(), lease=lease, now="t", by=None)
    again = asyncio.create_task(commit.change((), other))
    rest = [asyncio.create_task(commit.change((), reserve(desk, n, lease))) for n in range(1, 50)]
    await wait_until_async(lambda: len(store.in_flight) == 2)
    assert store.sizes == [1, 49]
    second = store.in_flight.pop()
    second[1].set()
    await asyncio.gather(*rest)
    assert not again.done()
    store.answer()
    await wait_until_async(lambda: store.in_flight)
    store.answer()
    assert (await reserved).error is None
    assert isinstance((await again).error, NameTaken)


async def test_different_guards_do_not_share(desk: Desk) -> None:
    """One caller's fence never decides about another's request."""
    counted = Counted(desk)
    desk.core.txn(Txn(success=(Put(desk.keys.hold, b"{}"),)))
    commit = GroupCommit(counted.store, patience=None, rng=random.Random(1))
    free, held = await asyncio.gather(
        commit.change((), reserve(desk, 1)),
        commit.change((desk.claims.no_hold(),), reserve(desk, 2)),
    )
    assert free.error is None
    assert isinstance(held.error, StoreReadOnly)
    assert counted.count == 2


async def test_a_lease_that_died_fails_its_own_request_alone(desk: Desk) -> None:
    """etcd refuses the whole for one dead lease; each is then sent alone."""
    commit = GroupCommit(desk.store, patience=None, rng=random.Random(1))
    good = desk.core.grant(60).id
    leases = [good, 4711, good]
    changes = [reserve(desk, n, lease) for n, lease in enumerate(leases)]
    answers = await commit.changes((), changes)
    assert [type(answer.error) for answer in answers] == [type(None), LeaseGone, type(None)]


async def test_a_request_that_is_refused_is_told_so_and_the_others_are_not(desk: Desk) -> None:
    """Answers are not shifted: each caller hears of its own name."""
    await desk.active(name(2))
    commit = GroupCommit(desk.store, patience=None, rng=random.Random(1))
    other = [
        desk.claims.reserve(name(n), "other", wish(), lease=0, now="t", by=None) for n in range(5)
    ]
    answers = await asyncio.gather(*(commit.change((), change) for change in other))
    refused = [n for n, answer in enumerate(answers) if isinstance(answer.error, NameTaken)]
    assert refused == [2]
    claims = [answer.claim for answer in answers]
    assert [claim and claim.name for claim in claims] == [name(0), name(1), None, name(3), name(4)]


async def test_a_caller_that_is_cancelled_takes_nobody_with_it(desk: Desk) -> None:
    """Its own change may be made; the others' are."""
    commit = GroupCommit(desk.store, patience=None, rng=random.Random(1))
    doomed = asyncio.create_task(commit.change((), reserve(desk, 1)))
    other = asyncio.create_task(commit.change((), reserve(desk, 2)))
    asyncio.get_running_loop().call_soon(doomed.cancel)
    assert (await other).error is None


async def test_what_a_caller_has_not_sent_when_it_leaves_is_not_sent(desk: Desk) -> None:
    """Its first transaction is under way, and is made; who asks beside it is answered."""
    sent: list[int] = []

    def leaves(txn: Txn) -> Fate:
        sent.append(len(txn.success))
        many.cancel()
        return Fate.DELIVER

    commit = GroupCommit(FaultyStore(desk.store, leaves), patience=None, rng=random.Random(1))
    many = asyncio.create_task(commit.changes((), [reserve(desk, n) for n in range(1, 201)]))
    other = asyncio.create_task(commit.change((), reserve(desk, 300)))
    assert (await other).error is None
    with pytest.raises(asyncio.CancelledError):
        await many
    assert sent == [126, 1]
    assert desk.kv(desk.keys.name(name(126))) is not None
    assert desk.kv(desk.keys.name(name(127))) is None


async def test_a_store_that_is_away_is_said_to_each_and_the_next_try_is_a_new_one(
    desk: Desk,
) -> None:
    """After a failure nothing is stuck."""
    fates = iter([Fate.UNREACHABLE])
    store = FaultyStore(desk.store, lambda _: next(fates, Fate.DELIVER))
    commit = GroupCommit(store, patience=None, rng=random.Random(1))
    failed = await commit.changes((), [reserve(desk, 1), reserve(desk, 2)])
    assert all(isinstance(answer.error, Unreachable) for answer in failed)
    assert (await commit.change((), reserve(desk, 1))).error is None


@pytest.mark.parametrize("sent", [False, True], ids=["not sent yet", "under way"])
async def test_closing_leaves_nobody_waiting(desk: Desk, *, sent: bool) -> None:
    """Whoever waits when it is closed is cancelled, not forgotten."""
    tried: list[Txn] = []

    def drop(txn: Txn) -> Fate:
        tried.append(txn)
        return Fate.DROP

    commit = GroupCommit(FaultyStore(desk.store, drop), patience=None, rng=random.Random(1))
    waiting = asyncio.create_task(commit.change((), reserve(desk, 1)))
    if sent:
        await wait_until_async(lambda: tried)
    else:
        await asyncio.gather(_next_turn())
    await commit.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def _next_turn() -> None:
    """One turn of the loop, in which everything that is ready runs once."""


async def test_a_defect_is_told_to_all_who_wait_also_beside_one_who_left(desk: Desk) -> None:
    """A caller that was cancelled does not keep the others from hearing of a defect."""
    counted = Counted(desk)

    class Defective(FaultyStore):
        async def txn(self, txn: Txn) -> TxnResult:
            sent.append(txn)
            await counted.gate.wait()
            raise KeyError(len(txn.success))

    sent: list[Txn] = []
    counted.gate.clear()
    store = Defective(desk.store, lambda _: Fate.DELIVER)
    commit = GroupCommit(store, patience=None, rng=random.Random(1))
    first = asyncio.create_task(commit.change((), reserve(desk, 1)))
    await wait_until_async(lambda: sent)  # its transaction is in flight
    left, stays = (asyncio.create_task(commit.change((), reserve(desk, n))) for n in (2, 3))
    await asyncio.gather(_next_turn())  # both wait for the next one
    left.cancel()
    await asyncio.wait([left])
    counted.gate.set()
    async with asyncio.timeout(60):
        ended = await asyncio.gather(first, stays, return_exceptions=True)
    assert [type(one) for one in ended] == [KeyError, KeyError]
