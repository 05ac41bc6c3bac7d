"""A host whose kernel, workers and disk take no time but the drivers': what is left is ours.

The kernel is the simulated one's model in memory (`tests.sim.kernel`), the journal is a
dictionary, and an order is carried out (`agent.worker.writes`) as soon as it is given.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.simulated_memory import COMING
from agent.worker import boottime, errno_of, writes
from agent.workers import Answer
from tests.sim.kernel import SimBus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.simulated_memory import DeviceRecord
    from agent.worker import OrderMessage
    from coordinator.model import Name
    from tests.sim.kernel import Kernel

__all__ = ["InstantMachine"]


class InstantMachine:
    """`agent.workers.Machine` on a kernel in memory, for one agent."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self._generation = kernel, 0

    def renew(self) -> int:
        """A new generation."""
        self._generation += 1
        return self._generation

    def revoke(self, number: int) -> None:
        """End one."""
        if number == self._generation:
            self._generation += 1

    def in_flight(self) -> frozenset[Name]:
        """None: an order is over before anybody can look."""
        return frozenset()

    async def start(self) -> _Worker:
        """A worker, which is no process."""
        return _Worker(self)

    @contextmanager
    def in_force(self, number: int) -> Iterator[bool]:
        """Whether orders of a generation may be begun."""
        yield number == self._generation

    def take(self, _: str) -> _Free:
        """The lock of a name: nobody else can want it."""
        return _Free()


class _Free:
    def release(self) -> None:
        """Nothing is held."""


class _Worker:
    """`agent.workers.Worker`: does at once what it is asked."""

    def __init__(self, machine: InstantMachine) -> None:
        loop = asyncio.get_running_loop()
        self._machine = machine
        self.pid = os.getpid()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.resting: asyncio.Handle = loop.call_soon(lambda: None)
        self.is_asked = False
        self.is_alive = True

    async def ask(self, line: bytes) -> Answer:
        """Carry out an order."""
        order: OrderMessage = json.loads(line)
        bus = SimBus(self._machine.kernel)
        steps = writes(bus, self._machine, order, lambda: None, boottime)
        number: int | None = None
        while True:
            try:
                step = next(steps) if number is None else steps.send(number)
            except StopIteration as end:
                return Answer(**end.value)
            bus.under_way = None
            number = errno_of(step) or await self._waited(bus.under_way)

    async def _waited(self, device: DeviceRecord | None) -> int:
        """Wait as the writer does for its driver; the driver's errno."""
        while device is not None and device["phase"] == COMING:
            done = asyncio.get_running_loop().create_future()
            done.get_loop().call_later(device["ready"] - boottime(), done.set_result, None)
            await done
            self._machine.kernel.memory()
        return 0 if device is None else device["errno"]

    def hang_up(self) -> None:
        """It is not needed any more."""
        self.resting.cancel()
        self.is_alive = False
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """Nothing is held."""
        self.hang_up()
