"""What an agent's start costs with many devices in the kernel, and with few."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent import simulated
from agent.daemon import Agent, AgentSettings
from agent.health import verdict
from agent.journal import Journal, journal_path
from agent.notes import Notes
from agent.simulated import SimulatedBus
from agent.workers import Workers
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from tests.bench.filling import PARENTS, TYPE, fill, host_name, names_of, parent_name
from tests.bench.raw import connect
from tests.bench.served import asked
from tests.bench.turns import Turn, figure, in_turns, p50
from tests.bench.windows import window
from tests.support.agents import SimulatedHost, parts

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator

    from tests.bench.figures import Figure, Stage

__all__ = ["measure"]

_FEW, _MANY = 8, 128
_ROOM = 32  # devices of a parent
_TTL = 60  # seconds: no keepalive falls into a start
_DEADLINE = 60.0
_LOOK = 0.0005
_SETTLE = 0.1  # seconds; what an agent asks for right after its start counts too


@dataclass
class _Host:
    """A host, and what starts of its agent took and asked for."""

    stage: Stage
    devices: int

    def __post_init__(self) -> None:
        self.name = host_name(self.devices)
        directory = self.stage.directory / self.name
        self.host = SimulatedHost(directory, self.name, PARENTS, {TYPE: _ROOM}).init()
        self.asked: list[Counter[str]] = []

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[float]:
        """An agent from its start to its stop, and the seconds that the start took.

        That is until it is ready, as systemd is told, and has done what it saw was to be done.
        """
        keys = Keys(self.stage.cluster)
        began = time.perf_counter()
        store = EtcdStore([self.stage.endpoint], probe=keys.hold)
        bus = SimulatedBus(self.host.directory)
        workers = Workers(bus.spec, self.host.directory / "run")
        state = self.host.directory / "state"
        notes = Notes(Journal(journal_path(state, keys.cluster, self.name)))
        settings = AgentSettings(host=self.name, session_ttl=_TTL)
        agent = Agent(settings, parts(store, keys, bus, workers, notes))
        running = asyncio.create_task(agent.run())
        try:
            async with asyncio.timeout(_DEADLINE):
                while not _is_started(agent):
                    await window(_LOOK)
            yield time.perf_counter() - began
        finally:
            agent.stop.set()
            await running
            await notes.close()
            await store.close()

    async def make_devices(self) -> None:
        """Have them in the kernel and in etcd, as an agent leaves them."""
        for number, name in enumerate(names_of(self.devices, self.devices)):
            simulated.create(self.host.directory, parent_name(number), TYPE, name)
        boot = SimulatedBus(self.host.directory).boot_id()
        async with connect(self.stage.endpoint) as raw:
            keys, hosts = Keys(self.stage.cluster), [self.devices]
            await fill(raw, keys, hosts, self.devices, boot=lambda _: boot)

    async def start(self) -> list[float]:
        """Start its agent once."""
        before = asked(self.stage.endpoint)
        async with self.agent() as seconds:
            await window(_SETTLE)
            self.asked.append(asked(self.stage.endpoint) - before)
        return [seconds]


def _is_started(agent: Agent) -> bool:
    enrolment = agent.local.enrolment
    ready = enrolment is not None and verdict(agent.vitals.facts()).ready
    return ready and enrolment is not None and not enrolment.reconciler._tasks


async def measure(stage: Stage) -> list[Figure]:
    """Start agents of two hosts in turns."""
    few, many = _Host(stage, _FEW), _Host(stage, _MANY)
    for host in (few, many):
        await host.make_devices()
        await host.start()
        host.asked.clear()
    turns = await in_turns(many.start, few.start, rounds=stage.size(15, 3), seconds=stage.seconds)
    return [_round_trips(stage, few, many), _time(stage, turns)]


def _round_trips(stage: Stage, few: _Host, many: _Host) -> Figure:
    counts = zip(many.asked, few.asked, strict=True)
    turns = [Turn([of_many.total()], [of_few.total()]) for of_many, of_few in counts]
    calls = ", ".join(f"{count} {method}" for method, count in sorted(few.asked[-1].items()))
    notes = (f"etcd's own count of a start with {_FEW} devices: {calls}",)
    return figure(stage.line, "round trips", turns, must=1.0, notes=notes)


def _time(stage: Stage, turns: list[Turn]) -> Figure:
    few = p50([turn.theirs[0] for turn in turns])
    notes = (
        (
            f"until it is ready and has nothing left to do, the interpreter's start not counted: "
            f"{few * 1e3:.0f} ms with {_FEW}"
        ),
    )
    return figure(stage.line, "time", turns, must=2.0, notes=notes)
