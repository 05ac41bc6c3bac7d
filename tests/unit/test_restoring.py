"""A restore is begun once and ended once, whatever comes late, and not before all have told."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.client import Client
from coordinator.errors import InUse, MdevnsError, Unreachable
from coordinator.evicting import Evicted, audit, evict, forget
from coordinator.finishing import Finished, finish
from coordinator.importing import Importer
from coordinator.model import (
    Claim,
    FindingKind,
    FindingValue,
    HoldValue,
    IdentityValue,
    MachineValue,
    RestoredValue,
    RestoreValue,
    Unreadable,
    decode,
    encode,
)
from coordinator.reserving import reserve
from coordinator.restoring import Begun, begin
from coordinator.session import Enroller, Session
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn, may_write
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, Desk, wish
from tests.support.faulty import Fate, FaultyStore
from tests.support.virtual_time import pass_time, run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from coordinator.model import Name
    from coordinator.store import Store

LAPSED = 60.0  # seconds after which no lease of these tests lives
WHY = "it is at revision 3, and was at 9 before"


@pytest.fixture
def desk() -> Desk:
    return Desk()


def ask(
    desk: Desk,
    work: Callable[[Client], Coroutine[Any, Any, Any]],
    store: Store | None = None,
) -> Any:
    """Ask as an operator's process does that gives up after five seconds."""

    async def asking() -> Any:
        client = Client(
            store or desk.store, desk.keys, desk.clock, desk.rng, patience=5, asked_by="me"
        )
        try:
            return await work(client)
        finally:
            await client.close()

    return run_virtual(asking(), desk.core)


def begun(desk: Desk) -> RestoreValue:
    """A restore that an operator has begun."""
    answer = ask(desk, begin)
    assert isinstance(answer, Begun)
    return answer.restore


def finished(desk: Desk, wait: float = 0.0) -> Finished:
    """What an operator is told who wants to end it."""
    answer = ask(desk, lambda client: finish(client, wait=wait))
    assert isinstance(answer, Finished)
    return answer


def held(desk: Desk) -> RestoreValue | None:
    """The restore that stands."""
    kv = desk.kv(desk.keys.hold)
    if kv is None:
        return None
    value = decode(kv, RestoreValue)
    assert isinstance(value, RestoreValue)
    return value


def enroller(desk: Desk, host: str = HOST, store: Store | None = None) -> Enroller:
    """Enrols a host's agent; the store was set back when `why` is given."""
    return Enroller(
        store or desk.store,
        desk.keys,
        desk.clock,
        random.Random(desk.rng.random()),
        host=host,
        identity=IdentityValue(machine_id=f"m-{host}"),
        boot_id="b1",
        version="0",
        ttl=9,
    )


def enrolled(desk: Desk, host: str = HOST, why: str | None = None) -> Session:
    """An agent that has enrolled; with `why` it has found the store set back."""
    one = enroller(desk, host)
    one.found = finding(why)
    return run_virtual(one.enrol(), desk.core)


def finding(why: str | None) -> Callable[[str | None, int], Coroutine[Any, Any, str | None]]:
    """What an agent finds when it enrols."""

    async def found(_: str | None, __: int) -> str | None:
        return why

    return found


def told(
    desk: Desk,
    session: Session,
    waits: str | None = None,
    absent: dict[str, int] | None = None,
) -> None:
    """The word of a host's agent."""
    assert session.restore is not None
    value = RestoredValue(
        restore=session.restore.restore,
        instance=session.instance,
        at="t",
        waits=waits,
        absent=absent or {},
    )
    put(desk, Put(desk.keys.restored(session.host), encode(value), session.lease))


def put(desk: Desk, *ops: Put | Delete) -> None:
    desk.core.txn(Txn(success=ops))


def conflict(desk: Desk, session: Session, which: Name = NAME) -> None:
    """A device of a host whose name another one holds."""
    value = FindingValue(kind=FindingKind.CONFLICT, parent="p", type="t", detail="d")
    put(desk, Put(desk.keys.finding(session.host, which), encode(value), session.lease))


