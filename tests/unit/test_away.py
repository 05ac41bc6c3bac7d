"""Waits for hosts while the store goes away: they end, and say that the outcome is not known."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from coordinator.creating import create
from coordinator.defining import define
from coordinator.errors import OutcomeUnknown, Unreachable
from coordinator.model import Wish
from coordinator.operating import remove, start, stop, undefine
from coordinator.store import Txn
from tests.support.desk import HOST, NAME, TYPE
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import Scene, ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from coordinator.client import Client, Result
    from coordinator.store import Range, TxnResult, WatchBatch

LONGEST = 30.0  # seconds; the store answers, or says that it is away, in no time


class _Away(FaultyStore):
    """A store that goes away after its next change: calls fail, and watches resume for ever."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.desk.store, lambda _: Fate.DELIVER)
        self.goes = self.is_away = False

    async def txn(self, txn: Txn) -> TxnResult:
        if self.is_away:
            raise Unreachable("etcd", "no server answers")
        result = await super().txn(txn)
        self.is_away = self.goes and any(isinstance(op, Txn) and op.success for op in txn.success)
        return result

    @asynccontextmanager
    async def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        async def batches() -> AsyncIterator[WatchBatch]:
            if self.is_away:
                await asyncio.get_running_loop().create_future()
            async with self.inner.watch(ranges, start) as told:
                async for batch in told:
                    yield batch

        yield batches()


async def created(client: Client) -> Result:
    return (await create(client, [ask(2, host=HOST)], ttl=60))[0]


async def removed(client: Client) -> Result:
    return (await remove(client, [NAME]))[0]


async def stopped(client: Client) -> Result:
    return (await stop(client, [NAME]))[0]


async def started(client: Client) -> Result:
    return (await start(client, [NAME]))[0]


async def undefined(client: Client) -> Result:
    return await undefine(client, NAME)


@pytest.mark.parametrize("act", [created, removed, stopped, started, undefined])
def test_a_wait_ends_when_the_store_goes_away(act: Callable[[Client], Awaitable[Result]]) -> None:
    """The answer is ETIMEDOUT, exit 11, with how to find out, and not a wait without an end."""
    scene = Scene()
    scene.host(HOST, p0=9)
    scene.store = store = _Away(scene)
    wish = Wish(host=HOST, parent="p0", type=TYPE, persistent=True)

    async def work(client: Client) -> list[Result]:
        await define(client, NAME, wish, request="r")
        if act in (removed, stopped):
            await start(client, [NAME])
        scene.hosts.clear()
        store.goes = True
        async with asyncio.timeout(LONGEST):
            return [await act(client)]

    (result,) = scene.run(work)
    assert isinstance(result.error, OutcomeUnknown)
    assert result.error.exit_code == 11
    assert "find out with: mdevns show" in result.error.line
