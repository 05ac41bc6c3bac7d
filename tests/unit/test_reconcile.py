"""`decide` over its whole domain: no combination is left out, and the rules hold in each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest

from agent.bus import Presence
from agent.reconcile import Action, Decision, Facts, Refusal, Sight, Write, decide, sight_of
from coordinator.model import AfterRemoval, Claim, Maker, Name, Removal
from coordinator.states import ClaimEvent, ClaimState, transition

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOT, OLD_BOOT = "boot-now", "boot-before"
NAME = Name("11111111-2222-4333-8444-555555555555")

REFUSALS = (
    None,
    *(
        Refusal(write, errno, "no")
        for write in Write
        for errno in ("EEXIST", "ENOSPC", "EBUSY", "EINVAL")
    ),
)


def claim_in(
    state: ClaimState,
    *,
    persistent: bool,
    autostart: bool,
    boot_id: str | None,
    maker: Maker | None = None,
) -> Claim:
    return Claim(
        name=NAME,
        host="gpu01",
        revision=7,
        state=state,
        parent="0000:3b:00.0",
        type="mtty-2",
        persistent=persistent,
        autostart=autostart,
        removal=Removal(AfterRemoval.FREE) if state is ClaimState.REMOVING else None,
        request="r",
        boot_id=boot_id,
        since="",
        created="",
        maker=maker,
    )


def all_claims() -> Iterator[Claim | None]:
    yield None
    flags = ((False, False), (True, False), (True, True))
    for state, (persistent, autostart), boot in itertools.product(
        ClaimState, flags, (None, OLD_BOOT, BOOT)
    ):
        yield claim_in(state, persistent=persistent, autostart=autostart, boot_id=boot)
    for state in (ClaimState.CREATING, ClaimState.REMOVING):
        yield claim_in(
            state, persistent=False, autostart=False, boot_id=BOOT, maker=Maker(pid=7, started=9)
        )


def all_facts() -> Iterator[Facts]:
    for sight, settled, in_flight, offers, refusal in itertools.product(
        Sight, (False, True), (False, True), (False, True), REFUSALS
    ):
        yield Facts(BOOT, sight, settled, in_flight, offers, refusal)
        yield Facts(BOOT, sight, settled, in_flight, offers, refusal, made_elsewhere=True)


def waits(facts: Facts) -> bool:
    """Whether somebody's write to the kernel may be under way."""
    return facts.in_flight or facts.made_elsewhere


DOMAIN = list(itertools.product(all_claims(), all_facts()))

# Which transition an action makes; `decide` may only ask for one that exists.
EVENTS = {
    Action.BEGIN: ClaimEvent.BEGIN,
    Action.CONFIGURE: ClaimEvent.ACTIVATE,
    Action.REFUSE: ClaimEvent.CANCEL,
    Action.ABORT: ClaimEvent.ABORT,
    Action.UNDO: ClaimEvent.UNDO,
    Action.ADOPT: ClaimEvent.ADOPT,
    Action.ADOPT_OVER: ClaimEvent.ADOPT,
    Action.FAIL_AND_ADOPT: ClaimEvent.ADOPT,
    Action.LOSE: ClaimEvent.LOSE,
    Action.RESTORE: ClaimEvent.RESTORE,
    Action.RELEASE: ClaimEvent.RELEASE,
}

FREEING = {Action.REFUSE, Action.ABORT, Action.LOSE, Action.RELEASE}
ADOPTING = {Action.ADOPT, Action.ADOPT_OVER, Action.FAIL_AND_ADOPT}


def test_every_action_is_a_transition_of_the_table() -> None:
    """Whatever is decided, in every combination, is a transition that exists from there."""
    for claim, facts in DOMAIN:
        action = decide(claim, facts).action
        if action in EVENTS:
            transition(claim.state if claim else None, EVENTS[action])


def test_nothing_is_done_while_something_is_not_known() -> None:
    """A failed scan, a going device, a write in flight or a living maker is waited for, always."""
    for claim, facts in DOMAIN:
        going = facts.sight is Sight.GOING
        if going and not waits(facts) and claim and claim.state is ClaimState.REMOVING:
            continue  # the case below
        if waits(facts) or going or facts.sight is Sight.UNKNOWN:
            assert decide(claim, facts).action is Action.WAIT


@pytest.mark.parametrize("force", [False, True])
def test_a_remove_of_what_goes_by_another_hand_is_ebusy(force: bool) -> None:  # noqa: FBT001 - a table's column
    """A driver that is unbound under a VM waits for it; a remove does not, unless it is forced."""
    removing = claim_in(ClaimState.REMOVING, persistent=False, autostart=False, boot_id=BOOT)
    removing = msgspec.structs.replace(removing, removal=Removal(force=force))
    facts = Facts(BOOT, Sight.GOING, settled=False, in_flight=False, offers=False)
    decision = decide(removing, facts)
    if force:
        assert decision.action is Action.WAIT
    else:
        assert (decision.action, decision.errno) == (Action.RESTORE, "EBUSY")
    ours = Facts(BOOT, Sight.GOING, settled=False, in_flight=True, offers=False)
    assert decide(removing, ours).action is Action.WAIT


