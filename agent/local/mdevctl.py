"""What mdevctl's callout asks of the agent, and what it may do.

mdevctl makes and removes its devices itself. Its callout asks before each action, and the claim
then names mdevctl's process as who writes to the kernel; afterwards it tells. What it tells frees
nothing: the agent looks at the kernel (`start` of a device that is there already ends with a
failure too), and keeps a claim without a device until mdevctl has ended. A callout is a courtesy
(mdevctl goes on when it is killed), so whatever happens behind it is found by the agent's own
watch.

While the store is away, only what is certainly this host's may be made: a claim behind which a
device may stand can be freed by this host alone, so the journal's word on it holds. One that is
`defined` can be moved meanwhile by an operator, and a new one can be anybody's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from agent.bus import Presence
from agent.journal import JournalFailed
from agent.local.pending import Asked, Pending
from agent.local.shapes import AttributeName, AttributeValue, Label, Pid, Uuid
from agent.makers import Writing
from agent.threads import in_thread
from coordinator.defining import define
from coordinator.errors import (
    Holder,
    InUse,
    InvalidValue,
    MdevnsError,
    NameTaken,
    NotFound,
    OutcomeUnknown,
    TryAgain,
    Unreachable,
)
from coordinator.model import (
    AfterRemoval,
    Claim,
    Maker,
    Name,
    Removal,
    Wish,
    parse_attribute,
    parse_label,
    parse_name,
)
from coordinator.operating import undefine
from coordinator.states import ClaimEvent, ClaimState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from agent.local.service import Local

__all__ = ["Call", "Definition", "Mdevctl"]

_log = structlog.get_logger()

_BY = "mdevctl"
_SETTLED = 5.0  # seconds for which mdevctl is kept, after and before, until its claim has followed
_DEFINITIONS = Path("/etc/mdevctl.d")


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What of a device's definition matters here, as mdevctl writes it; it may hold more."""

    start: str | None = None
    attrs: list[dict[AttributeName, AttributeValue]] | None = None


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What mdevctl gave its callout, and which process it is.

    `event`, `action` and `state` are mdevctl's words; `holder` is the pid of mdevctl itself, and
    `definition` the device's JSON from its standard input.
    """

    event: str
    action: str
    state: str
    name: Uuid
    parent: Label
    type: Label
    holder: Pid
    definition: Definition | None = None


class Mdevctl:
    """Answers the callout. `definitions` is where mdevctl keeps what was defined."""

    def __init__(self, local: Local, definitions: Path = _DEFINITIONS) -> None:
        self._local, self._definitions = local, definitions
        self._pending = Pending(local, self._settle_definition)
        before: Mapping[str, Callable[[Asked, Maker], Awaitable[None]]] = {
            "start": self._start,
            "stop": self._stop,
            "define": self._define,
            "undefine": self._undefine,
            "modify": self._modify,
        }
        after: Mapping[str, Callable[[Asked, Maker, bool], Awaitable[None]]] = {
            "start": self._started,
            "stop": self._stopped,
            "define": self._defined,
            "undefine": self._undefined,
            "modify": self._modified,
        }
        self._before, self._after = before, after

    async def answer(self, call: Call, holder: Maker) -> None:
        """Returns when the action may go on, or was noted.

        `holder` is the process that the call names, as it was found when the call came.

        Raises:
            MdevnsError: it may not; before an action, nothing of it was done.
        """
        if call.event == "pre" and call.action in self._before:
            await self._local.started()
            await self._caught_up(parse_name(call.name))
            await self._before[call.action](_asked(call), holder)
        elif call.event == "post" and call.action in self._after:
            try:
                await self._after[call.action](_asked(call), holder, call.state == "success")
            finally:  # the notifier does not tell once more, unless another script was asked
                self._look_at(parse_name(call.name))
        else:
            self._look_at(parse_name(call.name))

    def _look_at(self, name: Name) -> None:
        if self._local.enrolment is not None:
            self._local.enrolment.reconciler.poke((name,))

    # Before an action.

    async def _start(self, asked: Asked, maker: Maker) -> None:
        claim = self._local.claim(asked.name)
        if claim is not None:
            _refuse_elsewhere(claim, asked)
        try:
            await self._claim_start(claim, asked, maker)
        except (Unreachable, OutcomeUnknown) as error:
            # What is unknown is asked for on and on; its claim names a maker that lives.
            await self._permit(asked, maker, error)

    async def _claim_start(self, claim: Claim | None, asked: Asked, maker: Maker) -> None:
        local = self._local
        if claim is None:
            wish = Wish(host=local.host, parent=asked.parent, type=asked.type, attrs=asked.attrs)
            await local.take(wish, name=asked.name, request=None, by=_BY, maker=maker)
            return
        enrolled = local.enrolled
        if claim.state is ClaimState.ACTIVE and claim.boot_id == enrolled.boot_id:
            holder = claim.holder
            raise NameTaken(asked.name, holder)
        if claim.state not in (ClaimState.DEFINED, ClaimState.ACTIVE):
            raise _busy(claim)
        if not await self._is_absent(asked.name):
            raise TryAgain(asked.name, "the kernel has a device of that name", name=asked.name)
        change = enrolled.claims.begin(
            claim, boot_id=enrolled.boot_id, now=enrolled.clock.now(), maker=maker
        )
        await local.make(claim.state, ClaimEvent.BEGIN, change)

    async def _permit(self, asked: Asked, maker: Maker, error: MdevnsError) -> None:
        """Let a device be made under what the journal knows, and remember it over a crash.

        Raises:
            MdevnsError: `error`, where the journal cannot vouch for a claim of it.
        """
        local, parts = self._local, self._local.parts
        if self._vouched(asked.name) is None:
            raise error
        if not await self._is_absent(asked.name):
            raise NameTaken(asked.name, _holder(local, asked.name))
        # From here to the permit nobody else's turn comes: what was true may not have stayed so.
        claim = self._vouched(asked.name)
        if claim is None or not local.store_is_away:
            raise error
        if parts.makers.may_write(asked.name, claim):
            raise _busy(claim)
        if local.enrolment is not None and local.enrolment.reconciler.is_at(asked.name):
            # A step that has begun does not know of the permit, and may give the name up.
            raise _busy(claim)
        parts.makers.permit(asked.name, maker)
        try:
            await parts.notes.written()
        except JournalFailed:
            parts.notes.permit(asked.name, None)
            raise
        _log.warning("permitted by the journal", name=asked.name, parent=asked.parent)

    def _vouched(self, name: Name) -> Claim | None:
        claim = self._local.parts.notes.vouches(name)
        if claim is None or claim.state is ClaimState.REMOVING or not claim.persistent:
            return None
        return claim

    async def _stop(self, asked: Asked, maker: Maker) -> None:
        claim = self._local.claim(asked.name)
        why = await in_thread(self._local.parts.bus.busy, asked.name)
        if why is not None:
            raise InUse(asked.name, why, "stop its virtual machine first", name=asked.name)
        if claim is None or claim.parent != asked.parent or not self._local.store_answers:
            return  # not ours; or seen absent when the store is back, and only then given up
        if claim.state in (ClaimState.CREATING, ClaimState.REMOVING):
            raise _busy(claim)
        if claim.state is ClaimState.ACTIVE:
            enrolled = self._local.enrolled
            then = AfterRemoval.DEFINED if claim.persistent else AfterRemoval.FREE
            change = enrolled.claims.retire(
                claim,
                Removal(then),
                now=enrolled.clock.now(),
                maker=maker,
                boot_id=enrolled.boot_id,
            )
            await self._local.make(claim.state, ClaimEvent.RETIRE, change)

    async def _define(self, asked: Asked, maker: Maker) -> None:
        claim = self._local.claim(asked.name)
        if claim is not None:
            _refuse_elsewhere(claim, asked)
            if claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
                raise _busy(claim)
            self._local.enrolled  # noqa: B018 - what cannot be noted afterwards is not begun
            return
        wish = Wish(
            host=self._local.host,
            parent=asked.parent,
            type=asked.type,
            attrs=asked.attrs,
            persistent=True,
            autostart=asked.autostart,
        )
        enrolled = self._local.enrolled
        request = f"mdevctl-{enrolled.rng.getrandbits(64):016x}"
        self._pending.watch(asked, maker)
        async with self._local.client(_BY) as client:
            # mdevctl starts with the next boot, or when it is asked to; not by defining.
            result = await define(
                client,
                asked.name,
                wish,
                request=request,
                boot_id=enrolled.boot_id,
                reported=False,
            )
        if result.error is not None:
            if not isinstance(result.error, OutcomeUnknown):  # else it may stand, for nobody
                self._pending.over(asked.name, maker.pid)
            raise result.error

    async def _undefine(self, asked: Asked, maker: Maker) -> None:
        if await self._may_change(asked) and self._has_file(asked):
            self._pending.watch(asked, maker)

    async def _may_change(self, asked: Asked) -> bool:
        """Whether it is a claim of ours, which may change."""
        claim = self._local.claim(asked.name)
        if claim is None or claim.parent != asked.parent:
            return False
        if claim.state in (ClaimState.CREATING, ClaimState.REMOVING):
            raise _busy(claim)
        self._local.enrolled  # noqa: B018 - what cannot be noted afterwards is not begun
        return True

    async def _modify(self, asked: Asked, _: Maker) -> None:
        claim = self._local.claim(asked.name)
        if claim is not None:
            _refuse_elsewhere(claim, asked)
        await self._may_change(asked)

    # After it.

    async def _started(self, asked: Asked, maker: Maker, done: bool) -> None:  # noqa: FBT001 - one of a table
        enrolment = self._local.enrolment
        if self._local.through(asked.name, maker) and done:
            if enrolment is not None:
                enrolment.enrolled.scanner.made(asked.name)
            # Not after a failure: without a device the claim follows when mdevctl has ended.
            await self._followed(asked.name, ClaimState.CREATING)

    async def _stopped(self, asked: Asked, maker: Maker, done: bool) -> None:  # noqa: FBT001 - one of a table
        # One that did not remove it is not stood in for: the claim is active again.
        del done
        if self._local.through(asked.name, maker):
            await self._followed(asked.name, ClaimState.REMOVING)

    async def _defined(self, asked: Asked, maker: Maker, done: bool) -> None:  # noqa: FBT001 - one of a table
        was_new = self._pending.over(asked.name, maker.pid)
        if done:
            await self._amend(asked, persistent=True)
        elif was_new:  # a name that was defined before, by whomever, stays
            await self._settle_definition(asked)

    async def _undefined(self, asked: Asked, maker: Maker, done: bool) -> None:  # noqa: FBT001 - one of a table
        claim = self._local.claim(asked.name)
        if done and claim is not None and claim.parent == asked.parent:
            if claim.state is ClaimState.DEFINED:
                await self._give_up(asked.name)
            elif claim.state is ClaimState.ACTIVE:
                await self._amend(asked, persistent=False)
        self._pending.over(asked.name, maker.pid)

    async def _modified(self, asked: Asked, _: Maker, done: bool) -> None:  # noqa: FBT001 - one of a table
        claim = self._local.claim(asked.name)
        if done and claim is not None:
            await self._amend(asked, persistent=claim.persistent)

    async def _settle_definition(self, asked: Asked) -> None:
        """Nobody tells what became of it: mdevctl's file does. Without one the name is given up."""
        claim = self._local.claim(asked.name)
        if claim is None or claim.parent != asked.parent or not claim.persistent:
            return
        if self._has_file(asked):
            return
        if claim.state is ClaimState.DEFINED:
            await self._give_up(asked.name)
        elif claim.state is ClaimState.ACTIVE:
            await self._amend(asked, persistent=False)

    def _has_file(self, asked: Asked) -> bool:
        return (self._definitions / asked.parent / asked.name).exists()

    async def _amend(self, asked: Asked, *, persistent: bool) -> None:
        claim = self._local.claim(asked.name)
        if claim is None or claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
            return
        if (claim.parent, claim.type) != (asked.parent, asked.type):
            return
        autostart = persistent and asked.autostart
        wanted = (persistent, autostart, asked.attrs)
        if (claim.persistent, claim.autostart, claim.attrs) != wanted:
            enrolled = self._local.enrolled
            change = enrolled.claims.amend(
                claim,
                persistent=persistent,
                autostart=autostart,
                attrs=asked.attrs,
                boot_id=enrolled.boot_id,
            )
            await self._local.make(claim.state, ClaimEvent.AMEND, change)

    async def _give_up(self, name: Name) -> None:
        async with self._local.client(_BY) as client:
            result = await undefine(client, name)
        if result.error is not None and not isinstance(result.error, NotFound):
            raise result.error

    async def _followed(self, name: Name, leaves: ClaimState) -> None:
        """Wait until the claim has left a state: who asks next finds what mdevctl left."""

        def has_left() -> bool:
            claim = self._local.claim(name)
            return claim is None or claim.state is not leaves

        if self._local.store_answers:
            await self._local.until(has_left, _SETTLED)

    async def _caught_up(self, name: Name) -> None:
        """Wait until the claim has followed what mdevctl did before: it may not have, when told.

        Not while somebody is at it: then it is busy. Nor while the store is away: then it does not.
        """

        def has_followed() -> bool:
            claim = self._local.claim(name)
            if claim is None or claim.maker is None or self._local.store_is_away:
                return True
            return self._local.parts.makers.writing(name, claim) is Writing.UNDER_WAY

        await self._local.until(has_followed, _SETTLED)

    async def _is_absent(self, name: Name) -> bool:
        try:
            scan = await in_thread(self._local.parts.bus.scan)
        except OSError as error:
            raise TryAgain(name, f"the bus cannot be scanned: {error}", name=name) from None
        return scan.presence(name) is Presence.ABSENT


