"""Searches one space, in a process that does nothing else."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from tests.model.search import Search
from tests.model.world import World

if TYPE_CHECKING:
    from tests.model.search import Found
    from tests.model.spaces import Space

__all__ = ["explore", "say"]

_EVERY = {1: 4, 2: 16}  # by the number of names: of so many states one is followed till it settles


def explore(space: Space, names: int, states: int) -> Found:
    """Search a space up to so many states; told every million."""
    gc.disable()  # nothing of a search is given back before its end

    def tell(found: Found) -> None:
        say(f"  {space.title}: {found.line}")

    search = Search(World(space.budget), names)
    return search.run(states=states, every=_EVERY[names], told=tell, tell_every=1_000_000)


def say(line: str) -> None:
    """Tell at once, whoever reads it."""
    print(line, flush=True)  # noqa: T201 - printing is what it is run for