def acts(desk: Desk) -> list[str]:
    """What the audit has."""
    return [one.what for one in ask(desk, audit)]


# Begin


def test_while_it_is_under_way_nothing_is_taken(desk: Desk) -> None:
    """It stays, the audit has it, and whoever is refused is told by whom and what ends it."""
    restore = begun(desk)
    assert held(desk) == restore
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    assert kv.lease == 0
    assert acts(desk) == ["restore begin"]
    (result,) = ask(desk, lambda client: reserve(client, [NAME], request="r", ttl=60))
    assert "mdevns restore finish" in result.error.line
    assert "by me" not in result.error.line
    assert "(me: an operator has begun it)" in result.error.line


def test_begun_again_all_hosts_tell_again(desk: Desk) -> None:
    """The first hold may have stood in a snapshot, with the words of hosts from before it."""
    first = begun(desk)
    session = enrolled(desk)
    told(desk, session)
    second = ask(desk, begin)
    assert second.before == first
    assert second.restore.restore != first.restore
    assert left(desk) == [f"host {HOST}"]
    told(desk, enrolled(desk))
    assert left(desk) == []
    assert acts(desk) == ["restore begin", "restore begin", "restore finish"]


@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.DROP, Fate.DELAY])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_lost_answer_begins_it_once_and_nothing_late_begins_it_again(
    desk: Desk, nth: int, fate: Fate
) -> None:
    """A copy that comes when the restore was finished holds nobody."""
    store = FaultyStore(desk.store, on_nth_write(nth, fate))
    assert ask(desk, begin, store).before is None
    assert acts(desk) == ["restore begin"]
    assert not finished(desk).left
    run_virtual(store.release_late(), desk.core)
    assert held(desk) is None


def on_nth_write(nth: int, fate: Fate, after: Fate = Fate.DELIVER) -> Callable[[Txn], Fate]:
    """The n-th transaction has a fate, and all after it another."""
    seen = 0

    def decide(txn: Txn) -> Fate:
        nonlocal seen
        seen += may_write(txn)
        if not may_write(txn):
            return after if seen > nth else Fate.DELIVER
        if seen == nth:
            return fate
        return after if seen > nth else Fate.DELIVER

    return decide


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.DELAY])
def test_a_beginning_that_is_cut_off_passes_or_stays(desk: Desk, nth: int, fate: Fate) -> None:
    """Its process gave up: what comes by the end of its lease counts, and nothing after it."""
    store = FaultyStore(desk.store, on_nth_write(nth, fate, Fate.UNREACHABLE))
    with pytest.raises(MdevnsError):
        ask(desk, begin, store)
    run_virtual(pass_time(LAPSED), desk.core)
    run_virtual(store.release_late(), desk.core)
    assert (held(desk) is not None) == ((nth, fate) == (2, Fate.LOSE_ANSWER))


def test_what_is_just_being_begun_is_not_finished(desk: Desk) -> None:
    """A hold that hangs on a lease still is waited for, or goes with it."""
    store = FaultyStore(desk.store, on_nth_write(2, Fate.UNREACHABLE, Fate.UNREACHABLE))
    with pytest.raises(Unreachable):
        ask(desk, begin, store)
    (left,) = finished(desk).left
    assert "just being begun" in left.line
    with pytest.raises(InUse, match="just being begun"):
        ask(desk, begin)
    run_virtual(pass_time(LAPSED), desk.core)
    assert held(desk) is None


# An agent begins it


def test_an_agent_that_finds_the_store_set_back_begins_it_as_it_enrols(desk: Desk) -> None:
    """The hold is there in the very revision of the epoch, so nothing comes between them."""
    session = enrolled(desk, why=WHY)
    hold, epoch = desk.kv(desk.keys.hold), desk.kv(desk.keys.epoch(HOST))
    assert hold is not None
    assert epoch is not None
    assert (hold.mod_revision, hold.lease) == (epoch.mod_revision, 0)
    assert session.restore == held(desk)
    assert session.restore is not None
    assert (session.restore.host, session.restore.why) == (HOST, WHY)


