"""`python -m tests.bench`: ours against etcd's own, in turns, by `make bench`.

Ends with 0 whatever the figures say, with 1 when a line broke.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from agent import logs
from coordinator.embedded import find_etcd
from tests.bench.figures import Stage
from tests.bench.lines import LINES, chosen, measured
from tests.bench.report import print_table, save
from tests.bench.served import own_etcd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.figures import Figure
    from tests.bench.lines import Line

_RESULTS = Path(__file__).parents[2] / "docs/bench"


def main(arguments: Sequence[str]) -> int:
    """Run the lines that are asked for and tell what they gave; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 40 s, coarser")
    parser.add_argument("--out", type=Path, help="write results.json and .svg there")
    parser.add_argument(
        "lines", nargs="*", help="these alone: " + " ".join(line.key for line in LINES)
    )
    given = parser.parse_args(arguments)
    try:
        lines = chosen(given.lines)
    except ValueError as error:
        parser.error(str(error))
    # As Ctrl-C does it: all that was started is taken away.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    figures: list[Figure] = []
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            _log_to(Path(name) / "agents.log")
            broken = [
                line.key
                for line in lines
                if not _tried(line, Path(name), figures, quick=given.quick)
            ]
    except KeyboardInterrupt:
        _say("interrupted; nothing is left")
        return 130
    print_table(figures)
    whole = len(lines) == len(LINES) and not given.quick and not broken
    if given.out is not None or whole:
        save(figures, _server(), given.out or _RESULTS)
    if broken:
        _say(f"broken: {', '.join(broken)}")
    return 1 if broken else 0


def _tried(line: Line, directory: Path, figures: list[Figure], *, quick: bool) -> bool:
    """Run a line on an etcd of its own and add what it gives; False when it broke."""
    began = time.monotonic()
    own = directory / line.key
    own.mkdir()
    try:
        with own_etcd() as etcd:
            stage = Stage(
                line=line.key,
                endpoint=etcd.endpoint,
                server=etcd.pid,
                directory=own,
                quick=quick,
                seconds=line.quick if quick else line.seconds,
            )
            figures += measured(line, stage)
    except Exception:  # noqa: BLE001 - told, and the other lines go on
        _say(traceback.format_exc())
        return False
    _say(f"{line.key}: {time.monotonic() - began:.0f} s")
    return True


def _log_to(file: Path) -> None:
    """Agents in this process log there, as they do to their service manager."""
    with redirect_stderr(file.open("w")):  # open for as long as the process lives
        logs.configure()


def _server() -> str:
    said = subprocess.run([find_etcd(), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()[0].removeprefix("etcd Version: ")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
