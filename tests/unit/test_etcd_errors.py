"""What the Store makes of an etcd that is absent, stopped, paused, killed, full or guarded."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from coordinator.embedded import EmbeddedCluster, EmbeddedEtcd, free_ports, wait_until
from coordinator.endpoints import parse_endpoints
from coordinator.errors import (
    MdevnsError,
    Misconfigured,
    NotAllowed,
    NotFound,
    OutcomeUnknown,
    StoreReadOnly,
    Unreachable,
)
from coordinator.etcd import EtcdStore
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.store import Delete, Put, Range, Txn, absent, get, prefix
from tests.support import rawetcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from coordinator.store import Event, WatchBatch

T = TypeVar("T")

PATIENCE = 1.5  # seconds that a store here has for a call
DEADLINE = 60  # seconds for what has to come
WRITE = Txn((absent("/a"),), (Put("/a", b"1"),), (get("/a"),))


@asynccontextmanager
async def opened(*endpoints: str, seconds: float = PATIENCE) -> AsyncIterator[EtcdStore]:
    """A store on these endpoints."""
    store = EtcdStore(endpoints, seconds, random.Random(0))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def server() -> Iterator[EmbeddedEtcd]:
    """An etcd of the test's own, which it may ruin."""
    try:
        with EmbeddedEtcd(extra=["--unsafe-no-fsync"]) as own:
            yield own
    except NotFound as error:
        pytest.skip(error.line)


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """A server stopped with SIGSTOP: connections to it stand, and nobody answers."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # The signal is on its way to each thread; until then the server might still answer.
        assert wait_until(lambda: _all_stopped(pid), DEADLINE)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _all_stopped(pid: int) -> bool:
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in stats)


@pytest.fixture
def absent_endpoint() -> str:
    """A port where nobody listens."""
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@asynccontextmanager
async def connected(*endpoints: str, seconds: float = PATIENCE) -> AsyncIterator[EtcdStore]:
    """A store whose connections stand: each endpoint has answered it."""
    async with opened(*endpoints, seconds=seconds) as store:
        for _ in endpoints:
            await store.status()
            store._servers._turn_from(store._servers._all[store._servers._current])
        yield store


async def begun(call: Coroutine[object, object, T]) -> asyncio.Task[T]:
    """A call that is under way, since nobody can answer it yet."""
    task = asyncio.create_task(call)
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    return task


# --- endpoints


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "localhost:2379",
        "http://",
        "http://:2379",
        "http://etcd",
        "http://etcd:port",
        "http://etcd:99999",
        "http://etcd:2379/v3",
        "http://root:secret@etcd:2379",
        "https://a:2379,http://b:2379",
        "etcd://etcd:2379",
        "http://[::1:2379",
        "http://a:2379,http//b:2379",
    ],
)
def test_a_wrong_endpoint_is_a_misconfiguration(text: str) -> None:
    """What is not `http://host:port,…` is refused before anything is tried."""
    with pytest.raises(Misconfigured):
        parse_endpoints(text)


SECRETS = ["https://u:secret@etcd:1", "http://u:secret@h:99999", "u:secret@h"]


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_in_an_endpoint_is_not_shown(url: str) -> None:
    """It is refused, and the error does not repeat it."""
    with pytest.raises(Misconfigured, match="has a user in it") as caught:
        parse_endpoints(url)
    assert "secret" not in caught.value.line


def test_a_timeout_must_leave_time() -> None:
    """A store that could never be answered is not made."""
    with pytest.raises(Misconfigured):
        EtcdStore(["http://127.0.0.1:2379"], timeout=0)


@pytest.mark.etcd
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_endpoint_may_be_a_name(server: EmbeddedEtcd, host: str) -> None:
    """Host names are resolved."""
    (endpoint,) = parse_endpoints(f" http://{host}:{server.port}/, ")
    async with opened(str(endpoint)) as store:
        assert await store.status()


# --- nobody there


async def test_nobody_listening_is_unreachable(absent_endpoint: str) -> None:
    """Every call is tried until its deadline, and says that nothing was done."""
    async with opened(absent_endpoint, seconds=0.3) as store:
        for call in (
            store.txn(WRITE),
            store.range(get("/a")),
            store.grant(5),
            store.keep_alive(1),
            store.revoke(1),
            store.status(),
        ):
            with pytest.raises(Unreachable):
                await call


async def test_an_unknown_host_is_unreachable() -> None:
    """A name that cannot be resolved is a server that cannot be reached."""
    async with opened("http://no-such-host.invalid:2379", seconds=0.5) as store:
        with pytest.raises(Unreachable):
            await store.txn(WRITE)


@pytest.mark.etcd
async def test_a_dead_endpoint_beside_a_living_one_is_no_error(
    server: EmbeddedEtcd, absent_endpoint: str
) -> None:
    """A write goes to the next endpoint when the first refuses connections."""
    async with opened(absent_endpoint, server.endpoint) as store:
        assert (await store.txn(WRITE)).succeeded


@pytest.mark.etcd
async def test_a_call_waits_for_a_server_that_comes_back(server: EmbeddedEtcd) -> None:
    """A write that begins while the server is down is done once it is up, within the deadline."""
    server.kill()
    # No connection ever stood: one that is breaking may still take the write, and then say unknown.
    async with opened(server.endpoint, seconds=DEADLINE) as store:
        writing = await begun(store.txn(WRITE))
        server.restart()
        assert (await writing).succeeded


@pytest.mark.etcd
async def test_a_server_that_died_between_calls_is_unreachable(server: EmbeddedEtcd) -> None:
    """When the connection is known to be gone, a write says that nothing was done."""
    async with connected(server.endpoint, seconds=0.5) as store:
        server.kill()
        async with asyncio.timeout(DEADLINE):
            while not isinstance(await _error_of(store), Unreachable):
                pass
        server.restart()
    async with opened(server.endpoint, seconds=DEADLINE) as store:
        assert (await store.txn(WRITE)).succeeded


async def _error_of(store: EtcdStore) -> MdevnsError:
    """What a write that changes nothing fails with."""
    with pytest.raises(MdevnsError) as caught:
        await store.txn(Txn(success=(Delete("/nothing"),)))
    return caught.value


# --- paused


@pytest.mark.etcd
async def test_a_write_to_a_paused_server_is_unknown(server: EmbeddedEtcd) -> None:
    """It may be applied when the server goes on, or not; the very same again settles it."""
    async with connected(server.endpoint, seconds=1) as store:
        with paused(server.pid), pytest.raises(OutcomeUnknown):
            await store.txn(WRITE)
        await store.txn(WRITE)
        (kv,) = (await store.range(get("/a"))).kvs
        assert (kv.value, kv.version) == (b"1", 1)


@pytest.mark.etcd
async def test_reads_and_leases_of_a_paused_server_are_unreachable(server: EmbeddedEtcd) -> None:
    """What does no harm when done twice is never of unknown outcome, also a txn that only reads."""
    async with connected(server.endpoint, seconds=0.4) as store:
        reading = Txn((absent("/a"),), (get("/a"), Txn(success=(get("/b"),))))
        with paused(server.pid):
            for call in (
                store.txn(reading),
                store.range(get("/a")),
                store.grant(5),
                store.keep_alive(1),
            ):
                with pytest.raises(Unreachable):
                    await call


@pytest.mark.etcd
async def test_nothing_is_sent_to_a_paused_server_that_was_not_connected(
    server: EmbeddedEtcd,
) -> None:
    """A server that accepts connections and does not speak is Unreachable also for a write."""
    with paused(server.pid):
        async with opened(server.endpoint, seconds=0.5) as store:
            with pytest.raises(Unreachable):
                await store.txn(WRITE)


@pytest.mark.etcd
async def test_a_connection_that_breaks_leaves_a_write_unknown(server: EmbeddedEtcd) -> None:
    """A server killed while a write is under way may have applied it."""
    async with connected(server.endpoint, seconds=DEADLINE) as store:
        with paused(server.pid):
            writing = await begun(store.txn(WRITE))
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(OutcomeUnknown):
                await writing


@pytest.mark.etcd
async def test_calls_under_way_end_when_the_store_is_closed(server: EmbeddedEtcd) -> None:
    """A read is Unreachable, a write is unknown: it was sent."""
    async with connected(server.endpoint, seconds=DEADLINE) as store:
        with paused(server.pid):
            calls = [
                await begun(store.txn(WRITE)),
                await begun(store.range(get("/a"))),
                await begun(store.keep_alive(1)),
            ]
            await store.close()
            ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in ended] == [OutcomeUnknown, Unreachable, Unreachable]


@pytest.mark.etcd
async def test_a_cancelled_call_is_cancelled(server: EmbeddedEtcd) -> None:
    """Cancelling the task of a call is not taken for the store's failure."""
    async with connected(server.endpoint, seconds=DEADLINE) as store:
        with paused(server.pid), pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await store.txn(WRITE)


