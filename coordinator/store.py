"""The small interface to the store, in etcd's terms; nothing here speaks grpc.

Two implementations: `coordinator.etcd` and, with the same semantics on a virtual clock,
`coordinator.memory`. One contract suite and differential tests hold them to each other.

Sources: etcd API reference (KV, Lease, Watch), and what was measured on 3.5.
"""

from __future__ import annotations

import operator
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "FROM_NOW",
    "MAX_TXN_OPS",
    "Compare",
    "Delete",
    "Deleted",
    "Event",
    "KeyValue",
    "Lease",
    "Op",
    "Put",
    "PutDone",
    "Range",
    "RangeResult",
    "Result",
    "Store",
    "Target",
    "Txn",
    "TxnResult",
    "WatchBatch",
    "absent",
    "get",
    "holds",
    "pages",
    "prefix",
    "prefix_end",
    "present",
    "unchanged",
    "unwritten_since",
    "valued",
    "within",
]

# etcd's default --max-txn-ops; it counts the longest list of the outer transaction plus the
# longest list of the longest inner one.
FROM_NOW = 0
"""The start of a watch that tells nothing of what was before."""

MAX_TXN_OPS = 128


class Target(StrEnum):
    """What of a key is compared."""

    CREATE = "create"  # create revision; 0: the key is absent
    MOD = "mod"  # modification revision; 0: the key is absent
    VERSION = "version"
    VALUE = "value"
    LEASE = "lease"


class Compare(msgspec.Struct, frozen=True, gc=False):
    """One condition of a transaction: `key`'s target `op` operand, op one of = != < >.

    With `end` it holds when it does of every key in [key, end); of none, as of an absent one.
    """

    key: str
    target: Target
    op: str
    operand: int | bytes
    end: str = ""


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write a value. With `lease` 0 the key is detached from any lease it hung on."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Delete a key, or with `end` the range [key, end)."""

    key: str
    end: str = ""


class Range(msgspec.Struct, frozen=True, gc=False):
    """Read a key, or with `end` the range [key, end), in the order of keys.

    `limit` 0 is no limit, `revision` 0 the newest one.
    """

    key: str
    end: str = ""
    limit: int = 0
    revision: int = 0
    keys_only: bool = False
    count_only: bool = False


class Txn(msgspec.Struct, frozen=True):
    """If all compares hold the success list, else the failure list, in one revision.

    Transactions nest: an inner one has an answer of its own. A key may be put only once in
    the whole, even in branches that cannot both run.
    """

    compares: tuple[Compare, ...] = ()
    success: tuple[Op, ...] = ()
    failure: tuple[Op, ...] = ()


Op = Put | Delete | Range | Txn


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key as it stands in the store; revisions as in etcd, `lease` 0 when it has none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class PutDone(msgspec.Struct, frozen=True, gc=False):
    """The answer to a Put."""


class Deleted(msgspec.Struct, frozen=True, gc=False):
    """The answer to a Delete: how many keys went."""

    count: int


class RangeResult(msgspec.Struct, frozen=True):
    """The answer to a Range, and the store's revision at which it was given.

    `more` says that `limit` cut it; `count` is the number of keys in the whole range.
    """

    kvs: tuple[KeyValue, ...]
    revision: int
    more: bool = False
    count: int = 0

    @property
    def first(self) -> KeyValue | None:
        """The one key that was asked for, or None."""
        return self.kvs[0] if self.kvs else None


class TxnResult(msgspec.Struct, frozen=True):
    """The answer to a Txn: which branch ran, the answers of its list, the revision after."""

    succeeded: bool
    results: tuple[Result, ...]
    revision: int

    def ranges(self) -> tuple[RangeResult, ...]:
        """The answers to the Ranges of the branch that ran, in order."""
        return tuple(r for r in self.results if isinstance(r, RangeResult))


