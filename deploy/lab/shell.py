"""Running the build's commands: quiet when they work, their output in the error when they don't."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from .errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LINES_SHOWN = 30


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 600,
) -> str:
    """Run a command to its end and return its standard output.

    Raises BuildError when it can't be started, fails, or takes longer than `timeout` seconds.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(  # noqa: S603  the build's own commands, no shell
            words,
            env=env,
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{words[0]}: not found on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{words[0]}: still running after {timeout:.0f} s") from error
    if done.returncode != 0:
        last = (done.stdout + done.stderr).splitlines()[-_LINES_SHOWN:]
        command = " ".join(words[:8])
        raise BuildError("\n".join([f"{command} …: exit code {done.returncode}", *last]))
    return done.stdout


def tied(argv: Sequence[str | Path]) -> list[str]:
    """The command, made to be killed by the kernel when the thread that starts it ends.

    So nothing is left behind by a run that was itself killed. To be started from a thread that
    lives as long as the command should: the main one.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]
