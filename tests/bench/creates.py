"""One device: on the host itself, and from another machine."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from coordinator.creating import Ask, create
from coordinator.operating import remove
from coordinator.placement import Candidate
from coordinator.sequences import batched
from tests.bench.agents import TYPE, agent_here, serving
from tests.bench.asking import TTL, asker, new_names
from tests.bench.turns import Turn, figure, one_by_one
from tests.support.counting import CountingStore

if TYPE_CHECKING:
    from coordinator.model import Name
    from tests.bench.agents import AgentHere
    from tests.bench.asking import Asker
    from tests.bench.figures import Figure, Stage

__all__ = ["local", "remote"]

_AT_ONCE = 8  # so many devices are made before they are removed again

_NAME, _CLAIM = b'{"v":1,"host":"gpu01","request":"local-0123456789abcdef"}', b"x" * 330


async def local(stage: Stage) -> list[Figure]:
    """Claim, create, active."""
    figures: list[Figure] = []
    async with asker(stage) as by:
        for instant in (False, True):
            async with agent_here(stage, f"gpu{instant:d}", instant=instant) as host:
                figures += await _local(stage, by, host, instant=instant)
    return figures


async def _local(stage: Stage, by: Asker, host: AgentHere, *, instant: bool) -> list[Figure]:
    fresh, active = new_names(), list[float]()
    each = stage.size(15, 5)

    async def ours() -> float:
        made = await host.create()
        active.append(made.active)
        await host.release(made.name)
        return made.heard

    async def theirs() -> None:
        await _in_steps(by, next(fresh), 2)

    await ours()
    active.clear()
    turns = await one_by_one(
        ours, theirs, rounds=stage.size(5, 3), each=each, seconds=stage.seconds / 2
    )
    sooner = [
        Turn(some, turn.theirs) for some, turn in zip(batched(active, each), turns, strict=True)
    ]
    where = "p50, kernel and journal in memory" if instant else "p50"
    notes = host.spent.each(len(active) + 1)
    return [
        figure(stage.line, where, turns, must=1.4, notes=notes),
        figure(stage.line, f"{where}, until it is active, heard or not", sooner),
    ]


async def remote(stage: Stage) -> list[Figure]:
    """Reserve, begin, create, active, and the word of it back; the agent is another process."""
    async with asker(stage) as by:
        with serving(stage, "gpu01") as host:
            places = await by.client.views.parents([host.name])
            at = Candidate(host.name, places[0].parent, 1)
            figures = [await _remote(stage, by, at, TYPE, "p50")]
        async with agent_here(stage, "gpu02", instant=True) as here:
            at = Candidate(here.wish.host, here.wish.parent, 1)
            measure = "p50, kernel and journal in memory, all one process"
            figures.append(await _remote(stage, by, at, here.wish.type, measure))
    return figures


async def _remote(stage: Stage, by: Asker, at: Candidate, type_: str, measure: str) -> Figure:
    fresh = new_names()
    made: list[Name] = []
    counted = CountingStore(by.store)
    calls: Counter[str] = Counter()
    client = by.client_on(counted)

    async def ours() -> float:
        ask = Ask(name=next(fresh), request="bench", type=type_, host=at.host, parent=at.parent)
        counted.forget()
        began = time.perf_counter()
        (result,) = await create(client, [ask], ttl=TTL)
        took = time.perf_counter() - began
        calls.update({**counted.calls, "creates": 1})
        assert result.error is None, result.error
        made.append(ask.name)
        if len(made) == _AT_ONCE:
            await remove(by.client, made)
            made.clear()
        return took

    async with by.raw.watch(b"/raw" + by.keys.root.encode()) as told:

        async def theirs() -> None:
            revision = await _in_steps(by, next(fresh), 3)
            while (await told.read()).header.revision < revision:
                pass

        await ours()
        turns = await one_by_one(
            ours,
            theirs,
            rounds=stage.size(5, 3),
            each=stage.size(_AT_ONCE, _AT_ONCE // 2),
            seconds=stage.seconds / 2,
        )
    await client.close()
    count = calls.pop("creates")
    said = ", ".join(f"{call} {times / count:.1f}" for call, times in calls.items())
    return figure(stage.line, measure, turns, must=1.4, notes=[f"the caller's calls: {said}"])


async def _in_steps(by: Asker, name: str, steps: int) -> int:
    """Raw: a name and its claim put, and put again, each at the revision before."""
    keys = by.keys.name(name), by.keys.claim("gpu01", name)
    pairs = [
        (b"/raw" + key.encode(), text) for key, text in zip(keys, (_NAME, _CLAIM), strict=True)
    ]
    revision = 0
    for _ in range(steps):
        revision = await by.raw.take(pairs, revision=revision)
    return revision
