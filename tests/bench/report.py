"""What is told of the figures: a table for people, JSON for programs, a chart for the docs."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING, Any

import msgspec
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.bench.chart import chart
from tests.bench.lines import LINES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.figures import Figure

__all__ = ["as_json", "bound", "print_table", "save", "verdict"]

_WIDTH = 200  # of what is no terminal


def bound(figure: Figure) -> str:
    """What must be reached, in words."""
    if figure.must is None:
        return "-"
    return f"{figure.must:g}x or {'more' if figure.at_least else 'less'}"


def verdict(figure: Figure) -> str:
    """Whether it is."""
    return {None: "stated", True: "reached", False: "MISSED"}[figure.reached]


def print_table(figures: Sequence[Figure], console: Console | None = None) -> None:
    """Print all figures, then what explains them, then how many are reached."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(box=MARKDOWN, pad_edge=False)
    for title in ("line", "what", "against", "measure"):
        table.add_column(title)
    for title in ("ratio", "spread", "must be", ""):
        table.add_column(title, justify="right", no_wrap=True)
    lines = {line.key: line for line in LINES}
    before = ""
    for one in figures:
        line = lines[one.line]
        about = (line.key, line.what, line.against) if one.line != before else ("", "", "")
        before = one.line
        spread = f"{one.low:.2f} to {one.high:.2f}"
        cells = (*about, one.measure, f"{one.ratio:.2f}", spread, bound(one), verdict(one))
        table.add_row(*map(Text, cells))
    console.print(table)
    for one in figures:
        for note in one.notes:
            console.print(Text(f"{one.line} ({one.measure}): {note}"))
    bounded = [one for one in figures if one.must is not None]
    reached = sum(bool(one.reached) for one in bounded)
    console.print(f"{reached} of {len(bounded)} bounds reached")


def as_json(figures: Sequence[Figure], server: str) -> dict[str, Any]:
    """All of it, line by line; `server` is etcd's version."""
    by_line: dict[str, list[Figure]] = {}
    for one in figures:
        by_line.setdefault(one.line, []).append(one)
    return {
        "etcd": server,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "lines": [
            {
                "line": line.key,
                "what": line.what,
                "against": line.against,
                "figures": [
                    msgspec.to_builtins(one) | {"reached": one.reached} for one in by_line[line.key]
                ],
            }
            for line in LINES
            if line.key in by_line
        ],
    }


def save(figures: Sequence[Figure], server: str, directory: Path) -> None:
    """Write results.json and results.svg."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(figures, server), indent=2, ensure_ascii=False)
    (directory / "results.json").write_text(f"{text}\n")
    (directory / "results.svg").write_text(chart(figures))
