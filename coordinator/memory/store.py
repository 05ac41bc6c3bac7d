"""A client of the store in memory, and its watches."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

from coordinator.errors import Unreachable
from coordinator.history import History
from coordinator.store import (
    FROM_NOW,
    Lease,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    WatchBatch,
    may_write,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from coordinator.memory.core import MemoryEtcd

__all__ = ["MemoryStore"]

T = TypeVar("T")

_VERSION = "3.5.30"  # whose behaviour this is
_CLOSED = ("memory", "the store was closed")
_CLUSTER = 1  # the id of the only one there is


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