def test_of_two_agents_one_begins_it(desk: Desk) -> None:
    """The second enrols under the hold of the first."""
    first, second = enrolled(desk, why=WHY), enrolled(desk, OTHER, why=WHY)
    assert first.restore == second.restore == held(desk)


def test_an_agent_that_finds_nothing_wrong_begins_nothing(desk: Desk) -> None:
    """It enrols, and is told of a restore that is under way."""
    assert enrolled(desk).restore is None
    assert held(desk) is None
    restore = begun(desk)
    assert enrolled(desk).restore == restore


@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.DELAY])
def test_a_late_enrolment_begins_no_restore(desk: Desk, fate: Fate) -> None:
    """Its copy compares the epoch that it replaced: after the end it holds nobody."""
    one = enroller(desk, store=(store := FaultyStore(desk.store, on_nth_write(1, fate))))
    one.found = finding(WHY)
    session = run_virtual(one.enrol(), desk.core)
    assert session.restore == held(desk)
    told(desk, session)
    assert not finished(desk).left
    run_virtual(store.release_late(), desk.core)
    assert held(desk) is None


def test_a_hold_that_goes_while_an_agent_enrols_is_put_anew(desk: Desk) -> None:
    """It had read the hold of a restore that is over by the time that its enrolment is made."""
    begun(desk)

    def decide(txn: Txn) -> Fate:
        if txn.compares and held(desk) is not None and not gone:
            gone.append(True)
            put(desk, Delete(desk.keys.hold))
        return Fate.DELIVER

    gone: list[bool] = []
    one = enroller(desk, store=FaultyStore(desk.store, decide))
    one.found = finding(WHY)
    session = run_virtual(one.enrol(), desk.core)
    assert session.restore == held(desk)
    assert session.restore is not None
    assert session.restore.host == HOST


@pytest.mark.parametrize("by", ["operator", "import"])
def test_a_hold_that_comes_while_an_agent_enrols_is_not_replaced(desk: Desk, by: str) -> None:
    """It had read that there is none; an import's is carried along by the next try."""
    hold = HoldValue(id="i", who="importer", at="t")
    theirs = RestoreValue(restore="r", who="me", why="w", at="t")

    def decide(txn: Txn) -> Fate:
        if txn.compares and not came:
            came.append(True)
            put(desk, Put(desk.keys.hold, encode(theirs if by == "operator" else hold)))
        return Fate.DELIVER

    came: list[bool] = []
    one = enroller(desk, store=FaultyStore(desk.store, decide))
    one.found = finding(WHY)
    session = run_virtual(one.enrol(), desk.core)
    assert session.restore == held(desk)
    assert session.restore is not None
    if by == "operator":
        assert session.restore == theirs
    else:
        assert session.restore.imported == hold


# An import that was under way


@pytest.fixture
def imported(desk: Desk) -> HoldValue:
    """The hold of an import that was killed, as a snapshot has it."""
    hold = HoldValue(id="i", who="importer", at="t")
    put(desk, Put(desk.keys.hold, encode(hold)))
    return hold


@pytest.mark.parametrize("by", ["operator", "agent"])
def test_the_hold_of_an_import_comes_back_in_the_end(
    desk: Desk, imported: HoldValue, by: str
) -> None:
    """No import lifts a restore; after it the next one takes the dead one back."""
    if by == "operator":
        begun(desk)
    else:
        told(desk, enrolled(desk, why=WHY))
    restore = held(desk)
    assert restore is not None
    assert restore.imported == imported
    with pytest.raises(MdevnsError, match="restore"):
        ask(desk, lambda client: Importer(client).run([]))
    assert held(desk) == restore
    assert not finished(desk).left
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    assert decode(kv, HoldValue) == imported
    ask(desk, lambda client: Importer(client).run([]))
    assert desk.kv(desk.keys.hold) is None


