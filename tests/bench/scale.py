"""Whether a request costs more in a large cluster than in a small one.

On two servers, one with a thousand names and one with a million.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.reserving import reserve
from tests.bench.asking import asker, new_names
from tests.bench.filling import fill
from tests.bench.served import own_etcd
from tests.bench.turns import figure, one_by_one, p50

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.bench.figures import Figure, Stage

__all__ = ["measure"]

_FEW, _MANY, _SOME = 1_000, 1_000_000, 30_000
_A_HOST = 125  # names
_TTL = 3600  # seconds: nothing lapses meanwhile
_FLAGS = ("--quota-backend-bytes=8589934592",)  # 8 GiB, the most that etcd recommends


async def measure(stage: Stage) -> list[Figure]:
    """Reserve one name with so many in the cluster, and with few."""
    count = stage.size(_MANY, _SOME)
    async with AsyncExitStack() as stack:
        large = stack.enter_context(own_etcd(*_FLAGS))
        few = await stack.enter_async_context(_reserving(stage, _FEW))
        began = time.monotonic()
        many = await stack.enter_async_context(
            _reserving(replace(stage, endpoint=large.endpoint), count)
        )
        seconds = time.monotonic() - began
        for once in (few, many) * 20:
            await once()
        turns = await one_by_one(many, few, rounds=stage.size(9, 3), each=stage.size(100, 40))
    middle = p50([one for turn in turns for one in turn.theirs])
    notes = (
        (
            f"{count:,} names against {_FEW:,}, each in an etcd of its own; with few "
            f"{middle * 1e3:.2f} ms at p50"
        ),
        f"the names were put there raw, {count / seconds:,.0f} a second",
    )
    return [figure(stage.line, "p50", turns, must=1.2, notes=notes)]


@asynccontextmanager
async def _reserving(stage: Stage, count: int) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """What reserves one name more in a cluster with so many."""
    names = new_names()
    async with asker(stage) as by:
        await fill(by.raw, by.keys, range(count // _A_HOST), _A_HOST)

        async def once() -> None:
            name = next(names)
            (result,) = await reserve(by.client, [name], request=name, ttl=_TTL)
            assert result.error is None, result.error

        yield once
