"""What every Store does, asked of the one in memory and of the one on a real etcd."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import pytest
from msgspec.structs import replace

from coordinator.errors import Compacted, LeaseGone, SetBack, TooLarge, Unreachable
from coordinator.etcd import EtcdStore
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.store import (
    FROM_NOW,
    MAX_TXN_OPS,
    Compare,
    Delete,
    Deleted,
    Put,
    PutDone,
    Range,
    RangeResult,
    Target,
    Txn,
    TxnResult,
    absent,
    get,
    pages,
    prefix,
    present,
    unchanged,
    unwritten_since,
    valued,
)
from tests.support import rawetcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from coordinator.store import Event, Op, Store, WatchBatch

T = TypeVar("T")

DEADLINE = 60  # seconds for what has to come
GONE = 12345  # a lease that nobody was granted


@dataclass
class Bench:
    """A store under test, a prefix of its own in it, and the compaction that Store lacks."""

    store: Store
    compact: Callable[[int], None]
    root: str

    def key(self, name: str) -> str:
        """A key of this test."""
        return self.root + name

    async def put(self, name: str, value: bytes = b"", lease: int = 0) -> int:
        """Put one key; the revision that it got."""
        return (await self.store.txn(Txn(success=(Put(self.key(name), value, lease),)))).revision

    async def delete(self, name: str) -> int:
        """Delete one key; the revision after."""
        return (await self.store.txn(Txn(success=(Delete(self.key(name)),)))).revision

    async def keys(self) -> list[str]:
        """What is there, without the prefix."""
        found = await self.store.range(prefix(self.root))
        return [kv.key.removeprefix(self.root) for kv in found.kvs]


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """One of the two stores."""
    root = f"/contract/{uuid.uuid4()}/"
    if request.param == "memory":
        core = MemoryEtcd()
        yield Bench(MemoryStore(core), core.compact, root)
        return
    endpoint = request.getfixturevalue("etcd").endpoint
    store = EtcdStore([endpoint])
    yield Bench(store, lambda revision: rawetcd.compact(endpoint, revision), root)
    await store.close()


async def told(watch: AsyncIterator[WatchBatch], revision: int) -> list[Event]:
    """All events up to a revision."""
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        async for batch in watch:
            events += batch.events
            assert all(event.kv.mod_revision <= batch.revision for event in batch.events)
            if batch.revision >= revision:
                return events
    raise AssertionError("the watch ended")


async def under_way(reading: Awaitable[T]) -> asyncio.Future[T]:
    """A reading of a watch that waits, since there is nothing to read."""
    task = asyncio.ensure_future(reading)
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done
    return task


# --- transactions


async def test_a_compare_of_a_range_holds_of_every_key_in_it(bench: Bench) -> None:
    """One key that was written later fails it; a range without keys is as an absent key."""
    whole = prefix(bench.key("many/"))
    assert (await bench.store.txn(Txn((unwritten_since(whole, 0),)))).succeeded
    await bench.put("many/1", b"1")
    then = await bench.put("many/2", b"2")
    assert (await bench.store.txn(Txn((unwritten_since(whole, then),)))).succeeded
    assert not (await bench.store.txn(Txn((unwritten_since(whole, then - 1),)))).succeeded
    await bench.put("more", b"3")
    assert (await bench.store.txn(Txn((unwritten_since(whole, then),)))).succeeded
    await bench.put("many/1", b"4")
    assert not (await bench.store.txn(Txn((unwritten_since(whole, then),)))).succeeded


async def test_a_transaction_runs_the_branch_that_its_compares_choose(bench: Bench) -> None:
    """The success list runs when all compares hold, else the failure list, with its answers."""
    key = bench.key("a")
    take = Txn((absent(key),), (Put(key, b"1"),), (get(key),))
    first, second = await bench.store.txn(take), await bench.store.txn(take)
    assert (first.succeeded, first.results) == (True, (PutDone(),))
    assert not second.succeeded
    (found,) = second.ranges()
    assert found.first is not None
    assert (found.first.value, found.first.mod_revision) == (b"1", first.revision)


async def test_inner_transactions_have_answers_of_their_own(bench: Bench) -> None:
    """One of two nested transactions is refused, the other is applied, in one revision."""
    await bench.put("taken", b"x")
    inner = [
        Txn((absent(bench.key(name)),), (Put(bench.key(name), b"y"),), (get(bench.key(name)),))
        for name in ("free", "taken")
    ]
    result = await bench.store.txn(Txn(success=tuple(inner)))
    free, taken = result.results
    assert isinstance(free, TxnResult)
    assert isinstance(taken, TxnResult)
    assert (free.succeeded, taken.succeeded) == (True, False)
    assert free.revision == taken.revision == result.revision


async def test_inner_compares_see_the_store_as_it_was_before(bench: Bench) -> None:
    """A put of the same transaction is seen by its reads, and not by its inner compares."""
    key = bench.key("a")
    result = await bench.store.txn(
        Txn(success=(Put(key, b"1"), get(key), Txn((present(key),), (get(key),))))
    )
    _, read, inner = result.results
    assert isinstance(read, RangeResult)
    assert read.count == 1
    assert read.revision == result.revision
    assert isinstance(inner, TxnResult)
    assert not inner.succeeded


async def test_a_compare_of_the_value_of_an_absent_key_never_holds(bench: Bench) -> None:
    """Neither is nor is-not is true of a value that is not there; numbers are zero."""
    key = bench.key("absent")
    for op, holds in (("=", False), ("!=", False)):
        result = await bench.store.txn(Txn((Compare(key, Target.VALUE, op, b""),)))
        assert result.succeeded is holds
    for target in (Target.CREATE, Target.MOD, Target.VERSION, Target.LEASE):
        assert (await bench.store.txn(Txn((Compare(key, target, "=", 0),)))).succeeded


async def test_compares_know_value_revision_version_and_lease(bench: Bench) -> None:
    """Each target of a compare holds for what was written and fails for anything else."""
    lease = await bench.store.grant(60)
    key, created = bench.key("a"), await bench.put("a", b"1", lease.id)
    changed = await bench.put("a", b"2", lease.id)
    true = (
        valued(key, b"2"),
        unchanged(key, changed),
        Compare(key, Target.CREATE, "=", created),
        Compare(key, Target.VERSION, "=", 2),
        Compare(key, Target.LEASE, "=", lease.id),
        Compare(key, Target.MOD, ">", created),
        Compare(key, Target.MOD, "<", changed + 1),
        Compare(key, Target.VALUE, "!=", b"1"),
    )
    assert (await bench.store.txn(Txn(true))).succeeded
    for compare in (valued(key, b"1"), unchanged(key, created), absent(key)):
        assert not (await bench.store.txn(Txn((*true, compare)))).succeeded


async def test_a_key_deleted_and_made_again_begins_anew(bench: Bench) -> None:
    """Create revision and version start again after a delete."""
    await bench.put("a")
    deleted = await bench.store.txn(Txn(success=(Delete(bench.root, bench.root + "~"),)))
    assert deleted.results == (Deleted(1),)
    revision = await bench.put("a")
    kv = (await bench.store.range(get(bench.key("a")))).first
    assert kv is not None
    assert (kv.create_revision, kv.version) == (revision, 1)


async def test_126_inner_transactions_of_two_puts_fit_and_127_do_not(bench: Bench) -> None:
    """The outer list and the longest inner list share 128 places; what is over is TooLarge."""

    def of(count: int) -> Txn:
        return Txn(
            success=tuple(
                Txn(success=(Put(bench.key(f"a{i}"), b""), Put(bench.key(f"b{i}"), b"")))
                for i in range(count)
            )
        )

    with pytest.raises(TooLarge):
        await bench.store.txn(of(MAX_TXN_OPS - 1))
    assert await bench.keys() == []
    await bench.store.txn(of(MAX_TXN_OPS - 2))
    assert len(await bench.keys()) == 2 * (MAX_TXN_OPS - 2)


@pytest.mark.parametrize("mebibytes", [1.6, 2.1, 5.0])
async def test_a_request_over_the_limit_is_refused(bench: Bench, mebibytes: float) -> None:
    """More than 1.5 MiB is TooLarge, whichever part of etcd notices, and nothing is written."""
    with pytest.raises(TooLarge):
        await bench.put("a", bytes(int(mebibytes * 1024 * 1024)))
    assert await bench.keys() == []


async def test_a_large_answer_is_taken(bench: Bench) -> None:
    """A read of more than gRPC's usual 4 MiB comes through, and so does a watch of it."""
    first, *_, last = [await bench.put(name, bytes(1024 * 1024)) for name in "012345"]
    assert sum(len(kv.value) for kv in (await bench.store.range(prefix(bench.root))).kvs) == 6 << 20
    async with bench.store.watch([prefix(bench.root)], first) as watch:
        assert len(await told(watch, last)) == 6


