"""What mdevctl's callout asks of the agent, and what it may do.

mdevctl makes and removes its devices itself. Its callout asks before each action, and the claim
then names mdevctl's process as who writes to the kernel; afterwards it tells. What it tells frees
nothing: the agent looks at the kernel (`start` of a device that is there already ends with a
failure too). A callout is a courtesy (mdevctl goes on when it is killed), so whatever happens
behind it is found by the agent's own watch.

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
from agent.makers import maker_of
from agent.reconcile import Refusal, Write
from agent.threads import in_thread
from agent.words import AttributeName, AttributeValue, Label, Pid, Uuid
from coordinator.defining import define
from coordinator.errors import (
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

    from agent.local import Local

__all__ = ["Call", "Definition", "Mdevctl"]

_log = structlog.get_logger()

_BY = "mdevctl"
_SETTLED = 5.0  # seconds for which mdevctl is kept until its claim has followed the device
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


class _Asked(msgspec.Struct, frozen=True):
    """A call whose words were checked."""

    name: Name
    parent: str
    type: str
    attrs: tuple[tuple[str, str], ...]
    autostart: bool


class Mdevctl:
    """Answers the callout. `definitions` is where mdevctl keeps what was defined."""

    def __init__(self, local: Local, definitions: Path = _DEFINITIONS) -> None:
        self._local, self._definitions = local, definitions
        self._defined_here: set[Name] = set()
        before: Mapping[str, Callable[[_Asked, Maker], Awaitable[None]]] = {
            "start": self._start,
            "stop": self._stop,
            "define": self._define,
            "undefine": self._may_change,
            "modify": self._may_modify,
        }
        after: Mapping[str, Callable[[_Asked, bool], Awaitable[None]]] = {
            "start": self._started,
            "stop": self._stopped,
            "define": self._defined,
            "undefine": self._undefined,
            "modify": self._modified,
        }
        self._before, self._after = before, after

    async def answer(self, call: Call) -> None:
        """Returns when the action may go on, or was noted.

        Raises:
            MdevnsError: it may not; before an action, nothing of it was done.
        """
        if call.event == "pre" and call.action in self._before:
            await self._local.started()
            await self._before[call.action](_asked(call), maker_of(call.holder))
        elif call.event == "post" and call.action in self._after:
            await self._after[call.action](_asked(call), call.state == "success")
        elif self._local.enrolment is not None:
            self._local.enrolment.reconciler.poke((parse_name(call.name),))

    # Before an action.

    async def _start(self, asked: _Asked, maker: Maker) -> None:
        claim = self._local.claim(asked.name)
        if claim is not None:
            _refuse_elsewhere(claim, asked)
        try:
            await self._claim_start(claim, asked, maker)
        except (Unreachable, OutcomeUnknown):
            # What is unknown is asked for on and on; its claim names a maker that lives.
            await self._permit(asked, maker)

    async def _claim_start(self, claim: Claim | None, asked: _Asked, maker: Maker) -> None:
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

    async def _permit(self, asked: _Asked, maker: Maker) -> None:
        """Let a device be made under what the journal knows, and remember it over a crash."""
        claim = self._local.parts.notes.vouches(asked.name)
        if claim is None or claim.state is ClaimState.REMOVING or not claim.persistent:
            why = "the store cannot be reached, and the journal cannot vouch for a claim of it"
            raise Unreachable(asked.name, why, "nothing was done; see: mdevns doctor")
        if not await self._is_absent(asked.name):
            raise NameTaken(asked.name, claim.holder)
        enrolment = self._local.enrolment
        if enrolment is not None and enrolment.reconciler.is_at(asked.name):
            # A step that has begun does not know of the permit, and may give the name up.
            raise _busy(claim)
        self._local.parts.makers.permit(asked.name, maker)
        await self._local.parts.notes.written()
        _log.warning("permitted by the journal", name=asked.name, parent=asked.parent)

    async def _stop(self, asked: _Asked, maker: Maker) -> None:
        claim = self._local.claim(asked.name)
        if await in_thread(self._local.parts.bus.busy, asked.name):
            hint = "stop its virtual machine first"
            raise InUse(asked.name, "something has the device open", hint, name=asked.name)
        if claim is None or not self._local.store_answers:
            return  # not ours; or seen absent when the store is back, and only then given up
        if claim.state in (ClaimState.CREATING, ClaimState.REMOVING):
            raise _busy(claim)
        if claim.state is ClaimState.ACTIVE:
            enrolled = self._local.enrolled
            then = AfterRemoval.DEFINED if claim.persistent else AfterRemoval.FREE
            change = enrolled.claims.retire(
                claim, Removal(then), now=enrolled.clock.now(), maker=maker
            )
            await self._local.make(claim.state, ClaimEvent.RETIRE, change)

    async def _define(self, asked: _Asked, _: Maker) -> None:
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
        async with self._local.client(_BY) as client:
            # mdevctl starts with the next boot, or when it is asked to; not by defining.
            result = await define(
                client, asked.name, wish, request=request, boot_id=enrolled.boot_id
            )
        if result.error is not None:
            raise result.error
        self._defined_here.add(asked.name)

    async def _may_change(self, asked: _Asked, _: Maker) -> None:
        claim = self._local.claim(asked.name)
        if claim is None:
            return
        if claim.state in (ClaimState.CREATING, ClaimState.REMOVING):
            raise _busy(claim)
        self._local.enrolled  # noqa: B018 - what cannot be noted afterwards is not begun

    async def _may_modify(self, asked: _Asked, maker: Maker) -> None:
        claim = self._local.claim(asked.name)
        if claim is not None:
            _refuse_elsewhere(claim, asked)
        await self._may_change(asked, maker)

    # After it.

    async def _started(self, asked: _Asked, done: bool) -> None:  # noqa: FBT001 - one of a table
        enrolment = self._local.enrolment
        if done and enrolment is not None:
            enrolment.enrolled.scanner.made(asked.name)
        self._local.through(asked.name)
        await self._followed(asked.name, ClaimState.CREATING)

    async def _stopped(self, asked: _Asked, done: bool) -> None:  # noqa: FBT001 - one of a table
        enrolment = self._local.enrolment
        if not done and enrolment is not None:
            text = "mdevctl could not remove it"
            enrolment.reconciler.refused(asked.name, Refusal(Write.REMOVE, "EIO", text))
        self._local.through(asked.name)
        await self._followed(asked.name, ClaimState.REMOVING)

    async def _defined(self, asked: _Asked, done: bool) -> None:  # noqa: FBT001 - one of a table
        ours = asked.name in self._defined_here
        self._defined_here.discard(asked.name)
        if done:
            await self._amend(asked, persistent=True)
        elif ours and not (self._definitions / asked.parent / asked.name).exists():
            await self._give_up(asked.name)

    async def _undefined(self, asked: _Asked, done: bool) -> None:  # noqa: FBT001 - one of a table
        claim = self._local.claim(asked.name)
        if not done or claim is None:
            return
        if claim.state is ClaimState.DEFINED:
            await self._give_up(asked.name)
        elif claim.state is ClaimState.ACTIVE:
            await self._amend(asked, persistent=False)

    async def _modified(self, asked: _Asked, done: bool) -> None:  # noqa: FBT001 - one of a table
        claim = self._local.claim(asked.name)
        if done and claim is not None:
            await self._amend(asked, persistent=claim.persistent)

    async def _amend(self, asked: _Asked, *, persistent: bool) -> None:
        claim = self._local.claim(asked.name)
        if claim is None or claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
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

    async def _is_absent(self, name: Name) -> bool:
        try:
            scan = await in_thread(self._local.parts.bus.scan)
        except OSError as error:
            raise TryAgain(name, f"the bus cannot be scanned: {error}", name=name) from None
        return scan.presence(name) is Presence.ABSENT


def _asked(call: Call) -> _Asked:
    """What is asked for, its words checked.

    Raises:
        InvalidValue: a word is none of ours.
    """
    definition = call.definition or Definition()
    return _Asked(
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


def _refuse_elsewhere(claim: Claim, asked: _Asked) -> None:
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


def _busy(claim: Claim) -> MdevnsError:
    return TryAgain(
        claim.name,
        f"is a placeholder: {claim.holder}",
        f"see: mdevns show {claim.name}",
        name=claim.name,
        holder=claim.holder,
    )
