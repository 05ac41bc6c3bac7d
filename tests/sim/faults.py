"""What goes wrong, one method a kind; the arguments are those of `schedule`."""

# ruff: noqa: FBT001 - the arguments of an event come in their order, true and false among them
from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from agent.simulated_memory import ACTIVE, COMING
from tests.sim.operators import name_of
from tests.sim.schedule import Event

if TYPE_CHECKING:
    from coordinator.memory import Snapshot
    from tests.sim.host import Host
    from tests.sim.world import World

__all__ = ["Faults"]

_NOW = ("fate", "kill", "stall", "quit", "restore")  # are told beforehand of what is to come
_LONG = 1e9


class Faults:
    """The faults of one world."""

    def __init__(self, world: World) -> None:
        self._world, self._loop = world, world.loop
        self._hosts = list(world.hosts.values())

    def plan(self, event: Event) -> None:
        """Have it happen."""
        if event.kind in _NOW:
            getattr(self, event.kind)(event, *event.args)
        else:
            self._loop.at(self._loop.time() + event.at, self._happen, event)

    def _happen(self, event: Event) -> None:
        if self._world.calm:
            return
        self._counted(event.kind)
        self._world.noted(f"fault: {event}")
        getattr(self, event.kind)(*event.args)

    def _counted(self, kind: str) -> None:
        self._world.counts[f"fault: {kind}"] += 1

    def _host(self, number: int) -> Host:
        return self._hosts[number % len(self._hosts)]

    # Told beforehand.

    def fate(self, _: Event, who: int, count: int, fate: str, some: float) -> None:
        fates = self._hosts[who].fates if who >= 0 else self._world.fates.setdefault(-1 - who, {})
        fates[count] = (fate, some)
        self._counted(f"fate {fate}")

    def kill(self, _: Event, host: int, what: str, count: int, steps: int, restart: float) -> None:
        self._host(host).kills[what, count] = (steps, restart)
        self._counted("kill")

    def stall(self, _: Event, host: int, count: int, some: float, is_lost: bool) -> None:
        self._host(host).stalls[count] = (some, is_lost)
        self._counted("stall")

    def quit(self, event: Event, number: int, steps: int) -> None:
        self._loop.at(self._loop.time() + event.at, self._quit, number, steps)

    def _quit(self, number: int, steps: int) -> None:
        for operator in self._world.operators:
            if operator.number == number and not operator.done:
                self._counted("quit")
                operator.process.doomed = (steps, operator.kill)

    def restore(self, event: Event, age: float, is_begun: bool) -> None:
        taken: list[Snapshot] = []
        at = self._loop.time() + event.at
        cluster = self._world.cluster
        self._loop.at(at - min(age, event.at), lambda: taken.append(cluster.snapshot()))
        self._loop.at(at, self._restore, taken, bool(is_begun))

    def _restore(self, taken: list[Snapshot], is_begun: bool) -> None:
        self._counted("restore")
        self._world.runbook.restore(taken[0], is_begun=is_begun)

    # Agents and hosts.

    def term(self, host: int) -> None:
        self._host(host).stop()

    def pause(self, host: int, some: float, _: bool) -> None:
        self._host(host).pause(some, workers=False)

    def freeze(self, host: int, some: float, _: bool) -> None:
        self._host(host).pause(some, workers=True)

    def power(self, host: int, some: float, late: bool) -> None:
        target = self._host(host)
        target.power_off()
        self._loop.after(some, target.boot)
        if late:  # its parents come after its agent
            for parent in target.kernel.state["parents"]:
                target.kernel.unplug(parent)
                self._loop.after(some + 2.0, target.kernel.plug, parent)

    def scrap(self, host: int) -> None:
        """It never comes back, unless nothing would be left."""
        living = [each for each in self._hosts if not each.is_scrapped]
        target = self._host(host)
        if target in living and len(living) > 1:
            target.is_scrapped = True
            target.power_off()
            self._world.runbook.watch()

    def expel(self, host: int, fenced: bool, definitions: bool, slow: bool) -> None:
        """An operator evicts as soon as the host has no session; true or not."""
        target = self._host(host)
        if target.name not in self._world.invariants.epochs:
            return
        if fenced:
            target.power_off()
            self._loop.after(8.0, target.boot)
        else:
            target.cut_off(self._loop.time() + 6.0)
        for parent in range(self._world.setting.parents if slow else 0):
            self.slow(host, parent, 1.5)
        args: tuple[object, ...] = ([], int(target.name[1:]), -1, "d" if definitions else "")
        for tries in range(3):
            self._loop.after(1.0 + 2.5 * tries, self._expel, Event("expel", 0.0, args))

    def _expel(self, event: Event) -> None:
        if not self._world.calm:
            self._world.ask(len(self._world.operators) + 1000, event)

    def jump(self, host: int, seconds: int) -> None:
        self._host(host).clock.jump += seconds

    def hints(self, host: int, some: float, _: bool) -> None:
        self._host(host).deaf_until = self._loop.time() + some

    def disk(self, host: int, some: float, _: bool) -> None:
        disk = self._host(host).disk
        disk.broken = True
        self._loop.after(some, setattr, disk, "broken", False)

    # The store.

    def partition(self, host: int, some: float, _: bool) -> None:
        self._host(host).cut_off(self._loop.time() + some)

    def cut(self, host: int, some: float, _: bool) -> None:
        link = self._host(host).link
        if link is not None:
            link.cut = self._loop.time() + some

    def compact(self, back: int) -> None:
        cluster = self._world.cluster
        revision = cluster.revision - back
        if revision > cluster.compacted:
            cluster.compact(revision)

    def leader(self, _: int) -> None:
        cluster = self._world.cluster
        for lease in cluster.leases():
            cluster.keep_alive(lease)

    def revoke(self, index: int) -> None:
        self._revoke(index)

    def deaf(self, index: int) -> None:
        lease = self._revoke(index)
        if lease is not None:
            self._world.cluster.deaf.add(lease)

    def _revoke(self, index: int) -> int | None:
        cluster = self._world.cluster
        leases = cluster.leases()
        if not leases:
            return None
        lease = leases[index % len(leases)]
        for host in self._hosts:
            kv = cluster._keys.get(self._world.keys.session(host.name))
            if kv is not None and kv.lease == lease:
                host.lease_was_lost = True
        cluster.expire(lease)
        return lease

    def full(self, some: float) -> None:
        self._world.cluster.full = True
        self._loop.after(some, setattr, self._world.cluster, "full", False)

    # The kernels.

    def made(self, host: int, parent: int, name: int) -> None:
        kernel = self._host(host).kernel
        if not self._host(host).powered:
            return
        try:
            kernel.create(kernel.parent(parent), "small", name_of(name))
        except OSError:
            return

    def gone(self, host: int, name: int, _: float) -> None:
        kernel = self._host(host).kernel
        record = kernel.device(name_of(name))
        if record is not None and record["phase"] == ACTIVE:
            kernel.remove(name_of(name))

    def held(self, host: int, name: int, some: float) -> None:
        kernel = self._host(host).kernel
        record = kernel.device(name_of(name))
        if record is not None and record["phase"] == ACTIVE:
            record["held"] = True
            self._loop.after(some, kernel.let_go, name_of(name))

    def caught(self, host: int, some: float, blind: bool) -> None:
        target, kernel = self._host(host), self._host(host).kernel
        for name, record in kernel.memory().devices.items():
            if record["phase"] != ACTIVE or record["held"]:
                continue
            record["held"] = True
            number = int(name[-12:], 16)
            self._loop.after(some, kernel.let_go, name)
            event = Event("remove", 0.0, ([number], -1, -1, "x"))
            self._world.ask(len(self._world.operators) + 1000, event)
            if blind:
                self._loop.after(0.2, self.blind, host, some, False)
            self._world.noted(f"{name} on {target.name} is in use, and to be removed by force")
            return

    def slow(self, host: int, parent: int, some: float) -> None:
        kernel = self._host(host).kernel
        record = kernel.state["parents"][kernel.parent(parent)]
        record["latency"] = some * 3
        self._loop.after(some, record.__setitem__, "latency", self._world.setting.latency)

    def refuse(self, host: int, parent: int, errno_name: str) -> None:
        kernel = self._host(host).kernel
        record = kernel.state["parents"][kernel.parent(parent)]
        record["failures"].append(getattr(errno, errno_name))

    def attribute(self, host: int, _: int, some: float) -> None:
        kernel = self._host(host).kernel
        kernel.state["failing"]["vgpu_params"] = errno.EINVAL
        self._loop.after(some, kernel.state["failing"].clear)

    def unplug(self, host: int, parent: int, some: float) -> None:
        kernel = self._host(host).kernel
        kernel.unplug(kernel.parent(parent))
        self._loop.after(some, kernel.plug, kernel.parent(parent))

    def blind(self, host: int, some: float, wholly: bool) -> None:
        kernel = self._host(host).kernel
        what = "broken" if wholly else "blind"
        setattr(kernel, what, True)
        self._loop.after(some, setattr, kernel, what, False)

    def end(self) -> None:
        """No more of it."""
        world = self._world
        world.cluster.full = False
        world.cluster.deaf.clear()
        for host in self._hosts:
            self._mend(host)
        for operator in world.operators:
            operator.link.fates = {}

    def _mend(self, host: Host) -> None:
        kernel = host.kernel
        kernel.blind = kernel.broken = host.disk.broken = False
        host.deaf_until = 0.0
        host.fates.clear()
        host.kills.clear()
        host.stalls.clear()
        host.cut_off(0.0)
        if host.link is not None:
            host.link.cut = 0.0
        kernel.state["failing"].clear()
        for name, parent in kernel.state["parents"].items():
            parent["failures"].clear()
            parent["latency"] = self._world.setting.latency
            kernel.plug(name)
        for name, record in list(kernel.memory().devices.items()):
            if record["phase"] == COMING:
                record["ready"] = record["typed"] = record["shown"] = self._loop.time()
            kernel.let_go(name)
        host.boot()
        self._loop.after(1.0, host.start)
