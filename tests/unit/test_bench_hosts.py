"""What the bench measures over: names that were put raw, and hosts in memory."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest

from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Claim
from coordinator.states import ClaimState
from coordinator.views import Views
from tests.bench.filling import boot_id, fill, host_name, names_of, parent_name
from tests.bench.hosts import InlineLoop, MemoryHost
from tests.bench.raw import connect
from tests.bench.served import asked, metrics
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from coordinator.embedded import EmbeddedEtcd

pytestmark = pytest.mark.etcd

HOSTS, A_HOST = 3, 20


async def _records(etcd: EmbeddedEtcd, keys: Keys) -> list[object]:
    store = EtcdStore([etcd.endpoint])
    try:
        return [record async for record in Views(store, keys).records()]
    finally:
        await store.close()


async def test_names_that_are_put_raw_are_claims_as_ours(etcd: EmbeddedEtcd) -> None:
    """Each is read as an active claim of its host, on the parent that it is to have."""
    keys = Keys(uuid.uuid4().hex)
    async with connect(etcd.endpoint) as raw:
        await fill(raw, keys, range(HOSTS), A_HOST, boot=boot_id)
    claims = {r.name: r for r in await _records(etcd, keys) if isinstance(r, Claim)}
    for host in range(HOSTS):
        for number, name in enumerate(names_of(host, A_HOST)):
            claim = claims.pop(name)
            assert (claim.host, claim.parent) == (host_name(host), parent_name(number))
            assert (claim.state, claim.boot_id) == (ClaimState.ACTIVE, boot_id(host))
    assert not claims


def test_a_host_in_memory_has_its_devices_back_after_a_boot(etcd: EmbeddedEtcd) -> None:
    """Its agent makes each of them anew, and they are active in the boot that it is in."""
    keys = Keys(uuid.uuid4().hex)

    async def boot() -> MemoryHost:
        async with connect(etcd.endpoint) as raw:
            await fill(raw, keys, [0], A_HOST, persistent=True)
        host = MemoryHost(0, A_HOST, etcd.endpoint, keys, booted=False)
        running = asyncio.create_task(host.run())
        try:
            await wait_until_async(lambda: host.is_whole)
        finally:
            host.agent.stop.set()
            await running
        return host

    with asyncio.Runner(loop_factory=InlineLoop) as runner:
        host = runner.run(boot())
        claims = [r for r in runner.run(_records(etcd, keys)) if isinstance(r, Claim)]
    assert host.kernel.state["devices"].keys() == set(names_of(0, A_HOST))
    assert [claim.boot_id for claim in claims] == [boot_id(0)] * A_HOST


def test_an_etcd_says_what_it_was_asked(etcd: EmbeddedEtcd) -> None:
    """A transaction more is counted, and only that."""

    async def put() -> None:
        async with connect(etcd.endpoint) as raw:
            await raw.take([(uuid.uuid4().bytes, b"")])

    before = asked(etcd.endpoint)
    asyncio.run(put())
    assert +(asked(etcd.endpoint) - before) == {"Txn": 1}
    assert metrics(etcd.endpoint)["etcd_mvcc_db_total_size_in_bytes"] > 0
