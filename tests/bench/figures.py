"""What a line of the bench is given, and what it gives: figures, each a ratio with its spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Figure", "Stage"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured, as a multiple of another that was measured in turns with it.

    `ratio` is the middle of the rounds' ratios, `low` and `high` the least and the greatest of
    them. `must` is the bound; without one it is stated for the record. `notes` say what explains
    it, in words.
    """

    line: str
    measure: str
    ratio: float
    low: float
    high: float
    must: float | None
    at_least: bool = False
    rounds: int
    notes: tuple[str, ...] = ()

    @property
    def reached(self) -> bool | None:
        """Whether the bound is; None where there is none."""
        if self.must is None:
            return None
        return self.ratio >= self.must if self.at_least else self.ratio <= self.must


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a line is given: an etcd, a directory of its own, and so many seconds to spend.

    With `quick` it is to be coarser: fewer rounds, smaller numbers. `server` is etcd's process.
    """

    line: str
    endpoint: str
    server: int
    directory: Path
    quick: bool
    seconds: float

    @property
    def cluster(self) -> str:
        """The line's own cluster, so that it shares no name with another."""
        return f"bench-{self.line}"

    def size(self, full: int, quick: int) -> int:
        """How many of something: one number for a full run, another for a quick one."""
        return quick if self.quick else full
