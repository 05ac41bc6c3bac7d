"""A watch through everything that befalls a cluster tells each change once, in order."""

from __future__ import annotations

import asyncio
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from coordinator.errors import Compacted, Unreachable
from coordinator.etcd import EtcdStore
from coordinator.keys import last_part
from coordinator.store import Put, Txn, absent, get, pages, prefix
from coordinator.transactions import settle
from tests.cluster.etcd_containers import ContainerCluster
from tests.support import rawetcd
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

pytestmark = pytest.mark.containers

SOON = 90.0  # seconds, for a busy machine
SOME = 50  # changes while something is broken


@dataclass
class Reader:
    """One who follows the changes, and lists again when some are not told any more."""

    endpoints: Sequence[str]
    seen: list[int] = field(default_factory=list)
    listed: int = 0


@dataclass
class Story:
    """One who writes numbered changes, and those who read them, each beginning elsewhere."""

    root: str
    readers: list[Reader]
    written: int = 0
    over: bool = False
    finished: bool = False

    def end(self) -> None:
        """Write no more; whoever reads ends when it has seen all."""
        self.over = True

    def follow(self, count: int = SOME) -> None:
        """Wait until so many more changes are written."""
        enough = self.written + count
        wait_until(lambda: self.written >= enough, SOON)


@pytest.fixture
def members(any_image: str) -> Iterator[ContainerCluster]:
    """Three members."""
    with ContainerCluster(any_image) as members:
        yield members


def test_each_change_is_told_once_and_in_order(members: ContainerCluster) -> None:
    """Members are killed and cut off and history is compacted, and no reader misses a change."""
    with ExitStack() as stack:
        way = stack.enter_context(Proxy(members.endpoints))
        turned = [members.endpoints[n:] + members.endpoints[:n] for n in range(3)]
        through_way = Reader(way.endpoints)
        story = Story(f"/{uuid.uuid4().hex}/", [*map(Reader, turned), through_way])
        pool = stack.enter_context(ThreadPoolExecutor(1))
        running = pool.submit(asyncio.run, _run(story, members.endpoints))
        stack.callback(story.end)
        story.follow()

        killed = members.leader()
        silent, split = (killed + 1) % 3, (killed + 2) % 3
        members.cut_clients(silent)  # whoever reads there takes seconds to notice
        members.kill(killed)
        story.follow()
        members.start(killed)
        members.cut_peers(split)
        story.follow()
        members.mend()

        way.hold()
        listed = through_way.listed
        story.follow()
        rawetcd.compact(members.endpoints[0], rawetcd.revision(members.endpoints[0]))
        for endpoint in members.endpoints:
            rawetcd.defragment(endpoint)
        way.break_off()
        wait_until(lambda: through_way.listed > listed or running.done(), SOON)
        story.follow()
        story.end()
        running.result(SOON)
    everything = list(range(1, story.written + 1))
    for reader in story.readers:
        assert reader.seen == everything, _differs(reader.seen)
    assert through_way.listed > listed


def _differs(seen: Sequence[int]) -> str:
    """Where the first gap, double or step back is."""
    where = next((i for i, number in enumerate(seen, 1) if i != number), len(seen))
    return (
        f"{len(seen)} were seen, and around the first that is wrong: {seen[where - 3 : where + 3]}"
    )


async def _run(story: Story, endpoints: Sequence[str]) -> None:
    async with asyncio.timeout(2 * SOON), asyncio.TaskGroup() as group:
        for reader in story.readers:
            group.create_task(_read(story, reader))
        await _write(story, endpoints)


@asynccontextmanager
async def _store(endpoints: Sequence[str]) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, timeout=4)
    try:
        yield store
    finally:
        await store.close()


async def _write(story: Story, endpoints: Sequence[str]) -> None:
    """Write one number after the other, each once."""
    async with _store(endpoints) as store:
        while not story.over:
            key = f"{story.root}{story.written + 1:09}"
            txn = Txn((absent(key),), (Put(key, b""),), (get(key),))
            with suppress(Unreachable):  # nothing was done, so it is the next once more
                await settle(store, txn, patience=None, rng=random.Random(1))
                story.written += 1
        story.finished = True


async def _read(story: Story, reader: Reader) -> None:
    """List, watch from there, and list again when changes are not told any more."""
    async with _store(reader.endpoints) as store:
        while not _is_through(story, reader):
            revision = 0
            async for page in pages(store, prefix(story.root)):
                revision = page.revision
                numbers = (int(last_part(kv.key)) for kv in page.kvs)
                last = reader.seen[-1] if reader.seen else 0
                reader.seen += [number for number in numbers if number > last]
            reader.listed += 1
            try:
                await _follow(story, reader, store, revision + 1)
            except Compacted:
                continue


async def _follow(story: Story, reader: Reader, store: EtcdStore, start: int) -> None:
    async with store.watch([prefix(story.root)], start) as batches:
        while not _is_through(story, reader):
            try:
                async with asyncio.timeout(1):  # a reading that is cancelled loses nothing
                    batch = await anext(aiter(batches))
            except TimeoutError:
                continue
            reader.seen += [int(last_part(event.kv.key)) for event in batch.events]


def _is_through(story: Story, reader: Reader) -> bool:
    return story.finished and reader.seen[-1:] >= [story.written]
