"""What a thing costs is counted: transactions, grants, reads and watches, on a real etcd."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.daemon import Agent, AgentSettings
from agent.journal import Journal, journal_path
from agent.notes import Notes
from agent.simulated import SimulatedBus
from agent.workers import OrderKind, Workers
from coordinator import reserving
from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.creating import Ask, create
from coordinator.errors import LeaseGone, NameTaken
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Name, random_name
from tests.support import truth
from tests.support.agents import TYPE, SimulatedHost, parts
from tests.support.counting import CountingStore
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from agent.workers import Answer, Order
    from coordinator.client import Result
    from coordinator.embedded import EmbeddedEtcd

pytestmark = pytest.mark.etcd

HOST = "gpu01"
PARENTS, ROOM, PER_PARENT = 8, 32, 4
BULK = 126  # names that fit one transaction (etcd-reference.md)
WHOLE = 128  # a whole host's devices, 8 GPUs x 16 (design 2)
ATTRIBUTE = "vgpu_params"
RESCAN = 0.2  # seconds
NEVER = 3600.0  # seconds for which a driver sleeps, unless it is let go


class _Workers(Workers):
    """Workers that note how many commits were asked for before each create."""

    def __init__(self, bus: SimulatedBus, run_dir: Path, store: CountingStore) -> None:
        super().__init__(bus.spec, run_dir, per_parent=PER_PARENT)
        self._store = store

    async def order(self, order: Order, *, deadline: Callable[[], float]) -> Answer:
        """As the workers."""
        if order.kind is OrderKind.CREATE:
            self._store.commits_before_creates.append(self._store.commits)
        return await super().order(order, deadline=deadline)


@dataclass
class World:
    """A namespace of its own in an etcd, its one host, and the stores that count."""

    endpoint: str
    keys: Keys
    host: SimulatedHost

    def truth(self) -> truth.Truth:
        """What is in etcd and in the kernel now."""
        return truth.look(self.endpoint, self.keys.cluster, {HOST: self.host.directory})

    def devices(self) -> dict[str, tuple[str, str]]:
        """Each device's parent and attribute, as `ls` and `cat` show them."""
        found = (self.host.directory / "sys/bus/mdev/devices").iterdir()
        return {
            link.name: (link.resolve().parent.name, (link / ATTRIBUTE).read_text())
            for link in found
        }

    def kernel(self) -> dict[str, str]:
        """Each name that the kernel has, and how far it is."""
        with SimulatedBus(self.host.directory).kernel.memory() as memory:
            return {name: device["phase"] for name, device in memory.devices.items()}

    @asynccontextmanager
    async def store(self) -> AsyncIterator[CountingStore]:
        """A store that counts."""
        store = CountingStore(EtcdStore([self.endpoint]))
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[Client, CountingStore]]:
        """What a process has that asks."""
        async with self.store() as store:
            client = Client(store, self.keys, SystemClock(), random.Random(1), patience=10)
            try:
                yield client, store
            finally:
                await client.close()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[CountingStore]:
        """An agent in this process, from before its enrolment until its stop."""
        settings = AgentSettings(host=HOST, session_ttl=60, rescan=RESCAN, per_parent=PER_PARENT)
        bus = SimulatedBus(self.host.directory)
        async with self.store() as store:
            workers = _Workers(bus, self.host.directory / "run", store)
            state = self.host.directory / "state"
            notes = Notes(Journal(journal_path(state, self.keys.cluster, HOST)))
            agent = Agent(settings, parts(store, self.keys, bus, workers, notes))
            running = asyncio.create_task(agent.run())
            try:
                await wait_until_async(lambda: self._is_known() or running.done())
                yield store
            finally:
                agent.stop.set()
                await running
                await notes.close()

    def _is_known(self) -> bool:
        seen = self.truth()
        return HOST in seen.sessions and seen.parents[HOST] == PARENTS


@pytest.fixture
def world(etcd: EmbeddedEtcd, tmp_path: Path) -> World:
    """A host with room for all, whose driver takes the same time for each device."""
    host = SimulatedHost(tmp_path / HOST, HOST, PARENTS, {TYPE: ROOM}, latency=0.05).init()
    return World(etcd.endpoint, Keys(uuid.uuid4().hex), host)


def _names(count: int) -> list[Name]:
    return [random_name(random.getrandbits(128)) for _ in range(count)]


