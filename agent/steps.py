"""The steps that `decide` asks for, carried out: kernel writes and transitions.

Each returns when to look at the name again. A step that a crash cuts off anywhere leaves a
claim and a device for which `decide` has an answer; none needs to be finished.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from agent.reconcile import Action, Decision, Refusal, Write
from agent.slots import STUCK
from agent.threads import in_thread
from agent.workers import Order, OrderKind
from coordinator.claims import Failure
from coordinator.errors import Fenced, NameTaken
from coordinator.model import NIL, AfterRemoval, FindingKind, FindingValue, LastError
from coordinator.states import ClaimEvent, ClaimState, transition

if TYPE_CHECKING:
    import random

    from agent.bus import Bus, Device
    from agent.makers import Makers
    from agent.metrics import Metrics
    from agent.notes import Notes
    from agent.reporter import Reporter
    from agent.restoring import Restoring
    from agent.scanner import Scanner
    from agent.workers import Answer as Written
    from agent.workers import Workers
    from coordinator.batch import GroupCommit
    from coordinator.claims import Claims
    from coordinator.clock import Clock
    from coordinator.informer import Informer
    from coordinator.leases import SharedLeases
    from coordinator.model import Claim, Name
    from coordinator.session import Session
    from coordinator.transactions import Answer, Change, Guard

__all__ = ["Again", "Enrolled", "Steps"]

_log = structlog.get_logger()

_OUTCOME_TTL = 300  # seconds for which whoever waits can learn how a request failed
_AGAIN_FIRST = 0.2  # seconds after which what did not do is begun again, then ever more rarely:
_EXISTS_MOST = 60.0  # seconds between tries at a name the kernel has
_NOT_BEGUN_MOST = 10.0  # seconds between tries at a write that no worker could begin
_CONFLICT_AGAIN = 30.0  # seconds after which a name held elsewhere is asked for again
_CONFLICT_SOON = 1.0  # seconds, in a restore: who holds it may make way
# It is full, or the name is taken: its driver works.
_SAYS_NOTHING_OF_THE_PARENT = frozenset({"ENOSPC", "EUSERS", "EEXIST"})
# What a restore forbids. Each but the removal of a device is refused by the store, too.
_NOT_IN_A_RESTORE = frozenset(
    {
        *(Action.BEGIN, Action.REFUSE, Action.ABORT, Action.UNDO),
        *(Action.LOSE, Action.REMOVE, Action.RELEASE),
    }
)
# Devices that are made side by side end one after the other, further apart than a commit takes.
# So long one that is made waits for company: a share of what it took, and at most seconds.
_GATHER_SHARE, _GATHER_MOST = 0.25, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What the work on names needs, for as long as one session is in force."""

    claims: Claims
    clock: Clock
    rng: random.Random
    session: Session
    informer: Informer
    commit: GroupCommit
    leases: SharedLeases
    bus: Bus
    workers: Workers
    scanner: Scanner
    reporter: Reporter
    metrics: Metrics
    notes: Notes
    makers: Makers
    restoring: Restoring
    boot_id: str
    taken: dict[Name, int] = field(default_factory=dict)
    """Names that a caller on the host has claimed in this enrolment, with the revision of that:
    the kernel's write may follow it without a begin (design 5, rule 1), once."""


class Again(Enum):
    """When to look at a name again after a step."""

    NOT = "not until something is heard of it"
    NOW = "now"
    LATER = "after a while, which grows"


