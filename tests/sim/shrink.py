"""The shortest schedule that still breaks a promise: delta debugging over its events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.sim.world import play

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.sim.schedule import Event, Schedule

__all__ = ["shortest"]


def shortest(schedule: Schedule, *, tries: int = 600) -> Schedule:
    """Leave events out, many at once and then one by one, as long as a promise is broken."""
    left = tries
    events: tuple[Event, ...] = schedule.events
    size = max(1, len(events) // 2)
    while left > 0:
        for shorter in _without(events, size):
            left -= 1
            if play(replace(schedule, events=shorter)).violations:
                events = shorter
                break
            if left <= 0:
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return replace(schedule, events=events)


def _without(events: Sequence[Event], size: int) -> Iterator[tuple[Event, ...]]:
    """The events without some neighbours, the last first: what comes late matters least."""
    for start in range(len(events) - 1, -1, -size):
        first = max(0, start - size + 1)
        yield tuple(events[:first]) + tuple(events[start + 1 :])
