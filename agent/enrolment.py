"""What lives as long as one session is in force: informer, reconciler, reporter, keepalive.

Nothing of it survives into the next but what the kernel, the store and the locks of workers
hold, which is also all that is left of an agent that was killed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import structlog

from agent.journal import JournalFailed
from agent.metrics import Metrics, Snapshot
from agent.reconciler import Reconciler
from agent.reporter import Reporter
from agent.restoring import Restoring, before
from agent.scanner import Scanner
from agent.steps import Enrolled
from coordinator.batch import GroupCommit
from coordinator.claims import Claims
from coordinator.errors import Fenced, MdevnsError, SetBack, StoreError
from coordinator.informer import Informer
from coordinator.leases import SharedLeases

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

    from agent.bus import Bus, Watcher
    from agent.health import Vitals
    from agent.makers import Makers
    from agent.notes import Notes
    from agent.restoring import Before
    from agent.scanner import Look
    from agent.workers import Workers
    from coordinator.clock import Clock
    from coordinator.keys import Keys
    from coordinator.model import Name
    from coordinator.session import Session
    from coordinator.store import Store
    from coordinator.transactions import Change

__all__ = ["Enrolment", "Parts", "unless"]

_log = structlog.get_logger()

_GRACE = 20.0  # seconds in which a stop lets the kernel's writes finish
_AGAIN = 1.0  # seconds between tries at a store that failed
_GOODBYE = 2.0  # seconds for telling the store that the agent goes

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an agent is made of and hands on: everything that touches the world."""

    store: Store
    keys: Keys
    clock: Clock
    rng: random.Random
    bus: Bus
    workers: Workers
    notes: Notes
    makers: Makers
    metrics: Metrics = field(default_factory=Metrics)