def test_a_late_beginning_does_not_replace_a_hold_that_came_back(
    desk: Desk, imported: HoldValue
) -> None:
    """It had given up before another one began and finished."""
    store = FaultyStore(desk.store, on_nth_write(1, Fate.DELAY, Fate.UNREACHABLE))
    with pytest.raises(MdevnsError):
        ask(desk, begin, store)
    begun(desk)
    assert not finished(desk).left
    run_virtual(store.release_late(), desk.core)
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    assert decode(kv, HoldValue) == imported


def test_a_hold_that_nobody_can_read_is_left_alone(desk: Desk) -> None:
    """It may be a newer version's, and holds all the same."""
    put(desk, Put(desk.keys.hold, b'{"v":99}'))
    with pytest.raises(MdevnsError):
        ask(desk, begin)
    with pytest.raises(InUse):
        finished(desk)
    assert enrolled(desk, why=WHY).restore is None
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    assert kv.value == b'{"v":99}'
    assert isinstance(decode(kv, RestoreValue), Unreadable)


def test_the_hold_of_an_import_is_not_finished(desk: Desk, imported: HoldValue) -> None:
    """Whoever wants to end a restore that is none is told so."""
    with pytest.raises(InUse, match="not by a restore"):
        finished(desk)
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    assert kv.value == encode(imported)


# Finish: who is waited for


def left(desk: Desk) -> list[str]:
    """Whom and what is waited for."""
    return [error.what for error in finished(desk).left]


def test_it_ends_when_every_host_has_told(desk: Desk) -> None:
    """Until then nothing is let go, and afterwards names are taken again."""
    enrolled(desk)
    restore = begun(desk)
    second = enrolled(desk, OTHER)
    told(desk, second)
    assert left(desk) == [f"host {HOST}"]
    assert held(desk) == restore
    told(desk, enrolled(desk))
    done = finished(desk)
    assert (done.left, done.hosts, done.restore) == ([], [HOST, OTHER], restore)
    assert held(desk) is None
    assert acts(desk) == ["restore begin", "restore finish"]
    (result,) = ask(desk, lambda client: reserve(client, [NAME], request="r", ttl=60))
    assert result.error is None


def test_a_host_that_enrols_at_that_moment_is_waited_for(desk: Desk) -> None:
    """It was not there when all hosts were looked at, and may have what is claimed nowhere yet."""
    begun(desk)
    told(desk, enrolled(desk))
    comes = [
        Put(desk.keys.machine("m-late"), encode(MachineValue(host="late"))),
        Put(desk.keys.identity("late"), encode(IdentityValue(machine_id="m-late"))),
        Put(desk.keys.epoch("late"), b"i"),
    ]

    def decide(txn: Txn) -> Fate:
        if Delete(desk.keys.hold) in txn.success and comes:
            put(desk, *comes)
            comes.clear()
        return Fate.DELIVER

    answer = ask(desk, finish, FaultyStore(desk.store, decide))
    assert [error.what for error in answer.left] == ["the restore"]
    assert held(desk) is not None
    assert left(desk) == ["host late"]


def test_without_a_restore_there_is_nothing_to_finish(desk: Desk) -> None:
    """Asked again after the end, it is no error."""
    done = finished(desk)
    assert (done.restore, done.left) == (None, [])


def test_the_word_of_an_agent_that_was_replaced_does_not_count(desk: Desk) -> None:
    """A newer one may have met other devices."""
    begun(desk)
    first = enrolled(desk)
    told(desk, first)
    enrolled(desk)
    assert left(desk) == [f"host {HOST}"]


def test_the_word_about_another_restore_does_not_count(desk: Desk) -> None:
    """It stands in the snapshot, of the restore before."""
    begun(desk)
    session = enrolled(desk)
    told(desk, session)
    put(desk, Delete(desk.keys.hold))
    begun(desk)
    assert left(desk) == [f"host {HOST}"]


