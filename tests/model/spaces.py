"""The spaces that are searched: which faults meet in each.

Together they have every fault; no one has all of them, because faults that do not touch one
another multiply what is to be searched and show nothing new. Crashes at any step, sessions and
reservations that lapse and failed scans are in every space, unbounded; lost answers and power
losses are in all but those that would not end with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.parts import Budget

__all__ = ["PLAIN", "SPACES", "WIDEST", "Space"]

PLAIN = Budget(
    late=0,
    late_enrolments=False,
    by_hand=False,
    refusals=False,
    persistent=False,
    evicts=False,
)
"""Nothing but what is in every space."""


@dataclass(frozen=True)
class Space:
    """Some faults, by what they are about, and with how many names they are searched."""

    title: str
    budget: Budget
    names: tuple[int, ...] = (1,)


SPACES = (
    Space("holds", replace(PLAIN, holds=True)),
    Space("late enrolments", replace(PLAIN, late_enrolments=True)),
    Space("callers on the host", replace(PLAIN, callers=True)),
    Space("kernels that refuse", replace(PLAIN, refusals=True), (1, 2)),
    Space("late copies", replace(PLAIN, late=1)),
    Space("hosts that are evicted", replace(PLAIN, evicts=True)),
    Space("late copies about an evict", replace(PLAIN, late=1, evicts=True)),
    Space("persistent names", replace(PLAIN, persistent=True)),
    Space("devices made and removed by hand", replace(PLAIN, by_hand=True)),
    Space("a second agent on a host", replace(PLAIN, zombies=True, unanswered=False)),
    Space("a store that is restored", replace(PLAIN, restores=True, unanswered=False)),
    Space("a restore with answers that are lost", replace(PLAIN, restores=True), (2,)),
)


WIDEST = Budget(zombies=True, holds=True, callers=True, restores=True)
"""Every fault at once."""
