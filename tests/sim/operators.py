"""What operators ask, each a process of its own with the real client library."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from coordinator import creating, defining, evicting, operating, reserving
from coordinator.client import Client, Result
from coordinator.creating import Ask
from coordinator.errors import MdevnsError
from coordinator.model import Name, Wish
from tests.sim.cluster import Link, SimStore
from tests.sim.host import SimClock
from tests.sim.kernel import ATTRIBUTE
from tests.sim.loop import Process

if TYPE_CHECKING:
    from tests.sim.schedule import Event
    from tests.sim.world import World

__all__ = ["Operator", "name_of"]


def name_of(number: int) -> Name:
    """The n-th name."""
    return Name(f"aaaaaaaa-0000-4000-8000-{number:012x}")


class Operator:
    """One process that asks for one thing. `done` when it has its answer."""

    def __init__(self, world: World, number: int, event: Event) -> None:
        self.world, self.number, self.event = world, number, event
        self.done = False
        self.process = Process(f"o{number}")
        self.link = Link(world.loop, random.Random(f"{world.seed}/o{number}"), world.setting.network)
        self.link.fates = world.fates.get(number, {})
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
        try:
            for result in await self._ask(client):
                self._judge(result)
        except MdevnsError as error:
            world.answered(self.event.kind, error)
        except Exception as error:  # noqa: BLE001 - a defect, whatever it is
            world.broken(f"{self.event} died of {error!r}")
        await client.close()
        self.done = True
        world.cluster.forget(self.link)

    def _judge(self, result: Result) -> None:
        world = self.world
        world.answered(self.event.kind, result.error)
        made = result.error is None and self.event.kind == "create"
        if made and (result.name, f"r{self.number}") not in world.invariants.was_active:
            world.broken(f"{self.event} was answered, and {result.name} was never active")

    async def _ask(self, client: Client) -> list[Result]:  # noqa: PLR0911 - one line a request
        numbers, host, parent, style = self.event.args
        names, request = [name_of(n) for n in numbers], f"r{self.number}"
        hosts = list(self.world.hosts)
        where = hosts[host] if 0 <= host < len(hosts) else None
        match self.event.kind:
            case "create":
                asks = [self._ask_for(n, where, parent, style) for n in names]
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

    def _ask_for(self, name: Name, host: str | None, parent: int, style: str) -> Ask:
        return Ask(
            name=name,
            request=f"r{self.number}",
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
