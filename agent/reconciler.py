"""Which names are looked at, and when; for each, read the claim, look, decide, one step.

Steps on one name are serial; names go side by side, and their transactions are gathered. A
decision rests on a scan that began after the claim's revision was read, with no write in
flight on the name.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, TypeGuard

import structlog

from agent.makers import Writing
from agent.reconcile import Action, Decision, Facts, Refusal, Sight, Write, decide, sight_of
from agent.restoring import Before, Standing, standing
from agent.steps import Again, Enrolled, Steps
from coordinator.errors import Fenced, LeaseGone, MdevnsError, Moved, StoreReadOnly
from coordinator.model import Unreadable
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.bus import Device
    from agent.scanner import Look
    from coordinator.model import Claim, Name

__all__ = ["Reconciler"]

_log = structlog.get_logger()

_RETRY_FIRST, _RETRY_MOST = 0.1, 2.0  # seconds between looks at what does not go yet


class Reconciler:
    """One enrolment's work on its host's names."""

    def __init__(self, enrolled: Enrolled) -> None:
        self._e, self._steps = enrolled, Steps(enrolled)
        self._dirty: set[Name] = set()
        self._tasks: dict[Name, asyncio.Task[None]] = {}
        self._tries: dict[Name, int] = {}
        self._timers: dict[Name, asyncio.TimerHandle] = {}
        self.stopping = False
        """Whether nothing more is begun: the agent stops, or the enrolment is over."""
        self.fenced: asyncio.Future[MdevnsError] = asyncio.get_running_loop().create_future()
        """Done when the enrolment is no longer in force, with the reason."""

    def poke(self, names: Iterable[Name]) -> None:
        """Something may have changed for these names."""
        if self.stopping or not self._e.informer.listed.is_set():
            return  # before the claims are listed, "no claim" would be a guess
        for name in names:
            self._dirty.add(name)
            if name not in self._tasks:
                self._tasks[name] = asyncio.create_task(self._work(name))

    async def poke_all(self) -> Look:
        """Look at every name that has a claim, a device or a finding, or has lost its claim.

        Raises:
            OSError: the bus could not be scanned.
        """
        look = await self._e.scanner.fresh()
        known = {*self._e.informer.names(), *self._e.reporter.known(), *self._e.notes.lost}
        self.poke({*known, *look.scan.devices})
        return look

    def standing(self, known: Before, look: Look) -> Standing:
        """What a restore waits for here, of a look that began after `known` was read."""
        return standing(self._e, self._facts, known, look)

    def is_at(self, name: Name) -> bool:
        """Whether a step of the name is under way."""
        return name in self._tasks

    def fence(self, error: MdevnsError) -> None:
        """End the enrolment: nothing more is begun in it."""
        if not self.fenced.done():
            self.fenced.set_result(error)
        self.stopping = True

    def refused(self, name: Name, refusal: Refusal) -> None:
        """The kernel refused a write that somebody else made for the name."""
        self._steps.refused(name, refusal)

    async def stop(self, grace: float) -> None:
        """Begin nothing more; finish within `grace` seconds what the kernel was given."""
        self.stopping = True
        await self._e.workers.stop(grace)
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace)

    async def abandon(self) -> None:
        """Drop everything now. What the kernel was given goes on, and its locks tell."""
        self.stopping = True
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, name: Name) -> None:
        try:
            while name in self._dirty and not self.stopping:
                self._dirty.discard(name)
                self._look_again(name, await self._try_step(name))
        finally:
            del self._tasks[name]
            self._dirty.discard(name)

    async def _try_step(self, name: Name) -> Again | float:
        """One step; whatever fails is tried again, but for the enrolment's own end."""
        try:
            return await self._step(name)
        except Fenced as error:
            self.fence(error)
            return Again.NOT
        except Moved:
            return Again.LATER  # the watch brings what it is now; this is for a lost watch
        except LeaseGone as error:
            self._e.leases.forget()  # revoked before its time; another one is granted
            _log.warning("step failed", name=name, error=error.line)
        except OSError:
            pass  # a scan that failed is told once, by who looks at all names
        except MdevnsError as error:
            if isinstance(error, StoreReadOnly):
                self._e.restoring.suspect()
            _log.warning("step failed", name=name, error=error.line)
        except Exception:  # noqa: BLE001 - a defect met one name: told, and the others go on
            _log.exception("step failed by a defect", name=name)
        return Again.LATER

    def _look_again(self, name: Name, when: Again | float) -> None:
        if when is Again.NOT:
            self._tries.pop(name, None)
        elif when is Again.NOW:
            self._dirty.add(name)
        else:
            seconds = self._backoff(name) if when is Again.LATER else when
            self._set_timer(name, seconds)

    def _set_timer(self, name: Name, seconds: float) -> None:
        """One timer a name, whoever else pokes it: they would add up for as long as it waits."""
        if name in self._timers:
            self._timers[name].cancel()
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(seconds, self._timed, name)

    def _timed(self, name: Name) -> None:
        del self._timers[name]
        self.poke((name,))

    def _backoff(self, name: Name) -> float:
        tries = self._tries[name] = min(self._tries.get(name, 0) + 1, 10)
        return min(_RETRY_MOST, _RETRY_FIRST * 2.0**tries) * self._e.rng.uniform(0.5, 1.0)

    async def _step(self, name: Name) -> Again | float:
        claim = self._e.informer.get(name)
        if isinstance(claim, Unreadable):
            return Again.NOT  # `check` tells; nothing is done about what cannot be read
        # Before the look: a maker that ends after it may have made the device in between.
        writing = self._e.makers.writing(name, claim)
        try:
            look = await self._e.scanner.fresh()
        except OSError:
            if self._is_unseen_removal(claim) and writing is Writing.ENDED:
                return await self._give_up_removal(claim)
            raise
        return await self._step_on(name, claim, look, writing)

    async def _step_on(
        self,
        name: Name,
        claim: Claim | None,
        look: Look,
        writing: Writing,
    ) -> Again | float:
        """The step that a look asks for which began after the claim was read."""
        if look.scan.boot_id != self._e.boot_id:
            host = f"host {self._e.session.host}"
            raise Fenced(host, "was rebooted under its agent", "it enrols again")
        device = look.device(name)
        under_way, returned = writing is Writing.UNDER_WAY, writing is Writing.RETURNED
        facts = self._facts(name, claim, device, look, under_way)
        facts = replace(facts, maker_lives=returned)
        decision = decide(claim, facts)
        if decision.action is Action.WAIT:
            return (device and self._e.scanner.settled_in(name)) or Again.LATER
        if claim is not None:
            return await self._steps.claimed(claim, device, decision)
        if device is not None and decision.action is Action.ADOPT:
            return await self._steps.unclaimed(name, device)
        if name in self._e.notes.lost and facts.sight is Sight.ABSENT:
            return await self._steps.recall_absent(name)
        self._steps.forget(name)
        return Again.NOT

    def _is_unseen_removal(self, claim: Claim | None) -> TypeGuard[Claim]:
        """Whether it is a removal of which nothing is under way, on a bus that is not seen."""
        if claim is None or claim.state is not ClaimState.REMOVING:
            return False
        is_blind = self._e.reporter.bus_trouble is not None
        return is_blind and claim.name not in self._e.workers.in_flight()

    async def _give_up_removal(self, claim: Claim) -> Again:
        """Refuse a removal: the claim is active again and keeps its name, device or no device."""
        text = f"{claim.host}/{claim.parent}: the bus {self._e.reporter.bus_trouble}"
        return await self._steps.claimed(claim, None, Decision(Action.RESTORE, "EIO", text))

    def _reverted(self, name: Name) -> Refusal | None:
        """A removal that was over when the store was set back to before its end."""
        if name not in self._e.notes.reverted:
            return None
        text = "the store was set back to before this removal had failed"
        return Refusal(Write.REMOVE, "ESTALE", text)

    def _facts(
        self,
        name: Name,
        claim: Claim | None,
        device: Device | None,
        look: Look,
        made_elsewhere: bool,  # noqa: FBT001 - it is handed on as it is
    ) -> Facts:
        parent, type_ = (device.parent, device.type) if device else (None, None)
        return Facts(
            boot_id=self._e.boot_id,
            sight=sight_of(claim, look.scan.presence(name), parent, type_),
            settled=self._e.scanner.settled_in(name) <= 0,
            in_flight=name in look.in_flight,
            offers=claim is not None and look.scan.offers(claim.parent, claim.type),
            refusal=self._steps.refusal(name) or self._reverted(name),
            made_elsewhere=made_elsewhere,
        )
