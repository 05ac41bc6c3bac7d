"""Commands that run until they are told to end."""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["deferred", "interruptible", "wait_for_end"]


class _Deferred:
    """Whether an interrupt waits, and whether one has come meanwhile."""

    depth = 0
    came = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and a closed terminal what Ctrl-C is, so that contexts clean up."""

    def interrupt(*_: object) -> None:
        if _Deferred.depth:
            _Deferred.came = True
        else:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let an interrupt wait until what is done in here is done, and noted.

    A process that is started when the interrupt comes would be nobody's.
    """
    _Deferred.depth += 1
    try:
        yield
    finally:
        _Deferred.depth -= 1
    if _Deferred.came and not _Deferred.depth:
        _Deferred.came = False
        raise KeyboardInterrupt


def wait_for_end(pid: int) -> None:
    """Wait until a process of ours has ended."""
    with ExitStack() as stack:
        end = os.pidfd_open(pid)
        stack.callback(os.close, end)
        select.select([end], [], [])
