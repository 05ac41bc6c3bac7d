"""What to do about a name, from its claim and its device. Pure: no I/O, no clock.

`decide` is the table of design 7. It is asked again after every change, so each answer is one
step. Waiting is always right when something is not known; what is waited for is looked at
again by the timer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.bus import Presence
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.model import Claim

__all__ = ["Action", "Decision", "Facts", "Refusal", "Sight", "Write", "decide", "sight_of"]


class Sight(StrEnum):
    """A device, held against its claim."""

    ABSENT = "absent"
    AS_ASKED = "as asked"  # the parent and the type of the claim
    OTHER = "other"
    GOING = "going"
    UNKNOWN = "unknown"


class Write(StrEnum):
    """What we asked of the kernel."""

    CREATE = "create"
    ATTRIBUTE = "attribute"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The kernel's answer to our own last write for a claim, in this enrolment."""

    write: Write
    errno: str
    text: str
    attribute: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a name on this host, from a scan that began after its claim was read.

    `settled`: the device's create has returned if it was ours, or else it has been seen for a
    while; before that a scan can meet a phantom, and a remove costs the device for good.
    `in_flight`: a write of ours, or of an agent before us, may be under way.
    `offers`: the claim's parent is there and offers its type.
    `made_elsewhere`: a living process that said that it writes to the kernel itself.
    `maker_lives`: such a process says that its write has returned, and lives.
    """

    boot_id: str
    sight: Sight
    settled: bool
    in_flight: bool
    offers: bool
    refusal: Refusal | None = None
    made_elsewhere: bool = False
    maker_lives: bool = False


class Action(StrEnum):
    """One step."""

    NOTHING = "nothing"
    WAIT = "wait"
    BEGIN = "begin"  # begin, then write to `create`, then attributes, then activate
    CONFIGURE = "configure"  # attributes, then activate
    REFUSE = "refuse"  # a reservation that cannot be begun: cancel, and say so
    ABORT = "abort"
    UNDO = "undo"
    ADOPT = "adopt"  # claim a free name, or report a conflict
    ADOPT_OVER = "adopt over"  # the claim takes on what is there
    FAIL_AND_ADOPT = "fail and adopt"  # the same, and its request has failed
    LOSE = "lose"
    REMOVE = "remove"
    RESTORE = "restore"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and where it is a refusal, the errno and text to tell."""

    action: Action
    errno: str | None = None
    text: str = ""
    attribute: str | None = None


_NOTHING, _WAIT = Decision(Action.NOTHING), Decision(Action.WAIT)

_FREES_OR_WRITES = frozenset({Action.ABORT, Action.UNDO, Action.LOSE, Action.BEGIN})
"""Wrong while a create may still be under way. A release is not among them: it follows a remove,
and a remove that is under way makes no device."""


def sight_of(
    claim: Claim | None, presence: Presence, parent: str | None, type_: str | None
) -> Sight:
    """How the device that a scan met stands to the claim.

    A device without a type is one whose create has not returned (measured on 6.1): nothing
    is concluded from it.
    """
    if presence is not Presence.PRESENT:
        return Sight(presence.value)
    if type_ is None:
        return Sight.UNKNOWN
    if claim is not None and (parent, type_) == (claim.parent, claim.type):
        return Sight.AS_ASKED
    return Sight.OTHER


def decide(claim: Claim | None, facts: Facts) -> Decision:
    """The next step for a name.

    Going, unknown, a write in flight, or a living maker: wait, always. A device that has not
    settled may be a phantom of a create that fails, so nothing is adopted or removed before it
    has. A process that says that its write to `create` has returned hastens only what a device
    that is seen allows; without one its end is waited for, too.
    """
    if _goes_by_another_hand(claim, facts):
        text = "its driver was unbound, or it was removed by hand, and something has it open"
        return Decision(Action.RESTORE, "EBUSY", text)
    if facts.sight in (Sight.GOING, Sight.UNKNOWN) or facts.in_flight or facts.made_elsewhere:
        return _WAIT
    if claim is None:
        return _unclaimed(facts)
    decision = _BY_STATE[claim.state](claim, facts)
    return _WAIT if facts.maker_lives and decision.action in _FREES_OR_WRITES else decision


def _goes_by_another_hand(claim: Claim | None, facts: Facts) -> bool:
    """Whether a remove was asked for of a device that somebody else is removing already.

    No write of ours is under way, so what it waits for is who has it open. The claim is active
    again and keeps its name; it is lost when the device is gone.
    """
    if claim is None or claim.state is not ClaimState.REMOVING or facts.sight is not Sight.GOING:
        return False
    force = claim.removal is not None and claim.removal.force
    return not (force or facts.in_flight or facts.made_elsewhere)


