"""The store itself: a small deterministic core without I/O. See the package."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from coordinator.errors import Compacted, LeaseGone, StoreReadOnly
from coordinator.memory.admission import admit, all_ops
from coordinator.store import (
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
    within,
)

if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Collection,
        Iterable,
        Iterator,
        Sequence,
    )

__all__ = ["LEASE_FLOOR", "Granted", "MemoryEtcd", "Snapshot"]

LEASE_FLOOR = 2  # seconds; measured with etcd's default election timeout
_FULL = ("memory", "its space quota is used up (NOSPACE)")


@dataclass(frozen=True, slots=True)
class _Change:
    """One key's change, and what stood there before, so that the past can be read."""

    event: Event
    before: KeyValue | None


class _Past(NamedTuple):
    """What one revision changed."""

    revision: int
    changes: tuple[_Change, ...]


class Granted(NamedTuple):
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
    leases: tuple[tuple[int, Granted], ...]
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
        self._leases: dict[int, Granted] = {}
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
        admit(txn)
        if self.full and any(isinstance(op, Put) for op in all_ops(txn)):
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
        admit(Txn(success=(request,)))
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
        self._leases[lease.id] = Granted(lease.ttl, self.now + lease.ttl)
        return lease

    def keep_alive(self, lease: int) -> int:
        """Refresh a lease, as `Store.keep_alive`."""
        granted = self._leases.get(lease)
        if granted is None:
            return 0
        self._leases[lease] = Granted(granted.ttl, self.now + granted.ttl)
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
