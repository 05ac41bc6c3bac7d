"""What callers on the host itself may ask of its agent: to claim, to release, and to look.

An orchestrator claims a name and has the agent make the device, in one commit; mdevctl makes its
devices itself, and its callout asks here before and tells after (`agent.local.mdevctl`).

While the store is away nothing new can be claimed, and what is known is the journal's.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from agent.journal import JournalFailed
from agent.makers import ended
from agent.threads import in_thread
from coordinator.client import Client
from coordinator.errors import (
    MdevnsError,
    NameTaken,
    NotFound,
    OutcomeUnknown,
    TryAgain,
    Unreachable,
)
from coordinator.model import Claim, random_name
from coordinator.operating import remove
from coordinator.requests import ANY, Only, check_count, request_name
from coordinator.states import ClaimEvent, ClaimState, transition
from coordinator.waiting import await_made

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from agent.bus import Device
    from agent.enrolment import Enrolment, Parts
    from agent.steps import Enrolled
    from coordinator.model import Maker, Name, Wish
    from coordinator.transactions import Answer, Change

__all__ = ["ANSWER", "Local"]

ANSWER = 10.0
"""Seconds in which the store is expected to answer what a caller here waits for."""

STARTING = 25.0
"""Seconds after an agent's start in which callers wait until it is enrolled."""


