"""The life of a claim, transition by transition, on the store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.claims import Claims, Failure, Hold
from coordinator.errors import Fenced, Holder, Moved, NameTaken, StoreReadOnly
from coordinator.model import AfterRemoval, Claim, LastError, Maker, OutcomeValue, Removal, decode
from coordinator.states import ClaimState
from coordinator.store import Put, Txn
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, PARENT, TYPE, Desk, name, wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.transactions import Change

ERROR = LastError("ENOSPC", "full", "t")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def hold(desk: Desk, request: str = "r") -> Change:
    lease = desk.core.grant(60).id
    return desk.claims.hold(NAME, request, lease=lease)


async def test_of_two_hosts_that_ask_for_one_name_the_second_is_told_who_has_it(
    desk: Desk,
) -> None:
    """The second is refused with EEXIST, exit 4, and nothing of its own is written."""
    await desk.reserved()
    lease = desk.core.grant(60).id
    other = desk.claims.reserve(NAME, "r2", wish(OTHER), lease=lease, now="t", by=None)
    (answer,) = await desk.make(other)
    assert isinstance(answer.error, NameTaken)
    assert answer.error.holder is not None
    assert (answer.error.exit_code, answer.error.holder.host) == (4, HOST)
    assert desk.kv(desk.keys.claim(OTHER, NAME)) is None


async def test_on_the_same_host_the_refusal_knows_parent_and_state(desk: Desk) -> None:
    """The else branch of the refused transaction brings the claim along."""
    await desk.active()
    taken = desk.claims.claim(NAME, "r2", wish(), boot_id="b", now="t", by=None)
    (answer,) = await desk.make(taken)
    assert answer.error is not None
    assert answer.error.holder == Holder(HOST, PARENT, "active")


async def test_a_name_that_is_taken_fails_alone(desk: Desk) -> None:
    """In one transaction the free names are taken and only the taken one is refused."""
    await desk.active(name(2))
    lease = desk.core.grant(60).id
    changes = [
        desk.claims.reserve(name(n), "bulk", wish(), lease=lease, now="t", by=None)
        for n in (1, 2, 3)
    ]
    before = desk.core.revision
    answers = await desk.make(*changes)
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert desk.core.revision == before + 1


async def test_the_same_request_again_is_answered_as_it_was(desk: Desk) -> None:
    """A lost answer does no harm: asking again with the same request id is a success."""
    first = await desk.reserved()
    lease = desk.core.grant(60).id
    (again,) = await desk.make(
        desk.claims.reserve(NAME, "r", wish(), lease=lease, now="later", by=None)
    )
    assert again.made() == first


async def test_a_reservation_lapses_and_a_begun_claim_does_not(desk: Desk) -> None:
    """The begin takes both records off the lease, so no expiry frees the name after it."""
    await desk.reserved(name(1))
    reserved = await desk.reserved(name(2))
    await desk.made(desk.claims.begin(reserved, boot_id="b", now="t"))
    desk.core.advance(61)
    assert desk.records(name(1)) == (None, None)
    _, claim = desk.records(name(2))
    assert claim is not None
    assert (claim.state, claim.lease) == (ClaimState.CREATING, 0)


async def test_beginning_again_moves_the_revision(desk: Desk) -> None:
    """An abort of an earlier begin that arrives late meets another revision."""
    begun = await desk.creating()
    late_abort = desk.claims.abort(begun, Failure(ERROR, 0), now="t")
    again = await desk.made(desk.claims.begin(begun, boot_id="b2", now="t"))
    assert again.revision > begun.revision
    assert again.since == begun.since
    (answer,) = await desk.make(late_abort)
    assert isinstance(answer.error, Moved)
    assert desk.records()[1] == again


async def test_a_release_that_was_applied_is_learnt_with_its_revision(desk: Desk) -> None:
    """Sent again, it is answered with a revision, by which the agent knows the name is gone."""
    retired = await desk.made(desk.claims.retire(await desk.active(), Removal(), now="t"))
    release = desk.claims.release(retired, boot_id="b", now="t")
    answers = [(await desk.make(release))[0] for _ in range(2)]
    assert answers[0].revision == answers[1].revision > retired.revision


async def test_a_claim_that_moved_is_not_moved_again(desk: Desk) -> None:
    """Every transition compares the revision it was decided on."""
    active = await desk.active()
    retire = desk.claims.retire(active, Removal(), now="t1")
    await desk.made(retire)
    (answer,) = await desk.make(desk.claims.retire(active, Removal(force=True), now="t2"))
    assert isinstance(answer.error, Moved)
    assert answer.error.holder == Holder(HOST, PARENT, "removing")


async def test_an_earlier_copy_of_the_same_transaction_is_a_success(desk: Desk) -> None:
    """Sent again after a lost answer, a transition is answered as made, and made once."""
    begun = await desk.creating()
    activate = desk.claims.activate(begun, boot_id="b", now="t")
    first = await desk.made(activate)
    assert await desk.made(activate) == first
    retired = await desk.made(desk.claims.retire(first, Removal(), now="t"))
    release = desk.claims.release(retired, boot_id="b", now="t")
    assert [(await desk.make(release))[0].error for _ in range(2)] == [None, None]


async def test_a_release_sent_again_does_not_touch_the_names_next_claim(desk: Desk) -> None:
    """The name was taken anew in between: the copy is answered as made and changes nothing."""
    retired = await desk.made(desk.claims.retire(await desk.active(), Removal(), now="t"))
    release = desk.claims.release(retired, boot_id="b", now="t")
    await desk.make(release)
    fresh = await desk.reserved()
    (answer,) = await desk.make(release)
    assert answer.error is None
    assert desk.records()[1] == fresh


@pytest.mark.parametrize(
    ("persistent", "before", "left"),
    [(False, False, None), (True, False, None), (True, True, ClaimState.DEFINED)],
    ids=["transient", "persistent, its first create", "persistent, defined before"],
)
async def test_what_an_abort_leaves(
    desk: Desk, *, persistent: bool, before: bool, left: ClaimState | None
) -> None:
    """A name that was defined is so again, any other is free; whoever waits is told the errno."""
    begun = await desk.creating(wanted=wish(persistent=persistent))
    if before:
        active = await desk.made(desk.claims.activate(begun, boot_id="b1", now="t"))
        lost = await desk.made(desk.claims.lose(active, now="t"))
        begun = await desk.made(desk.claims.begin(lost, boot_id="b1", now="t"))
    lease = desk.core.grant(300).id
    (answer,) = await desk.make(desk.claims.abort(begun, Failure(ERROR, lease), now="t"))
    assert answer.error is None
    claim = desk.records()[1]
    assert (claim.state if claim else None) == left
    outcome = desk.kv(desk.keys.outcome("r", NAME))
    assert outcome is not None
    assert outcome.lease == lease
    told = decode(outcome, OutcomeValue)
    assert isinstance(told, OutcomeValue)
    assert (told.errno, told.text, told.host) == ("ENOSPC", "full", HOST)


async def test_a_loss_keeps_the_boot_in_which_the_device_was_last_seen(desk: Desk) -> None:
    """So autostart begins it after a reboot, and not again in the boot in which it was lost."""
    active = await desk.active(wanted=wish(persistent=True))
    lost = await desk.made(desk.claims.lose(active, now="t"))
    assert (lost.state, lost.boot_id) == (ClaimState.DEFINED, "b1")


async def test_what_a_new_boot_begins_again_is_ours_whoever_made_it_before(desk: Desk) -> None:
    """An adopted device is gone with its boot, and the one that follows is made by its agent."""
    active = await desk.active(wanted=wish(persistent=True, autostart=True))
    adopted = await desk.made(
        desk.claims.adopt_over(active, parent=PARENT, type_=TYPE, boot_id="b1", now="t")
    )
    begun = await desk.made(desk.claims.begin(adopted, boot_id="b2", now="t"))
    assert (begun.state, begun.boot_id, begun.adopted) == (ClaimState.CREATING, "b2", False)
    assert (begun.autostart, begun.first) == (True, False)


async def test_a_stop_keeps_the_definition_and_stamps_the_boot(desk: Desk) -> None:
    """What was stopped is not started by autostart in the same boot."""
    active = await desk.active(wanted=wish(persistent=True))
    removing = await desk.made(desk.claims.retire(active, Removal(AfterRemoval.DEFINED), now="t"))
    stopped = await desk.made(desk.claims.release(removing, boot_id="b9", now="t"))
    assert (stopped.state, stopped.boot_id, stopped.removal) == (ClaimState.DEFINED, "b9", None)


async def test_a_device_of_somebody_else_fails_the_request_and_is_adopted_at_once(
    desk: Desk,
) -> None:
    """One transaction says EEXIST to whoever waits and keeps the name for what is there."""
    reserved = await desk.reserved(wanted=wish(persistent=True))
    before = desk.core.revision
    adopted = await desk.made(
        desk.claims.adopt_over(
            reserved,
            parent="elsewhere",
            type_="other",
            boot_id="b",
            now="t",
            failure=Failure(LastError("EEXIST", "", "t"), 0),
        )
    )
    assert desk.core.revision == before + 1
    assert (adopted.parent, adopted.type, adopted.adopted) == ("elsewhere", "other", True)
    assert (adopted.persistent, adopted.lease) == (False, 0)
    assert desk.kv(desk.keys.outcome("r", NAME)) is not None


async def test_a_hold_becomes_a_claim_only_of_the_same_request(desk: Desk) -> None:
    """A reservation without a host is a name alone; binding it gives it a host and a claim."""
    (answer,) = await desk.make(hold(desk))
    held = Hold(NAME, "r", answer.revision)
    lease = desk.core.grant(60).id
    bound = await desk.made(desk.claims.bind(held, wish(), lease=lease, now="t", by=None))
    taken, claim = desk.records()
    assert taken is not None
    assert (taken.host, claim) == (HOST, bound)
    assert bound.request == "r"


async def test_a_renewal_outlives_the_old_lease(desk: Desk) -> None:
    """The record hangs on the newer lease; the old one, which others share, is left alone."""
    (answer,) = await desk.make(hold(desk))
    desk.core.advance(50)
    lease = desk.core.grant(60).id
    await desk.make(desk.claims.renew(Hold(NAME, "r", answer.revision), lease=lease))
    desk.core.advance(50)
    assert desk.kv(desk.keys.name(NAME)) is not None
    desk.core.advance(20)
    assert desk.kv(desk.keys.name(NAME)) is None


async def test_a_cancelled_reservation_is_free(desk: Desk) -> None:
    """Cancel deletes what there is: the name alone, or name and claim."""
    (answer,) = await desk.make(hold(desk))
    await desk.make(desk.claims.cancel(Hold(NAME, "r", answer.revision)))
    assert desk.kv(desk.keys.name(NAME)) is None
    reserved = await desk.reserved()
    await desk.make(desk.claims.cancel(reserved))
    assert desk.records() == (None, None)


async def test_an_agent_that_was_superseded_changes_nothing(desk: Desk) -> None:
    """A newer epoch fences every transition of the older one: ESTALE, exit 9."""
    begun = await desk.creating()
    epoch = desk.keys.epoch(HOST)
    desk.core.txn(Txn(success=(Put(epoch, b"old"),)))
    guard = desk.claims.in_force(HOST, "old")
    await desk.make(desk.claims.begin(begun, boot_id="b", now="t"), guards=(guard,))
    desk.core.txn(Txn(success=(Put(epoch, b"new"),)))
    _, standing = desk.records()
    assert standing is not None
    with pytest.raises(Fenced) as caught:
        await desk.make(desk.claims.activate(standing, boot_id="b", now="t"), guards=(guard,))
    assert caught.value.exit_code == 9
    assert desk.records()[1] == standing


async def test_while_a_store_is_being_restored_nothing_new_is_taken(desk: Desk) -> None:
    """With `hold` present a reservation is refused as a whole, exit 14."""
    desk.core.txn(Txn(success=(Put(desk.keys.hold, b"{}"),)))
    with pytest.raises(StoreReadOnly) as caught:
        await desk.make(hold(desk), guards=(desk.claims.no_hold(),))
    assert caught.value.exit_code == 14


@pytest.mark.parametrize(
    "build",
    [
        lambda claims, claim: claims.activate(claim, boot_id="b", now="t"),
        lambda claims, claim: claims.undo(claim, Failure(ERROR, 0), now="t"),
        lambda claims, claim: claims.release(claim, boot_id="b", now="t"),
        lambda claims, claim: claims.restore(claim, ERROR, now="t"),
        lambda claims, claim: claims.lose(claim, now="t"),
    ],
    ids=["activate", "undo", "release", "restore", "lose"],
)
async def test_a_transition_that_does_not_exist_cannot_be_built(
    desk: Desk, build: Callable[[Claims, Claim], Change]
) -> None:
    """What the table does not have from `reserved` is refused before it reaches the store."""
    reserved = await desk.reserved()
    with pytest.raises(LookupError):
        build(desk.claims, reserved)


async def test_every_record_of_a_claim_keeps_what_was_asked_for(desk: Desk) -> None:
    """Who asked, for what and when it was claimed go with the claim through its life."""
    active = await desk.active()
    assert (active.asked_by, active.type, active.request) == ("me", TYPE, "r")
    retired = await desk.made(desk.claims.retire(active, Removal(), now="t"))
    restored = await desk.made(desk.claims.restore(retired, ERROR, now="t"))
    assert (restored.created, restored.error) == (active.created, ERROR)
    assert transaction((), [desk.claims.lose(restored, now="t")]).success


MAKER = Maker(pid=7, started=9)


async def test_a_caller_on_the_host_claims_in_one_commit_and_durably(desk: Desk) -> None:
    """The claim is `creating` on no lease, and names who makes the device."""
    change = desk.claims.claim(NAME, "r", wish(), boot_id="b1", now="t", by="me", maker=MAKER)
    before = desk.core.revision
    claim = await desk.made(change)
    assert (claim.revision, claim.state, claim.maker) == (before + 1, ClaimState.CREATING, MAKER)
    desk.core.advance(1_000_000)
    assert desk.records()[1] == claim


async def test_no_state_is_left_with_the_one_who_wrote_to_the_kernel_in_it(desk: Desk) -> None:
    """A maker is of one state; whoever makes the next step is not it."""
    change = desk.claims.claim(NAME, "r", wish(), boot_id="b1", now="t", by="me", maker=MAKER)
    claim = await desk.made(change)
    active = await desk.made(desk.claims.activate(claim, boot_id="b1", now="t"))
    retired = await desk.made(desk.claims.retire(active, Removal(), now="t", maker=MAKER))
    assert (active.maker, retired.maker) == (None, MAKER)
    assert (await desk.made(desk.claims.restore(retired, ERROR, now="t"))).maker is None


async def test_what_is_kept_of_a_claim_can_change_while_nothing_else_does(desk: Desk) -> None:
    """Persistence, autostart and attributes; a definition cannot become transient."""
    active = await desk.active()
    amended = await desk.made(
        desk.claims.amend(active, persistent=True, autostart=True, attrs=(("a", "1"),))
    )
    assert (amended.state, amended.since) == (active.state, active.since)
    assert (amended.persistent, amended.autostart, amended.attrs) == (True, True, (("a", "1"),))
    lost = await desk.made(desk.claims.lose(amended, now="t"))
    assert lost.state is ClaimState.DEFINED
    with pytest.raises(AssertionError):
        desk.claims.amend(lost, persistent=False, autostart=False, attrs=())
    with pytest.raises(LookupError):
        desk.claims.amend(await desk.creating(name(2)), persistent=True, autostart=False, attrs=())


@pytest.mark.parametrize("state", [ClaimState.ACTIVE, ClaimState.DEFINED])
async def test_a_lost_claim_is_put_back_only_while_its_name_is_free(
    desk: Desk, state: ClaimState
) -> None:
    """As it was known, or refused by whoever has taken it since."""
    known = await desk.active(NAME, wish(persistent=True))
    value = known.as_recalled(state, "b1", "t")
    await desk.make(desk.claims.evict(known, definitions=True, now="t"))
    recalled = await desk.made(desk.claims.recall(NAME, HOST, value))
    assert (recalled.state, recalled.request, recalled.persistent) == (state, "r", True)
    await desk.make(desk.claims.evict(recalled, definitions=True, now="t"))
    await desk.active(NAME, wish(OTHER))
    (answer,) = await desk.make(desk.claims.recall(NAME, HOST, value))
    assert isinstance(answer.error, NameTaken)
    assert desk.records()[1] is None


async def test_a_begin_that_changes_nothing_moves_the_revision_all_the_same(desk: Desk) -> None:
    """What was decided before it is refused, although the claim reads as it did then."""
    begun = await desk.creating()
    again = await desk.made(desk.claims.begin(begun, boot_id="b1", now="t"))
    assert again.value() == begun.value()
    failure = Failure(ERROR, 0)
    late = (
        desk.claims.abort(begun, failure, now="t"),
        desk.claims.undo(begun, failure, now="t"),
    )
    for change in late:
        (answer,) = await desk.make(change)
        assert isinstance(answer.error, Moved)
    assert desk.records()[1] == again


async def test_a_device_is_adopted_only_while_its_name_is_free(desk: Desk) -> None:
    """Whoever holds the name keeps it, on whichever host the device is."""
    held = await desk.active()
    adopt = desk.claims.adopt_free(
        NAME, "a", host=OTHER, parent=PARENT, type_=TYPE, boot_id="b", now="t"
    )
    (answer,) = await desk.make(adopt)
    assert isinstance(answer.error, NameTaken)
    assert desk.records() == (desk.records()[0], held)
    assert desk.records(host=OTHER)[1] is None
