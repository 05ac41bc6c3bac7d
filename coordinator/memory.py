"""The Store in memory, with etcd's semantics and a virtual clock.

`MemoryEtcd` is the store itself: a small deterministic core without I/O, whose whole state can
be copied (`snapshot`) and hashed. `MemoryStore` is one client of it; several may share a core.
Time passes only in `advance`, so nothing expires by itself.

Held to a real etcd by tests/unit/test_store_contract.py and test_store_differential.py. Where a
rule is odd it is etcd's; the comment names its source.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

import msgspec

from coordinator.errors import Compacted, LeaseGone, StoreReadOnly, TooLarge, Unreachable
from coordinator.history import History
from coordinator.store import (
    FROM_NOW,
    MAX_TXN_OPS,
    Compare,
    Delete,
    Deleted,
    Event,
    KeyValue,
    Lease,
    Op,
    Put,
    PutDone,
    Range,
    RangeResult,
    Result,
    Txn,
    TxnResult,
    WatchBatch,
    holds,
    may_write,
    within,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Collection,
        Iterable,
        Iterator,
        Sequence,
    )

__all__ = ["MemoryEtcd", "MemoryStore", "Snapshot"]

T = TypeVar("T")

LEASE_FLOOR = 2  # seconds; measured with etcd's default election timeout
MAX_REQUEST = 1536 * 1024  # bytes; etcd's --max-request-bytes
_PER_OP = 16  # bytes that an operation has around its key and value, about
_VERSION = "3.5.30"  # whose behaviour this is


@dataclass(frozen=True, slots=True)
class _Change:
    """One key's change, and what stood there before, so that the past can be read."""

    event: Event
    before: KeyValue | None


class _Past(NamedTuple):
    """What one revision changed."""

    revision: int
    changes: tuple[_Change, ...]


class _Granted(NamedTuple):
    """A lease: its time to live and the virtual time at which it ends, both in seconds."""

    ttl: int
    end: float


class Snapshot(NamedTuple):
    """The whole state of a `MemoryEtcd`; equal states are equal and hash alike."""

    revision: int
    compacted: int
    now: float
    next_lease: int
    full: bool
    keys: tuple[KeyValue, ...]
    leases: tuple[tuple[int, _Granted], ...]
    history: tuple[_Past, ...]


class _Path(NamedTuple):
    """Which branch of a transaction runs, and the same for those inside, by their place."""

    succeeded: bool
    ops: tuple[Op, ...]
    inner: tuple[_Path | None, ...]

    def taken(self) -> Iterator[Op]:
        """Every operation that runs, inner transactions opened."""
        for op, path in zip(self.ops, self.inner, strict=True):
            if path is None:
                yield op
            else:
                yield from path.taken()


class _Keyspace:
    """The keys as they stand now, in order."""

    def __init__(self, kvs: Iterable[KeyValue] = ()) -> None:
        self._kvs = {kv.key: kv for kv in kvs}
        self._order = sorted(self._kvs)  # code points sort as UTF-8's bytes do

    def __iter__(self) -> Iterator[KeyValue]:
        return (self._kvs[key] for key in self._order)

    def get(self, key: str) -> KeyValue | None:
        return self._kvs.get(key)

    def set(self, key: str, kv: KeyValue | None) -> None:
        """Let a key be `kv`, or absent."""
        if kv is None:
            if self._kvs.pop(key, None):
                del self._order[bisect_left(self._order, key)]
            return
        if key not in self._kvs:
            insort(self._order, key)
        self._kvs[key] = kv

    def select(self, key: str, end: str) -> list[KeyValue]:
        """The keys of a range."""
        if not end:
            return [self._kvs[key]] if key in self._kvs else []
        stop = None if end == "\0" else bisect_left(self._order, end)
        return [self._kvs[each] for each in self._order[bisect_left(self._order, key) : stop]]


