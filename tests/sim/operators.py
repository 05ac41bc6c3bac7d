"""What operators ask, each a process of its own with the real client library."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from coordinator import creating, defining, evicting, operating, reserving
from coordinator.client import Client, Result
from coordinator.creating import Ask
from coordinator.errors import MdevnsError, OutcomeUnknown
from coordinator.model import Name, Wish
from tests.sim.cluster import Link, SimStore
from tests.sim.history import Recorded
from tests.sim.host import SimClock
from tests.sim.kernel import ATTRIBUTE
from tests.sim.loop import Process

if TYPE_CHECKING:
    from tests.sim.schedule import Event
    from tests.sim.world import World

__all__ = ["Operator", "name_of"]

_TAKES = ("create", "reserve", "define")


def name_of(number: int) -> Name:
    """The n-th name."""
    return Name(f"aaaaaaaa-0000-4000-8000-{number:012x}")


class Operator:
    """One process that asks for one thing. `done` when it has its answer."""

    def __init__(self, world: World, number: int, event: Event) -> None:
        self.world, self.number, self.event = world, number, event
        self.done = False
        self.process = Process(f"o{number}")
        self.link = Link(
            world.loop, random.Random(f"{world.seed}/o{number}"), world.setting.network
        )
        self.link.fates = world.fates.get(number, {})
        self.link.recorded = self.process.name
        world.loop.begin(self.process, lambda: world.loop.create_task(self._run()))

    def kill(self) -> None:
        """SIGKILL it."""
        self.world.loop.kill(self.process)
        self.world.cluster.forget(self.link)
        self.done = True

    async def _run(self) -> None:
        world = self.world
        store = SimStore(world.cluster, self.link, world.setting.timeout)
        client = Client(
            store,
            world.keys,
            SimClock(world.loop.time),
            random.Random(f"{world.seed}/o{self.number}/client"),
            patience=world.setting.patience,
        )
        history = world.invariants.history
        client._commit = Recorded(client._commit, history, self.process.name)  # type: ignore[assignment]  # all that it asks of it
        for step, kind in enumerate(self.event.kind.split("+")):
            if not await self._one(client, kind, f"r{self.number}.{step}"):
                break  # what comes after it makes no sense
            await world.loop.pass_time(world.setting.network * 10 * self.link.rng.random())
        await client.close()
        self.done = True
        world.cluster.forget(self.link)

    async def _one(self, client: Client, kind: str, request: str) -> bool:
        """One step of what it asks; whether any of it was done."""
        world = self.world
        try:
            results = await self._ask(client, kind, request)
            for result in results:
                self._judge(kind, request, result)
            return any(result.error is None for result in results)
        except MdevnsError as error:
            world.answered(kind, error)
            if kind in _TAKES and not isinstance(error, OutcomeUnknown):
                names = map(name_of, self.event.args[0])
                world.invariants.answered |= {(name, request) for name in names}
        except Exception as error:  # noqa: BLE001 - a defect, whatever it is
            world.broken(f"{self.event} died of {error!r}")
        return False

    def _judge(self, kind: str, request: str, result: Result) -> None:
        world = self.world
        world.answered(kind, result.error)
        key = (result.name, request)
        if kind == "create" and result.error is None and key not in world.invariants.was_active:
            world.broken(f"{self.event} was answered, and {result.name} was never active")
        if kind in _TAKES and not isinstance(result.error, OutcomeUnknown):
            world.invariants.answered.add(key)

    async def _ask(  # noqa: C901, PLR0911 - one line a request
        self, client: Client, kind: str, request: str
    ) -> list[Result]:
        numbers, host, parent, style = self.event.args
        names = [name_of(n) for n in numbers]
        hosts = list(self.world.hosts)
        where = hosts[host] if 0 <= host < len(hosts) else None
        match kind:
            case "create":
                asks = [self._ask_for(n, request, where, parent, style) for n in names]
                return await creating.create(client, asks, ttl=3)
            case "remove":
                return await operating.remove(client, names, force="x" in style)
            case "stop":
                return await operating.stop(client, names)
            case "start":
                return await operating.start(client, names)
            case "undefine":
                return [await operating.undefine(client, names[0])]
            case "define":
                wish = self._wish(where or hosts[0], parent, style)
                return [await defining.define(client, names[0], wish, request=request)]
            case "move":
                return [await defining.move(client, names[0], where or hosts[-1], None)]
            case "reserve":
                return await reserving.reserve(client, names, request=request, ttl=4)
            case "renew":
                return [await reserving.renew(client, names[0], ttl=4)]
            case "release":
                return [await reserving.release(client, names[0])]
            case "forget":
                await evicting.forget(client, where or hosts[0], reason="sim")
            case "expel":
                await self._expel(client)
        return []

    async def _expel(self, client: Client) -> None:
        host, definitions = self.event.args[1], self.event.args[3] == "d"
        await evicting.evict(client, f"h{host}", reason="sim", definitions=definitions)

    def _ask_for(self, name: Name, request: str, host: str | None, parent: int, style: str) -> Ask:
        return Ask(
            name=name,
            request=request,
            type="large" if int(name[-1], 16) % 4 == 3 else "small",
            host=host,
            parent=self._parent(parent) if host is not None and parent >= 0 else None,
            attrs=((ATTRIBUTE, "1"),) if "x" in style else (),
            persistent="p" in style,
            autostart="a" in style,
        )

    def _wish(self, host: str, parent: int, style: str) -> Wish:
        return Wish(
            host=host,
            parent=self._parent(max(parent, 0)),
            type="small",
            persistent=True,
            autostart="a" in style,
        )

    def _parent(self, number: int) -> str:
        parents = list(self.world.hosts["h0"].kernel.state["parents"])
        return parents[number % len(parents)]
