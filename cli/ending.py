"""Commands that run until they are told to end."""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["interruptible", "wait_for_end"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and a closed terminal what Ctrl-C is, so that contexts clean up."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_end(pid: int) -> None:
    """Wait until a process of ours has ended."""
    with ExitStack() as stack:
        end = os.pidfd_open(pid)
        stack.callback(os.close, end)
        select.select([end], [], [])