# A key put twice. In the two branches of one inner transaction that is allowed, and in the two
# of the outer one.
_A, _B = Put("a", b""), Put("b", b"")
DOUBLES: dict[str, tuple[Txn, bool]] = {
    "in one list": (Txn(success=(_A, _A)), True),
    "in the outer branches": (Txn(success=(_A,), failure=(_A,)), False),
    "outside and inside": (Txn(success=(_A, Txn(success=(_A,)))), True),
    "outside and in an inner else": (Txn(success=(_A, Txn(failure=(_A,)))), True),
    "in the branches of one inner": (Txn(success=(Txn(success=(_A,), failure=(_A,)),)), False),
    "in two inner ones": (Txn(success=(Txn(success=(_A,)), Txn(success=(_A,)))), True),
    "in exclusive inner ones": (Txn(success=(Txn(success=(_A,)), Txn(failure=(_A,)))), True),
    "put and deleted": (Txn(success=(_A, Delete("a"))), True),
    "put and deleted by a range": (Txn(success=(Delete("", "z"), _A)), True),
    "put inside, deleted outside": (Txn(success=(Delete("a"), Txn(success=(_A,)))), True),
    "deleted inside, put outside": (Txn(success=(_A, Txn(success=(Delete("a"),)))), True),
    "deleted inside, then put inside": (
        Txn(success=(Txn(success=(Delete("a"),)), Txn(success=(_A,)))),
        True,
    ),
    "put inside, then deleted inside": (
        Txn(success=(Txn(success=(_A,)), Txn(success=(Delete("a"),)))),
        False,
    ),
    "two keys": (Txn(success=(_A, _B, Delete("c"))), False),
}


