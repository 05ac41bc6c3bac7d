"""Two things measured in turns, and what is made of their times.

A machine that is busy for a moment is so for both: ours and theirs come one after the other
within each round, and which of them comes first changes from round to round.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tests.bench.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = [
    "Turn",
    "figure",
    "in_turns",
    "of_ratios",
    "one_by_one",
    "p50",
    "p99",
    "percentile",
    "sync_turns",
]

Once: TypeAlias = "Callable[[], Awaitable[object]]"
"""Does something once; where not all of it counts it returns the seconds that do."""
Measured: TypeAlias = "Callable[[], Awaitable[Sequence[float]]]"
"""Does something once or more; what it took, or made a second, or whatever is compared."""

_LEAST = 3  # so many rounds are made however long they take


@dataclass(frozen=True, slots=True)
class Turn:
    """What a round measured of ours and of theirs."""

    ours: Sequence[float]
    theirs: Sequence[float]


def _numbers(rounds: int, seconds: float | None) -> Iterator[int]:
    end = None if seconds is None else time.monotonic() + seconds
    for number in range(rounds):
        if end is not None and number >= _LEAST and time.monotonic() > end:
            return
        yield number


async def in_turns(
    ours: Measured, theirs: Measured, *, rounds: int, seconds: float | None = None
) -> list[Turn]:
    """Measure both in each of so many rounds: ours first, theirs first, and so on.

    After `seconds` no new round begins, once there are three.
    """
    turns: list[Turn] = []
    for number in _numbers(rounds, seconds):
        if number % 2:
            second = await theirs()
            turns.append(Turn(await ours(), second))
        else:
            first = await ours()
            turns.append(Turn(first, await theirs()))
    return turns


def sync_turns(
    ours: Callable[[], Sequence[float]],
    theirs: Callable[[], Sequence[float]],
    *,
    rounds: int,
    seconds: float | None = None,
) -> list[Turn]:
    """`in_turns` of what awaits nothing, programs for instance."""
    turns: list[Turn] = []
    for number in _numbers(rounds, seconds):
        if number % 2:
            second = theirs()
            turns.append(Turn(ours(), second))
        else:
            first = ours()
            turns.append(Turn(first, theirs()))
    return turns


async def one_by_one(
    ours: Once, theirs: Once, *, rounds: int, each: int, seconds: float | None = None
) -> list[Turn]:
    """Do both `each` times a round, one of ours, one of theirs, one of theirs, one of ours.

    The turns have what each took, in seconds. For what takes milliseconds: nothing that slows
    the machine for longer than one of them can fall on one side alone.
    """
    turns: list[Turn] = []
    for number in _numbers(rounds, seconds):
        times: tuple[list[float], list[float]] = ([], [])
        for count in range(each):
            order = (0, 1) if count % 2 == number % 2 else (1, 0)
            for which in order:
                began = time.perf_counter()
                told = await (ours, theirs)[which]()
                took = time.perf_counter() - began
                times[which].append(told if isinstance(told, float) else took)
        turns.append(Turn(*times))
    return turns


def percentile(samples: Sequence[float], percent: int) -> float:
    """The sample below which so many percent of them lie, between two where it falls there."""
    if len(samples) < 2:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def p50(samples: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The one that one of a hundred exceeds."""
    return percentile(samples, 99)


def figure(
    line: str,
    measure: str,
    turns: Sequence[Turn],
    *,
    by: Callable[[Sequence[float]], float] = p50,
    must: float | None = None,
    at_least: bool = False,
    notes: Sequence[str] = (),
) -> Figure:
    """The figure that turns make: ours as a multiple of theirs, `by` what stands for a round."""
    ratios = [by(turn.ours) / by(turn.theirs) for turn in turns]
    return of_ratios(line, measure, ratios, must=must, at_least=at_least, notes=notes)


def of_ratios(
    line: str,
    measure: str,
    ratios: Sequence[float],
    *,
    must: float | None = None,
    at_least: bool = False,
    notes: Sequence[str] = (),
) -> Figure:
    """The figure that the ratios of so many rounds make."""
    return Figure(
        line=line,
        measure=measure,
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        must=must,
        at_least=at_least,
        rounds=len(ratios),
        notes=tuple(notes),
    )
