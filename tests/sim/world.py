"""One schedule, played: hosts, the store, operators, faults, and what came of it.

When the horizon is reached the faults stop, and the world must come to rest: every request is
answered, every claim has its device and every device its claim, and `check` finds nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.metrics import Metrics
from agent.simulated_memory import ACTIVE, LINGERING
from coordinator.check import check
from coordinator.keys import Keys
from coordinator.memory import MemoryStore
from coordinator.states import ClaimState
from tests.sim.cluster import Cluster
from tests.sim.faults import Faults
from tests.sim.host import Host
from tests.sim.invariants import Invariants
from tests.sim.loop import Process, SimLoop, Stuck
from tests.sim.operators import Operator
from tests.sim.runbook import Runbook
from tests.sim.schedule import FAULTS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from coordinator.errors import MdevnsError
    from tests.sim.schedule import Event, Schedule

__all__ = ["Outcome", "World", "play"]

_REST = 6.0  # seconds after the horizon in which late copies may still arrive
_MOST = 240.0  # seconds after the horizon in which all must have come to rest


@dataclass
class Outcome:
    """What came of a schedule. `trace` is the same for the same schedule."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    names: int = 0
    trace: str = ""
    log: list[str] = field(default_factory=list)


class World:
    """Everything that is simulated."""

    def __init__(self, schedule: Schedule, *, verbose: bool = False) -> None:
        self.seed, self.setting = schedule.seed, schedule.setting
        self._verbose = verbose
        self.loop = SimLoop(random.Random(f"{self.seed}/loop"))  # type: ignore[abstract]  # nobody asks for more
        self._begin = self.loop.time()
        self.keys = Keys("sim")
        self.metrics = Metrics()
        self.metrics.show = lambda *_: None  # type: ignore[method-assign]  # nobody scrapes
        self.cluster = Cluster(self.loop)
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.hosts: dict[str, Host] = {}
        for number in range(self.setting.hosts):
            host = Host(self, number)
            self.hosts[host.name] = host
        self.invariants = Invariants(self.cluster, self.keys, self.hosts, self._halt)
        self.cluster.committed = self._committed
        self.fates: dict[int, dict[int, tuple[str, float]]] = {}
        self.operators: list[Operator] = []
        self.calm = False
        self._hash = hashlib.blake2b(digest_size=8)
        self.runbook = Runbook(self)
        self._plan(schedule)

    def _plan(self, schedule: Schedule) -> None:
        faults = Faults(self)
        requests = 0
        for event in schedule.events:
            if event.kind in FAULTS:
                faults.plan(event)
            else:
                self.loop.at(self._begin + event.at, self.ask, requests, event)
                requests += 1
        for host in self.hosts.values():
            self.loop.after(host.rng.random() * 0.2, host.start)

    def _halt(self) -> None:
        self.loop.halted = True

    # What is told.

    def broken(self, what: str) -> None:
        """A promise was broken."""
        self.invariants.broken(what)

    def noted(self, what: str) -> None:
        """Something that a reader of the run wants to see."""
        if self._verbose:
            self.log.append(f"{self.loop.time() - self._begin:9.4f}  {what}")

    def answered(self, what: str, error: MdevnsError | None) -> None:
        """A request has its answer."""
        said = "done" if error is None else type(error).__name__
        self.counts[f"answer: {said}"] += 1
        self.noted(f"{what} is answered: {'done' if error is None else error.line}")

    def ask(self, number: int, event: Event) -> None:
        """An operator asks."""
        self.counts["requests"] += 1
        self.noted(f"o{number} asks: {event}")
        self.operators.append(Operator(self, number, event))

    def _committed(self, changes: Sequence[Any]) -> None:
        self._hash.update(f"{self.loop.time():.6f}{len(changes)}".encode())
        if self._verbose:
            for change in changes:
                event = change.event
                value = "-" if event.deleted else event.kv.value[:90].decode(errors="replace")
                self.noted(
                    f"#{event.kv.mod_revision} {event.kv.key[12:]} {value} {event.kv.lease or ''}"
                )
        self.invariants.committed(changes)

    def _in_flight(self) -> list[str]:
        return [f"{host.name}: {name}" for host in self.hosts.values() for name in host.locks.held]

    def _unclaimed(self) -> list[str]:
        """Devices with neither a claim on their host nor a finding."""
        found = []
        for host in self.hosts.values():
            for name, record in host.kernel.memory().devices.items():
                known = (host.name, name) in self.invariants.claims
                finding = self.cluster._keys.get(self.keys.finding(host.name, name))
                if not known and finding is None and record["phase"] != LINGERING:
                    found.append(f"{name} on {host.name} has no claim")
        return found

    # Coming to rest.

    def run(self) -> None:
        """Play it."""
        horizon = self._begin + self.setting.horizon
        self.loop.run(horizon)
        Faults(self).end()
        self.calm = True
        self.noted("the faults end")
        self.loop.run(horizon + _REST)
        until = horizon + _REST
        while not self.loop.halted and self.unrest():
            if until > horizon + _MOST:
                self.broken(f"no rest: {'; '.join(self.unrest()[:4])}")
                break
            until += 2.0
            self.loop.run(until)
        if not self.loop.halted:
            self.invariants.check_history()
            self._check()

    def unrest(self) -> list[str]:
        """What is not as it is to be in the end."""
        found = [f"{o.event} has no answer" for o in self.operators if not o.done]
        found += [
            f"{host.name} has no session"
            for host in self.hosts.values()
            if host.name not in self.invariants.sessions and not host.is_scrapped
        ]
        found += [f"{what} is in flight" for what in self._in_flight()] + self._unclaimed()
        if self.cluster._keys.get(self.keys.hold) is not None:
            found.append("the hold is not lifted")
        for (host, name), (_, claim) in self.invariants.claims.items():
            if self.hosts[host].is_scrapped and claim.state is not ClaimState.DEFINED:
                found.append(f"{name} is {claim.state} on {host}, which is gone")
            record = self.hosts[host].kernel.device(name)
            if claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
                found.append(f"{name} is {claim.state} on {host}")
            elif (claim.state is ClaimState.ACTIVE) != (record is not None):
                found.append(f"{name} is {claim.state} on {host}, its device {record}")
            elif record is not None and (record["parent"], record["type"], record["phase"]) != (
                claim.parent,
                claim.type,
                ACTIVE,
            ):
                found.append(f"{name} is on {host} another than its claim says")
        return found

    def _check(self) -> None:
        """`mdevns check`."""
        done: list[asyncio.Task[None]] = []
        process = Process("check")
        self.loop.begin(process, lambda: done.append(self.loop.create_task(self._report())))
        until = self.loop.time() + 10.0
        while not done[0].done() and self.loop.time() < until and not self.loop.halted:
            self.loop.run(self.loop.time() + 0.1)
        if not self.loop.halted:
            done[0].result()

    async def _report(self) -> None:
        report = await check(MemoryStore(self.cluster), self.keys)
        for finding in report.findings:
            if not finding.fault:
                continue
            host, name = finding.host or "", finding.name or ""
            if finding.kind == "conflict" and self._may_stay(host, name):
                self.counts["conflicts that stay"] += 1
                continue
            self.broken(f"check finds {finding.kind}: {name} on {host}: {finding.detail}")

    def _may_stay(self, host: str, name: str) -> bool:
        """Whether a conflict is one that only people can settle: two devices, or not ours."""
        if self.invariants.ours(host, name) is None:
            return True
        if name not in self.invariants.names:  # given up while `check` was reading
            return True
        holder = self.invariants.holder(name)
        return holder is not None and self.hosts[holder].kernel.device(name) is not None

    def outcome(self) -> Outcome:
        """What came of it."""
        violations = [*self.invariants.violations, *self.loop.defects]
        counts = self.counts + self.invariants.counts
        counts["a request in doubt took its name anew"] = self.invariants.history.twice
        counts["store requests"] = self.cluster.requests
        faults = sum(n for kind, n in counts.items() if kind.startswith("fault: "))
        operations = self.cluster.requests + counts["kernel writes"] + counts["requests"] + faults
        self._hash.update(f"{self.loop.handles} {self.cluster.revision}".encode())
        return Outcome(
            violations, counts, operations, self.setting.names, self._hash.hexdigest(), self.log
        )


def play(schedule: Schedule, *, verbose: bool = False) -> Outcome:
    """Play a schedule."""
    world = World(schedule, verbose=verbose)
    try:
        world.run()
    except Stuck:
        world.broken("everybody waits for something that nobody will do")
    outcome = world.outcome()
    world.loop.end()
    _forget(world)
    return outcome


def _forget(world: World) -> None:
    """Close what is left in the midst of something; it says nothing any more."""
    for process in (world.loop.world, *world.loop.processes):
        for task in process.tasks:
            if not task.done():
                coro = task.get_coro()
                for _ in range(50):
                    with suppress(BaseException):
                        coro.close()
                        break
        process.tasks.clear()