def under(root: str, txn: Txn) -> Txn:
    """The same with `root` before every key."""

    def moved(op: Op) -> Op:
        if isinstance(op, Txn):
            return under(root, op)
        if isinstance(op, Delete):
            return Delete(root + op.key, op.end and root + op.end)
        return replace(op, key=root + op.key)

    return Txn((), tuple(map(moved, txn.success)), tuple(map(moved, txn.failure)))


@pytest.mark.parametrize("case", DOUBLES)
async def test_which_double_keys_are_a_defect(bench: Bench, case: str) -> None:
    """A key given twice is ValueError exactly where etcd says so, and nothing is written."""
    txn, refused = DOUBLES[case]
    txn = under(bench.root, txn)
    if not refused:
        await bench.store.txn(txn)
        return
    with pytest.raises(ValueError, match="duplicate key"):
        await bench.store.txn(txn)
    assert await bench.keys() == []


# --- leases


async def test_a_put_with_a_lease_that_is_gone_refuses_the_whole(bench: Bench) -> None:
    """LeaseGone, also for one deep inside, and nothing is written."""
    inner = Txn(success=(Put(bench.key("b"), b"", GONE),))
    with pytest.raises(LeaseGone):
        await bench.store.txn(Txn(success=(Put(bench.key("a"), b""), inner)))
    assert await bench.keys() == []


async def test_a_gone_lease_in_a_branch_that_does_not_run_is_no_matter(bench: Bench) -> None:
    """Only what would be written needs its lease."""
    inner = Txn((present(bench.key("b")),), (Put(bench.key("b"), b"", GONE),))
    await bench.store.txn(Txn(success=(Put(bench.key("a"), b""), inner)))
    assert await bench.keys() == ["a"]


async def test_a_lease_lives_two_seconds_at_least(bench: Bench) -> None:
    """Asked for one second, two are given; asked for a minute, that is."""
    assert (await bench.store.grant(1)).ttl == 2
    assert (await bench.store.grant(60)).ttl == 60


async def test_a_lease_is_kept_alive_until_it_is_gone(bench: Bench) -> None:
    """A keepalive gives the full time to live, and zero for a lease that is gone."""
    lease = await bench.store.grant(60)
    assert await bench.store.keep_alive(lease.id) == 60
    await bench.store.revoke(lease.id)
    assert await bench.store.keep_alive(lease.id) == 0


async def test_a_revoked_lease_takes_its_keys_in_one_revision(bench: Bench) -> None:
    """What hangs on it goes at once, what was put again without it stays; twice is no error."""
    lease = await bench.store.grant(60)
    for name in ("b", "a", "kept"):
        await bench.put(name, b"1", lease.id)
    start = await bench.put("kept", b"2")
    async with bench.store.watch([prefix(bench.root)], start + 1) as watch:
        await bench.store.revoke(lease.id)
        events = await told(watch, start + 1)
    assert [(e.kv.key, e.deleted, e.kv.mod_revision) for e in events] == [
        (bench.key("a"), True, start + 1),
        (bench.key("b"), True, start + 1),
    ]
    assert await bench.keys() == ["kept"]
    await bench.store.revoke(lease.id)


