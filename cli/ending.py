"""Commands that run until they are told to end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.output import Output

__all__ = ["deferred", "interruptible", "until_nobody_reads", "wait_for_end"]


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


@contextmanager
def until_nobody_reads(out: Output) -> Iterator[None]:
    """Cancel the task when stdout is a pipe and its reader goes away (`… | head`).

    A command that has nothing to say for an hour would otherwise find out an hour later.
    """
    task, number = asyncio.current_task(), sys.stdout.fileno()
    assert task is not None
    if not stat.S_ISFIFO(os.fstat(number).st_mode):
        yield
        return
    loop = asyncio.get_running_loop()

    def gone() -> None:
        # The end that is written to is never readable; it only reports that nobody reads.
        loop.remove_reader(number)
        out.unread = True
        task.cancel()

    loop.add_reader(number, gone)
    try:
        yield
    finally:
        loop.remove_reader(number)
