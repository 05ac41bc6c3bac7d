"""A whole agent in this process, on the line's etcd; and where its time goes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from agent import simulated
from agent.daemon import Agent, AgentSettings
from agent.journal import Journal, journal_path
from agent.metered import MeteredStore
from agent.metrics import Metrics
from agent.notes import Notes
from agent.simulated import SimulatedBus
from agent.workers import Workers
from coordinator.clock import SystemClock
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Removal, Wish
from coordinator.states import ClaimEvent, ClaimState
from coordinator.views import Views
from tests.bench.instant import InstantMachine
from tests.sim.journal import Disk, MemoryJournal
from tests.sim.kernel import Kernel, SimBus
from tests.support.agents import AgentProcess, SimulatedHost, parts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from agent.bus import Bus, Scan
    from agent.journal import Changes
    from agent.workers import Answer, Order
    from coordinator.model import Name
    from coordinator.store import Txn, TxnResult
    from tests.bench.figures import Stage

__all__ = ["PARENTS", "TYPE", "AgentHere", "Spent", "agent_here", "serving", "simulated_host"]

TYPE = "nvidia-35"
PARENTS, _ROOM = 8, 16
_SOON = 20.0  # seconds
_LOOK = 0.01  # seconds between two looks


class Spent:
    """Seconds by what they were spent on, and how often, while `counts`. They may overlap."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.times: Counter[str] = Counter()
        self.counts = True

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """What happens inside is spent on this."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.counts:
                self.seconds[what] += time.perf_counter() - began
                self.times[what] += 1

    def mean(self) -> list[str]:
        """What each took on average, in words."""
        return [
            f"{what}: {1000 * seconds / self.times[what]:.1f} ms"
            for what, seconds in self.seconds.items()
        ]

    def each(self, count: int) -> list[str]:
        """What one of so many cost, in words, the dearest first."""
        return [
            f"{what}: {self.times[what] / count:.1f}, {1000 * seconds / count:.2f} ms"
            for what, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
        ]


class _Store(MeteredStore):
    def __init__(self, inner: EtcdStore, spent: Spent) -> None:
        super().__init__(inner, Metrics())
        self._spent = spent

    async def txn(self, txn: Txn) -> TxnResult:
        with self._spent.on("the agent's transactions"):
            return await super().txn(txn)


class _Journal(Journal):
    def __init__(self, path: Path, spent: Spent) -> None:
        super().__init__(path)
        self._spent = spent

    def write(self, changes: Changes) -> None:
        with self._spent.on("journal on the disk"):
            super().write(changes)


class _Bus(SimulatedBus):
    def __init__(self, directory: Path, spent: Spent) -> None:
        super().__init__(directory)
        self._spent = spent

    def scan(self) -> Scan:
        with self._spent.on("scans of the simulated kernel's files"):
            return super().scan()


class _Workers(Workers):
    spent: Spent

    async def order(self, order: Order, *, deadline: Callable[[], float]) -> Answer:
        with self.spent.on("orders to a worker, and the simulated kernel"):
            return await super().order(order, deadline=deadline)


class Created(NamedTuple):
    """A device, the seconds until its claim was active, and until who asked for it heard that."""

    name: Name
    active: float
    heard: float


@dataclass(slots=True)
class AgentHere:
    """An agent that serves a simulated host, and what is asked of it."""

    agent: Agent
    wish: Wish
    spent: Spent

    async def create(self) -> Created:
        """Claim a name and have its device made, as a caller on the host does.

        Raises:
            MdevnsError: it was not made.
        """
        local, began = self.agent.local, time.perf_counter()
        self.spent.counts = True
        with self.spent.on("the claim, and the journal"):
            claim = await local.take(self.wish, name=None, request=None, by="bench", maker=None)
        known = asyncio.create_task(self._known(claim.name))
        with self.spent.on("then until the caller hears that it is active"):
            made = await local.made(claim, _SOON)
        heard = time.perf_counter()
        self.spent.counts = False
        assert made.state is ClaimState.ACTIVE, made
        return Created(made.name, await known - began, heard - began)

    async def _known(self, name: Name) -> float:
        with self.spent.on("then until the agent has made it active"):
            assert await self.agent.local.until(lambda: self._is_active(name), _SOON), name
        return time.perf_counter()

    def _is_active(self, name: Name) -> bool:
        claim = self.agent.local.claim(name)
        return claim is not None and claim.state is ClaimState.ACTIVE

    async def release(self, name: Name) -> None:
        """Remove a device and its claim, without asking etcd when they are gone."""
        local, enrolment = self.agent.local, self.agent.local.enrolment
        claim, enrolled = local.claim(name), local.enrolled
        assert claim is not None
        assert enrolment is not None
        change = enrolled.claims.retire(claim, Removal(), now=enrolled.clock.now())
        await local.make(claim.state, ClaimEvent.RETIRE, change)
        enrolment.reconciler.poke((name,))
        assert await local.until(lambda: local.claim(name) is None, _SOON), name


def simulated_host(stage: Stage, name: str, latency: float = 0.0) -> SimulatedHost:
    """A simulated host of 8 parents with room for 16 devices each.

    `latency` in seconds is what its drivers take for a create, one after the other on a parent.
    """
    host = SimulatedHost(stage.directory / name, name, PARENTS, {TYPE: _ROOM}, latency)
    simulated.init(host.directory, PARENTS, host.types, latency, serial=True)
    return host


@contextmanager
def serving(stage: Stage, name: str, latency: float = 0.0) -> Iterator[SimulatedHost]:
    """A `simulated_host`, served by an agent that is a process; gone afterwards."""
    host = simulated_host(stage, name, latency)
    with AgentProcess(host, [stage.endpoint], stage.cluster) as agent:
        agent.start()
        yield host
        agent.terminate()


@asynccontextmanager
async def agent_here(
    stage: Stage, host: str, *, instant: bool, latency: float = 0.0
) -> AsyncIterator[AgentHere]:
    """An agent in this process, stopped as SIGTERM stops it.

    `instant`: its kernel and journal are in memory and take no time; else they are files, and
    the workers are processes. Parents and drivers are as those of a `simulated_host`.
    """
    directory, keys, spent = stage.directory / host, Keys(stage.cluster), Spent()
    directory.mkdir()
    store = EtcdStore([stage.endpoint], probe=keys.hold)
    if instant:
        kernel = Kernel(int.from_bytes(host.encode()), PARENTS, _ROOM, SystemClock().boottime)
        for parent in kernel.state["parents"].values():
            parent["latency"], parent["serial"] = latency, True
        bus: Bus = SimBus(kernel)
        machine, type_ = InstantMachine(kernel), "small"
        workers = Workers(bus.spec, directory, machine=machine)
        notes = Notes(MemoryJournal(Disk()))  # type: ignore[arg-type]  # held to the real one's contract
    else:
        on_files = _Bus(simulated_host(stage, f"{host}/host", latency).directory, spent)
        bus, type_ = on_files, TYPE
        workers = _Workers(bus.spec, on_files.run_dir)
        workers.spent = spent
        notes = Notes(_Journal(journal_path(directory / "state", stage.cluster, host), spent))
    wish = Wish(host=host, parent=min(bus.parents()), type=type_)
    spent.counts = False  # but while a device is being created
    made_of = parts(_Store(store, spent), keys, bus, workers, notes)
    agent = Agent(AgentSettings(host=host, bus=bus.spec), made_of)
    running = asyncio.create_task(agent.run())
    try:
        await _seen(Views(store, keys), host)
        yield AgentHere(agent, wish, spent)
    finally:
        agent.stop.set()
        await running
        await notes.close()
        await store.close()


async def _seen(views: Views, host: str) -> None:
    """Wait until a host's agent is enrolled and has said what its parents are."""
    asking = AsyncRetrying(
        retry=retry_if_result(lambda parents: len(parents) < PARENTS),
        wait=wait_fixed(_LOOK),
        stop=stop_after_delay(_SOON),
    )
    await asking(views.parents, [host])