# --- reads


async def test_a_range_is_read_in_order_with_limit_and_count(bench: Bench) -> None:
    """Keys come sorted; a limit cuts and says so; the count is of the whole range."""
    for name in ("b", "ä", "a", "z", "a/1"):
        await bench.put(name, name.encode())
    whole = await bench.store.range(prefix(bench.root))
    assert [kv.value.decode() for kv in whole.kvs] == ["a", "a/1", "b", "z", "ä"]
    assert (whole.more, whole.count) == (False, 5)
    cut = await bench.store.range(Range(bench.root, bench.root + "~~", limit=2))
    assert ([kv.value for kv in cut.kvs], cut.more, cut.count) == ([b"a", b"a/1"], True, 4)
    exact = await bench.store.range(Range(bench.key("b"), bench.key("z"), limit=1))
    assert (len(exact.kvs), exact.more) == (1, False)


async def test_values_can_be_left_out(bench: Bench) -> None:
    """`keys_only` gives everything but values, `count_only` nothing but the count."""
    revision = await bench.put("a", b"1")
    (kv,) = (await bench.store.range(Range(bench.key("a"), keys_only=True))).kvs
    assert (kv.value, kv.mod_revision, kv.version) == (b"", revision, 1)
    counted = await bench.store.range(Range(bench.root, bench.root + "~", count_only=True))
    assert (counted.kvs, counted.count, counted.more) == ((), 1, False)


async def test_the_past_can_be_read_until_it_is_compacted(bench: Bench) -> None:
    """A revision gives what stood there then; an older one than the compaction is Compacted."""
    first = await bench.put("a", b"1")
    second = await bench.put("a", b"2")
    await bench.delete("a")

    async def at(revision: int) -> list[bytes]:
        found = await bench.store.range(Range(bench.key("a"), revision=revision))
        return [kv.value for kv in found.kvs]

    assert [await at(first), await at(second), await at(second + 1)] == [[b"1"], [b"2"], []]
    bench.compact(second)
    assert await at(second) == [b"2"]
    with pytest.raises(Compacted):
        await at(first)
    with pytest.raises(Compacted):
        await bench.store.txn(Txn(success=(Range(bench.key("a"), revision=first),)))


async def test_a_revision_that_is_not_there_yet_is_compacted_too(bench: Bench) -> None:
    """Only a store that was set back is asked for its future; the remedy is to list again."""
    revision = await bench.put("a")
    with pytest.raises(Compacted):
        await bench.store.range(Range(bench.key("a"), revision=revision + 1000))


async def test_pages_are_all_of_one_revision(bench: Bench) -> None:
    """What is written between two pages is in none of them."""
    for number in range(5):
        await bench.put(f"{number}")
    seen: list[str] = []
    async for page in pages(bench.store, prefix(bench.root), size=2):
        seen += [kv.key.removeprefix(bench.root) for kv in page.kvs]
        await bench.put("9")
        await bench.delete("4")
    assert seen == ["0", "1", "2", "3", "4"]


# --- watches


async def test_a_watch_tells_the_past_and_goes_on(bench: Bench) -> None:
    """From its start on every change is told once, in order, deletes without a value."""
    await bench.put("a", b"0")
    start = await bench.put("a", b"1")
    await bench.delete("a")
    async with bench.store.watch([prefix(bench.root)], start) as watch:
        events = await told(watch, start + 1)
        last = await bench.put("b", b"2")
        events += await told(watch, last)
    assert [(e.kv.key[-1], e.kv.value, e.deleted, e.kv.mod_revision) for e in events] == [
        ("a", b"1", False, start),
        ("a", b"", True, start + 1),
        ("b", b"2", False, last),
    ]
    assert (events[1].kv.create_revision, events[1].kv.version) == (0, 0)


async def test_no_revision_is_cut_in_two(bench: Bench) -> None:
    """A transaction that writes into several watched ranges comes in one batch, and only they."""
    names = ("a/1", "b/1", "c/1", "c/2")
    start = await bench.put("b/0")
    ranges = [prefix(bench.key("c/")), get(bench.key("a/1"))]
    async with bench.store.watch(ranges, start) as watch:
        written = await bench.store.txn(
            Txn(success=tuple(Put(bench.key(name), b"") for name in names))
        )
        async with asyncio.timeout(DEADLINE):
            batches = [batch async for batch in until(watch, written.revision)]
    with_events = [batch for batch in batches if batch.events]
    assert len(with_events) == 1
    assert [e.kv.key.removeprefix(bench.root) for e in with_events[0].events] == [
        "a/1",
        "c/1",
        "c/2",
    ]