Result = PutDone | Deleted | RangeResult | TxnResult


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A lease as granted; `ttl` in seconds is what etcd gave, which may be more than asked."""

    id: int
    ttl: int


class Event(msgspec.Struct, frozen=True):
    """A change that a watch saw. For a delete `kv` has the key and the revision, no value."""

    kv: KeyValue
    deleted: bool = False


class WatchBatch(msgspec.Struct, frozen=True):
    """Changes in the order of revisions. All of what happened up to `revision` was told.

    No revision is cut in two by a batch. Without events it only reports progress.
    """

    revision: int
    events: tuple[Event, ...] = ()


class Store(Protocol):
    """What mdevns needs of etcd. Times are seconds; all methods may raise a `StoreError`.

    Every call has a deadline, and may raise `SetBack`. A read or grant that fails is retried
    inside, within it; a transaction is retried inside only when it certainly was not applied.
    """

    async def txn(self, txn: Txn) -> TxnResult:
        """Apply a transaction, atomically, in one Raft commit.

        Raises:
            Unreachable: it was certainly not applied.
            OutcomeUnknown: it may have been applied, or may yet be.
            LeaseGone, TooLarge, StoreReadOnly, NotAllowed: refused as a whole.
        """
        ...

    async def range(self, request: Range) -> RangeResult:
        """Read, linearizably.

        Raises:
            Compacted: the revision asked for cannot be read any more.
        """
        ...

    async def grant(self, ttl: int) -> Lease:
        """Grant a lease of `ttl` seconds (etcd's floor is 2). A commit of its own.

        When the answer is lost another one is granted; the first expires by itself.
        """
        ...

    async def keep_alive(self, lease: int) -> int:
        """Refresh a lease once; returns its time to live in seconds, 0 when it is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """Revoke a lease and delete its keys; nothing when it is gone already."""
        ...

    def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """Watch `ranges` from revision `start` on, for as long as the context is open.

        A broken stream, a lost leader or another endpoint are resumed at the right revision,
        with nothing missed and nothing told twice. Only key and end of a Range count.
        With `start` `FROM_NOW` the first batch tells, without events, from which revision on
        all will be told.

        etcd serves a watch that starts in the past only every 100 ms (mvcc/watchable_store.go);
        one from now on, and a read after its first batch, miss as little and wait for nothing.

        Raises (from the iterator):
            Compacted: changes are lost; list again.
            SetBack: the store is behind what was told.
        """
        ...

    async def status(self) -> str:
        """The version of an etcd server that answers now (`3.5.16`)."""
        ...

    async def until_set_back(self) -> NoReturn:
        """Wait until the store is found to be another one than before, or an older state of it.

        Every answer is looked at for that. From then on every call is refused until
        `begin_anew`, a write that was answered by such a store excepted.

        Raises:
            SetBack: it is.
        """
        ...

    def begin_anew(self) -> None:
        """Take the store as it is; whoever calls has forgotten all that was read of it."""
        ...

    async def close(self) -> None:
        """Let go of connections. Calls that are under way end in Unreachable."""
        ...


def prefix_end(prefix: str) -> str:
    """The end of the range of all keys that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def get(key: str) -> Range:
    """Read one key."""
    return Range(key)


def prefix(key: str) -> Range:
    """Read all keys that begin with `key`."""
    return Range(key, prefix_end(key))


def within(key: str, whole: Range) -> bool:
    """Whether a key is the one, or in the range, that `whole` reads; an end of NUL is no end."""
    if not whole.end:
        return key == whole.key
    return whole.key <= key and (key < whole.end or whole.end == "\0")


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, Target.CREATE, "=", 0)


def present(key: str) -> Compare:
    """The key exists."""
    return Compare(key, Target.CREATE, ">", 0)


def holds(compare: Compare, kv: KeyValue | None) -> bool:
    """Whether `compare` is true of its key as it stands; None: the key is absent.

    An absent key has revisions, version and lease 0; its value compares false (etcd API).
    """
    if compare.target is Target.VALUE:
        if kv is None:
            return False
        return _ordered(compare.op, kv.value, compare.operand)
    if kv is None:
        return _ordered(compare.op, 0, compare.operand)
    standing = {
        Target.CREATE: kv.create_revision,
        Target.MOD: kv.mod_revision,
        Target.VERSION: kv.version,
        Target.LEASE: kv.lease,
    }[compare.target]
    return _ordered(compare.op, standing, compare.operand)


def _ordered(op: str, left: Any, right: Any) -> bool:
    return bool(
        {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}[op](left, right)
    )


def unchanged(key: str, revision: int) -> Compare:
    """The key was last written at `revision`; 0: it is absent."""
    return Compare(key, Target.MOD, "=", revision)


def unwritten_since(whole: Range, revision: int) -> Compare:
    """No key of a range was written after a revision; what was deleted is not seen."""
    return Compare(whole.key, Target.MOD, "<", revision + 1, whole.end)


def vacant(whole: Range) -> Compare:
    """No key of a range exists. etcd compares an empty range as an absent key (etcd API)."""
    return Compare(whole.key, Target.CREATE, "=", 0, whole.end)


def valued(key: str, value: bytes) -> Compare:
    """The key has this value."""
    return Compare(key, Target.VALUE, "=", value)


def may_write(txn: Txn) -> bool:
    """Whether any branch of it may change something."""
    return any(
        isinstance(op, (Put, Delete)) or (isinstance(op, Txn) and may_write(op))
        for ops in (txn.success, txn.failure)
        for op in ops
    )


def nests_writes(txn: Txn) -> bool:
    """Whether a transaction inside it may change something."""
    return any(isinstance(op, Txn) and may_write(op) for op in (*txn.success, *txn.failure))


async def pages(
    store: Store, whole: Range, *, size: int = 1000
) -> AsyncGenerator[RangeResult, None]:
    """Read a range page by page, all pages at the revision of the first one.

    Raises:
        Compacted: the reading took longer than the store keeps its history.
    """
    start, revision = whole.key, whole.revision
    while True:
        page = await store.range(
            Range(start, whole.end, limit=size, revision=revision, keys_only=whole.keys_only)
        )
        revision = revision or page.revision
        yield RangeResult(page.kvs, revision, page.more, page.count)
        if not page.more:
            return
        start = page.kvs[-1].key + "\0"
