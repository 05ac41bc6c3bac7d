"""Time, handed in, so that the same code runs under a virtual clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

from coordinator.model import timestamp

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """The two clocks that are read. Waiting is asyncio's, whose loop has its own time."""

    def boottime(self) -> float:
        """Seconds on CLOCK_BOOTTIME: goes on while the machine sleeps, and never jumps."""
        ...

    def now(self) -> str:
        """The time of day, RFC 3339 in UTC, for people. Nothing is decided by it."""
        ...


class SystemClock:
    """The machine's clocks."""

    def boottime(self) -> float:
        """Seconds on CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> str:
        """The time of day, RFC 3339 in UTC."""
        return timestamp(datetime.now(UTC))