async def until(watch: AsyncIterator[WatchBatch], revision: int) -> AsyncIterator[WatchBatch]:
    """The batches up to a revision."""
    async for batch in watch:
        yield batch
        if batch.revision >= revision:
            return


async def test_a_watch_from_before_the_compaction_is_told_so(bench: Bench) -> None:
    """Changes that are lost are Compacted, and never skipped."""
    start = await bench.put("a", b"1")
    last = await bench.put("a", b"2")
    await bench.put("a", b"3")
    bench.compact(last)
    async with bench.store.watch([prefix(bench.root)], start) as watch:
        with pytest.raises(Compacted) as caught:
            await told(watch, last)
    assert caught.value.revision == last
    async with bench.store.watch([prefix(bench.root)], last + 1) as watch:
        assert [e.kv.value for e in await told(watch, last + 1)] == [b"3"]


async def test_a_delete_at_the_compacted_revision_is_not_lost_silently(bench: Bench) -> None:
    """A watch from exactly the compacted revision is Compacted: older etcds drop a delete there."""
    await bench.put("a")
    deleted = await bench.delete("a")
    last = await bench.put("b")
    bench.compact(deleted)
    async with bench.store.watch([prefix(bench.root)], deleted) as watch:
        with pytest.raises(Compacted):
            await told(watch, last)


async def test_a_store_that_is_behind_what_was_told_was_set_back(bench: Bench) -> None:
    """A watch from beyond what it has seen says so, and every call until all was forgotten."""
    revision = await bench.put("a")
    noticed = await under_way(bench.store.until_set_back())
    async with bench.store.watch([prefix(bench.root)], revision + 1000) as watch:
        with pytest.raises(SetBack):
            await told(watch, revision + 1000)
    with pytest.raises(SetBack):
        await noticed
    for call in (bench.put("b"), bench.store.range(get("a")), bench.store.grant(5)):
        with pytest.raises(SetBack):
            await call
    bench.store.begin_anew()
    assert await bench.keys() == ["a"]


async def test_a_reading_that_is_cancelled_loses_nothing(bench: Bench) -> None:
    """After a reading of a watch was cancelled the next one goes on where it was."""
    start = await bench.put("a")
    async with bench.store.watch([prefix(bench.root)], start) as watch:
        await told(watch, start)
        reading = await under_way(anext(watch))
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
        last = await bench.put("b")
        assert [e.kv.mod_revision for e in await told(watch, last)] == [last]


async def test_a_watch_from_now_on_says_where_it_begins_and_misses_nothing_after(
    bench: Bench,
) -> None:
    """What is read after its first batch, and what it tells from there on, is everything."""
    before = await bench.put("a")
    async with bench.store.watch([prefix(bench.root)], FROM_NOW) as watch:
        async with asyncio.timeout(DEADLINE):
            first = await anext(watch)
        assert first.events == ()
        assert first.revision >= before
        last = [await bench.put(name) for name in "bc"][-1]
        events = await told(watch, last)
        assert [event.kv.key.removeprefix(bench.root) for event in events] == ["b", "c"]


async def test_a_watch_ends_with_its_context(bench: Bench) -> None:
    """Whoever still reads when the context is left sees the end of the iteration."""

    async def read(watch: AsyncIterator[WatchBatch]) -> int:
        return len([batch async for batch in watch])

    async with bench.store.watch([prefix(bench.root)], await bench.put("a") + 1) as watch:
        reading = await under_way(read(watch))
    async with asyncio.timeout(DEADLINE):
        assert await reading == 0


# --- the rest


async def test_the_version_is_told(bench: Bench) -> None:
    """`status` gives three numbers."""
    assert len([int(part) for part in (await bench.store.status()).split(".")]) == 3


async def test_a_closed_store_is_unreachable(bench: Bench) -> None:
    """After `close` calls are refused, and a watch that is being read ends so."""
    async with bench.store.watch([prefix(bench.root)], await bench.put("a") + 1) as watch:
        reading = await under_way(anext(watch))
        await bench.store.close()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(Unreachable):
                await reading
    for call in (bench.put("a"), bench.store.range(get("a")), bench.store.grant(5)):
        with pytest.raises(Unreachable):
            await call
