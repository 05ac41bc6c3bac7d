"""docs/kernel.md: the rows as tables, with a column for each kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rows import SECTIONS
from .vocabulary import KERNELS, ByKernel, lettered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .vocabulary import Answer, Row

__all__ = ["text"]

_TITLE = "# What the kernel does, row by row"
_MADE = (
    "Made from `deploy/lab/conformance/rows.py` by `make kernel`; not to be edited. `make test` "
    "plays every row on the simulated kernel, `make lab` on Linux's own mdev core with the sample "
    "drivers mtty, mdpy and mbochs: a column that is not so fails."
)
_READ = (
    "A step is in one line with its answer: the count of bytes that a write returned, the name of "
    "its errno, or what was seen. A and B are two names, each a UUID. mtty counts its instances "
    "itself, and so does mbochs; for mdpy the mdev core counts. In sysfs a device is found on the "
    "`bus`, has a `type`, is `listed` among that type's devices, has a `directory` under its "
    "parent and a file `remove`; a scan (`agent/bus.py`) finds it present, going (off the bus, "
    "still in the parent's directory), unknown or absent. Each row begins with all drivers loaded "
    "and no device."
)


def text() -> str:
    """The whole document."""
    parts = [_TITLE, _MADE, _READ, "## Where the kernels differ", _table(_differing())]
    for section in SECTIONS:
        parts += [f"## {section.title}", _table(section.rows)]
    return "\n\n".join(parts) + "\n"


def _differing() -> Iterator[Row]:
    for section in SECTIONS:
        yield from (row for row in section.rows if _differs(row))


def _differs(row: Row) -> bool:
    return any(isinstance(step.expect, ByKernel) for step in row.steps)


def _table(rows: Iterable[Row]) -> str:
    head = (f"| what | steps | {' | '.join(KERNELS)} |", f"|{'---|' * (2 + len(KERNELS))}")
    return "\n".join([*head, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    columns = [_cell([_told(answer) for answer in row.expected(kernel)]) for kernel in KERNELS]
    return f"| {row.claim} | {_cell([str(step) for step in row.steps])} | {' | '.join(columns)} |"


def _cell(lines: list[str]) -> str:
    return "<br>".join(line.replace("|", "\\|") for line in lines)


def _told(answer: Answer) -> str:
    if isinstance(answer, list):
        return lettered(", ".join(answer)) or "none"
    return str(answer)
