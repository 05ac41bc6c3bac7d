"""What is left when somebody stops waiting: which names, and in which state."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coordinator.claims import Hold
from coordinator.errors import Interrupted, StoreError
from coordinator.model import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coordinator.client import Client, Result
    from coordinator.model import Name
    from coordinator.views import Record

__all__ = ["bar", "left_behind", "progress"]

_LOOK = 3.0  # seconds; whoever pressed Ctrl-C does not wait for long
_TOLD = 8  # names; more are counted


async def left_behind(client: Client, doing: str, names: Sequence[Name]) -> Interrupted:
    """The error for a command that stops waiting for `names`: what stands of them now."""
    if not names:
        return Interrupted(doing, "interrupted", "it was done with all names")
    found = await _standing(client, names)
    if found is None:
        why = f"interrupted, and the store does not say what stands of {_some(names)}"
        return Interrupted(doing, why, f"find out with: mdevns show {names[0]}")
    left = {
        name: record.state if isinstance(record, Claim) else "reserved"
        for name, record in found.items()
        if isinstance(record, Claim | Hold)
    }
    if not left:
        return Interrupted(doing, "interrupted", "nothing was left behind")
    states = ", ".join(f"{n} {state}" for state, n in sorted(Counter(left.values()).items()))
    why = f"interrupted, left behind: {_some(list(left))} ({states})"
    going = {"creating", "removing", "reserved"}.intersection(left.values())
    hint = "the hosts go on with what is under way; see" if going else "nobody goes on with it; see"
    return Interrupted(doing, why, f"{hint}: mdevns show {next(iter(left))}")


async def _standing(client: Client, names: Sequence[Name]) -> dict[Name, Record | None] | None:
    """What holds the names; None when that cannot be said.

    What is on its way to the store is not recalled: it arrives before the look.
    """
    if not await client.settled(_LOOK):
        return None
    try:
        async with asyncio.timeout(_LOOK):
            return await client.views.find_all(names)
    except (TimeoutError, StoreError):
        return None


def _some(names: Sequence[Name]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return " ".join(names[:_TOLD]) + more


@contextmanager
def progress(total: int, doing: str, *, shown: bool) -> Iterator[Callable[[Result], None]]:
    """A bar on stderr that a call for each result moves on."""
    with bar(total, doing, shown=shown) as moved:
        yield lambda _: moved(1)


@contextmanager
def bar(total: int, doing: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that a call moves on by so many."""
    if not shown or total == 1:
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415 - the same

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(doing, total=total)
        yield lambda number: drawn.advance(task, number)