def test_a_host_that_is_not_done_is_waited_for_with_its_reason(desk: Desk) -> None:
    """What its agent says is what the operator reads."""
    begun(desk)
    told(desk, enrolled(desk), waits="x is being written to the kernel")
    (error,) = finished(desk).left
    assert (error.errno, error.exit_code) == ("EAGAIN", 6)
    assert "x is being written to the kernel" in error.line


def test_an_empty_host_without_an_agent_is_waited_for(desk: Desk) -> None:
    """What it has made since the snapshot the store does not know; the line says what to do."""
    session = enrolled(desk)
    desk.core.expire(session.lease)
    begun(desk)
    (error,) = finished(desk).left
    assert f"mdevns evict {HOST} --confirm-fenced" in error.line
    assert f"mdevns hosts forget {HOST}" in error.line


def test_a_host_that_burnt_down_holds_nobody_up(desk: Desk) -> None:
    """It is evicted or forgotten during the restore; an evict before it says nothing."""
    for host in (HOST, OTHER):
        desk.core.expire(enrolled(desk, host).lease)
    run_virtual(desk.active(NAME), desk.core)

    def gone(client: Client) -> Coroutine[Any, Any, Evicted]:
        return evict(client, HOST, reason="burnt", definitions=False)

    ask(desk, gone)
    run_virtual(desk.active(NAME), desk.core)
    begun(desk)
    assert left(desk) == [f"host {HOST}", f"host {OTHER}"]
    evicted = ask(desk, gone)
    assert evicted.freed == [NAME]
    assert left(desk) == [f"host {OTHER}"]
    ask(desk, lambda client: forget(client, OTHER, reason="sold"))
    assert left(desk) == []
    assert held(desk) is None


def test_under_the_hold_of_an_import_nobody_is_evicted(desk: Desk, imported: HoldValue) -> None:
    """What it would free is not what is imported."""
    desk.core.expire(enrolled(desk).lease)
    with pytest.raises(MdevnsError, match="imported"):
        ask(desk, lambda client: evict(client, HOST, reason="x", definitions=False))
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    assert kv.value == encode(imported)


def test_it_waits_as_long_as_it_is_told_to(desk: Desk) -> None:
    """And ends as soon as the last host has told."""
    begun(desk)
    session = enrolled(desk)

    async def both() -> Finished:
        client = Client(desk.store, desk.keys, desk.clock, desk.rng, patience=5)
        asked = asyncio.create_task(finish(client, wait=30))
        await pass_time(3)
        told(desk, session)
        return await asked

    assert not run_virtual(both(), desk.core).left
    assert desk.core.now < 5


@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.DROP, Fate.DELAY])
def test_an_end_whose_answer_was_lost_is_the_end_and_no_other(desk: Desk, fate: Fate) -> None:
    """A copy of it that comes late does not end the next restore."""
    begun(desk)
    store = FaultyStore(desk.store, on_nth_write(1, fate))
    done = ask(desk, finish, store)
    assert (done.left, held(desk)) == ([], None)
    second = begun(desk)
    run_virtual(store.release_late(), desk.core)
    assert held(desk) == second


# Finish: which claims give way


def claim_of(desk: Desk, state: ClaimState) -> Claim:
    """A claim of gpu01 in a state."""
    made = {
        ClaimState.RESERVED: desk.reserved,
        ClaimState.CREATING: desk.creating,
        ClaimState.ACTIVE: desk.active,
    }
    if state in made:
        return run_virtual(made[state](), desk.core)
    return run_virtual(defined(desk), desk.core)


async def defined(desk: Desk, host: str = HOST) -> Claim:
    """A persistent name without a device."""
    active = await desk.active(NAME, wish(host, persistent=True, autostart=True))
    return await desk.made(desk.claims.lose(active, now="t"))


