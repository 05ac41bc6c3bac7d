"""The store in memory and a real etcd give the same answers to the same random requests.

Both begin an example at the same revision, so revisions are compared as they are. Only the ids
of leases differ: the real one's are random.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from coordinator.embedded import EmbeddedEtcd
from coordinator.errors import MdevnsError, NotFound
from coordinator.etcd import EtcdStore
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.store import (
    Compare,
    Delete,
    Put,
    Range,
    RangeResult,
    Target,
    Txn,
    TxnResult,
    prefix,
)
from tests.support import rawetcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from coordinator.store import Event, KeyValue, Op, Result, Store, WatchBatch

pytestmark = pytest.mark.etcd

DEADLINE = 60  # seconds for a watch to tell what has happened
EXAMPLES = itertools.count()


# --- what is asked. Keys stand without their example's prefix, revisions relative to its start,
# leases as an index into those that were granted before.


@dataclass(frozen=True)
class Grant:
    """Grant a lease; long, so that it ends when it is revoked and not before."""


@dataclass(frozen=True)
class Revoke:
    """Revoke a lease."""

    lease: int


@dataclass(frozen=True)
class KeepAlive:
    """Refresh a lease."""

    lease: int


@dataclass(frozen=True)
class Compact:
    """Compact at a revision, if there is such a one to compact."""

    revision: int


@dataclass(frozen=True)
class Watch:
    """Watch from a revision on, until the end of the example."""

    ranges: tuple[Range, ...]
    start: int


Step = Txn | Range | Grant | Revoke | KeepAlive | Compact | Watch

KEYS = st.sampled_from(["a", "a/", "a/1", "b", "b0", "ü"])
VALUES = st.sampled_from([b"", b"1", b"2"])
LEASES = st.integers(0, 3)  # 0: none
LATEST = 12
REVISIONS = st.integers(0, LATEST)
ENDS = st.one_of(st.just(""), KEYS)

RANGES = st.builds(
    Range,
    KEYS,
    ENDS,
    limit=st.integers(0, 3),
    revision=st.one_of(st.just(0), REVISIONS),
    keys_only=st.booleans(),
    count_only=st.booleans(),
)
COMPARES = st.one_of(
    st.builds(Compare, KEYS, st.just(Target.VALUE), st.sampled_from("=<>"), VALUES),
    st.builds(Compare, KEYS, st.just(Target.VALUE), st.just("!="), VALUES),
    st.builds(
        Compare,
        KEYS,
        st.sampled_from([Target.CREATE, Target.MOD, Target.VERSION, Target.LEASE]),
        st.sampled_from(["=", "!=", "<", ">"]),
        REVISIONS,
    ),
)
PLAIN = st.one_of(st.builds(Put, KEYS, VALUES, LEASES), st.builds(Delete, KEYS, ENDS), RANGES)


def transactions(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Txn]:
    """Transactions of such operations, most of them with an outcome that is open."""
    some = st.lists(ops, max_size=3).map(tuple)
    return st.builds(Txn, st.lists(COMPARES, max_size=2).map(tuple), some, some)


TRANSACTIONS = transactions(
    st.one_of(PLAIN, transactions(st.one_of(PLAIN, transactions(PLAIN)))),
)
STEPS: st.SearchStrategy[Step] = st.one_of(
    TRANSACTIONS,
    TRANSACTIONS,
    TRANSACTIONS,
    RANGES,
    st.builds(Grant),
    st.builds(Revoke, LEASES),
    st.builds(KeepAlive, LEASES),
    st.builds(Compact, REVISIONS),
    st.builds(Watch, st.lists(st.builds(Range, KEYS, ENDS), min_size=1).map(tuple), REVISIONS),
)


# --- how it is asked


@dataclass
class Side:
    """One of the two stores, and how this example's names and numbers are written in it."""

    store: Store
    compact: Callable[[int], None]
    root: str
    base: int
    leases: list[int] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    compacted: int = 0

    async def answer(self, step: Step) -> object:
        """What it says to a step, with leases as their index; an error by its kind."""
        try:
            return await self._answer(step)
        except (MdevnsError, ValueError) as error:
            return type(error)

    async def _answer(self, step: Step) -> object:
        match step:
            case Txn():
                return self.result(await self.store.txn(self.txn(step)))
            case Range():
                return self.result(await self.store.range(self.range(step)))
            case Grant():
                lease = await self.store.grant(3600)
                self.leases.append(lease.id)
                return lease.ttl
            case Revoke(lease):
                await self.store.revoke(self.lease(lease))
            case KeepAlive(lease):
                return await self.store.keep_alive(self.lease(lease))
            case Compact(revision):
                await self.compact_at(self.base + revision)
            case Watch():
                self.watches.append(step)
        return None

    async def compact_at(self, revision: int) -> None:
        """Compact where etcd lets it: Store has no compaction, so its errors are not compared."""
        if self.compacted < revision <= await self.revision():
            self.compact(revision)
            self.compacted = revision

    async def revision(self) -> int:
        """The newest revision."""
        return (await self.store.range(Range(self.root, count_only=True))).revision

    # to the store

    def key(self, key: str) -> str:
        """A key of this example."""
        return self.root + key

    def lease(self, index: int) -> int:
        """A lease's id; one that was never granted is a number that nobody has."""
        return self.leases[index - 1] if 0 < index <= len(self.leases) else 0x7E57 * index

    def range(self, request: Range) -> Range:
        """A request to read."""
        return replace(
            request,
            key=self.key(request.key),
            end=request.end and self.key(request.end),
            revision=request.revision and self.base + request.revision,
        )

    def compare(self, compare: Compare) -> Compare:
        """A condition."""
        operand = compare.operand
        if compare.target is Target.LEASE:
            assert isinstance(operand, int)
            operand = self.lease(operand)
        elif compare.target in (Target.CREATE, Target.MOD) and operand:
            assert isinstance(operand, int)
            operand += self.base
        return replace(compare, key=self.key(compare.key), operand=operand)

    def txn(self, txn: Txn) -> Txn:
        """A transaction."""
        return Txn(
            tuple(map(self.compare, txn.compares)),
            tuple(map(self.op, txn.success)),
            tuple(map(self.op, txn.failure)),
        )

    def op(self, op: Op) -> Op:
        """An operation."""
        match op:
            case Put(key, value, lease):
                return Put(self.key(key), value, self.lease(lease))
            case Delete(key, end):
                return Delete(self.key(key), end and self.key(end))
            case Range():
                return self.range(op)
            case Txn():
                return self.txn(op)

    # from the store

    def result(self, result: Result) -> Result:
        """An answer."""
        match result:
            case RangeResult():
                return replace(result, kvs=tuple(map(self.kv, result.kvs)))
            case TxnResult():
                return replace(result, results=tuple(map(self.result, result.results)))
            case _:
                return result

    def kv(self, kv: KeyValue) -> KeyValue:
        """A key, its lease as an index."""
        return replace(kv, lease=kv.lease and self.leases.index(kv.lease) + 1)

    async def told(self, watch: Watch, last: int) -> object:
        """What a watch tells up to a revision in whose batch there is something to tell."""
        ranges = [*map(self.range, watch.ranges), Range(self.key("end"))]
        events: list[Event] = []
        try:
            async with self.store.watch(ranges, self.base + watch.start) as batches:
                async with asyncio.timeout(DEADLINE):
                    async for batch in _until(batches, last):
                        events += batch
        except MdevnsError as error:
            return type(error)
        return [replace(event, kv=self.kv(event.kv)) for event in events]


