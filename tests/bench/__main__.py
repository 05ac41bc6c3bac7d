"""`python -m tests.bench`: ours against etcd's own, in turns, by `make bench`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.embedded import EmbeddedEtcd
from tests.bench.figures import Stage
from tests.bench.lines import chosen, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.figures import Figure
    from tests.bench.lines import Line


def main(arguments: Sequence[str]) -> int:
    """Run the lines that are asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 40 s, coarser")
    parser.add_argument("lines", nargs="*", help="these alone")
    given = parser.parse_args(arguments)
    try:
        lines = chosen(given.lines)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, EmbeddedEtcd() as etcd:
        for line in lines:
            for figure in asyncio.run(_figures(line, etcd, Path(directory), quick=given.quick)):
                print(figure, flush=True)  # noqa: T201 - this is what it is for
    return 0


async def _figures(line: Line, etcd: EmbeddedEtcd, directory: Path, *, quick: bool) -> list[Figure]:
    own = directory / line.key
    own.mkdir()
    stage = Stage(
        line=line.key,
        endpoint=etcd.endpoint,
        server=etcd.pid,
        directory=own,
        quick=quick,
        seconds=line.quick if quick else line.seconds,
    )
    return await measured(line, stage)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