@pytest.mark.parametrize("state", [ClaimState.RESERVED, ClaimState.DEFINED])
def test_a_claim_behind_which_nothing_was_begun_gives_way(desk: Desk, state: ClaimState) -> None:
    """Its name is free for the host that has the device, and nothing is let go before it has it."""
    claim_of(desk, state)
    begun(desk)
    first, second = enrolled(desk), enrolled(desk, OTHER)
    told(desk, first)
    told(desk, second)
    conflict(desk, second)
    done = finished(desk)
    assert done.yielded == [NAME]
    assert [error.what for error in done.left] == [NAME]
    assert desk.records() == (None, None)
    assert left(desk) == [NAME]  # it is free, and gpu02 has not claimed it
    take(
        desk,
        desk.claims.adopt_free(NAME, "a", host=OTHER, parent="p", type_="t", boot_id="b1", now="t"),
    )
    put(desk, Delete(desk.keys.finding(OTHER, NAME)))
    assert left(desk) == []
    assert acts(desk) == ["restore begin", "yield", "restore finish"]


def take(desk: Desk, change: Any) -> None:
    """Make a change as an agent does."""
    desk.core.txn(transaction((), [change]))


@pytest.mark.parametrize("state", [ClaimState.CREATING, ClaimState.ACTIVE])
def test_a_claim_whose_device_was_seen_absent_gives_way(desk: Desk, state: ClaimState) -> None:
    """Its own host's agent has said so, of the claim as it stands."""
    claim = claim_of(desk, state)
    begun(desk)
    first, second = enrolled(desk), enrolled(desk, OTHER)
    told(desk, second)
    conflict(desk, second)
    told(desk, first, absent={NAME: claim.revision})
    assert finished(desk).yielded == [NAME]


@pytest.mark.parametrize("how", ["present", "older"])
def test_a_claim_with_a_device_stays_and_the_conflict_is_told(desk: Desk, how: str) -> None:
    """Two devices of one name are no reason to take the name from one of them."""
    claim = claim_of(desk, ClaimState.ACTIVE)
    begun(desk)
    first, second = enrolled(desk), enrolled(desk, OTHER)
    absent: dict[str, int] = {} if how == "present" else {NAME: claim.revision - 1}
    told(desk, first, absent=absent)
    told(desk, second)
    conflict(desk, second)
    done = finished(desk)
    assert (done.yielded, done.left) == ([], [])
    assert [(one.name, one.host) for one in done.conflicts] == [(NAME, OTHER)]
    assert desk.records()[1] == claim
    assert held(desk) is None


def test_nothing_gives_way_before_its_host_has_told(desk: Desk) -> None:
    """A definition may have been started since the snapshot, and its device be there."""
    claim = claim_of(desk, ClaimState.DEFINED)
    begun(desk)
    first, second = enrolled(desk), enrolled(desk, OTHER)
    told(desk, second)
    conflict(desk, second)
    told(desk, first, waits="it is to be taken note of")
    done = finished(desk)
    assert (done.yielded, [error.what for error in done.left]) == ([], [f"host {HOST}"])
    assert desk.records()[1] == claim


def test_a_reservation_for_no_host_gives_way(desk: Desk) -> None:
    """It stood in the snapshot; since then the name was taken and its device made."""
    ask(desk, lambda client: reserve(client, [NAME], request="r", ttl=600))
    begun(desk)
    second = enrolled(desk, OTHER)
    told(desk, second)
    conflict(desk, second)
    assert finished(desk).yielded == [NAME]
    assert desk.records() == (None, None)


def test_a_claim_of_a_host_that_never_enrolled_gives_way_when_it_is_evicted(desk: Desk) -> None:
    """Its claim makes the host known: it may have started its definition since the export."""
    claim_of(desk, ClaimState.DEFINED)
    begun(desk)
    second = enrolled(desk, OTHER)
    told(desk, second)
    conflict(desk, second)
    done = finished(desk)
    assert (done.yielded, [error.what for error in done.left]) == ([], [f"host {HOST}"])
    ask(desk, lambda client: evict(client, HOST, reason="burnt", definitions=False))
    assert finished(desk).yielded == [NAME]