def _asked(call: Call) -> Asked:
    """What is asked for, its words checked.

    Raises:
        InvalidValue: a word is none of ours.
    """
    definition = call.definition or Definition()
    return Asked(
        name=parse_name(call.name),
        parent=parse_label(call.parent, "parent"),
        type=parse_label(call.type, "type"),
        attrs=tuple(
            parse_attribute(f"{key}={value}")
            for one in definition.attrs or ()
            for key, value in one.items()
        ),
        autostart=definition.start == "auto",
    )


def _refuse_elsewhere(claim: Claim, asked: Asked) -> None:
    """Refuse what names another parent or type than the claim of this very host.

    mdevctl itself lets one name be defined on two parents.
    """
    if (claim.parent, claim.type) == (asked.parent, asked.type):
        return
    if claim.parent == asked.parent:
        why = f"is claimed as {claim.type}, not {asked.type}"
        raise InvalidValue(
            claim.name, why, "undefine it first, and define it anew", name=claim.name
        )
    raise NameTaken(claim.name, claim.holder)


def _holder(local: Local, name: Name) -> Holder:
    claim = local.claim(name)
    return Holder(local.host, None, "unclaimed") if claim is None else claim.holder


def _busy(claim: Claim) -> MdevnsError:
    return TryAgain(
        claim.name,
        f"is a placeholder: {claim.holder}",
        f"see: mdevns show {claim.name}",
        name=claim.name,
        holder=claim.holder,
    )
