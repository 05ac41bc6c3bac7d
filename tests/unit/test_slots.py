"""Turns for writes: bounded for the host and for each parent, and fair between parents."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from pathlib import Path

from agent.slots import STOPPING, STUCK, Bounds, Slots

ROOT = Path(__file__).parents[2]
BOUNDS = Bounds(per_parent=2, hung=3, extra=2, total=100)


async def taken(slots: Slots, parent: str) -> asyncio.Task[str]:
    """Ask for a turn, and let the ask run until it waits or has its answer."""
    asked = asyncio.Event()

    async def take() -> str:
        asked.set()
        return await slots.take(parent)

    task = asyncio.create_task(take())
    await asked.wait()
    return task


async def all_taken(slots: Slots, *parents: str) -> list[asyncio.Task[str]]:
    """Ask for a turn for each of `parents`, in this order."""
    return [await taken(slots, parent) for parent in parents]


def granted(tasks: list[asyncio.Task[str]]) -> list[bool]:
    """Which of them have their turn."""
    return [task.done() and task.result() == "" for task in tasks]


async def test_a_parent_has_so_many_turns_at_a_time() -> None:
    """The third waits, and has its turn when one of the first is given back."""
    slots = Slots(BOUNDS)
    tasks = await all_taken(slots, "a", "a", "a")
    assert granted(tasks) == [True, True, False]
    slots.give_back("a", hung=False)
    assert await tasks[2] == ""


async def test_the_first_turn_of_a_parent_waits_for_no_other_parent() -> None:
    """However many turns others have beyond their first, another parent begins at once."""
    slots = Slots(BOUNDS)
    tasks = await all_taken(slots, *"aabbcc", *"defgh")
    assert granted(tasks) == [True] * 5 + [False] + [True] * 5
    slots.give_back("a", hung=False)  # what the parents share is free again
    assert await tasks[5] == ""


async def test_parents_that_wait_have_their_turns_in_turn() -> None:
    """Who asked for much does not go before a parent that asked later for little."""
    slots = Slots(Bounds(per_parent=9, hung=9, extra=1, total=100))
    await all_taken(slots, "a", "b", "c", "c")
    waiting = await all_taken(slots, "a", "a", "b")
    slots.give_back("c", hung=False)
    assert await waiting[0] == ""
    assert granted(waiting) == [True, False, False]
    slots.give_back("a", hung=False)
    assert await waiting[2] == ""
    assert granted(waiting) == [True, False, True]


async def test_a_parent_whose_writes_hang_is_stuck_and_says_so() -> None:
    """At its bound it gets no more, who waits is refused, and others go on; until one returns."""
    slots = Slots(BOUNDS)
    for _ in range(BOUNDS.hung):
        assert await slots.take("a") == ""
        waits = await taken(slots, "a") if slots.stuck() else None
        slots.hang("a")
        assert waits is None
    assert slots.stuck() == {"a": 3}
    async with asyncio.timeout(60.0):
        assert await slots.take("a") == STUCK
    assert await slots.take("b") == ""
    slots.give_back("a", hung=True)
    assert not slots.stuck()
    assert await slots.take("a") == ""


async def test_who_waits_for_a_parent_that_gets_stuck_is_refused() -> None:
    """The answer comes with the write that reaches the bound."""
    slots = Slots(Bounds(per_parent=1, hung=1, extra=9, total=100))
    assert await slots.take("a") == ""
    waits = await taken(slots, "a")
    slots.hang("a")
    assert await waits == STUCK


async def test_the_host_has_so_many_processes_and_no_more() -> None:
    """Beyond the total even a first write waits, since there is no descriptor for it."""
    slots = Slots(Bounds(per_parent=2, hung=3, extra=9, total=2))
    tasks = await all_taken(slots, "a", "b", "c")
    assert granted(tasks) == [True, True, False]
    slots.give_back("b", hung=False)
    assert await tasks[2] == ""


async def test_a_turn_that_is_no_longer_wanted_goes_to_the_next() -> None:
    """Cancelled while it waits, or in the moment of its turn, nothing is lost."""
    slots = Slots(Bounds(per_parent=1, hung=1, extra=1, total=100))
    assert await slots.take("a") == ""
    first, second, third = await all_taken(slots, "a", "a", "a")
    first.cancel()
    slots.give_back("a", hung=False)  # the second's, in the moment
    second.cancel()
    assert await third == ""


async def test_a_stop_answers_who_waits() -> None:
    """There will be no turn for them."""
    slots = Slots(Bounds(per_parent=1, hung=1, extra=1, total=100))
    assert await slots.take("a") == ""
    waits = await taken(slots, "a")
    slots.close()
    assert await waits == STOPPING


def test_the_bounds_follow_from_the_host() -> None:
    """A quarter of the descriptors that are left is the most, and some are possible everywhere."""
    bounds = Bounds.of_host(4)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert bounds.per_parent == 4
    assert bounds.extra >= 4
    assert 4 <= bounds.total <= max(4, soft)
    program = (
        "import resource; from agent.slots import Bounds, raise_descriptor_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512)); print(Bounds.of_host(4).total);"
        "raise_descriptor_limit(); print(Bounds.of_host(4).total,"
        " resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == ["4", "64", "512"]
