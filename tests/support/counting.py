"""A Store that counts what is asked of another one, and keeps the transactions."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from coordinator.store import Delete, Put, Range, Txn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from coordinator.store import Lease, RangeResult, Store, TxnResult, WatchBatch

__all__ = ["CountingStore"]


class CountingStore:
    """`inner`, with `calls` by kind, all `txns` and the `grants`' times to live, in order.

    Whoever asks the kernel notes `commits` in `commits_before_creates`.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.forget()

    def forget(self) -> None:
        """Count from nothing again."""
        self.calls: Counter[str] = Counter()
        self.txns: list[Txn] = []
        self.grants: list[int] = []
        self.watched: list[str] = []
        self.commits_before_creates: list[int] = []

    @property
    def commits(self) -> int:
        """How many transactions were asked for that may write."""
        return sum(bool(_writes(txn)) for txn in self.txns)

    def that_made(self, state: str) -> list[int]:
        """For each transaction with claims put in this state, how many (`_made` has more)."""
        counts = (sum(_made(inner) == state for inner in _inner(txn)) for txn in self.txns)
        return [count for count in counts if count]

    def written(self) -> set[str]:
        """The families of keys that transactions would write, as `names` and `claims`."""
        return {_family(op.key) for txn in self.txns for op in _writes(txn)}

    async def txn(self, txn: Txn) -> TxnResult:
        """As the inner store."""
        self.calls["txn"] += 1
        self.txns.append(txn)
        return await self.inner.txn(txn)

    async def range(self, request: Range) -> RangeResult:
        """As the inner store."""
        self.calls["range"] += 1
        return await self.inner.range(request)

    async def grant(self, ttl: int) -> Lease:
        """As the inner store."""
        self.calls["grant"] += 1
        self.grants.append(ttl)
        return await self.inner.grant(ttl)

    async def keep_alive(self, lease: int) -> int:
        """As the inner store."""
        self.calls["keep_alive"] += 1
        return await self.inner.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        """As the inner store."""
        self.calls["revoke"] += 1
        await self.inner.revoke(lease)

    def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """As the inner store."""
        self.calls["watch"] += 1
        self.watched += [each.key for each in ranges]
        return self.inner.watch(ranges, start)

    async def status(self) -> str:
        """As the inner store."""
        self.calls["status"] += 1
        return await self.inner.status()

    async def until_set_back(self) -> NoReturn:
        """As the inner store."""
        await self.inner.until_set_back()

    def begin_anew(self) -> None:
        """As the inner store."""
        self.inner.begin_anew()

    async def close(self) -> None:
        """As the inner store."""
        await self.inner.close()


def _inner(txn: Txn) -> list[Txn]:
    return [op for op in txn.success if isinstance(op, Txn)]


def _made(txn: Txn) -> str:
    """The state that a transition puts its claim in; `held` without a host, `free`, or none."""
    puts = {_family(op.key): op.value for op in txn.success if isinstance(op, Put)}
    if "claims" in puts:
        return str(json.loads(puts["claims"])["state"])
    if "names" in puts:
        return "held"
    return "free" if any(isinstance(op, Delete) for op in txn.success) else ""


def _writes(txn: Txn) -> list[Put | Delete]:
    """All that it may write, whichever way its compares go."""
    found: list[Put | Delete] = []
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            found += _writes(op)
        elif not isinstance(op, Range):
            found.append(op)
    return found


def _family(key: str) -> str:
    """Which of the design's kinds of keys it is: `/mdevns/<cluster>/…`."""
    match key.split("/")[3:]:
        case ["hosts", _, kind, *_]:
            return kind
        case [kind, *_]:
            return kind
    return key