def test_a_name_is_given_up_only_when_its_device_was_seen_absent() -> None:
    """Whatever frees a name follows a sight of its absence, in every combination."""
    for claim, facts in DOMAIN:
        if decide(claim, facts).action in FREEING:
            assert facts.sight is Sight.ABSENT


def test_a_write_to_create_needs_an_absent_device_and_an_offer() -> None:
    """The kernel is asked to create only what is absent, where parent and type are there."""
    for claim, facts in DOMAIN:
        if decide(claim, facts).action is Action.BEGIN:
            assert facts.sight is Sight.ABSENT
            assert facts.offers


def test_eexist_of_our_own_write_never_aborts() -> None:
    """EEXIST means somebody still holds the name on the host, so the claim is kept."""
    for claim, facts in DOMAIN:
        if claim is not None and claim.maker is not None:
            continue  # no write of ours was made for it
        if facts.refusal is not None and facts.refusal.errno == "EEXIST" and facts.offers:
            assert decide(claim, facts).action is not Action.ABORT


def test_what_a_maker_did_not_make_is_not_made_in_its_place() -> None:
    """Once it has ended its claim is given up where there is no device, and kept where it is."""
    for claim, facts in DOMAIN:
        if claim is None or claim.maker is None or claim.state is not ClaimState.CREATING:
            continue
        action = decide(claim, facts).action
        assert action is not Action.BEGIN
        if facts.sight is Sight.ABSENT and not waits(facts):
            assert action is Action.ABORT


def test_a_device_is_removed_only_when_asked_to_and_settled() -> None:
    """Only `removing` removes, only the device that was asked for, only when it has settled."""
    for claim, facts in DOMAIN:
        if decide(claim, facts).action is Action.REMOVE:
            assert claim is not None
            assert claim.state is ClaimState.REMOVING
            assert facts.sight is Sight.AS_ASKED
            assert facts.settled


def test_nothing_is_adopted_that_may_be_a_phantom() -> None:
    """A create that fails shows a device for a moment; adoption waits until it has settled."""
    for claim, facts in DOMAIN:
        if decide(claim, facts).action in ADOPTING:
            assert facts.settled
            assert facts.sight in (Sight.AS_ASKED, Sight.OTHER)


def test_what_is_in_order_is_left_alone() -> None:
    """An active claim with its device, and a definition without one, need nothing."""
    for claim, facts in DOMAIN:
        if claim is None or waits(facts):
            continue
        there = claim.state is ClaimState.ACTIVE and facts.sight is Sight.AS_ASKED
        if there and claim.boot_id == BOOT:
            assert decide(claim, facts).action is Action.NOTHING
        quiet = claim.state is ClaimState.DEFINED and not claim.autostart
        if quiet and facts.sight is Sight.ABSENT:
            assert decide(claim, facts).action is Action.NOTHING


def test_a_device_that_was_made_again_since_the_boot_is_adopted() -> None:
    """Nobody of us made it in this boot, so it is somebody else's, and its loss is of this boot."""
    for claim, facts in DOMAIN:
        if claim is None or claim.state is not ClaimState.ACTIVE or claim.boot_id == BOOT:
            continue
        if facts.sight is Sight.AS_ASKED and facts.settled and not waits(facts):
            assert decide(claim, facts).action is Action.ADOPT_OVER


def test_autostart_is_tried_once_a_boot() -> None:
    """What was defined, begun, stopped or lost in this boot is not begun by autostart."""
    for claim, facts in DOMAIN:
        if claim is not None and claim.state in (ClaimState.DEFINED, ClaimState.ACTIVE):
            begins = decide(claim, facts).action is Action.BEGIN
            due = claim.autostart and claim.boot_id != BOOT
            known = facts.sight is Sight.ABSENT and not waits(facts)
            assert begins == (due and known and facts.offers)


def test_a_lost_device_that_does_not_start_by_itself_is_given_up() -> None:
    """An active claim without its device is lost, unless a new boot begins it again."""
    for claim, facts in DOMAIN:
        if claim is None or claim.state is not ClaimState.ACTIVE or waits(facts):
            continue
        if facts.sight is Sight.ABSENT:
            again = claim.autostart and claim.boot_id != BOOT and facts.offers
            assert decide(claim, facts).action is (Action.BEGIN if again else Action.LOSE)


