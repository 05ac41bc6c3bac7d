"""A store that is set back, or becomes another one, is noticed before anything is built on it."""

from __future__ import annotations

import random
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from coordinator.embedded import EmbeddedEtcd
from coordinator.errors import OutcomeUnknown, SetBack
from coordinator.etcd import EtcdStore
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.store import Put, Txn, get
from coordinator.transactions import settle
from tests.support.faulty import Fate, FaultyStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from coordinator.store import Store

DEADLINE = 60.0  # seconds for what has to come
UNSAFE = ["--unsafe-no-fsync"]


@asynccontextmanager
async def opened(*endpoints: str) -> AsyncIterator[EtcdStore]:
    """A store on these endpoints."""
    store = EtcdStore(endpoints, DEADLINE, random.Random(0))
    try:
        yield store
    finally:
        await store.close()


async def put(store: Store, value: bytes = b"") -> int:
    """Write one key; the revision that it got."""
    return (await store.txn(Txn(success=(Put("/a", value),)))).revision


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    """An etcd of the test's own, with its data in the open."""
    with EmbeddedEtcd(tmp_path / "etcd", extra=UNSAFE) as own:
        yield own


async def set_back(server: EmbeddedEtcd, store: EtcdStore) -> int:
    """Write, keep a copy, write more, and let the server be what the copy is."""
    data, copy = server.log.parent / "data", server.log.parent / "copy"
    await put(store)
    server.stop()
    shutil.copytree(data, copy)
    server.restart()
    last = max([await put(store) for _ in range(3)])
    server.kill()
    shutil.rmtree(data)
    shutil.move(copy, data)
    server.restart()
    return last


@pytest.mark.etcd
async def test_an_older_revision_is_noticed_on_a_read(server: EmbeddedEtcd) -> None:
    """After a restore the first read is refused, and after all was forgotten it is answered."""
    async with opened(server.endpoint) as store:
        last = await set_back(server, store)
        with pytest.raises(SetBack, match=f"and it was {last} before"):
            await store.range(get("/a"))
        store.begin_anew()
        assert (await store.range(get("/a"))).revision < last


@pytest.mark.etcd
async def test_a_write_to_a_store_that_was_set_back_has_its_answer(server: EmbeddedEtcd) -> None:
    """What was done is not called failed; from the next call on the loss is told."""
    async with opened(server.endpoint) as store:
        last = await set_back(server, store)
        assert await put(store) < last
        with pytest.raises(SetBack):
            await put(store)


@pytest.mark.etcd
async def test_nothing_is_sent_to_another_cluster(server: EmbeddedEtcd) -> None:
    """An endpoint of another cluster, to which a failure leads, is known before a write."""
    with EmbeddedEtcd(extra=[*UNSAFE, "--initial-cluster-token=another"]) as other:
        async with opened(server.endpoint, other.endpoint) as store:
            await put(store)
            server.kill()
            with pytest.raises(SetBack, match="is of cluster"):
                await store.range(get("/a"))  # a write may find the connection not yet broken
            with pytest.raises(SetBack, match="is of cluster"):
                await put(store)
        async with opened(other.endpoint) as untouched:
            assert (await untouched.range(get("/a"))).first is None
        server.restart()


async def test_what_was_unknown_stays_unknown_when_the_store_is_set_back() -> None:
    """A lost answer cannot be asked for in an older store: the outcome is called unknown."""
    core = MemoryEtcd()
    snapshot, inner = core.snapshot(), MemoryStore(core)
    await put(inner)
    fates = iter([Fate.LOSE_ANSWER, Fate.DELIVER])

    def decide(_: Txn) -> Fate:
        fate = next(fates)
        if fate is Fate.DELIVER:  # while it was away
            core.restore(snapshot)
            inner.history.see("memory", 2, 1)
        return fate

    store = FaultyStore(inner, decide)
    with pytest.raises(OutcomeUnknown):
        await settle(store, Txn(success=(Put("/a", b""),)), patience=None, rng=random.Random(0))
