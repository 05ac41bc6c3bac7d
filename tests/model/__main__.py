"""Search every interleaving: `make explore`.

    python -m tests.model [--names N] [--states N] [--processes N] [--only WORD]

With one name each of `SPACES` is searched to its end, with two up to so many states. Prints what
was searched, and for a violation the shortest way to it; then it ends with 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from tests.model.exploring import explore, say
from tests.model.spaces import SPACES

if TYPE_CHECKING:
    from tests.model.search import Found
    from tests.model.spaces import Space


def _report(space: Space, names: int, found: Found) -> bool:
    """Tell what a search has found; whether all is well."""
    say(f"{names} name{'s' if names > 1 else ''}, {space.title}: {found.line}")
    for line in found.trace:
        say(f"    {line}")
    return not found.violation


def main() -> int:
    """Search; 1 when something that is promised does not hold, or a space was not ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--names", type=int, choices=(1, 2), default=1)
    parser.add_argument("--states", type=int, default=5_000_000, help="so many at most, each")
    parser.add_argument("--processes", type=int, default=1, help="spaces that are searched at once")
    parser.add_argument("--only", default="", help="the spaces with this word in their title")
    options = parser.parse_args()
    spaces = [s for s in SPACES if options.names in s.names and options.only in s.title]
    well = bool(spaces)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, fresh, max_tasks_per_child=1) as pool:
        running = [pool.submit(explore, s, options.names, options.states) for s in spaces]
        for space, future in zip(spaces, running, strict=True):
            found = future.result()
            well &= _report(space, options.names, found) and (found.whole or options.names > 1)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
