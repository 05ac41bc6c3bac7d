"""The lines of the bench, as data: what is measured, against what, what it must reach."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.figures import Figure, Stage

__all__ = ["LINES", "Line", "chosen", "measured"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    `where` is `module:function` in tests.bench, imported when the line is run: a function,
    plain or async, of a `Stage`, that gives its figures. `seconds` and `quick` are what a full
    and a quick run may spend on it, its own preparations included.
    """

    key: str
    what: str
    against: str
    must: str
    where: str
    seconds: float
    quick: float


LINES = (
    Line(
        "claim",
        "claim one name on the host itself",
        "one raw transaction of the same two keys",
        "p50 1.15x, p99 1.3x",
        "claims:claim",
        12,
        2,
    ),
    Line(
        "reserve",
        "reserve one name, leases shared",
        "the same raw transaction with a lease",
        "p50 1.15x",
        "claims:reserve",
        8,
        1.5,
    ),
    Line(
        "bulk",
        "reserve 126 names at once",
        "the same nested transaction, raw",
        "p50 1.15x",
        "claims:bulk",
        8,
        1.5,
    ),
    Line(
        "create",
        "create one device on the host itself, simulated kernel at 0 ms",
        "two raw transactions",
        "p50 1.4x",
        "creates:local",
        14,
        3,
    ),
    Line(
        "remote",
        "create one device from another machine's process, kept open, and hear of it",
        "three raw transactions and a watch event",
        "p50 1.4x",
        "creates:remote",
        14,
        3,
    ),
    Line(
        "callers",
        "64 and 256 callers in one process, one name each, continuously",
        "as many callers with raw single transactions",
        "2x and 3x the names a second",
        "callers:measure",
        16,
        3,
    ),
    Line(
        "drivers",
        "128 devices on 8 parents, 100 ms a create, one at a time a parent",
        "16 times 100 ms",
        "1.1x",
        "drivers:floor",
        14,
        2,
    ),
    Line(
        "locks",
        "32 of the same, kernel and journal in memory",
        "a cluster lock (etcd3's Lock) across each create, and across the check alone",
        "7x as fast; stated",
        "drivers:locks",
        22,
        3.5,
    ),
    Line(
        "callout",
        "devices by `mdevctl start` with the callout, 4 one by one and 32 on 8 parents",
        "mdevctl without it",
        "under 60 ms more a device",
        "callout:measure",
        16,
        3,
    ),
    Line(
        "scale",
        "reserve one name with 1,000,000 names in the cluster",
        "with 1,000",
        "p50 1.2x",
        "scale:measure",
        46,
        2.5,
    ),
    Line(
        "starts",
        "agent start with 128 devices in the kernel",
        "with 8",
        "round trips equal, time 2x",
        "starts:measure",
        8,
        2,
    ),
    Line(
        "listing",
        "list 100,000 names as JSON",
        "etcd's range of the same keys, raw, paged",
        "2.5x, memory under 250 MB",
        "listing:measure",
        42,
        2.5,
    ),
    Line(
        "crowd",
        "1,000 agents idle, 100 names each",
        "10 agents",
        "etcd's CPU an agent no higher",
        "crowd:measure",
        36,
        5,
    ),
    Line(
        "boots",
        "48 hosts boot at once, 128 persistent devices each",
        "raw nested transactions",
        "0.6 of their names a second",
        "boots:measure",
        18,
        2.5,
    ),
    Line(
        "commands",
        "`mdevns --help`, `mdevns list`",
        "an empty Typer app, a bare script of one range",
        "1.3x, 1.5x",
        "commands:measure",
        13,
        1.5,
    ),
    Line(
        "record",
        "what a claim costs in etcd: bytes, keys, revisions, names in 2 GiB",
        "the bytes of its keys and values",
        "stated",
        "record:measure",
        3,
        1,
    ),
)


def chosen(keys: Sequence[str]) -> list[Line]:
    """The lines of these keys in the order of the table; all of them without any.

    Raises:
        ValueError: there is no such line.
    """
    known = [line.key for line in LINES]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise ValueError(f"no such line: {', '.join(unknown)}; there are: {', '.join(known)}")
    return [line for line in LINES if not keys or line.key in keys]


def measured(line: Line, stage: Stage) -> list[Figure]:
    """Run a line; its figures. One that awaits runs in a loop of its own."""
    module, _, function = line.where.partition(":")
    found = getattr(importlib.import_module(f"tests.bench.{module}"), function)(stage)
    figures: list[Figure] = asyncio.run(found) if inspect.iscoroutine(found) else found
    return figures
