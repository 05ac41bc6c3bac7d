"""A Store between the code and another Store that loses, delays and refuses transactions.

What happens to each is decided by a function that is handed in, so that a test or a search
chooses the schedule.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NoReturn

from coordinator.errors import MdevnsError, OutcomeUnknown, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from coordinator.store import Lease, Range, RangeResult, Store, Txn, TxnResult, WatchBatch

__all__ = ["Fate", "FaultyStore", "FirstLate"]


class Fate(Enum):
    """What becomes of a transaction."""

    DELIVER = auto()  # it is applied and answered
    LOSE_ANSWER = auto()  # it is applied, its sender is told OutcomeUnknown
    DROP = auto()  # it is not applied, its sender is told OutcomeUnknown
    DELAY = auto()  # its sender is told OutcomeUnknown; it is applied in `release_late`
    UNREACHABLE = auto()  # it is not applied, its sender is told Unreachable


@dataclass
class FirstLate:
    """The first transaction with a word in it is delayed, and each copy is lost until `passes`.

    So the test alone decides what comes between the first one and the copy that arrives, however
    soon the code sends it again.
    """

    word: str
    passes: bool = False
    _is_first: bool = True

    def __call__(self, txn: Txn) -> Fate:
        """What becomes of a transaction."""
        if self.word not in repr(txn):
            return Fate.DELIVER
        if self._is_first:
            self._is_first = False
            return Fate.DELAY
        return Fate.DELIVER if self.passes else Fate.DROP


class FaultyStore:
    """`inner` as seen over a bad network. Only transactions fail; the rest goes through.

    `decide` is asked once for each transaction, also for one that is sent again.
    """

    def __init__(self, inner: Store, decide: Callable[[Txn], Fate]) -> None:
        self.inner, self.decide = inner, decide
        self._late: list[Txn] = []

    @property
    def late(self) -> tuple[Txn, ...]:
        """The transactions that are still under way, in the order in which they were sent."""
        return tuple(self._late)

    async def release_late(self, index: int | None = None) -> None:
        """Let a delayed transaction arrive, or all in their order. Nobody hears its answer."""
        arriving = self._late if index is None else [self._late[index]]
        self._late = [] if index is None else self._late[:index] + self._late[index + 1 :]
        for txn in arriving:
            with suppress(MdevnsError):
                await self.inner.txn(txn)

    async def txn(self, txn: Txn) -> TxnResult:
        """Apply a transaction, or not; see `Fate`."""
        fate = self.decide(txn)
        if fate is Fate.UNREACHABLE:
            raise Unreachable("faulty", "it was decided so")
        if fate is Fate.DELAY:
            self._late.append(txn)
        if fate in (Fate.DELIVER, Fate.LOSE_ANSWER):
            result = await self.inner.txn(txn)
            if fate is Fate.DELIVER:
                return result
        raise OutcomeUnknown("faulty", "it was decided so")

    async def range(self, request: Range) -> RangeResult:
        """As the inner store."""
        return await self.inner.range(request)

    async def grant(self, ttl: int) -> Lease:
        """As the inner store."""
        return await self.inner.grant(ttl)

    async def keep_alive(self, lease: int) -> int:
        """As the inner store."""
        return await self.inner.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        """As the inner store."""
        await self.inner.revoke(lease)

    def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """As the inner store."""
        return self.inner.watch(ranges, start)

    async def status(self) -> str:
        """As the inner store."""
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
