"""What the operators' runbook has done: hosts that are gone for good, and a store set back.

They watch for as long as the world lasts, as whoever reads `mdevns check` does: a restore that
an agent has begun is finished by them as one that they have begun themselves.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

from coordinator import evicting, finishing, restoring
from coordinator.client import Client
from coordinator.errors import MdevnsError, NotFound
from coordinator.states import ClaimState
from tests.sim.cluster import FATES, Link, SimStore
from tests.sim.host import SimClock
from tests.sim.loop import Process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.finishing import Finished
    from coordinator.memory import Snapshot
    from tests.sim.world import World

__all__ = ["Runbook"]

T = TypeVar("T")

_PATIENCE = 2.0  # seconds for which an operator's command asks about its outcome
_UNLUCKY = 0.15  # how many of the requests of this go wrong, until the faults end


class Runbook:
    """The operators who do it, one process that lasts, and one for each beginning."""

    def __init__(self, world: World) -> None:
        self._world, self._loop = world, world.loop
        self._rng = random.Random(f"{world.seed}/runbook")
        self._begins = 0
        self._watching = False
        self._beginning: Process | None = None

    def restore(self, snapshot: Snapshot, *, is_begun: bool) -> None:
        """Set the store back; where it `is_begun`, that is before anybody else may connect."""
        world = self._world
        world.noted("the store is set back")
        world.cluster.set_back(snapshot)
        world.invariants.restore()
        self._begins += 1
        if self._beginning is not None:
            self._loop.kill(self._beginning)
            self._beginning = None
        world.cluster.admitted = None
        if is_begun:
            link, self._beginning = self._link(), Process(f"begin{self._begins}")
            world.cluster.admitted = link
            self._loop.begin(self._beginning, lambda: self._loop.create_task(self._begin(link)))
        self.watch()

    def watch(self) -> None:
        """Have somebody look after it from now on."""
        if not self._watching:
            self._watching = True
            process = Process("watch")
            self._loop.begin(process, lambda: self._loop.create_task(self._watch(self._link())))

    def _link(self) -> Link:
        link = Link(self._loop, self._rng, self._world.setting.network)
        link.fates = _Fates(self._world, self._rng)
        return link

    async def _begin(self, link: Link) -> None:
        """`mdevns restore begin`, until it says that it is begun; then whoever wants connects."""
        while True:
            begun = await self._tried("restore begin", link, restoring.begin)
            if begun is not None:
                self._world.counts["restores begun by an operator"] += 1
                break
            await self._loop.pass_time(0.2)
        self._world.cluster.admitted = None
        self._beginning = None

    async def _watch(self, link: Link) -> None:
        while True:
            await self._loop.pass_time(0.3 + self._rng.random())
            finished = await self._finish(link)
            for host in [host.name for host in self._world.hosts.values() if host.is_scrapped]:
                waits = finished is not None and any(host in e.what for e in finished.left)
                if waits or not self._is_buried(host):
                    await self._bury(link, host)

    def _is_buried(self, host: str) -> bool:
        """Whether it was evicted wholly: one that was cut off is done again."""
        world = self._world.invariants
        claims = [claim.state for (at, _), (_, claim) in world.claims.items() if at == host]
        epoch = world.epochs.get(host, b"evict")
        gone = epoch.startswith((b"evict", b"forget"))
        return gone and all(state is ClaimState.DEFINED for state in claims)

    async def _finish(self, link: Link) -> Finished | None:
        """`mdevns restore finish`, where a restore is under way."""
        if not self._world.invariants.is_restoring:  # as `check` tells them
            return None
        wait = self._rng.choice((0.0, 0.0, 1.0, 3.0))
        finished = await self._tried("finish", link, lambda c: finishing.finish(c, wait=wait))
        if finished is not None and finished.restore is not None:
            world = self._world
            world.counts["claims that gave way after a restore"] += len(finished.yielded)
            world.counts["restores finished"] += not finished.left
            world.noted(f"finish: {[error.line for error in finished.left]}")
        return finished

    async def _bury(self, link: Link, host: str) -> None:
        """Evict a host that will never come back, and forget it where it holds nothing."""
        definitions = self._rng.random() < 0.5
        reason = "it is gone"
        evicted = await self._tried(
            f"evict {host}",
            link,
            lambda c: evicting.evict(c, host, reason=reason, definitions=definitions),
        )
        if evicted is not None and self._rng.random() < 0.5:
            await self._tried(
                f"forget {host}", link, lambda c: evicting.forget(c, host, reason=reason)
            )

    async def _tried(
        self, what: str, link: Link, act: Callable[[Client], Awaitable[T]]
    ) -> T | None:
        """Do it in a process of its own; None when it was refused or nobody knows."""
        world = self._world
        client = Client(
            SimStore(world.cluster, link, world.setting.timeout),
            world.keys,
            SimClock(self._loop.time),
            self._rng,
            patience=_PATIENCE,
        )
        try:
            return await act(client)
        except NotFound:
            return None
        except MdevnsError as error:
            world.noted(f"{what}: {error.line}")
        except Exception as error:  # noqa: BLE001 - a defect, whatever it is
            world.broken(f"{what} died of {error!r}")
        return None


class _Fates(dict[int, tuple[str, float]]):
    """What becomes of requests, as they come: few go wrong, and none when the faults are over."""

    def __init__(self, world: World, rng: random.Random) -> None:
        super().__init__()
        self._world, self._rng = world, rng

    def get(self, _: int, default: object = None) -> tuple[str, float]:
        del default
        if self._world.calm or self._rng.random() >= _UNLUCKY:
            return "", 0.0
        return self._rng.choice(FATES), self._rng.random() * 2.0
