"""The simulation itself: fresh seeds, the schedules that once broke a promise, and that it counts.

It runs in a process of its own, in which the order of sets is no matter of chance.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.schedule import Schedule, generate

KEPT = Path(__file__).parent / "kept.jsonl"
RUNS = 300  # ten seconds of a core; `make sim` has as many as anybody wants


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the simulation, with an order of sets that is the same every time."""
    command = [sys.executable, "-m", "tests.sim", *arguments]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env=environment
    )


@pytest.mark.long
def test_fresh_seeds_break_no_promise() -> None:
    """No schedule of seeds that nobody has tried before breaks a promise."""
    done = simulate("--runs", str(RUNS))
    print(done.stdout)  # noqa: T201 - the base seed, for who wants them again
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_what_once_broke_a_promise_does_not_any_more() -> None:
    """The schedules that were kept break no promise."""
    done = simulate("--file", str(KEPT))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_is_played_again_exactly() -> None:
    """The same seed gives the same trace, in another process too."""
    first, second = (simulate("--seed", "7", "--log").stdout for _ in range(2))
    assert "trace" in first
    assert first == second


def test_a_schedule_is_written_down_and_read() -> None:
    """What was written down is the schedule that was played."""
    schedule = generate(11)
    assert Schedule.loads(schedule.dumps()).events == schedule.events
    assert Schedule.loads(schedule.dumps()).setting == schedule.setting