@pytest.mark.parametrize(
    ("state", "facts", "expected"),
    [
        (None, Facts(BOOT, Sight.OTHER, True, False, False), Action.ADOPT),
        ("reserved", Facts(BOOT, Sight.ABSENT, False, False, True), Action.BEGIN),
        ("reserved", Facts(BOOT, Sight.ABSENT, False, False, False), Action.REFUSE),
        ("reserved", Facts(BOOT, Sight.AS_ASKED, True, False, True), Action.FAIL_AND_ADOPT),
        ("creating", Facts(BOOT, Sight.ABSENT, False, False, True), Action.BEGIN),
        ("creating", Facts(BOOT, Sight.ABSENT, False, False, False), Action.ABORT),
        ("creating", Facts(BOOT, Sight.AS_ASKED, False, False, True), Action.CONFIGURE),
        ("creating", Facts(BOOT, Sight.OTHER, True, False, True), Action.FAIL_AND_ADOPT),
        ("active", Facts(BOOT, Sight.ABSENT, False, False, True), Action.LOSE),
        ("active", Facts(BOOT, Sight.OTHER, True, False, True), Action.ADOPT_OVER),
        ("removing", Facts(BOOT, Sight.AS_ASKED, True, False, True), Action.REMOVE),
        ("removing", Facts(BOOT, Sight.ABSENT, False, False, True), Action.RELEASE),
        ("removing", Facts(BOOT, Sight.OTHER, True, False, True), Action.ADOPT_OVER),
        ("defined", Facts(BOOT, Sight.AS_ASKED, True, False, True), Action.ADOPT_OVER),
    ],
)
def test_the_table(state: str | None, facts: Facts, expected: Action) -> None:
    """Each cell of the design's table gives the action that stands there."""
    claim = None
    if state is not None:
        claim = claim_in(ClaimState(state), persistent=False, autostart=False, boot_id=BOOT)
    assert decide(claim, facts).action is expected


def test_a_refused_attribute_undoes_and_a_refused_create_aborts() -> None:
    """The kernel's own errno is what the request fails with."""
    creating = claim_in(ClaimState.CREATING, persistent=False, autostart=False, boot_id=BOOT)
    attribute = Refusal(Write.ATTRIBUTE, "EINVAL", "no such mode")
    there = Facts(BOOT, Sight.AS_ASKED, settled=True, in_flight=False, offers=True)
    gone = Facts(BOOT, Sight.ABSENT, settled=False, in_flight=False, offers=True)
    undone = decide(creating, Facts(*_fields(there), refusal=attribute))
    assert undone == Decision(Action.UNDO, "EINVAL", "no such mode")
    full = Refusal(Write.CREATE, "ENOSPC", "full")
    assert decide(creating, Facts(*_fields(gone), refusal=full)).errno == "ENOSPC"


def _fields(facts: Facts) -> tuple[str, Sight, bool, bool, bool]:
    return facts.boot_id, facts.sight, facts.settled, facts.in_flight, facts.offers


def test_a_remove_that_the_kernel_refuses_is_told_and_given_up() -> None:
    """EBUSY brings the claim back to active, with the error, and is not tried for ever."""
    removing = claim_in(ClaimState.REMOVING, persistent=False, autostart=False, boot_id=BOOT)
    busy = Refusal(Write.REMOVE, "EBUSY", "open")
    facts = Facts(BOOT, Sight.AS_ASKED, settled=True, in_flight=False, offers=True, refusal=busy)
    assert decide(removing, facts) == Decision(Action.RESTORE, "EBUSY", "open")


@pytest.mark.parametrize("presence", list(Presence))
def test_a_sight_is_as_asked_only_with_the_same_parent_and_type(presence: Presence) -> None:
    """A device on another parent or of another type is another device."""
    claim = claim_in(ClaimState.ACTIVE, persistent=False, autostart=False, boot_id=BOOT)
    sights = {
        (parent, type_): sight_of(claim, presence, parent, type_)
        for parent in (claim.parent, "elsewhere")
        for type_ in (claim.type, "other")
    }
    as_asked = [key for key, sight in sights.items() if sight is Sight.AS_ASKED]
    assert as_asked == ([(claim.parent, claim.type)] if presence is Presence.PRESENT else [])


def test_of_a_device_without_a_type_nothing_is_known() -> None:
    """Its create has not returned, so it is neither what was asked for nor another device."""
    for state in ClaimState:
        claim = claim_in(state, persistent=False, autostart=False, boot_id=BOOT)
        for parent in (claim.parent, "elsewhere"):
            assert sight_of(claim, Presence.PRESENT, parent, None) is Sight.UNKNOWN
    assert sight_of(None, Presence.PRESENT, "elsewhere", None) is Sight.UNKNOWN