class Steps:
    """Carries out single steps; what it remembers is the kernel's last refusal for a name."""

    def __init__(self, enrolled: Enrolled) -> None:
        self._e = enrolled
        session = enrolled.session
        self._in_force = enrolled.claims.in_force(session.host, session.instance)
        self._no_hold = enrolled.claims.no_hold()
        self._refusals: dict[Name, Refusal] = {}
        self._adopt_after: dict[Name, float] = {}
        self._begin_after: dict[Name, tuple[float, float]] = {}  # when, and how long it was
        self._under_way = 0
        self._company: asyncio.Future[None] | None = None

    def refusal(self, name: Name) -> Refusal | None:
        """The kernel's answer to our last write for the name, if it was no."""
        return self._refusals.get(name)

    def refused(self, name: Name, refusal: Refusal) -> None:
        """Take note of an answer to somebody else's write, as if it had been ours."""
        self._refusals[name] = refusal

    def forget(self, name: Name) -> None:
        """The name has neither a claim nor a device here."""
        self._refusals.pop(name, None)
        self._adopt_after.pop(name, None)
        self._begin_after.pop(name, None)
        self._e.reporter.found(name, None)

    async def unclaimed(self, name: Name, device: Device) -> Again:
        """Adopt: claim the name of somebody else's device. Held elsewhere, it is a conflict."""
        if name == NIL:
            self._e.reporter.found(name, _foreign(device, "the nil UUID is no name for a claim"))
            return Again.NOT
        now = self._e.clock.boottime()
        if device.type is None or now < self._adopt_after.get(name, 0.0):
            return Again.NOT
        answer = await self._take_note(name, device, device.type)
        if isinstance(answer.error, NameTaken):
            if answer.error.holder and answer.error.holder.host == self._e.session.host:
                return Again.LATER  # claimed for this host a moment ago; the watch will tell
            restoring = self._e.restoring.restore is not None
            if not restoring:  # else who holds it may make way, and the journal is asked again
                self._e.notes.settled(name)
            self._adopt_after[name] = now + (_CONFLICT_SOON if restoring else _CONFLICT_AGAIN)
            self._e.reporter.found(name, _conflict(device, answer.error))
            return Again.NOT
        self._e.informer.learn(name, answer.revision, answer.made())
        self._e.reporter.found(name, None)
        _log.info("adopted", name=name, parent=device.parent, type=device.type)
        return Again.NOT

    async def _take_note(self, name: Name, device: Device, type_: str) -> Answer:
        """Claim a device that has no claim: as the journal knows it, if the store has lost it."""
        lost, now = self._e.notes.lost.get(name), self._e.clock.now()
        if lost is not None and _is_of(device, lost):
            value = lost.as_recalled(ClaimState.ACTIVE, self._e.boot_id, now)
            change = self._e.claims.recall(name, self._e.session.host, value)
            return await self._commit(None, ClaimEvent.RECALL, change)
        change = self._e.claims.adopt_free(
            name,
            f"adopt-{self._e.rng.getrandbits(64):016x}",
            host=self._e.session.host,
            parent=device.parent,
            type_=type_,
            boot_id=self._e.boot_id,
            now=now,
        )
        return await self._commit(None, ClaimEvent.ADOPT, change)

    async def recall_absent(self, name: Name) -> Again:
        """A lost claim without a device: a persistent one is defined again, if it is free still.

        Not what was being created for the first time, nor what was being removed for good.
        """
        lost = self._e.notes.lost[name]
        removed = lost.removal is not None and lost.removal.then is AfterRemoval.FREE
        if lost.outlives_its_device and not removed:
            value = lost.as_recalled(ClaimState.DEFINED, lost.boot_id, self._e.clock.now())
            change = self._e.claims.recall(name, self._e.session.host, value)
            answer = await self._commit(None, ClaimEvent.RECALL, change)
            if answer.error is None:
                self._e.informer.learn(name, answer.revision, answer.made())
            elif not isinstance(answer.error, NameTaken):
                raise answer.error
            _log.info("recalled", name=name, parent=lost.parent, taken=answer.error is not None)
        self._e.notes.settled(name)
        return Again.NOW

    async def claimed(self, claim: Claim, device: Device | None, decision: Decision) -> Again:
        """The step of a name that has a claim here.

        Raises:
            Moved: the claim is no longer as it was read.
            Fenced: the enrolment is no longer in force.
            StoreError: the store failed; nothing is unknown.
        """
        self._e.reporter.found(claim.name, None)
        if self._e.restoring.restore is not None and decision.action in _NOT_IN_A_RESTORE:
            return Again.NOT  # the clock looks again, when the restore is finished too
        match decision.action:
            case Action.BEGIN:
                step = self._begin(claim)
            case Action.CONFIGURE:
                step = self._configure(claim)
            case Action.REMOVE:
                step = self._remove(claim)
            case Action.ADOPT_OVER | Action.FAIL_AND_ADOPT if device and device.type:
                step = self._take_over(claim, device, decision)
            case Action.REFUSE | Action.ABORT | Action.UNDO:
                step = self._fail(claim, decision)
            case Action.LOSE | Action.RESTORE | Action.RELEASE:
                step = self._conclude(claim, decision)
            case _:
                return Again.NOT
        return await step

    # Around the kernel's write.

    async def _begin(self, claim: Claim) -> Again:
        """Begin, create, attributes, activate. Every write to `create` follows a begin.

        The begin detaches the reservation's lease, so from here on nothing but this host
        frees the name, whatever becomes of this agent.
        """
        if self._e.clock.boottime() < self._begin_after.get(claim.name, (0.0, 0.0))[0]:
            return Again.NOT  # the clock looks again
        begun = await self._begun(claim)
        await self._e.notes.written()  # what the kernel may have from here on is in the journal
        written = await self._order(OrderKind.CREATE, begun)
        if written.begun and written.known and (written.errno is None or written.attribute):
            self._e.scanner.made(claim.name)
        if written.why == STUCK:
            return self._stuck(claim, Write.CREATE)
        if not written.begun:  # a full disk under the locks, say
            self._begin_more_rarely(claim.name, _NOT_BEGUN_MOST)
        return await self._created(begun, written)

    async def _begun(self, claim: Claim) -> Claim:
        if self._e.taken.pop(claim.name, None) == claim.revision:
            return claim
        begin = self._e.claims.begin(
            claim,
            boot_id=self._e.boot_id,
            now=self._e.clock.now(),
            error=self._last_refusal(claim.name),
        )
        begun = await self._change(ClaimEvent.BEGIN, claim, begin)
        assert begun is not None
        return begun

    async def _configure(self, claim: Claim) -> Again:
        """The device is there: its attributes again (they are idempotent), then activate."""
        if not claim.attrs or claim.maker is not None:  # who made it has written them
            return await self._activate(claim)
        return await self._created(claim, await self._order(OrderKind.CONFIGURE, claim))

    async def _created(self, claim: Claim, written: Written) -> Again:
        if not written.begun or not written.known:
            return Again.LATER
        if written.errno is None:
            await self._gather(written.seconds)
            return await self._activate(claim)
        write = Write.ATTRIBUTE if written.attribute else Write.CREATE
        return self._refused(claim, write, written)

    async def _gather(self, seconds: float) -> None:
        """Let devices that are made at about the same time be activated in one commit.

        One that is made alone, or as the last, waits for nobody, and takes along who waits.
        """
        loop = asyncio.get_running_loop()
        if self._company is None or self._company.done():
            if not self._under_way:
                return
            self._company = loop.create_future()
            wait = min(_GATHER_MOST, seconds * _GATHER_SHARE)
            loop.call_later(wait, _leave, self._company)
        elif not self._under_way:
            _leave(self._company)
        await asyncio.shield(self._company)

    async def _activate(self, claim: Claim) -> Again:
        change = self._e.claims.activate(claim, boot_id=self._e.boot_id, now=self._e.clock.now())
        await self._change(ClaimEvent.ACTIVATE, claim, change)
        return Again.NOT

    async def _remove(self, claim: Claim) -> Again:
        """Remove the device, unless somebody has it open: that is an answer, not a wait."""
        force = claim.removal is not None and claim.removal.force
        why = None if force else await in_thread(self._e.bus.busy, claim.name)
        if why is not None:
            text = f"{claim.host}/{claim.parent}: {why}"
            self._refusals[claim.name] = Refusal(Write.REMOVE, "EBUSY", text)
            return Again.NOW
        await self._e.notes.written()
        written = await self._order(OrderKind.REMOVE, claim)
        if written.why == STUCK:
            return self._stuck(claim, Write.REMOVE)
        if not written.begun or not written.known:
            return Again.LATER
        if written.errno is not None:
            return self._refused(claim, Write.REMOVE, written)
        return Again.NOW  # seen absent by a look of its own, and only then released

    async def _order(self, kind: OrderKind, claim: Claim) -> Written:
        order = Order(
            kind=kind, name=claim.name, parent=claim.parent, type=claim.type, attrs=claim.attrs
        )
        self._under_way += 1
        try:
            # The deadline is read when a worker takes the order, which may be long from now.
            written = await self._e.workers.order(order, deadline=lambda: self._e.session.deadline)
        finally:
            self._under_way -= 1
        _log.info(
            "kernel write",
            write=kind.value,
            name=claim.name,
            parent=claim.parent,
            type=claim.type,
            begun=written.begun,
            errno=written.errno,
            attribute=written.attribute,
            why=written.why or None,
            seconds=round(written.seconds, 4),
        )
        self._e.metrics.wrote(order, written)
        self._judge(order, written)
        self._e.reporter.poke()
        if written.why == "stale generation":
            # Another agent has begun to enrol since, and may be gone: no order of ours begins
            # any more, whatever the epoch says.
            host = f"host {self._e.session.host}"
            raise Fenced(host, "its orders are of an older generation", "this agent enrols again")
        return written

    def _judge(self, order: Order, written: Written) -> None:
        """Count the names that a parent refuses to create, until it creates one."""
        if order.kind is not OrderKind.CREATE or not (written.begun and written.known):
            return
        if written.errno is None or written.attribute is not None:
            self._e.reporter.succeeded(order.parent)
        elif written.errno not in _SAYS_NOTHING_OF_THE_PARENT:
            self._e.reporter.failed(order.parent, order.name)

    def _refused(self, claim: Claim, write: Write, written: Written) -> Again:
        errno = written.errno or "EIO"
        what = f"attribute {written.attribute}" if written.attribute else f"to {write.value} it"
        text = f"{claim.host}/{claim.parent}: the kernel refused {what} ({errno})"
        self._refusals[claim.name] = Refusal(write, errno, text, written.attribute)
        if errno != "EEXIST":
            return Again.NOW
        self._begin_more_rarely(claim.name, _EXISTS_MOST)  # held for a moment, or for long
        return Again.LATER

    def _stuck(self, claim: Claim, write: Write) -> Again:
        """Refuse what a driver that lets its writes hang cannot do now: nothing was written."""
        hung = self._e.workers.stuck().get(claim.parent, 0)
        text = f"{claim.host}/{claim.parent}: {hung} writes to its driver hang; none is begun"
        self._refusals[claim.name] = Refusal(write, "EAGAIN", text)
        return Again.NOW

    def _begin_more_rarely(self, name: Name, most: float) -> None:
        """Wait before the next begin, twice as long as before the last.

        Each is a commit, of which the watch tells: without a pause it would go round and round.
        """
        pause = min(2 * self._begin_after.get(name, (0.0, _AGAIN_FIRST / 2))[1], most)
        self._begin_after[name] = (self._e.clock.boottime() + pause, pause)

    # What only the store hears of.

    async def _take_over(self, claim: Claim, device: Device, decision: Decision) -> Again:
        """The claim becomes that of the device which is there, or makes room for its own.

        Where a restore has lost the device's claim and the name is only reserved here, the
        journal's claim is put back over the reservation.
        """
        lost = self._e.notes.lost.get(claim.name)
        if claim.state is ClaimState.RESERVED and lost is not None and _is_of(device, lost):
            return await self._recall_over(claim, lost, decision)
        assert device.type is not None
        return await self._adopt_over(claim, device.parent, device.type, decision)

    async def _recall_over(self, claim: Claim, lost: Claim, decision: Decision) -> Again:
        value = lost.as_recalled(ClaimState.ACTIVE, self._e.boot_id, self._e.clock.now())
        is_its_own = claim.request == lost.request
        failure = None if is_its_own else await self._failure(decision)
        change = self._e.claims.recall_over(claim, value, failure=failure)
        await self._change(ClaimEvent.RECALL, claim, change)
        _log.info("recalled", name=claim.name, parent=lost.parent, over=claim.request)
        return Again.NOT

    async def _adopt_over(self, claim: Claim, parent: str, type_: str, decision: Decision) -> Again:
        failing = decision.action is Action.FAIL_AND_ADOPT
        change = self._e.claims.adopt_over(
            claim,
            parent=parent,
            type_=type_,
            boot_id=self._e.boot_id,
            now=self._e.clock.now(),
            failure=await self._failure(decision) if failing else None,
        )
        await self._change(ClaimEvent.ADOPT, claim, change)
        _log.warning("adopted", name=claim.name, parent=parent, type=type_)
        return Again.NOT

    async def _fail(self, claim: Claim, decision: Decision) -> Again:
        """The request failed: say so, in the transaction that moves the claim on."""
        failure, now = await self._failure(decision), self._e.clock.now()
        if decision.action is Action.ABORT:
            await self._give_up(claim)
        match decision.action:
            case Action.REFUSE:
                event, change = ClaimEvent.CANCEL, self._e.claims.cancel(claim, failure)
            case Action.ABORT:
                event, change = ClaimEvent.ABORT, self._e.claims.abort(claim, failure, now=now)
            case _:
                event, change = ClaimEvent.UNDO, self._e.claims.undo(claim, failure, now=now)
        await self._change(event, claim, change)
        return Again.NOW

    async def _conclude(self, claim: Claim, decision: Decision) -> Again:
        claims, now = self._e.claims, self._e.clock.now()
        match decision.action:
            case Action.LOSE:
                await self._give_up(claim)
                event, change = ClaimEvent.LOSE, claims.lose(claim, now=now)
                _log.warning("device is gone", name=claim.name, parent=claim.parent)
            case Action.RESTORE:
                error = self._error(decision)
                event, change = ClaimEvent.RESTORE, claims.restore(claim, error, now=now)
            case _:
                await self._e.notes.written()  # that it is being removed, and not there any more
                event = ClaimEvent.RELEASE
                change = claims.release(claim, boot_id=self._e.boot_id, now=now)
        await self._change(event, claim, change)
        return Again.NOW

    async def _give_up(self, claim: Claim) -> None:
        """Have the journal stop vouching for a claim before it is given up in the store.

        Else the transaction could be applied after we are gone, the name be taken elsewhere, and
        the device be made here again on the journal's word.
        """
        self._e.notes.unsure(claim.name)
        await self._e.notes.written()

    async def _change(self, event: ClaimEvent, claim: Claim, change: Change) -> Claim | None:
        """Make one transition; the informer knows of it before the watch does."""
        answer = await self._commit(claim.state, event, change)
        made = answer.made()
        if answer.revision:
            self._e.informer.learn(claim.name, answer.revision, made)
        self._refusals.pop(claim.name, None)  # it was the answer to a step before this one
        if event is not ClaimEvent.BEGIN:
            self._begin_after.pop(claim.name, None)
        _log.debug("transition", name=claim.name, event_=event.value, revision=answer.revision)
        return made

    async def _commit(self, state: ClaimState | None, event: ClaimEvent, change: Change) -> Answer:
        answer = await self._e.commit.change(self._guards(state, event), change)
        self._e.metrics.moved(event, answer.error)
        return answer

    def _guards(self, state: ClaimState | None, event: ClaimEvent) -> tuple[Guard, ...]:
        if transition(state, event).during_hold:
            return (self._in_force,)
        return (self._in_force, self._no_hold)

    def _last_refusal(self, name: Name) -> LastError | None:
        refusal = self._refusals.get(name)
        if refusal is None:
            return None
        return LastError(refusal.errno, refusal.text, self._e.clock.now())

    def _error(self, decision: Decision) -> LastError:
        return LastError(decision.errno or "EIO", decision.text, self._e.clock.now())

    async def _failure(self, decision: Decision) -> Failure:
        lease = await self._e.leases.get(_OUTCOME_TTL)
        return Failure(self._error(decision), lease, decision.attribute)


def _foreign(device: Device, why: str) -> FindingValue:
    return FindingValue(
        kind=FindingKind.FOREIGN,
        parent=device.parent,
        type=device.type,
        detail=f"on {device.parent}: {why}",
    )


def _is_of(device: Device, claim: Claim) -> bool:
    """Whether a device is what was claimed; not one whose attributes may not have been written."""
    is_made = claim.state is not ClaimState.CREATING or not claim.attrs
    return is_made and (device.parent, device.type) == (claim.parent, claim.type)


def _leave(company: asyncio.Future[None]) -> None:
    if not company.done():
        company.set_result(None)


def _conflict(device: Device, taken: NameTaken) -> FindingValue:
    return FindingValue(
        kind=FindingKind.CONFLICT,
        parent=device.parent,
        type=device.type,
        detail=f"on {device.parent}, and the name is held by {taken.holder}",
    )