class MemoryEtcd:
    """An etcd without servers. Times are seconds of its own clock, `now`.

    `revision` is that of an empty store, 1 as in etcd. With `full` set it behaves as under the
    NOSPACE alarm: what would put or grant is refused, the rest works.
    """

    def __init__(self, revision: int = 1) -> None:
        self.revision, self.compacted = revision, 0
        self.now = 0.0
        self.full = False
        self._next_lease = 1
        self._keys = _Keyspace()
        self._leases: dict[int, _Granted] = {}
        self._history: list[_Past] = []
        self._pending: list[_Change] = []  # of the transaction under way, empty outside of one
        self._listeners: dict[Callable[[], None], None] = {}  # an ordered set

    # --- transactions and reads

    def txn(self, txn: Txn) -> TxnResult:
        """Apply a transaction, as `Store.txn`.

        Raises:
            ValueError: a key put twice, an empty key.
            TooLarge, LeaseGone, StoreReadOnly, Compacted: refused as a whole.
        """
        _admit(txn)
        if self.full and any(isinstance(op, Put) for op in _all_ops(txn)):
            raise StoreReadOnly(*_FULL)
        # All compares, the inner ones too, see the store as it was before (etcd: apply.go,
        # compareToPath); reads see what was put before them in the same transaction.
        path = self._choose(txn)
        self._check(path)
        results = self._run(path)
        self._commit()
        return TxnResult(path.succeeded, _dated(results, self.revision), self.revision)

    def range(self, request: Range) -> RangeResult:
        """Read, as `Store.range`."""
        _admit(Txn(success=(request,)))
        self._check_revision(request)
        return self._select(request)

    def _choose(self, txn: Txn) -> _Path:
        succeeded = all(map(self._holds, txn.compares))
        ops = txn.success if succeeded else txn.failure
        inner = tuple(self._choose(op) if isinstance(op, Txn) else None for op in ops)
        return _Path(succeeded, ops, inner)

    def _holds(self, compare: Compare) -> bool:
        if not compare.end:
            return holds(compare, self._keys.get(compare.key))
        found: Collection[KeyValue | None] = self._keys.select(compare.key, compare.end)
        return all(holds(compare, kv) for kv in found or (None,))

    def _check(self, path: _Path) -> None:
        """Refuse the whole when something that would run cannot; etcd looks at leases first."""
        for op in path.taken():
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseGone("memory", "a lease is gone", "take a new one and try again")
        for op in path.taken():
            if isinstance(op, Range):
                self._check_revision(op)

    def _check_revision(self, request: Range) -> None:
        if request.revision and not self.compacted <= request.revision <= self.revision:
            raise Compacted("memory")

    def _run(self, path: _Path) -> tuple[Result, ...]:
        """Run the operations of a branch, one after the other."""
        return tuple(
            self._run_one(op) if inner is None else TxnResult(inner.succeeded, self._run(inner), 0)
            for op, inner in zip(path.ops, path.inner, strict=True)
        )

    def _run_one(self, op: Op) -> Result:
        match op:
            case Put():
                return self._put(op)
            case Delete(key, end):
                return self._delete(self._keys.select(key, end))
            case Range():
                return self._select(op)
            case Txn():
                raise TypeError("an inner transaction has a path of its own")

    def _select(self, request: Range) -> RangeResult:
        """Read at a revision that is known to be there."""
        keys = self._at(request.revision) if request.revision else self._keys
        found = keys.select(request.key, request.end)
        newest = self.revision + bool(self._pending)
        if request.count_only:
            return RangeResult((), newest, more=False, count=len(found))
        kvs = found[: request.limit or None]
        if request.keys_only:
            kvs = [msgspec.structs.replace(kv, value=b"") for kv in kvs]
        return RangeResult(tuple(kvs), newest, more=len(kvs) < len(found), count=len(found))

    def _at(self, revision: int) -> _Keyspace:
        """The keys as they stood at a revision: what came later, undone."""
        keys = _Keyspace(self._keys)
        later = [change for past in self._since(revision) for change in past.changes]
        for change in reversed(later + self._pending):
            keys.set(change.event.kv.key, change.before)
        return keys

    # --- changes

    def _put(self, put: Put) -> PutDone:
        before = self._keys.get(put.key)
        revision = self.revision + 1
        created = before.create_revision if before else revision
        version = before.version + 1 if before else 1
        kv = KeyValue(put.key, put.value, created, revision, version, put.lease)
        self._keys.set(put.key, kv)
        self._pending.append(_Change(Event(kv), before))
        return PutDone()

    def _delete(self, kvs: Collection[KeyValue]) -> Deleted:
        for before in kvs:
            self._keys.set(before.key, None)
            gone = KeyValue(before.key, b"", 0, self.revision + 1, 0)
            self._pending.append(_Change(Event(gone, deleted=True), before))
        return Deleted(len(kvs))

    def _commit(self) -> None:
        """Make one revision of what was changed; nothing changed, no revision."""
        if self._pending:
            self.revision += 1
            self._history.append(_Past(self.revision, tuple(self._pending)))
            self._pending.clear()
            self.wake()

    def _since(self, revision: int) -> list[_Past]:
        """The history after a revision."""
        return self._history[bisect_right(self._history, revision, key=_revision_of) :]

    def compact(self, revision: int) -> None:
        """Forget what is older than `revision`.

        Raises:
            Compacted: it was forgotten before.
            ValueError: it has not been yet.
        """
        if revision <= self.compacted:
            raise Compacted("memory", self.compacted)
        if revision > self.revision:
            raise ValueError(f"revision {revision} is in the future")
        self.compacted = revision
        self._history = self._since(revision)
        self.wake()

    def changes(self, told: int, ranges: Sequence[Range]) -> WatchBatch | None:
        """What happened in `ranges` after revision `told`, if anything.

        Raises:
            Compacted: that is forgotten.
        """
        if told < self.compacted:
            raise Compacted("watch", self.compacted)
        events = tuple(
            change.event
            for past in self._since(told)
            for change in past.changes
            if any(within(change.event.kv.key, each) for each in ranges)
        )
        return WatchBatch(events[-1].kv.mod_revision, events) if events else None

    # --- leases and time

    def grant(self, ttl: int) -> Lease:
        """Grant a lease, as `Store.grant`."""
        if self.full:
            raise StoreReadOnly(*_FULL)
        lease = Lease(self._next_lease, max(ttl, LEASE_FLOOR))
        self._next_lease += 1
        self._leases[lease.id] = _Granted(lease.ttl, self.now + lease.ttl)
        return lease

    def keep_alive(self, lease: int) -> int:
        """Refresh a lease, as `Store.keep_alive`."""
        granted = self._leases.get(lease)
        if granted is None:
            return 0
        self._leases[lease] = _Granted(granted.ttl, self.now + granted.ttl)
        return granted.ttl

    def expire(self, lease: int) -> None:
        """End a lease now and delete its keys, in one revision; nothing when it is gone."""
        if self._leases.pop(lease, None) is not None:
            self._delete([kv for kv in self._keys if kv.lease == lease])
            self._commit()

    def leases(self) -> tuple[int, ...]:
        """The leases that live, in the order in which they end."""
        return tuple(sorted(self._leases, key=lambda lease: (self._leases[lease].end, lease)))

    def advance(self, seconds: float) -> None:
        """Let time pass; leases end as they are due, one after the other."""
        until = self.now + seconds
        for lease in self.leases():
            end = self._leases[lease].end
            if end > until:
                break
            self.now = end
            self.expire(lease)
        self.now = until

    # --- the whole state

    def snapshot(self) -> Snapshot:
        """A copy of everything but who listens."""
        return Snapshot(
            self.revision,
            self.compacted,
            self.now,
            self._next_lease,
            self.full,
            tuple(self._keys),
            tuple(sorted(self._leases.items())),
            tuple(self._history),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Become what `snapshot` was; who was told more than that is told `SetBack`.

        The ids of leases are handed out again from there; a real etcd's are random.
        """
        self.revision, self.compacted, self.now, self._next_lease, self.full = snapshot[:5]
        self._keys = _Keyspace(snapshot.keys)
        self._leases = dict(snapshot.leases)
        self._history = list(snapshot.history)
        self.wake()

    # --- who waits for changes

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after every change; returns what ends that."""
        self._listeners[listener] = None
        return lambda: self._listeners.pop(listener, None)

    def wake(self) -> None:
        """Call whoever listens, in the order in which they began to."""
        for listener in tuple(self._listeners):
            listener()


_FULL = ("memory", "its space quota is used up (NOSPACE)")


def _revision_of(past: _Past) -> int:
    return past.revision


def _dated(results: tuple[Result, ...], revision: int) -> tuple[Result, ...]:
    """The results with the inner transactions' revision, known when all is done."""
    return tuple(
        msgspec.structs.replace(each, results=_dated(each.results, revision), revision=revision)
        if isinstance(each, TxnResult)
        else each
        for each in results
    )


# --- what etcd refuses before it looks at any key (etcd: api/v3rpc/key.go)


def _admit(txn: Txn) -> None:
    _check_count(txn, MAX_TXN_OPS)
    if not all(each.key for each in _keyed(txn)):
        raise ValueError("an empty key")
    _written(txn.success)
    _written(txn.failure)
    if sum(map(_size, _keyed(txn))) > MAX_REQUEST:
        raise TooLarge("memory", "request is too large")


def _check_count(txn: Txn, limit: int) -> None:
    """The longest list counts, and an inner transaction has what the outer one leaves."""
    longest = max(map(len, (txn.compares, txn.success, txn.failure)))
    if longest > limit:
        raise TooLarge("memory", "too many operations in txn request")
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            _check_count(op, limit - longest)


def _all_ops(txn: Txn) -> Iterator[Put | Delete | Range]:
    """Every operation in any branch, inner transactions opened."""
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            yield from _all_ops(op)
        else:
            yield op


def _keyed(txn: Txn) -> Iterator[Compare | Put | Delete | Range]:
    """Everything in it that names a key."""
    yield from txn.compares
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            yield from _keyed(op)
        else:
            yield op


def _size(each: Compare | Put | Delete | Range) -> int:
    """About what it takes in a request."""
    match each:
        case Put(key, value):
            return _PER_OP + len(key.encode()) + len(value)
        case Compare(key, _, _, bytes(operand)):
            return _PER_OP + len(key.encode()) + len(operand)
        case _:
            return _PER_OP + len(each.key.encode())


def _written(ops: Sequence[Op]) -> tuple[set[str], list[Delete]]:
    """What a list puts and deletes, if etcd lets it (key.go, checkIntervals).

    No key may be put twice, or be put and deleted. The two branches of one inner transaction
    may put the same key; an inner delete counts only for what comes after it.

    Raises:
        ValueError: a key is given twice.
    """
    puts: set[str] = set()
    deletes = [op for op in ops if isinstance(op, Delete)]
    for op in ops:
        if isinstance(op, Txn):
            then_puts, then_deletes = _written(op.success)
            else_puts, else_deletes = _written(op.failure)
            _refuse_double(then_puts, puts, deletes)
            _refuse_double(else_puts, puts, deletes)
            puts |= then_puts | else_puts
            deletes += then_deletes + else_deletes
    for op in ops:
        if isinstance(op, Put):
            _refuse_double({op.key}, puts, deletes)
            puts.add(op.key)
    return puts, deletes


def _refuse_double(new: set[str], puts: set[str], deletes: Sequence[Delete]) -> None:
    for key in new:
        if key in puts or any(_deletes(delete, key) for delete in deletes):
            raise ValueError(f"duplicate key given in txn request: {key}")


def _deletes(delete: Delete, key: str) -> bool:
    # A range without an end covers nothing here, unlike when it is carried out; so in etcd.
    return delete.key <= key < delete.end if delete.end else key == delete.key


# --- the store


class MemoryStore:
    """A client of a `MemoryEtcd`, as `Store`.

    Every call lets others run before and after it takes effect, as they would while a request
    and an answer are under way; it takes effect at once.
    """

    def __init__(self, core: MemoryEtcd) -> None:
        self.core = core
        self.history = History()
        self.closed = False

    async def txn(self, txn: Txn) -> TxnResult:
        """Apply a transaction. See `Store.txn` and `MemoryEtcd.txn`."""
        return await self._do(lambda: self.core.txn(txn), writes=may_write(txn))

    async def range(self, request: Range) -> RangeResult:
        """Read. See `Store.range`."""
        return await self._do(lambda: self.core.range(request))

    async def grant(self, ttl: int) -> Lease:
        """Grant a lease. See `Store.grant`."""
        return await self._do(lambda: self.core.grant(ttl))

    async def keep_alive(self, lease: int) -> int:
        """Refresh a lease once. See `Store.keep_alive`."""
        return await self._do(lambda: self.core.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """Revoke a lease. See `Store.revoke`."""
        await self._do(lambda: self.core.expire(lease), writes=True)

    @asynccontextmanager
    async def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AsyncGenerator[AsyncIterator[WatchBatch], None]:
        """Watch `ranges` from revision `start` on. See `Store.watch`."""
        watch = _MemoryWatch(self, ranges, start)
        try:
            yield watch
        finally:
            watch.close()

    async def status(self) -> str:
        """The version whose behaviour this is."""
        return await self._do(lambda: _VERSION)

    async def until_set_back(self) -> NoReturn:
        """Wait until the core is found to be set back. See `Store.until_set_back`."""
        await self.history.until_lost()

    def begin_anew(self) -> None:
        """Take the core as it is. See `Store.begin_anew`."""
        self.history.begin_anew()

    async def close(self) -> None:
        """End watches and refuse later calls, with Unreachable. The core stays as it is."""
        self.closed = True
        self.core.wake()

    async def _do(self, what: Callable[[], T], *, writes: bool = False) -> T:
        await asyncio.sleep(0)
        if self.closed:
            raise Unreachable(*_CLOSED)
        self.history.check()
        floor, answer = self.history.revision, what()
        # A write has its answer all the same, and a read from another state is none.
        if not self.history.see("memory", _CLUSTER, self.core.revision, floor) and not writes:
            self.history.check()
        await asyncio.sleep(0)
        return answer


_CLOSED = ("memory", "the store was closed")
_CLUSTER = 1  # the id of the only one there is


class _MemoryWatch:
    """One watch; its own iterator. `_told` is the revision up to which all was handed out."""

    def __init__(self, store: MemoryStore, ranges: Sequence[Range], start: int) -> None:
        if not ranges:
            raise ValueError("a watch needs a range")
        self._store, self._ranges = store, tuple(ranges)
        self._told = max(start, 1) - 1
        self._from_now = start == FROM_NOW
        self._changed = asyncio.Event()
        self._unlisten = store.core.listen(self._changed.set)
        self._closed = False

    def __aiter__(self) -> _MemoryWatch:
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._closed:
            if self._store.closed:
                raise Unreachable(*_CLOSED)
            self._changed.clear()
            history = self._store.history
            history.see("memory", _CLUSTER, self._store.core.revision, self._told)
            history.check()
            if self._from_now:
                self._from_now, self._told = False, self._store.core.revision
                return WatchBatch(self._told)
            batch = self._store.core.changes(self._told, self._ranges)
            if batch is not None:
                self._told = batch.revision
                return batch
            await self._changed.wait()
        raise StopAsyncIteration

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._unlisten()
        self._changed.set()
