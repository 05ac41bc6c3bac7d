"""Search every interleaving: `make explore`.

    python -m tests.model [--names N] [--states N] [--processes N] [--only WORD]

With one name each of `SPACES` is searched to its end; with two, the widest of them up to so many
states. Prints what was searched, and for a violation the shortest way to it; then it ends with 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
from concurrent.futures import ProcessPoolExecutor

from tests.model.search import Found, Search
from tests.model.spaces import SPACES, Space
from tests.model.world import World

_EVERY = {1: 4, 2: 16}  # by the number of names: of so many states one is followed till it settles


def _search(space: Space, names: int, states: int) -> Found:
    gc.disable()  # nothing of a search is given back before its end

    def tell(found: Found) -> None:
        _say(f"  {space.title}: {found.line}")

    search = Search(World(space.budget), names)
    return search.run(states=states, every=_EVERY[names], told=tell, tell_every=1_000_000)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - printing is what it is run for


def _report(space: Space, names: int, found: Found) -> bool:
    """Tell what a search has found; whether all is well."""
    _say(f"{names} name{'s' if names > 1 else ''}, {space.title}: {found.line}")
    for line in found.trace:
        _say(f"    {line}")
    return not found.violation


def main() -> int:
    """Search; 1 when something that is promised does not hold, or a space was not ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.model")
    parser.add_argument("--names", type=int, choices=(1, 2), default=1)
    parser.add_argument("--states", type=int, default=20_000_000, help="so many at most, each")
    parser.add_argument("--processes", type=int, default=1, help="spaces that are searched at once")
    parser.add_argument("--only", default="", help="the spaces with this word in their title")
    options = parser.parse_args()
    spaces = [s for s in SPACES if options.names in s.names and options.only in s.title]
    well = bool(spaces)
    with ProcessPoolExecutor(options.processes, max_tasks_per_child=1) as pool:
        running = [pool.submit(_search, s, options.names, options.states) for s in spaces]
        for space, future in zip(spaces, running, strict=True):
            found = future.result()
            well &= _report(space, options.names, found) and (found.whole or options.names > 1)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
