"""Drivers that take their time, on parents that make one device at a time."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING

from coordinator.creating import Ask, create
from coordinator.operating import remove
from tests.bench.agents import PARENTS, TYPE, agent_here, serving
from tests.bench.asking import TTL, asker, new_names
from tests.bench.turns import Turn, figure, in_turns

if TYPE_CHECKING:
    from tests.bench.asking import Asker
    from tests.bench.figures import Figure, Stage

__all__ = ["LATENCY", "floor", "locks", "made_together"]

_AT_ONCE = 4  # so many writes an agent gives a parent at a time, each with a worker

LATENCY = 0.1
"""Seconds that a driver takes for a create."""


async def floor(stage: Stage) -> list[Figure]:
    """All devices of a host asked for at once, against what the drivers alone take."""
    figures: list[Figure] = []
    async with asker(stage) as by:
        if not stage.quick:
            with serving(stage, "gpu01", latency=LATENCY) as host:
                figures.append(await _floor(stage, by, host.name, TYPE, "time"))
        async with agent_here(stage, "gpu02", instant=True, latency=LATENCY) as here:
            measure = "time, kernel and journal in memory, all one process"
            figures.append(await _floor(stage, by, here.wish.host, here.wish.type, measure))
    return figures


async def _floor(stage: Stage, by: Asker, host: str, type_: str, measure: str) -> Figure:
    each, rounds = stage.size(16, 4), stage.size(2, 1)
    await made_together(by, host, type_, PARENTS * _AT_ONCE)  # all workers are there from here on
    turns = [
        Turn([await made_together(by, host, type_, PARENTS * each)], [each * LATENCY])
        for _ in range(rounds)
    ]
    notes = [f"{PARENTS * each} devices, {each} a parent"]
    return figure(stage.line, measure, turns, must=1.1, notes=notes)


async def made_together(by: Asker, host: str, type_: str, count: int) -> float:
    """Seconds until so many devices that are asked for at once are made; they are removed again."""
    parents = [view.parent for view in await by.client.views.parents([host])]
    assert len(parents) == PARENTS, parents
    asks = [
        Ask(name=name, request="bench", type=type_, host=host, parent=parent)
        for name, parent in zip(islice(new_names(), count), cycle(parents), strict=False)
    ]
    began = time.perf_counter()
    made = await create(by.client, asks, ttl=TTL)
    took = time.perf_counter() - began
    for results in (made, await remove(by.client, [ask.name for ask in asks])):
        for result in results:
            assert result.error is None, result.error
    return took


async def locks(stage: Stage) -> list[Figure]:
    """The same against a lock of the whole cluster, with nothing but a pause for a driver."""
    each, rounds = stage.size(4, 1), stage.size(3, 1)
    count = PARENTS * each
    notes = [f"{count} devices, {each} a parent; our kernel and journal in memory"]
    figures = []
    async with (
        asker(stage) as by,
        agent_here(stage, "gpu01", instant=True, latency=LATENCY) as here,
    ):
        host, type_ = here.wish.host, here.wish.type

        async def ours() -> list[float]:
            return [1 / await made_together(by, host, type_, count)]

        await ours()
        for across, what, must in ((True, "each create", 7.0), (False, "each check", None)):
            theirs = partial(_speed_locked, stage, each, across=across)
            turns = await in_turns(ours, theirs, rounds=rounds)
            measure = f"devices a second, lock across {what}"
            figures.append(
                figure(stage.line, measure, turns, must=must, at_least=True, notes=notes)
            )
    return figures


async def _speed_locked(stage: Stage, each: int, *, across: bool) -> list[float]:
    return [1 / await _locked(stage, each, across=across)]


async def _locked(stage: Stage, each: int, *, across: bool) -> float:
    """What `tests.bench.locked` took, as a process of its own."""
    what = [stage.endpoint, stage.cluster, PARENTS, each, LATENCY, int(across)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.bench.locked", *map(str, what)),
        stdout=asyncio.subprocess.PIPE,
        # Its client's watcher trips over a module that it does not import when it is closed.
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"tests.bench.locked ended with {process.returncode}"
    return float(out)
