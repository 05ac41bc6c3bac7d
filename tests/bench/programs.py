"""Programs that are run to their end, and what they took."""

from __future__ import annotations

import asyncio
import compileall
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

__all__ = ["MDEVNS", "compile_ours", "environment", "run"]

_ROOT = Path(__file__).parents[2]
MDEVNS = (sys.executable, "-m", "cli")


def environment(endpoint: str, cluster: str) -> dict[str, str]:
    """For programs that are to use this etcd and nothing of this machine's configuration."""
    ours = {key: text for key, text in os.environ.items() if not key.startswith("MDEVNS_")}
    return ours | {
        "PYTHONPATH": str(_ROOT),
        "MDEVNS_CONFIG": os.devnull,
        "MDEVNS_ENDPOINTS": endpoint,
        "MDEVNS_CLUSTER": cluster,
    }


def compile_ours() -> None:
    """Have bytecode beside our sources, as pip leaves it where it installs a package.

    An environment can forbid Python to write it (PYTHONDONTWRITEBYTECODE), and then each start of
    ours would compile fifty modules that nobody compiles who has installed it.
    """
    for package in ("coordinator", "agent", "cli"):
        compileall.compile_dir(_ROOT / package, quiet=1)


async def run(
    command: Sequence[str], variables: Mapping[str, str], output: IO[bytes]
) -> tuple[float, int]:
    """Run a program to its end; the seconds it took, and the most kilobytes it had in memory.

    Raises:
        AssertionError: it failed.
    """
    actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
    began = time.perf_counter()
    pid = os.posix_spawn(  # noqa: ASYNC221 - it returns at once
        command[0], list(command), dict(variables), file_actions=actions
    )
    try:
        # By hand: asyncio's own subprocess does not tell what memory one had.
        _, status, usage = await in_thread(os.wait4, pid, 0)
    except asyncio.CancelledError:
        os.kill(pid, signal.SIGKILL)  # the thread that waits for it takes its end
        raise
    seconds = time.perf_counter() - began
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"{' '.join(command)} ended with {code}"
    return seconds, usage.ru_maxrss
