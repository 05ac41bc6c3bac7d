"""The Store with its calls measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from agent.metrics import Metrics
    from coordinator.store import Lease, Range, RangeResult, Store, Txn, TxnResult, WatchBatch

__all__ = ["MeteredStore"]


class MeteredStore:
    """`inner`, with every call that has one answer measured."""

    def __init__(self, inner: Store, metrics: Metrics) -> None:
        self.inner, self._metrics = inner, metrics

    async def txn(self, txn: Txn) -> TxnResult:
        """See `Store.txn`."""
        return await self._metrics.asked("txn", self.inner.txn(txn))

    async def range(self, request: Range) -> RangeResult:
        """See `Store.range`."""
        return await self._metrics.asked("range", self.inner.range(request))

    async def grant(self, ttl: int) -> Lease:
        """See `Store.grant`."""
        return await self._metrics.asked("grant", self.inner.grant(ttl))

    async def keep_alive(self, lease: int) -> int:
        """See `Store.keep_alive`."""
        return await self._metrics.asked("keep_alive", self.inner.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        await self._metrics.asked("revoke", self.inner.revoke(lease))

    def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """See `Store.watch`."""
        return self.inner.watch(ranges, start)

    async def status(self) -> str:
        """See `Store.status`."""
        return await self._metrics.asked("status", self.inner.status())

    async def until_set_back(self) -> NoReturn:
        """See `Store.until_set_back`."""
        await self.inner.until_set_back()

    def begin_anew(self) -> None:
        """See `Store.begin_anew`."""
        self.inner.begin_anew()

    async def close(self) -> None:
        """See `Store.close`."""
        await self.inner.close()