# --- several members


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    """Three members; who pauses or kills one brings it back."""
    try:
        with EmbeddedCluster(3, extra=["--unsafe-no-fsync"]) as own:
            yield own
    except NotFound as error:
        pytest.skip(error.line)


def a_follower(cluster: EmbeddedCluster) -> tuple[str, int, str]:
    """A follower's endpoint and process, and the leader's endpoint."""
    leader = cluster.leader()
    follower = (leader + 1) % 3
    return cluster.endpoints[follower], cluster._servers[follower].pid, cluster.endpoints[leader]


@pytest.mark.etcd
async def test_a_read_goes_on_to_the_next_member(cluster: EmbeddedCluster) -> None:
    """A paused member costs a read a part of its deadline, and the next call nothing."""
    follower, pid, leader = a_follower(cluster)
    async with connected(follower, leader, seconds=3) as store:
        with paused(pid):
            await store.range(get("/a"))
            assert (await store.txn(Txn(success=(Put("/read", b""),)))).succeeded


@pytest.mark.etcd
async def test_a_write_that_is_sent_again_goes_to_the_next_member(
    cluster: EmbeddedCluster,
) -> None:
    """It is unknown at once, when the paused member's part of the time is over; then answered."""
    write = Txn((absent("/again"),), (Put("/again", b""),), (get("/again"),))
    follower, pid, leader = a_follower(cluster)
    async with connected(follower, leader, seconds=3) as store:
        with paused(pid):
            with pytest.raises(OutcomeUnknown):
                await store.txn(write)
            assert (await store.txn(write)).succeeded
    async with opened(follower, seconds=DEADLINE) as store:
        # What the paused member held back is refused by its compare when it arrives.
        await store.txn(Txn(success=(Put("/after", b""),)))
        (kv,) = (await store.range(get("/again"))).kvs
        assert kv.version == 1