def cut_off(desk: Desk) -> Claim:
    """A claim of gpu01's, whose evict ended after its first transaction; its device is on gpu02."""
    claim = claim_of(desk, ClaimState.ACTIVE)
    desk.core.expire(enrolled(desk).lease)
    begun(desk)
    second = enrolled(desk, OTHER)
    told(desk, second)
    conflict(desk, second)

    def decide(txn: Txn) -> Fate:
        kv = desk.kv(desk.keys.epoch(HOST))
        evicted = kv is not None and kv.value.startswith(b"evict-")
        return Fate.UNREACHABLE if evicted and may_write(txn) else Fate.DELIVER

    with pytest.raises(MdevnsError):
        ask(
            desk,
            lambda client: evict(client, HOST, reason="burnt", definitions=False),
            FaultyStore(desk.store, decide),
        )
    return claim


def test_a_claim_that_an_evict_has_not_come_to_gives_way(desk: Desk) -> None:
    """Its host is fenced off; else its name would be free later, and anybody's."""
    cut_off(desk)
    done = finished(desk)
    assert (done.yielded, done.conflicts) == ([NAME], [])
    assert [error.what for error in done.left] == [NAME]
    assert held(desk) is not None


def test_a_claim_does_not_give_way_to_an_evict_that_its_host_has_ended(desk: Desk) -> None:
    """It has enrolled between the look and the commit, so it was not fenced off."""
    claim = cut_off(desk)

    def decide(txn: Txn) -> Fate:
        if desk.keys.audits in repr(txn):
            put(desk, Put(desk.keys.epoch(HOST), b"back"))
        return Fate.DELIVER

    done = ask(desk, finish, FaultyStore(desk.store, decide))
    assert (done.yielded, bool(done.left)) == ([], True)
    assert desk.records()[1] == claim


@pytest.mark.parametrize("what", ["claim", "finding", "word"])
def test_what_changes_meanwhile_does_not_give_way(desk: Desk, what: str) -> None:
    """The commit compares the claim, the device that was found, and the word that it is absent."""
    claim = claim_of(desk, ClaimState.ACTIVE)
    begun(desk)
    first, second = enrolled(desk), enrolled(desk, OTHER)
    told(desk, first, absent={NAME: claim.revision})
    told(desk, second)
    conflict(desk, second)

    def decide(txn: Txn) -> Fate:
        if desk.keys.audits in repr(txn):
            changed.append(True)
            if what == "claim":
                change = desk.claims.adopt_over(claim, parent="p", type_="t", boot_id="b1", now="t")
                desk.core.txn(transaction((), [change]))
            elif what == "finding":
                put(desk, Delete(desk.keys.finding(OTHER, NAME)))
            else:
                told(desk, first)
        return Fate.DELIVER

    changed: list[bool] = []
    done = ask(desk, finish, FaultyStore(desk.store, decide))
    assert changed
    assert (done.yielded, bool(done.left)) == ([], True)
    assert desk.records()[1] is not None


def test_many_hosts_are_no_matter(desk: Desk) -> None:
    """More than one transaction can compare."""
    begun(desk)
    for number in range(200):
        told(desk, enrolled(desk, f"h{number}"))
    assert (left(desk), held(desk)) == ([], None)


def test_a_claim_that_gave_way_is_not_taken_back_by_a_late_copy(desk: Desk) -> None:
    """It compares the revision of what it freed."""
    claim_of(desk, ClaimState.DEFINED)
    begun(desk)
    told(desk, enrolled(desk))
    second = enrolled(desk, OTHER)
    told(desk, second)
    conflict(desk, second)
    store = FaultyStore(desk.store, on_nth_write(1, Fate.DELAY))
    assert ask(desk, finish, store).yielded == [NAME]
    mine = run_virtual(desk.active(NAME, wish(OTHER)), desk.core)
    run_virtual(store.release_late(), desk.core)
    assert desk.records(NAME, OTHER)[1] == mine