async def _create(client: Client, names: Sequence[Name]) -> list[Result]:
    """One bulk create; all of it succeeds."""
    request = uuid.uuid4().hex
    asks = [Ask(name=name, request=request, type=TYPE, host=HOST) for name in names]
    results = await create(client, asks, ttl=60)
    assert [result.error for result in results] == [None] * len(names)
    return results


async def _create_at(client: Client, names: Sequence[Name], parents: Sequence[str]) -> None:
    """One bulk create with a parent for each; all of it succeeds."""
    asks = [
        Ask(name=name, request="at parents", type=TYPE, host=HOST, parent=parent)
        for name, parent in zip(names, parents, strict=True)
    ]
    results = await create(client, asks, ttl=60)
    assert [result.error for result in results] == [None] * len(names)


async def test_a_bulk_create_is_one_transaction_to_reserve_and_one_to_begin(world: World) -> None:
    """126 devices cost one lease, one reservation, one begin, and few activations."""
    async with world.client() as (client, asked), world.agent() as done:
        enrolled = done.calls.copy()
        done.forget()
        await _create(client, _names(BULK))
        await wait_until_async(lambda: sum(done.that_made("active")) == BULK)
        activations = done.that_made("active")
        said = f"the client: {asked.calls}; the agent: {done.calls}; activated: {activations}"
        assert asked.that_made("reserved") == [BULK], said
        assert asked.calls["grant"] == 1, said
        assert asked.calls["watch"] == 1, said
        assert done.that_made("creating") == [BULK], said
        assert done.calls["grant"] == 0, said
        assert enrolled["watch"] == 1, said
        assert done.calls["watch"] == 0, said
        # Those that are in the kernel together end together; on a busy machine not quite.
        assert len(activations) <= BULK // 3, said
        # A lock would be a key of its own.
        assert asked.written() | done.written() == {"names", "claims", "parents"}, said
        print(said)  # noqa: T201 - shown with -s
    world.truth().assert_sound()


async def test_a_create_on_a_named_host_is_one_request_once_the_host_is_watched(
    world: World,
) -> None:
    """The first of a process reads and watches beside its reservation; the next only reserves."""
    async with world.client() as (client, asked), world.agent():
        await _create(client, _names(1))
        first = asked.calls.copy()
        assert (first["grant"], first["watch"], first["range"]) == (1, 1, 0), first
        assert first["txn"] <= 3, first  # place, reserve; and a look, where the watch came late
        await _create(client, _names(1))  # reads again, where the watch came after the read
        asked.forget()
        await _create(client, _names(1))
        said = f"{asked.calls}"
        assert (asked.calls["txn"], asked.calls["range"], asked.calls["watch"]) == (1, 0, 0), said
    world.truth().assert_sound()


async def _calls_of_a_start(world: World) -> tuple[dict[str, int], int]:
    """What an agent asks of the store until it has looked at everything, and how often."""
    async with world.agent() as store:
        await wait_until_async(lambda: store.calls["watch"] and store.calls["range"] == 3)
        looked = asyncio.Event()
        asyncio.get_running_loop().call_later(5 * RESCAN, looked.set)
        await looked.wait()
        return dict(store.calls), len(store.watched)