@pytest.mark.etcd
async def test_a_member_without_a_leader_refuses(cluster: EmbeddedCluster) -> None:
    """Once it knows, nothing is done and it says so at once; before, a write is unknown."""
    alone = cluster.leader()
    others = [index for index in range(3) if index != alone]
    async with connected(cluster.endpoints[alone], seconds=1) as store:
        try:
            for index in others:
                cluster.kill(index)
            seen: MdevnsError = await _error_of(store)
            async with asyncio.timeout(DEADLINE):
                while not isinstance(seen, Unreachable):
                    assert isinstance(seen, OutcomeUnknown)
                    seen = await _error_of(store)
            assert "no leader" in seen.why
            for call in (store.range(get("/a")), store.grant(5), store.keep_alive(1)):
                with pytest.raises(Unreachable):
                    await call
        finally:
            for index in others:
                cluster.start(index, wait=False)
            cluster.leader()


# --- watches


async def _told(watch: AsyncIterator[WatchBatch], revision: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(DEADLINE):
        async for batch in watch:
            events += batch.events
            if batch.revision >= revision:
                return events
    raise AssertionError("the watch ended")


async def _put(endpoint: str, *values: bytes) -> int:
    async with opened(endpoint, seconds=DEADLINE) as store:
        done = [await store.txn(Txn(success=(Put("/w/a", value),))) for value in values]
    return done[-1].revision


@pytest.mark.etcd
async def test_a_watch_survives_its_server(server: EmbeddedEtcd) -> None:
    """A server killed under a watch and restarted: nothing is missed, nothing told twice."""
    first = await _put(server.endpoint, b"1")
    async with opened(server.endpoint) as store, store.watch([prefix("/w/")], first) as watch:
        events = await _told(watch, first)
        for value in (b"2", b"3"):
            reading = await begun(_told(watch, first + int(value) - 1))
            server.kill()
            server.restart()
            await _put(server.endpoint, value)
            events += await reading
    assert [event.kv.value for event in events] == [b"1", b"2", b"3"]


@pytest.mark.etcd
async def test_a_watch_moves_to_another_member(cluster: EmbeddedCluster) -> None:
    """A member that dies under a watch is left for one that lives, at the right revision."""
    leader = cluster.leader()
    follower = (leader + 1) % 3
    endpoints = cluster.endpoints[follower], cluster.endpoints[leader]
    first = await _put(endpoints[1], b"1")
    async with opened(*endpoints) as store, store.watch([prefix("/w/")], first) as watch:
        events = await _told(watch, first)
        cluster.kill(follower)
        try:
            last = await _put(endpoints[1], b"2", b"3")
            events += await _told(watch, last)
        finally:
            cluster.start(follower)
    assert [event.kv.value for event in events] == [b"1", b"2", b"3"]


@pytest.mark.etcd
async def test_a_watch_leaves_a_member_that_is_silent(cluster: EmbeddedCluster) -> None:
    """A paused member closes nothing; its missing answers to pings are noticed in 12 s."""
    follower, pid, leader = a_follower(cluster)
    first = await _put(leader, b"1")
    async with opened(follower, leader) as store, store.watch([prefix("/w/")], first) as watch:
        await _told(watch, first)
        with paused(pid):
            last = await _put(leader, b"2")
            assert [event.kv.value for event in await _told(watch, last)] == [b"2"]


@pytest.mark.etcd
async def test_a_watch_may_begin_before_its_server(server: EmbeddedEtcd) -> None:
    """Entering a watch asks nothing; it is told once there is a server."""
    revision = await _put(server.endpoint, b"1")
    server.kill()
    async with opened(server.endpoint) as store, store.watch([prefix("/w/")], revision) as watch:
        reading = await begun(_told(watch, revision))
        server.restart()
        assert len(await reading) == 1


@pytest.mark.etcd
async def test_a_long_history_is_told_in_order(server: EmbeddedEtcd) -> None:
    """Etcd tells 1000 revisions at a time; batches are joined without a gap."""
    async with opened(server.endpoint, seconds=DEADLINE) as store:
        first = await _put(server.endpoint, b"0")
        puts = (store.txn(Txn(success=(Put("/w/a", b"x"),))) for _ in range(2500))
        last = max(result.revision for result in await asyncio.gather(*puts))
        async with store.watch([prefix("/w/")], first) as watch:
            told = [event.kv.mod_revision for event in await _told(watch, last)]
    assert told == list(range(first, last + 1))


@pytest.mark.etcd
async def test_keys_that_are_not_text_are_carried(server: EmbeddedEtcd) -> None:
    """A key of somebody else that is no UTF-8 stops nothing, and can be deleted."""
    rawetcd.put(server.endpoint, b"/w/\xff\xfe", b"1")
    async with opened(server.endpoint) as store:
        found = await store.range(prefix("/w/"))
        assert found.first is not None
        await store.txn(Txn(success=(Delete(found.first.key),)))
        assert (await store.range(prefix("/w/"))).count == 0


# --- full, guarded


async def _fill(store: EtcdStore) -> None:
    """Write until that is refused; etcd measures itself ten times a second."""
    async with asyncio.timeout(DEADLINE):
        for number in itertools.count():
            await store.txn(Txn(success=(Put(f"/full/{number}", bytes(100_000)),)))


@pytest.mark.etcd
async def test_a_full_store_is_read_only() -> None:
    """Over its quota etcd refuses what puts, and grants; it reads, keeps alive and revokes."""
    # A transaction that only deletes is refused by 3.5.1 and taken by later ones: not asked.
    with EmbeddedEtcd(extra=["--quota-backend-bytes=1000000"]) as server:
        async with opened(server.endpoint, seconds=DEADLINE) as store:
            lease = await store.grant(60)
            with pytest.raises(StoreReadOnly):
                await _fill(store)
            with pytest.raises(StoreReadOnly):
                await store.grant(60)
            with pytest.raises(StoreReadOnly):
                # The branch that would not run counts, too.
                await store.txn(Txn((absent("/x"),), (), (Put("/x", b""),)))
            assert (await store.range(Range("/full/0"))).count == 1
            assert await store.keep_alive(lease.id) == 60
            await store.revoke(lease.id)


async def test_a_full_memory_is_read_only_alike() -> None:
    """The store in memory with `full` set refuses and allows the same."""
    core = MemoryEtcd()
    store = MemoryStore(core)
    lease = await store.grant(60)
    await store.txn(Txn(success=(Put("/a", b""),)))
    core.full = True
    with pytest.raises(StoreReadOnly):
        await store.grant(60)
    with pytest.raises(StoreReadOnly):
        await store.txn(Txn((absent("/x"),), (), (Put("/x", b""),)))
    assert (await store.txn(Txn(success=(Delete("/a"),)))).succeeded
    assert await store.keep_alive(lease.id) == 60
    await store.revoke(lease.id)


@pytest.mark.etcd
async def test_a_guarded_store_is_not_allowed(server: EmbeddedEtcd) -> None:
    """When etcd wants a user every call and watch says so, and is not tried again."""
    rawetcd.switch_auth_on(server.endpoint)
    async with opened(server.endpoint, seconds=DEADLINE) as store:
        for call in (store.txn(WRITE), store.range(get("/a"))):
            with pytest.raises(NotAllowed):
                await call
        async with store.watch([get("/a")], 1) as watch:
            async with asyncio.timeout(DEADLINE):
                with pytest.raises(NotAllowed):
                    await anext(watch)
