"""One answer for each name that was asked for, also when the asking breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cli.under_way import left_behind, progress
from coordinator.client import Result
from coordinator.errors import MdevnsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from cli.context import Call
    from cli.output import View
    from coordinator.claims import Hold
    from coordinator.client import Client
    from coordinator.model import Claim, Name

__all__ = ["Told", "answered", "freed", "record"]

T = TypeVar("T")

Told = Callable[[Result], None]
"""Hears of each name as it ends."""


def record(result: Result) -> Claim | Hold | None:
    """What stands after it."""
    return result.record


def freed(result: Result) -> Result | None:
    """The result itself, when the name is free after it."""
    return None if result.error else result


def answered(
    call: Call,
    names: Sequence[Name],
    ask: Callable[[Client, Told], Awaitable[list[Result]]],
    view: View[T],
    done: Callable[[Result], T | None],
    *,
    array: bool,
) -> int:
    """Ask for something to be done with each name, and print each answer.

    When it breaks off, what has ended by then is printed all the same.
    """
    ended: dict[Name, Result] = {}

    def printed(results: Sequence[Result]) -> int:
        items = [item for result in results if (item := done(result)) is not None]
        return call.out.results(view, items, results, array=array)

    async def asked(client: Client) -> list[Result]:
        with progress(len(names), call.path, shown=call.out.shows_progress) as moved:

            def told(result: Result) -> None:
                ended[result.name] = result
                moved(result)

            try:
                return await ask(client, told)
            except asyncio.CancelledError:
                left = [name for name in names if name not in ended]
                raise await left_behind(client, call.path, left) from None

    try:
        return printed(call.run(asked))
    except MdevnsError:
        if ended:
            printed(list(ended.values()))
        raise