def _unclaimed(facts: Facts) -> Decision:
    if facts.sight is Sight.ABSENT:
        return _NOTHING
    return _when_settled(facts, Action.ADOPT)


def _reserved(claim: Claim, facts: Facts) -> Decision:
    if facts.sight is not Sight.ABSENT:
        return _somebody_elses(facts)
    if not facts.offers:
        return _not_offered(Action.REFUSE, claim)
    return Decision(Action.BEGIN)


def _creating(claim: Claim, facts: Facts) -> Decision:
    if facts.sight is Sight.OTHER:
        return _somebody_elses(facts)
    if facts.sight is Sight.AS_ASKED:
        refusal = facts.refusal
        if refusal is not None and refusal.write is Write.ATTRIBUTE:
            return Decision(Action.UNDO, refusal.errno, refusal.text, refusal.attribute)
        return Decision(Action.CONFIGURE)
    return _not_made(claim, facts)


def _not_made(claim: Claim, facts: Facts) -> Decision:
    refusal = facts.refusal
    if refusal is not None and refusal.write is Write.CREATE and refusal.errno != "EEXIST":
        return Decision(Action.ABORT, refusal.errno, refusal.text)
    if claim.maker is not None:
        # Nothing of it is under way any more, and nobody asked us to make one in its place.
        text = f"{claim.host}/{claim.parent}: process {claim.maker.pid} did not make it"
        return Decision(Action.ABORT, "EIO", text)
    if not facts.offers:
        return _not_offered(Action.ABORT, claim)
    # After EEXIST too: an earlier write is still under way, or the name is held elsewhere on
    # the host for a moment. It never aborts.
    return Decision(Action.BEGIN)


def _active(claim: Claim, facts: Facts) -> Decision:
    if facts.sight is Sight.AS_ASKED and claim.boot_id == facts.boot_id:
        return _NOTHING
    if facts.sight is not Sight.ABSENT:
        # Another device, or made again by somebody else since the boot: taken note of.
        return _when_settled(facts, Action.ADOPT_OVER)
    return Decision(Action.BEGIN if _starts_now(claim, facts) else Action.LOSE)


def _removing(claim: Claim, facts: Facts) -> Decision:
    if facts.sight is Sight.ABSENT:
        return Decision(Action.RELEASE)
    if facts.sight is Sight.OTHER:
        return _when_settled(facts, Action.ADOPT_OVER)
    refusal = facts.refusal
    if refusal is not None and refusal.write is Write.REMOVE:
        return Decision(Action.RESTORE, refusal.errno, refusal.text)
    if claim.maker is not None:
        # Nobody asked us to remove it in its place.
        text = f"{claim.host}/{claim.parent}: process {claim.maker.pid} did not remove it"
        return Decision(Action.RESTORE, "EIO", text)
    return _when_settled(facts, Action.REMOVE)


def _defined(claim: Claim, facts: Facts) -> Decision:
    if facts.sight is not Sight.ABSENT:
        return _when_settled(facts, Action.ADOPT_OVER)
    return Decision(Action.BEGIN) if _starts_now(claim, facts) else _NOTHING


def _starts_now(claim: Claim, facts: Facts) -> bool:
    """Whether it is to start by itself: once a boot, on a parent that is there.

    Whatever was begun, stopped or lost in this boot has stamped it.
    """
    return claim.autostart and claim.boot_id != facts.boot_id and facts.offers


_BY_STATE: dict[ClaimState, Callable[[Claim, Facts], Decision]] = {
    ClaimState.RESERVED: _reserved,
    ClaimState.CREATING: _creating,
    ClaimState.ACTIVE: _active,
    ClaimState.REMOVING: _removing,
    ClaimState.DEFINED: _defined,
}


def _when_settled(facts: Facts, action: Action) -> Decision:
    return Decision(action) if facts.settled else _WAIT


def _somebody_elses(facts: Facts) -> Decision:
    if not facts.settled:
        return _WAIT
    text = "the host has a device of that name which was not made for this request"
    return Decision(Action.FAIL_AND_ADOPT, "EEXIST", text)


def _not_offered(action: Action, claim: Claim) -> Decision:
    text = f"parent {claim.parent} is not there or does not offer {claim.type}"
    return Decision(action, "ENODEV", text)
