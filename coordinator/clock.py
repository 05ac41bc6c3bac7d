"""Time, handed in, so that the same code runs under a virtual clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """The two clocks that are read. Waiting is asyncio's, whose loop has its own time."""

    def boottime(self) -> float:
        """Seconds on CLOCK_BOOTTIME: goes on while the machine sleeps, and never jumps."""
        ...

    def now(self) -> str:
        """The time of day, RFC 3339 in UTC, for people. Nothing is decided by it.

        To the microsecond, so that two writes of one process differ.
        """
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        # The second that was told last: to put it in words takes longer than all else in `now`.
        # One value, since threads ask, too.
        self._second = (-1, "")

    def boottime(self) -> float:
        """Seconds on CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> str:
        """The time of day, RFC 3339 in UTC."""
        seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
        second, words = self._second
        if second != seconds:
            words = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
            self._second = seconds, words
        return f"{words}.{micros:06d}Z"
