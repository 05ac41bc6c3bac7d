"""Hosts in memory, so that a machine holds a thousand of them: real agents, simulated kernels.

What is not there is what a host does on its own processors and disk, and shares with no other:
worker processes, threads for looks at sysfs, and the journal's file. The agent's code, the
worker's (`agent.worker.writes`), the kernel's model and the connection to etcd are the real
ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.daemon import Agent, AgentSettings
from agent.enrolment import Parts
from agent.health import verdict
from agent.makers import Makers
from agent.notes import Notes
from agent.simulated_memory import boottime
from agent.workers import Workers
from coordinator.clock import SystemClock
from coordinator.etcd import EtcdStore
from coordinator.states import ClaimState
from tests.bench.filling import PARENTS, TYPE, host_name, names_of, parent_name
from tests.bench.instant import InstantMachine
from tests.sim.journal import Disk, MemoryJournal
from tests.sim.kernel import Kernel, SimBus, SimWatcher

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.keys import Keys
    from coordinator.model import Claim, Name

__all__ = ["InlineLoop", "MemoryHost"]

_NOWHERE = Path("/nonexistent")
_ROOM = 16  # devices of a parent
# Seconds between looks at an idle host's devices. A look asks etcd for nothing but whether there
# is a hold, every 10 s at most; at 2 s, the default, a thousand hosts' looks want four processors.
_RESCAN = 10.0


class InlineLoop(asyncio.SelectorEventLoop):
    """A loop that calls at once what is to block in a thread: here nothing blocks."""

    def run_in_executor(  # type: ignore[override]  # the base class's is no more exact
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """What it gives, in a future that is done."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            future.set_exception(error)
        return future


class _Watcher(SimWatcher):
    """Hints with a descriptor that the loop can wait for."""

    def __init__(self, close: Callable[[SimWatcher], None]) -> None:
        super().__init__(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), close)

    def tell(self, names: frozenset[Name]) -> None:
        """Something changed; without names nobody knows what."""
        self.names |= names
        self.everything |= not names
        os.eventfd_write(self.fileno(), 1)

    def drain(self) -> frozenset[Name]:
        """All hints."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fileno())
        return super().drain()


class _Notes(Notes):
    """Notes that tell which names are active in this boot."""

    def __init__(self, boot_id: str) -> None:
        super().__init__(MemoryJournal(Disk()))  # type: ignore[arg-type]  # held to the real one's contract
        self._boot_id = boot_id
        self.active: set[Name] = set()

    def learnt(self, name: Name, claim: Claim | None) -> None:
        """Take note."""
        super().learnt(name, claim)
        if claim and claim.state is ClaimState.ACTIVE and claim.boot_id == self._boot_id:
            self.active.add(name)


class MemoryHost:
    """The number-th host, with so many devices to have; `booted`: they are in its kernel."""

    def __init__(
        self, number: int, devices: int, endpoint: str, keys: Keys, *, booted: bool
    ) -> None:
        self._devices = devices
        self.kernel = _kernel(number)
        self._watchers: list[_Watcher] = []
        self.kernel.changed = self._hint
        if booted:
            for index, name in enumerate(names_of(number, devices)):
                self.kernel.create(parent_name(index), TYPE, name)
        bus = SimBus(self.kernel, self._watch)
        self.store = EtcdStore([endpoint], probe=keys.hold)
        self._notes = _Notes(bus.boot_id())
        parts = Parts(
            store=self.store,
            keys=keys,
            clock=SystemClock(),
            rng=random.Random(secrets.randbits(128)),
            bus=bus,
            workers=Workers(bus.spec, _NOWHERE, machine=InstantMachine(self.kernel)),
            notes=self._notes,
            makers=Makers(self._notes, bus.boot_id, _NOWHERE),
        )
        settings = AgentSettings(host=host_name(number))
        self.agent = Agent(replace(settings, rescan=_RESCAN) if booted else settings, parts)

    def _hint(self, names: frozenset[Name]) -> None:
        for watcher in self._watchers:
            watcher.tell(names)

    def _watch(self) -> _Watcher:
        watcher = _Watcher(self._unwatch)
        self._watchers.append(watcher)
        return watcher

    def _unwatch(self, watcher: SimWatcher) -> None:
        self._watchers = [each for each in self._watchers if each is not watcher]
        os.close(watcher.fileno())

    @property
    def is_whole(self) -> bool:
        """Whether its agent is ready and has all devices active."""
        whole = len(self._notes.active) == self._devices
        return whole and verdict(self.agent.vitals.facts()).ready

    async def run(self) -> None:
        """Serve until the agent is told to stop."""
        try:
            await self.agent.run()
        finally:
            await self._notes.close()
            await self.store.close()


def _kernel(number: int) -> Kernel:
    kernel = Kernel(number + 1, PARENTS, _ROOM, boottime)
    for parent in kernel.state["parents"].values():
        parent["types"] = {TYPE: _ROOM}
    return kernel
