"""Many schedules, one after the other or side by side, and a summary of what befell them."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from tests.sim.schedule import Schedule, generate
from tests.sim.world import play

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Summary", "quietly", "search"]

_COLLECT = 25  # schedules between two collections of what they have left


@dataclass
class Summary:
    """What became of some schedules. `seconds` are of the processor."""

    schedules: int = 0
    operations: int = 0
    names: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, list[str]]] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Take another one in."""
        self.schedules += other.schedules
        self.operations += other.operations
        self.names += other.names
        self.seconds += other.seconds
        self.counts += other.counts
        self.failures += other.failures

    def lines(self) -> Iterator[str]:
        """It, for people."""
        rate = self.schedules / self.seconds * 60 if self.seconds else 0
        each = self.operations / self.schedules if self.schedules else 0
        yield (
            f"{self.schedules} schedules, {self.operations} operations ({each:.0f} each), "
            f"{self.names} names; {self.seconds:.0f} s of a core, {rate:.0f} schedules a minute"
        )
        for what, count in sorted(self.counts.items()):
            yield f"{count:10}  {what}"
        yield f"{len(self.failures):10}  schedules that broke a promise"


@contextmanager
def quietly() -> Iterator[None]:
    """Without logging, and with the garbage collected between schedules only."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()  # what is left of coroutines is closed while nobody hears it
        sys.unraisablehook = hook
        structlog.reset_defaults()


def search(schedules: Iterable[Schedule]) -> Summary:
    """Play schedules."""
    summary = Summary()
    began = time.process_time()
    with quietly():
        for schedule in schedules:
            outcome = play(schedule)
            summary.schedules += 1
            summary.operations += outcome.operations
            summary.names += outcome.names
            summary.counts += outcome.counts
            if outcome.violations:
                summary.failures.append((schedule.seed, outcome.violations))
            if summary.schedules % _COLLECT == 0:
                gc.collect()
    summary.seconds = time.process_time() - began
    return summary


def search_seeds(first: int, count: int, without: frozenset[str]) -> Summary:
    """Play the schedules of seeds, without some kinds of faults."""
    return search(generate(seed, without) for seed in range(first, first + count))
