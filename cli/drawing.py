"""What is drawn for somebody at a terminal: bars."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Drawn", "bar_maker"]

_WIDTH = 16
_NEARLY = 0.8  # from here on it is yellow; red is full


class Drawn(str):
    """A cell that is drawn: it may hold a terminal's colours, and takes `width` columns."""

    __slots__ = ("width",)
    width: int

    def __new__(cls, text: str, width: int) -> Drawn:  # noqa: PYI034 - nobody derives from it
        """The text and how many columns it takes."""
        drawn = super().__new__(cls, text)
        drawn.width = width
        return drawn


def bar_maker() -> Callable[[int, int], Drawn] | None:
    """Draws `used` of `used + free` as a bar; None where stdout is no terminal."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress_bar import ProgressBar  # noqa: PLC0415 - the same

    console = Console(file=sys.stdout)

    def bar(used: int, free: int) -> Drawn:
        total = used + free
        if not total:
            return Drawn("", 0)
        colour = "red" if not free else "yellow" if used / total >= _NEARLY else "green"
        drawn = ProgressBar(total, used, width=_WIDTH, complete_style=colour, finished_style=colour)
        with console.capture() as text:
            console.print(drawn, end="")
        share = f"{100 * used // total:>4} %"
        return Drawn(text.get().rstrip("\n") + share, _WIDTH + len(share))

    return bar
