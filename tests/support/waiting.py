"""Waiting for something to become true, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATIENT", "wait_until", "wait_until_async"]

T = TypeVar("T")
PATIENT = 60.0  # seconds for what takes a moment, on a machine that is busy
_LOOK = 0.005  # seconds between two looks


def _expired(condition: Callable[[], object], deadline_seconds: float) -> AssertionError:
    what = getattr(condition, "__doc__", None) or getattr(condition, "__qualname__", condition)
    return AssertionError(f"not within {deadline_seconds} s: {what}")


def wait_until(condition: Callable[[], T], deadline_seconds: float = PATIENT) -> T:
    """What the condition gives as soon as that is true.

    Raises:
        AssertionError: it did not become true in time.
    """
    end = time.monotonic() + deadline_seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise _expired(condition, deadline_seconds)
        time.sleep(_LOOK)
    return value


async def wait_until_async(condition: Callable[[], T], deadline_seconds: float = PATIENT) -> T:
    """The same, while the event loop goes on."""
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_seconds
    while not (value := condition()):
        if loop.time() > end:
            raise _expired(condition, deadline_seconds)
        await asyncio.sleep(_LOOK)
    return value
