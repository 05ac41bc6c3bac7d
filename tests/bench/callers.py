"""Many callers in one process, each with one name after the other."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from coordinator.reserving import reserve
from tests.bench.asking import TTL, asker, new_names
from tests.bench.turns import figure, in_turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.bench.figures import Figure, Stage

__all__ = ["measure"]

_MUST = {64: 2.0, 256: 3.0}
_WARM = 0.1  # seconds


async def measure(stage: Stage) -> list[Figure]:
    """Names a second, through group commit and through one transaction each."""
    fresh = new_names()
    lasting, rounds = 0.25 if stage.quick else 1.0, stage.size(5, 2)
    figures = []
    async with asker(stage) as by:
        lease = await by.raw.grant(TTL)

        async def ours() -> None:
            (result,) = await reserve(by.client, [next(fresh)], request="bench", ttl=TTL)
            assert result.error is None, result.error

        async def theirs() -> None:
            key = f"/raw{by.keys.name(next(fresh))}".encode()
            await by.raw.take([(key, b'{"v":1,"host":null,"request":"bench"}')], lease)

        for callers, must in _MUST.items():
            for warmed in (ours, theirs):
                await _rate(warmed, callers, _WARM)
            turns = await in_turns(
                partial(_rate, ours, callers, lasting),
                partial(_rate, theirs, callers, lasting),
                rounds=rounds,
                seconds=stage.seconds / len(_MUST),
            )
            what = f"names a second, {callers} callers"
            figures.append(figure(stage.line, what, turns, must=must, at_least=True))
    return figures


async def _rate(once: Callable[[], Awaitable[None]], callers: int, seconds: float) -> list[float]:
    """How often a second so many callers do it, each again and again for so long."""
    began = time.perf_counter()

    async def call() -> int:
        count = 0
        while time.perf_counter() - began < seconds:
            await once()
            count += 1
        return count

    counts = await asyncio.gather(*(call() for _ in range(callers)))
    return [sum(counts) / (time.perf_counter() - began)]