class Local:
    """What one host's agent answers to callers on the host. Lives as long as the agent.

    `enrolment` is the one in force, or None; `starting` as `STARTING`.
    """

    def __init__(self, parts: Parts, host: str, *, starting: float = STARTING) -> None:
        self.parts, self.host = parts, host
        self.enrolment: Enrolment | None = None
        self.starting = starting
        self._is_away = False
        self._began = parts.clock.boottime()
        self._ends: dict[tuple[Name, Maker], asyncio.Task[None]] = {}

    async def started(self) -> None:
        """Wait, shortly after the agent's start, until it is enrolled or finds the store away.

        Who calls at boot, as mdevctl's autostart does, is often there first.
        """
        left = self._began + self.starting - self.parts.clock.boottime()
        if left > 0:
            await self.until(lambda: self.store_answers or self.store_is_away, left)

    def say_away(self, is_away: bool) -> None:  # noqa: FBT001 - it is all that is said
        """The agent tried to enrol: the store could not be reached, or answers."""
        self._is_away = is_away
        self.parts.notes.stir()

    @property
    def store_is_away(self) -> bool:
        """Whether the store was asked and did not answer; not so while the agent enrols."""
        if self.enrolment is not None:
            return not self.enrolment.is_alive
        return self._is_away

    # To look.

    @property
    def store_answers(self) -> bool:
        """Whether what is known of the claims is the store's word and not only the journal's."""
        return self.enrolment is not None and self.enrolment.answers

    def claims(self) -> list[Claim]:
        """This host's claims, in the order of names: as the store, else the journal, has them."""
        return [claim for _, claim in sorted(self.parts.notes.claims.items())]

    def claim(self, name: Name) -> Claim | None:
        """This host's claim of a name."""
        return self.parts.notes.claims.get(name)

    async def devices(self) -> list[Device]:
        """What the kernel has, looked at now, in the order of names.

        Raises:
            OSError: the bus cannot be scanned.
        """
        if self.enrolment is not None:  # one look for all who ask at the same time
            scan = (await self.enrolment.enrolled.scanner.fresh()).scan
        else:
            scan = await in_thread(self.parts.bus.scan)
        return [device for _, device in sorted(scan.devices.items())]

    # To claim and to release.

    async def take(
        self, wish: Wish, *, name: Name | None, request: str | None, by: str, maker: Maker | None
    ) -> Claim:
        """Claim a name for a device of this host, in one commit.

        Without a name it takes the request's, and without both a random one. The agent makes the
        device, or the `maker` does, which then has to say so. The same request again is answered
        with what stands.

        Raises:
            NameTaken: somebody has it.
            Unreachable: the store does not answer; nothing was done.
            OutcomeUnknown: it did not answer in time; the same request again tells.
        """
        with_id = request or f"local-{self.parts.rng.getrandbits(64):016x}"
        chosen = name or self._chosen(request)
        enrolment, enrolled = self._in_force()
        if name is None and request is not None:
            await check_count(self.parts.store, self.parts.keys, request, 1)
        now = enrolled.clock.now()
        change = enrolled.claims.claim(
            chosen,
            with_id,
            wish,
            boot_id=enrolled.boot_id,
            now=now,
            by=by,
            maker=maker,
        )
        try:
            claim = await self.make(None, ClaimEvent.CLAIM, change, now=now)
        except NameTaken as error:
            async with self.client(by) as client:
                raise await client.explained(chosen, error) from None
        if (claim.maker, claim.parent) != (maker, wish.parent):
            # The same request as another one's, that is: nobody waits for this process.
            why = f"request {with_id} has claimed it for {claim.parent} and another process"
            raise TryAgain(chosen, why, "use a request id of its own", name=chosen)
        if maker is not None or claim.created != now:  # else it was, when it was claimed
            enrolment.reconciler.poke((chosen,))
        return claim

    def _chosen(self, request: str | None) -> Name:
        """A name for a request that has none: the request's, or a random one."""
        if request is not None:
            return request_name(self.parts.keys.cluster, request, 0, 1)
        return random_name(self.parts.rng.getrandbits(128))

    async def made(self, claim: Claim, seconds: float) -> Claim:
        """Wait for so long until a claim's device is made, and return the claim as it is then.

        Raises:
            MdevnsError: it was not made, and why.
        """
        ends: list[tuple[Claim, MdevnsError | None]] = []
        try:
            async with asyncio.timeout(seconds):
                # This agent knows first. Only of what did not go well does the store know more.
                await self.parts.notes.until(lambda: not self._is_under_way(claim))
                now = self.claim(claim.name)
                if now and now.state is ClaimState.ACTIVE and _is_of_one_request(now, claim):
                    return now
                await await_made(
                    self.parts.store, self.parts.keys, [claim], lambda *end: ends.append(end)
                )
        except TimeoutError:
            return self.claim(claim.name) or claim
        ((now, error),) = ends
        if error is not None:
            raise error
        return now

    def _is_under_way(self, claim: Claim) -> bool:
        now = self.claim(claim.name)
        return (
            now is not None and now.state is ClaimState.CREATING and _is_of_one_request(now, claim)
        )

    async def release(self, name: Name, *, force: bool, by: str, only: Only = ANY) -> None:
        """Remove a device of this host and its claim; returns when both are gone.

        Raises:
            NotFound: the host has no claim of the name.
            MdevnsError: it was not removed, and why.
        """
        self._in_force()
        if self.claim(name) is None:
            raise self.unknown(name)
        async with self.client(by) as client:
            (result,) = await remove(client, [name], force=force, only=only)
        if result.error is not None:
            raise result.error

    def through(self, name: Name, maker: Maker) -> bool:
        """A process that makes or removes a device itself says that its write has returned.

        Whether it is the one that is waited for. The name is looked at now, and when the process
        has ended.
        """
        is_it = self.parts.makers.through(name, self.claim(name), maker)
        self._poke(name)
        if is_it and (name, maker) not in self._ends:
            self._ends[name, maker] = asyncio.create_task(self._look_after(name, maker))
        return is_it

    def _poke(self, name: Name) -> None:
        if self.enrolment is not None:
            self.enrolment.reconciler.poke((name,))

    async def _look_after(self, name: Name, maker: Maker) -> None:
        try:
            with suppress(OSError):  # no descriptor is left; the timer of the name looks as well
                await ended(maker)
        finally:
            del self._ends[name, maker]
        self._poke(name)

    # What `agent.local.mdevctl` needs too.

    def unknown(self, name: Name) -> NotFound:
        """The host has no claim of a name."""
        why = f"host {self.host} has no claim of it"
        return NotFound(name, why, f"see: mdevns show {name}", name=name)

    def _in_force(self) -> tuple[Enrolment, Enrolled]:
        """The enrolment that is in force.

        Raises:
            Unreachable: there is none whose store answers.
        """
        if self.enrolment is None or not self.enrolment.answers:
            why = "the agent is not in touch with the store; nothing new can be claimed"
            raise Unreachable(f"host {self.host}", why, "see: mdevns doctor")
        return self.enrolment, self.enrolment.enrolled

    @property
    def enrolled(self) -> Enrolled:
        """What the enrolment in force works with.

        Raises:
            Unreachable: there is none whose store answers.
        """
        return self._in_force()[1]

    async def make(
        self, state: ClaimState | None, event: ClaimEvent, change: Change, *, now: str = ""
    ) -> Claim:
        """Make one transition that leaves a claim, and have it in the journal.

        With `now` it claims a free name at that time.

        Raises:
            OutcomeUnknown: the store did not answer in time, or the journal could not be
                written: whoever wanted to write to the kernel must not. The store is asked on
                and on, and what becomes of it is reconciled.
        """
        enrolled = self.enrolled
        guards = [enrolled.claims.in_force(self.host, enrolled.session.instance)]
        if not transition(state, event).during_hold:
            guards.append(enrolled.claims.no_hold())
        answer = await _in_time(enrolled.commit.change(tuple(guards), change), change.name)
        if answer.error is not None and answer.doubted and not isinstance(answer.error, NameTaken):
            raise _unknown(change.name, answer.error.why) from answer.error
        claim = answer.made()
        assert claim is not None
        if claim.maker is not None:
            self.parts.makers.expect(change.name)
        elif claim.created == now:  # and not that of an earlier copy of the request
            enrolled.taken[change.name] = claim.revision
        enrolled.informer.learn(change.name, answer.revision, claim)
        if claim.maker is None and claim.created == now and self.enrolment is not None:
            # The look that its create rests on goes beside the journal; the create itself waits.
            self.enrolment.reconciler.poke((change.name,))
        try:
            await self.parts.notes.written()
        except JournalFailed as error:
            if claim.maker is not None and (not now or claim.created == now):
                # It was claimed by this very call, so its maker never had leave to write.
                self.parts.makers.refuse(change.name, claim.maker)
                self._poke(change.name)
            raise _unknown(change.name, f"it stands in the store, but {error.why}") from error
        return claim

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait for so long for what changes with the claims alone; whether it holds."""
        try:
            async with asyncio.timeout(seconds):
                await self.parts.notes.until(holds)
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def client(self, by: str) -> AsyncIterator[Client]:
        """What an operator on this host would ask with."""
        parts = self.parts
        client = Client(
            parts.store, parts.keys, parts.clock, parts.rng, patience=ANSWER, asked_by=by
        )
        try:
            yield client
        finally:
            await client.close()


async def _in_time(answer: Awaitable[Answer], name: Name) -> Answer:
    """An answer of the store.

    Raises:
        OutcomeUnknown: it did not come in time, or the enrolment that waits for it has ended.
    """
    try:
        async with asyncio.timeout(ANSWER):
            return await answer
    except TimeoutError:
        raise _unknown(name, "the store did not answer in time") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # it is whoever asks that has gone
        raise _unknown(name, "the agent enrols again") from None


def _unknown(name: Name, why: str) -> OutcomeUnknown:
    return OutcomeUnknown(name, why, f"the same again tells; see: mdevns show {name}", name=name)


def _is_of_one_request(now: Claim, claim: Claim) -> bool:
    """Whether a claim still is what was asked for, and no stranger's device."""
    return now.request == claim.request and not now.adopted