class Enrolment:
    """Serves one host for as long as its session is in force. Times in seconds."""

    def __init__(
        self,
        parts: Parts,
        session: Session,
        boot_id: str,
        vitals: Vitals,
        *,
        ttl: int,
        rescan: float,
        resync: float,
    ) -> None:
        claims = Claims(parts.keys)
        parts.notes.enrolled(session.instance)
        if session.restore is not None:
            # Also where no number tells: what the store does not list is lost, not freed.
            parts.notes.set_back("a restore is under way")
        self._parts, self._session, self._vitals = parts, session, vitals
        self._ttl, self._rescan = ttl, rescan
        self._stirred = asyncio.Event()
        self._writing: dict[Name, float] = {}  # names with a write in flight, first seen when
        self._troubles: dict[str, str | None] = {"bus": None, "store": None}
        self._commit = GroupCommit(parts.store, patience=None, rng=parts.rng, left=self._left)
        self._scanner = Scanner(parts.bus, parts.clock, parts.workers.in_flight, parts.metrics)
        self._reporter = Reporter(
            parts.store,
            parts.keys,
            parts.bus,
            session,
            claims.in_force(session.host, session.instance),
            parts.rng,
            stuck=parts.workers.stuck,
        )
        self._restoring = Restoring(
            parts.store,
            parts.keys,
            parts.clock,
            parts.rng,
            session,
            claims.in_force(session.host, session.instance),
            notes=parts.notes,
        )
        vitals.restore = session.restore
        self._informer = Informer(
            parts.store,
            parts.keys,
            host=session.host,
            instance=session.instance,
            resync=resync,
            changed=self._changed,
            recorder=parts.notes,
        )
        self.enrolled = Enrolled(
            claims=claims,
            clock=parts.clock,
            rng=parts.rng,
            session=session,
            informer=self._informer,
            commit=self._commit,
            leases=SharedLeases(parts.store, parts.clock),
            bus=parts.bus,
            workers=parts.workers,
            scanner=self._scanner,
            reporter=self._reporter,
            metrics=parts.metrics,
            notes=parts.notes,
            makers=parts.makers,
            restoring=self._restoring,
            boot_id=boot_id,
        )
        self.reconciler = Reconciler(self.enrolled)

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve until fenced, or until `stop`: then finish what the kernel was given.

        Raises:
            OSError: the machine has no room for it, at this moment perhaps.
        """
        hints = self._listen()  # before any task: what fails here leaves none behind
        tasks = [
            asyncio.create_task(work)
            for work in (
                self._inform(),
                self._report(),
                self._look_again(),
                self._session.keep(self._ttl),
                self._fenced(),
                # What this enrolment has read is void then, and its compares prove nothing.
                self._parts.store.until_set_back(),
            )
        ]
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await self.reconciler.stop(_GRACE)
                await self._say_goodbye()
            else:
                _log.warning("enrolment ended", host=self._session.host, why=_why(tasks))
        finally:
            self._stop_listening(hints)
            await self.reconciler.abandon()
            for task in (*tasks, stopped):
                task.cancel()
            results = await asyncio.gather(*tasks, stopped, return_exceptions=True)
            await self._commit.close()
        for result in results:
            if isinstance(result, SetBack):
                self._parts.notes.set_back(result.why)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, (Fenced, SetBack)):
                raise result  # those two end an enrolment, or a stop does; what else, who calls

    @property
    def answers(self) -> bool:
        """Whether it goes on, the store answered within a session's time, and all is listed."""
        goes_on = not self.reconciler.stopping
        return goes_on and self.is_alive and self._informer.listed.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the store answered within a session's time."""
        return self._session.alive

    def _left(self, change: Change) -> None:
        """A change was refused of which a copy may come late.

        If that took a name it would take it, once it is free, for nobody. It compares the epoch,
        so the next enrolment ends it.
        """
        if change.takes:
            why = "a name was refused of which a late copy may be under way"
            self.reconciler.fence(Fenced(f"host {self._session.host}", why, "it enrols again"))

    # What runs side by side.

    async def _inform(self) -> None:
        while True:
            try:
                await self._informer.run()
            except StoreError as error:
                _log.warning("cannot list claims", host=self._session.host, error=error.line)
                await asyncio.sleep(_AGAIN)

    async def _report(self) -> None:
        while True:
            try:
                await self._reporter.run()
            except StoreError as error:
                _log.warning("cannot report", host=self._session.host, error=error.line)
                await asyncio.sleep(_AGAIN)

    async def _look_again(self) -> None:
        """Everything is looked at by the clock too: events can be lost, or not be there."""
        await self._informer.listed.wait()
        self._vitals.listed = True
        while True:
            await self._look_at_hold()
            known = before(self.enrolled) if self._restoring.restore else None
            try:
                look = await self.reconciler.poke_all()
                self._snapshot(look)
                if known is not None:
                    await self._tell_of_restore(known, look)
                trouble = None
            except OSError as error:
                trouble = f"cannot be scanned: {error}"
            # One look that fails is no state of the cluster: a descriptor may have been wanting.
            self._reporter.bus_trouble = trouble if self._vitals.bus_trouble else None
            self._note("bus", trouble)
            self._vitals.looked(trouble)
            self._vitals.degraded = self._reporter.troubles()
            answers = "has not answered for a session's time; nothing is begun"
            self._note("store", None if self._session.alive else answers)
            self._reporter.poke()
            self._stirred.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rescan):
                    await self._stirred.wait()

    async def _look_at_hold(self) -> None:
        try:
            await self._restoring.look()
        except Fenced as error:
            self.reconciler.fence(error)
        except StoreError:
            pass  # the session's deadline tells of a store that does not answer
        self._vitals.restore, self._vitals.frozen = self._restoring.restore, self._restoring.frozen

    async def _tell_of_restore(self, known: Before, look: Look) -> None:
        try:
            await self._restoring.tell(self.reconciler.standing(known, look))
        except Fenced as error:
            self.reconciler.fence(error)
        except (StoreError, JournalFailed) as error:
            _log.warning("cannot tell of the restore", error=error.line)

    def _snapshot(self, look: Look) -> None:
        now = self._parts.clock.boottime()
        self._writing = {name: self._writing.get(name, now) for name in look.in_flight}
        self._parts.metrics.snapshot = Snapshot(
            claims=self._informer.counts(),
            findings=self._reporter.counts(),
            troubles={p: len(told) for p, told in self._reporter.troubles().items()},
            failures={p: value.failures for p, value in self._reporter.parents.items()},
            devices=len(look.scan.devices),
            in_flight=len(look.in_flight),
            oldest_write=min(self._writing.values(), default=None),
            watch_lag=self._informer.lag(),
        )

    def _note(self, what: str, trouble: str | None) -> None:
        """Say what is wrong when it begins, and when it has passed; not all the time."""
        if self._troubles.get(what) != trouble:
            self._troubles[what] = trouble
            said = trouble or "is well again"
            _log.warning(f"{what} {said}", host=self._session.host)

    async def _fenced(self) -> None:
        raise await self.reconciler.fenced

    # Hints.

    def _changed(self, names: frozenset[Name]) -> None:
        self.reconciler.poke(names)

    def _listen(self) -> Watcher | None:
        watcher = self._parts.bus.watch()
        if watcher is not None:
            loop = asyncio.get_running_loop()
            try:
                loop.add_reader(watcher.fileno(), self._hinted, watcher)
            except OSError:
                watcher.close()
                raise
        return watcher

    def _hinted(self, watcher: Watcher) -> None:
        names = watcher.drain()
        if not names:
            self._stirred.set()  # something changed, and it is not known what: look at all
        self._scanner.stirred(names)
        self.reconciler.poke(names)
        self._reporter.poke()

    def _stop_listening(self, watcher: Watcher | None) -> None:
        if watcher is not None:
            asyncio.get_running_loop().remove_reader(watcher.fileno())
            watcher.close()

    async def _say_goodbye(self) -> None:
        """Give the session back, so that the host is seen to be down at once."""
        with suppress(StoreError, TimeoutError):  # it lapses by itself all the same
            async with asyncio.timeout(_GOODBYE):
                await self._parts.store.revoke(self._session.lease)


def _why(tasks: list[asyncio.Task[None]]) -> str:
    for task in tasks:
        if task.done() and not task.cancelled():
            error = task.exception()
            return (
                error.line if isinstance(error, MdevnsError) else str(error or "the session lapsed")
            )
    return "the session lapsed"


async def unless(stop: asyncio.Event, work: Coroutine[None, None, T]) -> T | None:
    """The result of `work`, or None (and `work` is cancelled) when `stop` is set first."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopped.cancel()
        await asyncio.gather(working, stopped, return_exceptions=True)
