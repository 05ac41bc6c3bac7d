"""Search by simulation, or play one schedule again.

python -m tests.sim [--runs N] [--jobs N] [--first SEED] [--without FAULT,FAULT]
python -m tests.sim --seed SEED [--log]
python -m tests.sim --file FILE [--log]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from tests.sim.runner import Summary, quietly, search_seeds
from tests.sim.schedule import Schedule, generate
from tests.sim.shrink import shortest
from tests.sim.world import play

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 50  # schedules for a process at a time
_SHOWN = 3  # so many failures are made shorter


def main() -> int:
    """Do as the arguments say; 1 when a promise was broken."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is a decision, too
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        os.execve(  # noqa: S606 - this very program
            sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], environment
        )
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--first", type=int, default=None)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--file", type=Path, default=None)
    parser.add_argument("--without", default="", help="kinds of faults, with commas between")
    parser.add_argument("--log", action="store_true")
    options = parser.parse_args()
    without = frozenset(options.without.split(","))
    if options.seed is not None:
        return _again(generate(options.seed, without), log=options.log)
    if options.file is not None:
        schedules = [Schedule.loads(line) for line in options.file.read_text().splitlines()]
        return max(_again(schedule, log=options.log) for schedule in schedules)
    first = random.SystemRandom().randrange(1 << 40) if options.first is None else options.first
    return _search(range(first, first + options.runs), options.jobs, without)


def _again(schedule: Schedule, *, log: bool) -> int:
    """Play one schedule, and say what came of it."""
    with quietly():
        outcome = play(schedule, verbose=log)
        if outcome.violations and not log:
            schedule = shortest(schedule)
            outcome = play(schedule, verbose=True)
    _say(*outcome.log)
    _say(f"seed {schedule.seed}: {outcome.operations} operations, trace {outcome.trace}")
    if outcome.violations:
        _tell(schedule, outcome.violations)
    return int(bool(outcome.violations))


def _search(seeds: range, jobs: int, without: frozenset[str]) -> int:
    _say(f"seeds {seeds[0]} to {seeds[-1]}, {jobs} at a time")
    total, began = Summary(), time.monotonic()
    for some in _summaries(seeds, jobs, without):
        total.add(some)
        for seed, violations in some.failures:
            _say(f"seed {seed}: {violations[0]}")
        rate = total.schedules / (time.monotonic() - began) * 60
        _progress(f"{total.schedules} of {len(seeds)} schedules, {rate:.0f} a minute")
    _progress("")
    _say(*total.lines())
    for seed, _ in total.failures[:_SHOWN]:
        with quietly():
            schedule = shortest(generate(seed, without))
            violations = play(schedule).violations
        _tell(schedule, violations)
    return int(bool(total.failures))


def _summaries(seeds: range, jobs: int, without: frozenset[str]) -> Iterator[Summary]:
    """Chunk by chunk; each in a process that is young, so that memory is bounded."""
    chunks = [(seed, min(_CHUNK, seeds.stop - seed), without) for seed in seeds[::_CHUNK]]
    if jobs == 1:
        for chunk in chunks:
            yield search_seeds(*chunk)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(search_seeds, *chunk) for chunk in chunks]):
            yield done.result()


def _tell(schedule: Schedule, violations: list[str]) -> None:
    _say(f"\nseed {schedule.seed} breaks a promise: {violations[0]}")
    _say("the shortest schedule found for it:", *map(str, schedule.events))
    _say("to keep it: a line of tests/sim/kept.jsonl", schedule.dumps())
    _say(f"to play it again: make sim SEED={schedule.seed}")


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)  # noqa: T201 - it is a command


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:70}", end="", file=sys.stderr, flush=True)  # noqa: T201 - it is a command


if __name__ == "__main__":
    sys.exit(main())