async def _until(batches: AsyncIterator[WatchBatch], last: int) -> AsyncIterator[Sequence[Event]]:
    async for batch in batches:
        yield batch.events
        if batch.revision >= last:
            return


@dataclass(frozen=True)
class Real:
    """A real etcd of our own, whose revisions nobody else moves, and a loop that talks to it."""

    endpoint: str
    store: EtcdStore
    run: Callable[[Coroutine[object, object, None]], None]


@pytest.fixture(scope="module")
def real() -> Iterator[Real]:
    """One server and one store for all examples."""
    try:
        server = EmbeddedEtcd(extra=["--unsafe-no-fsync"])
        with server, asyncio.Runner() as runner:
            store = EtcdStore([server.endpoint])
            yield Real(server.endpoint, store, runner.run)
            runner.run(store.close())
    except NotFound as error:
        pytest.skip(error.line)


async def compare_sides(real: Real, steps: Sequence[Step]) -> None:
    """Take the steps on both sides, then read everything and all watches."""
    root = f"/differential/{next(EXAMPLES)}/"
    base = rawetcd.revision(real.endpoint)
    core = MemoryEtcd(base)
    sides = (
        Side(MemoryStore(core), core.compact, root, base),
        Side(real.store, lambda at: rawetcd.compact(real.endpoint, at), root, base),
    )
    watch_all = Watch((Range("", "~"),), 1)
    whole = replace(prefix(root), key="", end="~~")
    # So many that every watch begins at a revision that is there, and has something to tell.
    end = [Txn(success=(Put("end", b""),))] * LATEST
    for step in (*steps, watch_all, *end, whole):
        memory, etcd = [await side.answer(step) for side in sides]
        assert memory == etcd, step
    last = core.revision
    memory, etcd = [
        await asyncio.gather(*(side.told(watch, last) for watch in side.watches)) for side in sides
    ]
    assert memory == etcd
    # Before the next example: a lease that ends by itself would move its revisions.
    for lease in sides[1].leases:
        await real.store.revoke(lease)


@given(steps=st.lists(STEPS, max_size=25))
@example(steps=[Txn(success=(Put("a", b"1"), Range("a", revision=1), Range("a")))])
@example(steps=[Txn(success=(Put("a", b"1"),)), Txn(success=(Delete("a"), Range("a", revision=1)))])
@settings(max_examples=100)
def test_memory_and_etcd_agree(real: Real, steps: list[Step]) -> None:
    """Every answer, error, revision and event of a random history is the same on both."""
    real.run(compare_sides(real, steps))
