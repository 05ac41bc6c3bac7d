"""Blocking calls that keep nobody from ending."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from agent.threads import in_thread
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE = 60.0

# Reads a file that never answers, is told to stop, and is to end.
ENDS = """
import asyncio, sys
from pathlib import Path
from agent.threads import in_thread

async def main():
    try:
        async with asyncio.timeout(0.2):
            await in_thread(Path(sys.argv[1]).read_bytes)
    except TimeoutError:
        print("stopped")

asyncio.run(main())
"""


async def test_it_gives_what_the_function_gives() -> None:
    """Its result, or its error."""
    assert await in_thread(sorted, [2, 1]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


async def test_a_call_never_waits_for_another() -> None:
    """However many there are at once."""
    together = threading.Barrier(20)
    for _ in range(2):
        await asyncio.gather(*(in_thread(together.wait, DEADLINE) for _ in range(20)))


async def test_calls_that_follow_each_other_find_the_threads_again() -> None:
    """A thread is begun only where all there are have something to do, or just had."""
    threads = {await in_thread(threading.current_thread) for _ in range(200)}
    assert len(threads) < 20


async def test_what_was_called_is_let_go_of() -> None:
    """A thread that waits for its next call keeps nothing of the last one alive."""

    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    await in_thread(id, thing)
    del thing
    await wait_until_async(lambda: gone() is None, DEADLINE)


def test_a_file_that_never_answers_does_not_keep_the_process(tmp_path: Path) -> None:
    """A driver may block its reader; the agent ends all the same when it is told to."""
    silent = tmp_path / "fifo"
    os.mkfifo(silent)
    command = [sys.executable, "-c", ENDS, str(silent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert done.stdout == "stopped\n"
