"""A whole agent in this process: real daemon and workers, simulated kernel, store in memory."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

from agent import simulated
from agent.daemon import Agent, AgentSettings
from agent.enrolment import Parts
from agent.exposition import OFF
from agent.journal import Journal, journal_path
from agent.makers import Makers
from agent.metered import MeteredStore
from agent.metrics import Metrics
from agent.notes import Notes
from agent.simulated import SimulatedBus
from agent.workers import Workers
from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.finishing import Finished, finish
from coordinator.model import (
    Claim,
    FindingValue,
    Name,
    OutcomeValue,
    ParentValue,
    Removal,
    Wish,
    decode,
)
from coordinator.store import prefix
from tests.support.desk import HOST, NAME, TYPE, Desk
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from coordinator.states import ClaimState
    from coordinator.store import Store

__all__ = ["SESSION", "SOON", "Host", "process"]

SOON = 60.0  # seconds for what takes a fraction of one on a quiet machine
SESSION = 60  # seconds, so that no session lapses because the machine is busy


class Host:
    """A simulated host, the store that its agent sees, and what a test asks of both."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.directory, self.desk = directory, Desk()
        self.state = directory / "state"
        simulated.init(directory, 2, {TYPE: 4}, **options)  # type: ignore[arg-type]  # the simulator's own
        self.bus = SimulatedBus(directory)
        self.parents = sorted(self.bus.parents())
        self.seeds = count(3)
        """No two agents draw the same instance id, or one would seem to be set back."""
        self.workers: type[Workers] = Workers
        self.store: Store = self.desk.store
        """What the agent is given; a test may put something before it."""

    @asynccontextmanager
    async def agent(
        self,
        *,
        rescan: float = 0.2,
        metrics: str = OFF,
        enrols: bool = True,
        session: int = SESSION,
    ) -> AsyncIterator[Agent]:
        """An agent that serves the host; it is stopped as SIGTERM stops it.

        Returns when it is enrolled, unless it cannot.
        """
        settings = AgentSettings(
            host=HOST, bus=self.bus.spec, session_ttl=session, rescan=rescan, metrics=metrics
        )
        counted = Metrics()
        notes = Notes(Journal(journal_path(self.state, "test", HOST)))
        parts = Parts(
            store=MeteredStore(self.store, counted),
            keys=self.desk.keys,
            clock=SystemClock(),
            rng=random.Random(next(self.seeds)),
            bus=self.bus,
            workers=self.workers(self.bus.spec, self.bus.run_dir),
            notes=notes,
            makers=Makers(notes, self.bus.boot_id),
            metrics=counted,
        )
        agent = Agent(settings, parts)
        running = asyncio.create_task(agent.run())
        try:
            if enrols:
                await self.wait(lambda: len(self._under(self.desk.keys.parents(HOST))) == 2)
            yield agent
        finally:
            agent.stop.set()
            await running
            await notes.close()

    def _under(self, key: str) -> list[str]:
        return [kv.key for kv in self.desk.core.range(prefix(key)).kvs]

    async def wait(self, condition: object) -> None:
        """Wait until a condition holds."""
        assert callable(condition)
        await wait_until_async(condition, SOON)

    # What is asked for.

    def wish(self, *, attrs: tuple[tuple[str, str], ...] = (), persistent: bool = False) -> Wish:
        """A wish for a device on the first parent."""
        return Wish(
            host=HOST, parent=self.parents[0], type=TYPE, attrs=attrs, persistent=persistent
        )

    async def ask(self, wish: Wish | None = None, name: Name = NAME) -> Claim:
        """Reserve, as an operator does."""
        return await self.desk.reserved(name, wish or self.wish())

    async def retire(self, *, force: bool = False, name: Name = NAME) -> None:
        """Ask for the removal, as an operator does."""
        _, claim = self.desk.records(name)
        assert claim is not None
        await self.desk.make(self.desk.claims.retire(claim, Removal(force=force), now="t"))

    async def finish(self) -> Finished:
        """End the restore that is under way, as an operator does."""
        desk = self.desk
        client = Client(desk.store, desk.keys, SystemClock(), random.Random(5), patience=5)
        try:
            return await finish(client, wait=SOON)
        finally:
            await client.close()

    # What came of it.

    def claim(self, name: Name = NAME) -> Claim | None:
        """The claim as it stands."""
        return self.desk.records(name)[1]

    def is_in(self, state: ClaimState | None, name: Name = NAME) -> bool:
        """Whether the claim is in a state; None: the name is free."""
        claim = self.claim(name)
        return (claim.state if claim else None) == state

    def devices(self) -> set[str]:
        """What the kernel shows."""
        return {path.name for path in (self.directory / "sys/bus/mdev/devices").iterdir()}

    def outcome(self, request: str = "r") -> OutcomeValue | None:
        """How the request failed."""
        kv = self.desk.kv(self.desk.keys.outcome(request, NAME))
        value = None if kv is None else decode(kv, OutcomeValue)
        assert value is None or isinstance(value, OutcomeValue)
        return value

    def reported(self, parent: str) -> ParentValue:
        """What the agent reports of a parent."""
        kv = self.desk.kv(self.desk.keys.parent(HOST, parent))
        assert kv is not None
        value = decode(kv, ParentValue)
        assert isinstance(value, ParentValue)
        return value

    def finding(self, name: Name = NAME) -> FindingValue | None:
        """What the agent reports of a device that is not ours."""
        kv = self.desk.kv(self.desk.keys.finding(HOST, name))
        value = None if kv is None else decode(kv, FindingValue)
        assert value is None or isinstance(value, FindingValue)
        return value


@asynccontextmanager
async def process() -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that lives until it is killed."""
    lives = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        yield lives
    finally:
        with suppress(ProcessLookupError):
            lives.kill()
        await lives.wait()