async def test_a_start_costs_the_same_with_few_devices_and_with_many(
    world: World, etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    """An agent that comes back asks the store as often with 120 devices as with 8."""
    many = SimulatedHost(tmp_path / "many", HOST, PARENTS, {TYPE: ROOM}).init()
    other = World(etcd.endpoint, Keys(uuid.uuid4().hex), many)
    for one, count in ((world, 8), (other, 120)):
        left = PARENTS * ROOM - count
        async with one.client() as (client, _), one.agent():
            await _create(client, _names(count))
            # Else the next one would have to tell it.
            await wait_until_async(lambda one=one, left=left: one.truth().available[HOST] == left)  # type: ignore[misc]  # mypy knows no defaults of lambdas
    few, watched = await _calls_of_a_start(world)
    assert (await _calls_of_a_start(other)) == (few, watched)
    assert (few["grant"], few["watch"], watched) == (1, 1, 1), few
    assert sum(few.values()) <= 10, few


async def test_a_reboot_asks_the_kernel_after_few_transactions(world: World) -> None:
    """128 autostart names are back on their parents with their attributes, at few commits."""
    wishes = [
        Ask(
            name=name,
            request="before",
            type=TYPE,
            host=HOST,
            attrs=((ATTRIBUTE, f"n={number}"),),
            persistent=True,
            autostart=True,
        )
        for number, name in enumerate(_names(WHOLE))
    ]
    async with world.client() as (client, _), world.agent():
        results = await create(client, wishes, ttl=60)
        assert [result.error for result in results] == [None] * WHOLE
    before = world.devices()
    assert len(before) == WHOLE
    simulated.reboot(world.host.directory)
    assert not world.devices()
    async with world.agent() as done:
        await wait_until_async(lambda: sum(done.that_made("active")) == WHOLE, 60)
        activations = done.that_made("active")
        begun, asked = done.that_made("creating"), done.commits_before_creates[0]
        said = f"{done.calls}; begun: {begun}; activated: {activations}; first create after {asked}"
        # The enrolment, what is left on the parents now, and all names in two.
        assert asked <= 4, said
        assert sum(begun) == WHOLE, said
        assert len(begun) <= 3, said
        assert done.that_made("defined") == [], said
        assert len(activations) <= WHOLE // 3, said
        print(said)  # noqa: T201 - shown with -s
    assert world.devices() == before
    world.truth().assert_sound()


async def test_a_driver_that_blocks_holds_up_nobody_elsewhere(world: World) -> None:
    """While a parent's driver sleeps in its creates, other parents and other names go on."""
    blocked, *others = sorted(SimulatedBus(world.host.directory).parents())
    simulated.tune(world.host.directory, blocked, latency=NEVER)
    slow = _names(PER_PARENT)
    async with world.client() as (client, asked), world.agent() as done:
        sleeping = asyncio.create_task(_create_at(client, slow, [blocked] * len(slow)))
        await wait_until_async(lambda: set(slow) <= world.kernel().keys())
        asked.forget()
        done.forget()
        async with asyncio.timeout(60):
            await _create_at(client, _names(len(others)), others)
            (held,) = await reserving.reserve(client, _names(1), request="other", ttl=60)
            (taken,) = await reserving.reserve(client, slow[:1], request="other", ttl=60)
        assert held.error is None
        assert isinstance(taken.error, NameTaken)
        assert not sleeping.done()
        assert {world.kernel()[name] for name in slow} == {"coming"}
        # Neither a lock's key nor a lease to hang it on: those of names and no other.
        assert asked.written() | done.written() <= {"names", "claims", "parents"}
        assert (done.calls["grant"], asked.calls["grant"]) == (0, 0)
        assert done.calls["watch"] == 0
        for name in slow:
            simulated.let_go(world.host.directory, name)
        await sleeping
    world.truth().assert_sound()


async def test_concurrent_single_requests_share_their_commits(world: World) -> None:
    """64 reservations of one process take a few transactions, and each has its own answer."""
    names = _names(64)
    taken = set(names[::8])
    async with world.client() as (first, _), world.client() as (client, store):
        await reserving.reserve(first, sorted(taken), request="first", ttl=60)
        await reserving.reserve(client, _names(1), request="a lease is granted", ttl=60)
        granted = store.calls["grant"]
        store.forget()
        results = await asyncio.gather(
            *(reserving.reserve(client, [name], request=f"r-{name[:8]}", ttl=60) for name in names)
        )
        commits = store.that_made("held")
        assert sum(commits) == len(names), commits
        assert len(commits) <= 4, commits
        assert granted + store.calls["grant"] == 1, store.calls
    for name, (result,) in zip(names, results, strict=True):
        assert result.name == name
        assert isinstance(result.error, NameTaken) == (name in taken), result
        if result.error is not None:
            assert result.error.name == name
    seen = world.truth()
    seen.assert_sound()
    assert seen.names.keys() >= set(names)
    assert {seen.names[name].request for name in taken} == {"first"}


async def test_one_bad_request_among_many_fails_alone(world: World) -> None:
    """A reservation on a lease that is gone is refused, and those beside it are made."""
    names = _names(64)
    async with AsyncExitStack() as stack:
        client, store = await stack.enter_async_context(world.client())
        good, dead = await store.grant(60), await store.grant(60)
        await store.revoke(dead.id)
        store.forget()
        changes = [
            client.claims.hold(
                name, f"r-{name[:8]}", lease=dead.id if name == names[20] else good.id
            )
            for name in names
        ]
        answers = await asyncio.gather(*(client.commit([change]) for change in changes))
        errors = {name: one.error for name, (one,) in zip(names, answers, strict=True)}
        assert isinstance(errors.pop(names[20]), LeaseGone)
        assert set(errors.values()) == {None}
        assert store.calls["txn"] <= 1 + len(names), store.calls
    assert set(world.truth().names) == set(names) - {names[20]}
