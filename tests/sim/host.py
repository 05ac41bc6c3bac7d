"""A host: its kernel, its disk, its agent and workers as processes, and what befalls them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.daemon import Agent, AgentSettings
from agent.enrolment import Parts
from agent.makers import Makers
from agent.notes import Notes
from agent.slots import Bounds
from agent.workers import Workers
from coordinator.errors import MdevnsError
from tests.sim.cluster import Link, SimStore
from tests.sim.journal import Disk, MemoryJournal
from tests.sim.kernel import Kernel, SimBus, SimWatcher
from tests.sim.loop import Process
from tests.sim.machine import Locks, SimMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.simulated_memory import DeviceRecord
    from coordinator.model import Name
    from tests.sim.machine import SimWorker
    from tests.sim.world import World

__all__ = ["Host", "SimClock"]

_NOWHERE = Path("/nonexistent")
_HINT = 5e-3  # seconds that an event of the kernel takes, at most
_STALL = 3e-4  # seconds between a worker's last check and its write, at most


class SimClock:
    """A host's clocks (`coordinator.clock.Clock`): one counts from its boot, one may jump."""

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self.offset = time() - 3.0
        self.jump = 0.0

    def boottime(self) -> float:
        """Seconds since the boot."""
        return self._time() - self.offset

    def now(self) -> str:
        """The time of day."""
        seconds = int((self._time() + self.jump) * 1e6)
        return f"2026-01-01T{seconds:015d}Z"


