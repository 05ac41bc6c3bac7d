"""Blocking calls that keep nobody from ending."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

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


def test_a_file_that_never_answers_does_not_keep_the_process(tmp_path: Path) -> None:
    """A driver may block its reader; the agent ends all the same when it is told to."""
    silent = tmp_path / "fifo"
    os.mkfifo(silent)
    command = [sys.executable, "-c", ENDS, str(silent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "stopped\n"
