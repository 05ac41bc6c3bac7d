"""Workers as processes of the simulated world, and the locks that they share with agents.

The agent's side (`agent.workers.Workers`) and what a worker does with an order
(`agent.worker.writes`) are the real code; between them are pipes that take a moment.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agent.simulated_memory import COMING
from agent.worker import AgentGone, errno_of, writes
from agent.workers import answer_of
from tests.sim.kernel import SimBus
from tests.sim.loop import Process

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from agent.worker import OrderMessage
    from agent.workers import Answer
    from coordinator.model import Name
    from tests.sim.loop import SimLoop

__all__ = ["Locks", "SimMachine", "SimWorker"]

_PIPE = 2e-4  # seconds that a message takes, at most
_LOOK = 0.05  # seconds between two looks at a device that is waited for


class _Lock:
    """The lock of a name."""

    def __init__(self, held: dict[str, SimWorker], name: str) -> None:
        self._held, self._name = held, name

    def release(self) -> None:
        """Let it go."""
        self._held.pop(self._name, None)


class Locks:
    """What is in a host's run directory: gone with its boot."""

    def __init__(self, rng: random.Random, time: Callable[[], float]) -> None:
        self._rng, self._time = rng, time
        self.generation, self.since = 0, 0.0
        self.begun: dict[int, float] = {}
        self.held: dict[str, SimWorker] = {}
        self.workers: list[SimWorker] = []

    def clear(self) -> None:
        """A boot."""
        self.generation = 0
        self.held.clear()
        self.workers.clear()

    @contextmanager
    def in_force(self, number: int) -> Iterator[bool]:
        """Whether orders of a generation may be begun."""
        yield number > 0 and number == self.generation

    def gate(self, worker: SimWorker) -> _Gate:
        """The same, for one worker."""
        return _Gate(self, worker)

    def renew(self) -> int:
        """A new generation."""
        self.generation = self._rng.getrandbits(48) + 1
        self.since = self.begun[self.generation] = self._time()
        return self.generation

    def revoke(self, number: int) -> None:
        """End one."""
        if self.generation == number:
            self.generation, self.since = 0, self._time()


class _Gate:
    def __init__(self, locks: Locks, worker: SimWorker) -> None:
        self._held, self._worker = locks.held, worker
        self.in_force = locks.in_force

    def take(self, name: str) -> _Lock | None:
        """Take the lock of a name."""
        if name in self._held:
            return None
        self._held[name] = self._worker
        return _Lock(self._held, name)


class SimMachine:
    """`agent.workers.Machine` for one agent process of a host."""

    def __init__(self, host: Any, agent: Process) -> None:
        self._host, self._agent = host, agent
        self.renew, self.revoke = host.locks.renew, host.locks.revoke

    def in_flight(self) -> frozenset[Name]:
        """The names whose lock is taken."""
        return frozenset(self._host.locks.held)

    async def start(self) -> SimWorker:
        """Start a worker."""
        return SimWorker(self._host, self._agent)


class SimWorker:
    """A worker, and the agent's end of it (`agent.workers.Worker`)."""

    def __init__(self, host: Any, agent: Process) -> None:
        self._host, self._agent = host, agent
        self._loop: SimLoop = host.loop
        self.pid = host.pid()
        self.process = Process(f"{agent.name}/worker{self.pid}")
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.resting: Any = self._loop.call_soon(_nothing)
        self.is_asked = False
        self.boot_id: str = host.kernel.state["boot_id"]
        self.generation = 0
        self.enrolling = self.checked = 0.0
        """When the generation of its order was begun, and when the gate was passed last."""
        self._given_up = self._gone = False
        self._orders: deque[bytes] = deque()
        self._words: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._heard: asyncio.Future[None] | None = None
        host.locks.workers.append(self)
        self._loop.begin(self.process, lambda: self._loop.create_task(self._work()))

    # The agent's end.

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not (self._given_up or self._gone)

    async def ask(self, line: bytes) -> Answer:
        """Send an order and wait for what became of it."""
        self.is_asked = True
        self._loop.after(self._host.rng.random() * _PIPE, self._receive, line)
        answer = await answer_of(self._words, lambda: self._given_up)
        self.is_asked = False
        return answer

    def hang_up(self) -> None:
        """Let it end when its write has returned."""
        self._given_up = True
        self.resting.cancel()
        self._words.put_nowait(None)
        self._stir()

    def close(self) -> None:
        """Let go of it."""
        self.hang_up()

    # The pipes.

    def _receive(self, line: bytes) -> None:
        if self._agent.alive:  # else half of it was written, or nobody reads it
            self._orders.append(line)
            self._stir()

    def _stir(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    def agent_died(self) -> None:
        """The end of its input."""
        self._stir()

    def _tell(self, word: dict[str, Any] | None) -> None:
        self._loop.after(self._host.rng.random() * _PIPE, self._words.put_nowait, word)

    # The worker.

    async def _work(self) -> None:
        while self._agent.alive and not self._given_up:
            if not self._orders:
                self._heard = self._loop.create_future()
                await self._heard
                continue
            try:
                self._tell(await self._carry_out(json.loads(self._orders.popleft())))
            except AgentGone:
                break
        self._gone = True
        self._loop.kill(self.process)
        if self in self._host.locks.workers:
            self._host.locks.workers.remove(self)
        self._loop.after(_PIPE, self._end)

    def _end(self) -> None:
        self._words.put_nowait(None)
        if not self.ended.done():
            self.ended.set_result(None)

    def _tell_begun(self) -> None:
        if not self._agent.alive:
            raise AgentGone
        self.checked = self._loop.time()
        self._tell({"beginning": True})

    async def _carry_out(self, order: OrderMessage) -> dict[str, Any]:
        host = self._host
        self.generation = order["generation"]
        self.enrolling = host.locks.begun.get(self.generation, 0.0)
        await self._loop.pass_time(host.stall())
        host.worked()
        bus = SimBus(host.kernel)
        bus.wrote = lambda write, name, record: host.wrote(self, write, name, record)
        steps = writes(bus, host.locks.gate(self), order, self._tell_begun, host.boottime)
        number: int | None = None
        while True:
            try:
                step = next(steps) if number is None else steps.send(number)
            except StopIteration as end:
                host.worked()
                answer: dict[str, Any] = end.value
                return answer
            await self._loop.pass_time(host.stall())
            number = await self._write(bus, step, order)

    async def _write(self, bus: SimBus, step: Callable[[], None], order: OrderMessage) -> int:
        bus.under_way = None
        number = errno_of(step)
        record = bus.under_way
        if record is None or number:
            return number
        kernel, name = self._host.kernel, order["name"]
        phase = record["phase"]
        if phase == COMING:
            self._host.created(self, name, record)
        while True:
            kernel.memory()
            if record["phase"] != phase or kernel.state["devices"].get(name) is not record:
                return record["errno"]
            left = record["ready"] - self._loop.time() if phase == COMING else _LOOK
            await self._loop.pass_time(min(max(left, 1e-3), _LOOK))


def _nothing() -> None:
    """For a handle that somebody may cancel."""
