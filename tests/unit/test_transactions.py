"""How many changes fit one transaction, and how unknown outcomes become known."""

from __future__ import annotations

import random

import pytest

from coordinator.errors import OutcomeUnknown, StoreReadOnly, Unreachable
from coordinator.memory import MemoryStore
from coordinator.store import Put, Range, RangeResult, Txn, TxnResult, absent
from coordinator.transactions import chunks, settle, transact, transaction
from tests.support.desk import NAME, Desk, name, wish
from tests.support.faulty import Fate, FaultyStore

TAKE = Txn((absent("k"),), (Put("k", b"mine"),))


def scripted(desk: Desk, *fates: Fate) -> FaultyStore:
    """A store that treats transactions as told, and delivers when the script is over."""
    script = iter(fates)
    return FaultyStore(desk.store, lambda _: next(script, Fate.DELIVER))


def test_126_reservations_fit_one_transaction_and_etcd_takes_them() -> None:
    """Outer list + longest inner list is at most 128, as etcd counts."""
    desk = Desk()
    lease = desk.core.grant(60).id
    changes = [
        desk.claims.reserve(name(n), "r", wish(), lease=lease, now="t", by=None) for n in range(300)
    ]
    groups = list(chunks(changes))
    assert [len(group) for group in groups] == [126, 126, 48]
    for group in groups:
        assert desk.core.txn(transaction((desk.claims.no_hold(),), group)).succeeded


def test_a_name_is_in_a_transaction_once() -> None:
    """etcd refuses a key that is put twice, so the second change goes into the next one."""
    desk = Desk()
    same = [desk.claims.hold(NAME, "r", lease=0)] * 3
    assert [len(group) for group in chunks(same)] == [1, 1, 1]


def test_a_transaction_stays_under_the_size_that_etcd_takes() -> None:
    """Large attributes make smaller groups: a request is refused over 1.5 MiB."""
    desk = Desk()
    large = wish()
    large = type(large)(
        host=large.host, parent=large.parent, type=large.type, attrs=(("a", "x" * 4000),) * 20
    )
    changes = [
        desk.claims.reserve(name(n), "r", large, lease=0, now="t", by=None) for n in range(40)
    ]
    groups = list(chunks(changes))
    assert len(groups) > 1
    for group in groups:
        desk.core.txn(transaction((), group))


@pytest.mark.parametrize("lost", [Fate.LOSE_ANSWER, Fate.DROP])
async def test_an_unknown_outcome_is_asked_for_with_the_very_same_transaction(lost: Fate) -> None:
    """Applied or not, it ends applied exactly once, and that is what is answered."""
    desk = Desk()
    store = scripted(desk, lost, Fate.UNREACHABLE, lost)
    result = await settle(store, TAKE, patience=None, rng=random.Random(1))
    kv = desk.kv("k")
    assert kv is not None
    assert (kv.value, kv.version) == (b"mine", 1)
    assert result.succeeded is (lost is Fate.DROP)


async def test_what_was_certainly_not_done_is_said_at_once() -> None:
    """Unreachable at the first try is an answer: nothing was done."""
    desk = Desk()
    store = scripted(desk, *[Fate.UNREACHABLE] * 9)
    with pytest.raises(Unreachable):
        await settle(store, TAKE, patience=None, rng=random.Random(1))


async def test_unreachable_after_an_unknown_outcome_is_not_a_no() -> None:
    """A first copy may be under way, so whoever gives up then says that it is not known."""
    desk = Desk()
    store = scripted(desk, Fate.DELAY, *[Fate.UNREACHABLE] * 99)
    with pytest.raises(OutcomeUnknown) as caught:
        await settle(store, TAKE, patience=0.05, rng=random.Random(1))
    assert caught.value.exit_code == 11
    await store.release_late()
    assert desk.kv("k") is not None


async def test_a_copy_that_arrives_late_is_not_applied_twice() -> None:
    """The compare makes a second application impossible, however late the first one comes."""
    desk = Desk()
    store = scripted(desk, Fate.DELAY)
    await settle(store, TAKE, patience=None, rng=random.Random(1))
    await store.release_late()
    kv = desk.kv("k")
    assert kv is not None
    assert kv.version == 1
    assert isinstance(desk.store, MemoryStore)


async def test_no_space_and_then_no_answer_is_unknown() -> None:
    """etcd may have applied what it answers with "no space": unread, it is not called undone."""
    desk = Desk()

    class Alarming(FaultyStore):
        async def txn(self, txn: Txn) -> TxnResult:
            await super().txn(txn)
            raise StoreReadOnly("etcd", "its space quota is used up (NOSPACE)")

        async def range(self, request: Range) -> RangeResult:
            raise Unreachable("etcd", f"{request.key} cannot be read")

    store = Alarming(desk.store, lambda _: Fate.DELIVER)
    lease = desk.core.grant(60).id
    change = desk.claims.reserve(NAME, "r", wish(), lease=lease, now="t", by=None)
    with pytest.raises(OutcomeUnknown, match="cannot be read"):
        await transact(store, (), [change], patience=1.0, rng=random.Random(0))
    assert desk.records(NAME)[1] is not None
