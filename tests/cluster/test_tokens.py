"""Three members that ask who somebody is, and forget it: tokens that expire, and that die."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest

from coordinator.credentials import Credentials
from coordinator.etcd import EtcdStore
from coordinator.store import Put, Txn, absent, get, prefix
from coordinator.transactions import settle
from tests.cluster.etcd_containers import ContainerCluster
from tests.support import rawetcd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.containers, pytest.mark.timeout(180)]

DEADLINE = 60.0  # seconds for what has to come
# A token lives a second after its last use, at each member by itself; hashing is made cheap.
FLAGS = ("--auth-token-ttl=1", "--bcrypt-cost=4")


@pytest.fixture
def guarded(image: str) -> Iterator[tuple[ContainerCluster, int]]:
    """Three members that want a user and forget a token in a second, and who leads at first.

    That is asked before: of a member that wants a user only root may ask it.
    """
    with ContainerCluster(image, flags=FLAGS) as cluster:
        leader = cluster.leader()
        rawetcd.switch_auth_on(cluster.endpoints[0], agent="secret")
        yield cluster, leader


@pytest.fixture
def user(tmp_path: Path) -> Credentials:
    """The user, with its password in a file that nobody else may read."""
    file = tmp_path / "password"
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, b"secret\n")
    os.close(descriptor)
    return Credentials(user="agent", password_file=file)


async def test_tokens_that_end_stop_nobody(
    guarded: tuple[ContainerCluster, int], user: Credentials
) -> None:
    """Over a killed leader, restarts of all and tokens that expire each write is done once."""
    cluster, leader = guarded
    rng = random.Random(0)
    store = EtcdStore(cluster.endpoints, 10.0, rng, user)
    written = 0

    async def write(count: int) -> None:
        nonlocal written
        for _ in range(count):
            key = f"/t/{written:06}"
            txn = Txn((absent(key),), (Put(key, b"1"),), (get(key),))
            result = await settle(store, txn, patience=DEADLINE, rng=rng)
            # Refused by its own compare is an earlier copy of it that was applied.
            assert result.succeeded or result.ranges()[0].first is not None
            written += 1

    try:
        first = (await store.range(get("/t/"))).revision + 1
        async with store.watch([prefix("/t/")], first) as watch:
            await write(50)
            await asyncio.to_thread(cluster.kill, leader)
            await write(50)
            await asyncio.to_thread(cluster.start, leader)
            for index in range(3):
                await asyncio.to_thread(cluster.kill, index)
                await asyncio.to_thread(cluster.start, index)
                await write(20)
            told: list[str] = []
            async with asyncio.timeout(DEADLINE):
                while len(told) < written:
                    told += [event.kv.key for event in (await anext(watch)).events]
        found = await store.range(prefix("/t/"))
    finally:
        await store.close()
    assert told == [f"/t/{number:06}" for number in range(written)]
    assert [kv.key for kv in found.kvs] == told
    assert {kv.version for kv in found.kvs} == {1}