class Host:
    """One machine. `name` is also its place in keys."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.loop = world, world.loop
        self.name = f"h{number}"
        setting = world.setting
        self.rng = random.Random(f"{world.seed}/{self.name}")
        self.kernel = Kernel(number + 1, setting.parents, setting.capacity, self.loop.time)
        self.kernel.state["linger"] = setting.linger
        for parent in self.kernel.state["parents"].values():
            parent["latency"] = setting.latency
        self.kernel.changed = self.hint
        self.locks = Locks(self.rng, self.loop.time)
        self.disk = Disk()
        self.clock = SimClock(self.loop.time)
        self.agent: Process | None = None
        self.link: Link | None = None
        self.fates: dict[int, tuple[str, float]] = {}
        self.kills: dict[tuple[str, int], tuple[int, float]] = {}
        self.stalls: dict[int, tuple[float, bool]] = {}
        self.counts = {"store": 0, "write": 0, "stall": 0}
        self.powered, self.lease_was_lost = True, False
        self.is_scrapped = False  # it will never have power again
        self.deaf_until = self.down = 0.0
        self.lives = self._pids = 0
        self._running: Agent | None = None
        self._watchers: dict[int, SimWatcher] = {}
        self._fds = 0

    # The agent.

    def start(self) -> None:
        """Start an agent, if there is none and the machine runs."""
        if not self.powered or (self.agent is not None and self.agent.alive):
            return
        self.lives += 1
        process = self.agent = Process(f"{self.name}/{self.lives}")
        self.loop.begin(process, lambda: self.loop.create_task(self._serve(process)))

    async def _serve(self, process: Process) -> None:
        setting, world = self.world.setting, self.world
        link = self.link = Link(self.loop, self.rng, setting.network)
        link.fates, link.count, link.down = self.fates, self.counts["store"], self.down
        link.asked, link.host = self._asked, self.name
        notes = Notes(MemoryJournal(self.disk))  # type: ignore[arg-type]  # held to the real one's contract
        bus = SimBus(self.kernel, self._watch)
        workers = Workers(
            bus.spec,
            _NOWHERE,
            machine=SimMachine(self, process),
            bounds=Bounds(per_parent=setting.per_parent, hung=8, extra=64, total=256),
        )
        parts = Parts(
            store=SimStore(world.cluster, link, setting.timeout),
            keys=world.keys,
            clock=self.clock,
            rng=random.Random(f"{world.seed}/{process.name}"),
            bus=bus,
            workers=workers,
            notes=notes,
            makers=Makers(notes, bus.boot_id, _NOWHERE),
            metrics=world.metrics,
        )
        settings = AgentSettings(
            host=self.name,
            bus=bus.spec,
            session_ttl=setting.ttl,
            rescan=setting.rescan,
            resync=setting.resync,
        )
        try:
            agent = self._running = Agent(settings, parts)
            await agent.run()
            await notes.close()
        except MdevnsError as error:
            world.noted(f"{process.name} ended: {error.line}")
        except Exception as error:  # noqa: BLE001 - a defect, whatever it is
            world.broken(f"{process.name} died of {error!r}")
        self._ended(process)
        self.loop.after(0.5, self.start)

    def _ended(self, process: Process) -> None:
        self.loop.kill(process)
        if self.link is not None:
            self.world.cluster.forget(self.link)
        self._watchers.clear()
        for worker in list(self.locks.workers):
            worker.agent_died()

    def kill(self, restart: float | None) -> None:
        """SIGKILL the agent; it is started again after so many seconds."""
        if self.agent is None or not self.agent.alive:
            return
        self.world.counts["killed"] += 1
        self.world.noted(f"{self.agent.name} is killed")
        self._ended(self.agent)
        if restart is not None:
            self.loop.after(restart, self.start)

    def stop(self) -> None:
        """SIGTERM it."""
        if self.agent is not None and self.agent.alive and self._running is not None:
            self.loop.call_soon(self._running.stop.set, context=self.context(self.agent))

    def context(self, process: Process) -> Any:
        """A context of a process."""
        return self.loop.context(process)

    def pause(self, seconds: float, *, workers: bool) -> None:
        """SIGSTOP it for a while; with its workers, as when the machine stands still."""
        stopped = [] if self.agent is None else [self.agent]
        stopped += [worker.process for worker in self.locks.workers] if workers else []
        for process in stopped:
            self.loop.pause(process)
        self.loop.after(seconds, self._go_on, stopped)

    def _go_on(self, stopped: list[Process]) -> None:
        for process in stopped:
            self.loop.go_on(process)

    def power_off(self) -> None:
        """Power loss."""
        self.powered = False
        self.world.noted(f"{self.name} loses its power")
        if self.agent is not None and self.agent.alive:
            self._ended(self.agent)
        for worker in self.locks.workers:
            self.loop.kill(worker.process)
        self.locks.clear()
        self.kernel.boot()

    def boot(self) -> None:
        """A boot, if it has no power."""
        if self.powered or self.is_scrapped:
            return
        self.powered, self.lease_was_lost = True, False
        self.clock.offset = self.loop.time() - 3.0
        self.start()

    def cut_off(self, until: float) -> None:
        """The store is not reached before a time."""
        self.down = until
        if self.link is not None:
            self.link.down = until

    # What it tells the faults.

    def _asked(self, number: int) -> None:
        self.counts["store"] = number + 1
        self._tick("store", number)

    def pid(self) -> int:
        """A number for a process."""
        self._pids += 1
        return self._pids

    def worked(self) -> None:
        """A worker begins or ends an order."""
        self.counts["write"] += 1
        self._tick("write", self.counts["write"])

    def _tick(self, what: str, number: int) -> None:
        due = self.kills.get((what, number))
        if due is not None and self.agent is not None:
            steps, restart = due
            self.agent.doomed = (steps, lambda: self.kill(restart))

    def stall(self) -> float:
        """Seconds before a worker's check of its order, or between its last check and its write."""
        self.counts["stall"] += 1
        seconds, is_lost = self.stalls.get(self.counts["stall"], (0.0, False))
        if is_lost:  # etcd revokes the session early, and the agent enrols anew meanwhile
            self.loop.after(0.02, self.lose_session)
        return seconds or self.rng.random() * _STALL

    def lose_session(self) -> None:
        """Etcd revokes the session's lease before its time."""
        kv = self.world.cluster._keys.get(self.world.keys.session(self.name))
        if kv is not None and not self.world.calm:
            self.lease_was_lost = True
            self.world.cluster.expire(kv.lease)

    # The kernel.

    def boottime(self) -> float:
        """CLOCK_BOOTTIME."""
        return self.clock.boottime()

    def wrote(self, worker: SimWorker, write: str, name: str, record: DeviceRecord | None) -> None:
        """A worker is about to write to the kernel."""
        self.world.counts["kernel writes"] += 1
        if worker.checked >= self.locks.since and worker.generation != self.locks.generation:
            self.world.broken(f"{write} of {name} on {self.name} is of an enrolment that is over")
        if write == "remove" and record is not None:
            self.world.invariants.removed(self.name, name, record, worker)

    def created(self, worker: SimWorker, name: str, record: DeviceRecord) -> None:
        """A worker's create has begun."""
        self.world.invariants.created(self.name, name, record, worker)
        self.loop.at(record["ready"] + 1e-6, self.kernel.changed, frozenset({name}))

    def hint(self, names: frozenset[Name]) -> None:
        """The kernel's event; none: of a parent."""
        if self.loop.time() < self.deaf_until:
            return
        for watcher in self._watchers.values():
            self.loop.after(self.rng.random() * _HINT, self._tell, watcher, names)

    def _tell(self, watcher: SimWatcher, names: frozenset[Name]) -> None:
        watcher.names |= names
        watcher.everything |= not names
        self.loop.hint(watcher.fileno())

    def _watch(self) -> SimWatcher:
        self._fds += 1
        fd = (int(self.name[1:]) + 1) * 100000 + self._fds
        watcher = SimWatcher(fd, self._unwatch)
        self._watchers[fd] = watcher
        return watcher

    def _unwatch(self, watcher: SimWatcher) -> None:
        self._watchers.pop(watcher.fileno(), None)
