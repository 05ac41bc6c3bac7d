"""Persistent names, moves and forced acts, with a host that answers as told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from coordinator.defining import define, move
from coordinator.errors import (
    Fenced,
    HostDown,
    InUse,
    InvalidValue,
    MdevnsError,
    NameTaken,
    NotFound,
    TryAgain,
)
from coordinator.evicting import audit, evict, forget
from coordinator.model import AuditValue, Claim, NameValue, ParentType, ParentValue, Wish, encode
from coordinator.operating import start, stop, undefine
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, TYPE, name
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import TTL, Scene, ask

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from coordinator.client import Client, Result
    from coordinator.model import Name

ACTIVE, DEFINED = ClaimState.ACTIVE, ClaimState.DEFINED


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.host(HOST, p0=9)
    scene.host(OTHER, p0=9, p1=9)
    return scene


def lasting(host: str = HOST, *, autostart: bool = False) -> Wish:
    return Wish(host=host, parent="p0", type=TYPE, persistent=True, autostart=autostart)


def defined(scene: Scene, which: Name = NAME, wanted: Wish | None = None) -> Result:
    """Define a name."""

    async def work(client: Client) -> list[Result]:
        return [await define(client, which, wanted or lasting(), request="req")]

    (result,) = scene.run(work)
    return result


async def _listed(work: Coroutine[None, None, Result]) -> list[Result]:
    return [await work]


def state(scene: Scene, host: str = HOST, which: Name = NAME) -> ClaimState | None:
    claim = scene.desk.records(which, host)[1]
    return claim.state if claim else None


def test_a_defined_name_is_taken_and_has_no_device(scene: Scene) -> None:
    """It is durable, belongs to its host, and nobody begins it."""
    result = defined(scene)
    assert isinstance(result.record, Claim)
    assert (result.record.state, result.record.lease) == (DEFINED, 0)
    scene.desk.core.advance(10 * TTL)
    scene.work()
    assert state(scene) is DEFINED
    (taken,) = scene.create(ask())
    assert isinstance(taken.error, NameTaken)  # even by the very same request


def test_two_definitions_of_one_name_are_one(scene: Scene) -> None:
    """The second is told who has it; mdevctl would take both."""
    defined(scene)
    other = scene.run(
        lambda client: _listed(define(client, NAME, lasting(OTHER), request="another"))
    )
    assert isinstance(other[0].error, NameTaken)


def test_a_definition_on_a_host_that_never_was_is_refused(scene: Scene) -> None:
    """Exit 3, and no name is held for it."""
    with pytest.raises(NotFound):
        defined(scene, wanted=lasting("gpu77"))
    assert scene.desk.kv(scene.desk.keys.name(NAME)) is None


def test_a_definition_whose_answer_is_lost_is_made_once_or_lapses() -> None:
    """What a process puts first hangs on a lease; the definition compares its revision."""
    scene = Scene()
    lost = iter([Fate.DELIVER, Fate.LOSE_ANSWER, Fate.DELIVER])
    scene.store = FaultyStore(
        scene.desk.store, lambda txn: next(lost, Fate.DELIVER) if txn.compares else Fate.DELIVER
    )
    scene.host(HOST, p0=9)
    assert defined(scene).error is None
    assert state(scene) is DEFINED


def test_start_and_stop(scene: Scene) -> None:
    """A defined name gets its device and gives it back, and stays its host's."""
    defined(scene)
    (started,) = scene.run(lambda client: start(client, [NAME]))
    assert started.error is None
    assert state(scene) is ACTIVE
    (again,) = scene.run(lambda client: start(client, [NAME]))
    assert isinstance(again.error, InUse)
    (stopped,) = scene.run(lambda client: stop(client, [NAME]))
    assert isinstance(stopped.record, Claim)
    assert stopped.record.state is DEFINED
    (twice,) = scene.run(lambda client: stop(client, [NAME]))
    assert isinstance(twice.error, InvalidValue)


def test_a_start_that_the_kernel_refuses_says_so_and_keeps_the_name(scene: Scene) -> None:
    """The errno is told, and the definition stands."""
    defined(scene)
    scene.hosts[0].refuses["p0"] = "ENOSPC"
    (started,) = scene.run(lambda client: start(client, [NAME]))
    assert started.error is not None
    assert started.error.errno == "ENOSPC"
    assert state(scene) is DEFINED


def test_a_start_on_a_parent_that_cannot_be_used_is_refused_at_once(scene: Scene) -> None:
    """Its agent says that the bus is not seen: exit 16 with the reason, and nothing is asked."""
    defined(scene)
    types = (ParentType(type=TYPE, available=0),)
    value = ParentValue(types=types, usable=False, troubles=("the bus cannot be read",))
    put = Put(scene.desk.keys.parent(HOST, "p0"), encode(value))
    scene.desk.core.txn(Txn(success=(put,)))
    (started,) = scene.run(lambda client: start(client, [NAME]))
    assert isinstance(started.error, HostDown)
    assert "the bus cannot be read" in started.error.line
    assert state(scene) is DEFINED
    assert scene.hosts[0].begun == []


def test_a_transient_name_cannot_be_stopped(scene: Scene) -> None:
    """Nothing of it would stay: exit 8, and the device lives on."""
    scene.create(ask(host=HOST))
    (result,) = scene.run(lambda client: stop(client, [NAME]))
    assert isinstance(result.error, InvalidValue)
    assert state(scene) is ACTIVE


def test_undefine_frees_what_has_no_device(scene: Scene) -> None:
    """With a device it is refused, exit 5; without one the name is free."""
    defined(scene)
    scene.run(lambda client: start(client, [NAME]))
    (refused,) = scene.run(lambda client: _listed(undefine(client, NAME)))
    assert isinstance(refused.error, InUse)
    scene.run(lambda client: stop(client, [NAME]))
    (gone,) = scene.run(lambda client: _listed(undefine(client, NAME)))
    assert gone.error is None
    assert scene.desk.records() == (None, None)


@pytest.mark.parametrize(("parent", "there"), [(None, "p0"), ("p1", "p1")])
def test_a_name_without_a_device_moves_in_one_commit(
    scene: Scene, parent: str | None, there: str
) -> None:
    """In one revision it leaves the one host and is the other's; it is never free."""
    defined(scene)
    before = scene.desk.core.revision
    (moved,) = scene.run(lambda client: _listed(move(client, NAME, OTHER, parent)))
    assert isinstance(moved.record, Claim)
    assert (moved.record.host, moved.record.parent, moved.record.state) == (OTHER, there, DEFINED)
    assert scene.desk.core.revision == before + 1
    assert state(scene) is None
    assert scene.desk.records(NAME, OTHER)[1] == moved.record
    (within,) = scene.run(lambda client: _listed(move(client, NAME, OTHER, "p1")))
    assert isinstance(within.record, Claim)
    assert within.record.parent == "p1"


def test_a_name_with_a_device_does_not_move(scene: Scene) -> None:
    """A device is on one host: exit 5, and it says to stop it first."""
    defined(scene)
    scene.run(lambda client: start(client, [NAME]))
    (refused,) = scene.run(lambda client: _listed(move(client, NAME, OTHER, None)))
    assert isinstance(refused.error, InUse)
    assert "mdevns stop" in refused.error.line


def test_of_two_moves_at_once_one_wins(scene: Scene) -> None:
    """Both compare the revision; the loser reads again and moves it from where it is."""
    scene.host("gpu03", p0=9)
    defined(scene)

    async def both(client: Client) -> list[Result]:
        return list(
            await asyncio.gather(move(client, NAME, OTHER, None), move(client, NAME, "gpu03", None))
        )

    results = scene.run(both)
    assert [result.error for result in results] == [None, None]
    places = [host for host in (HOST, OTHER, "gpu03") if state(scene, host) is not None]
    assert len(places) == 1


# Evict.


def gone(scene: Scene, host: str = HOST) -> None:
    """The host's session lapses."""
    scene.end_session(host)


def evicted(scene: Scene, *, definitions: bool = False) -> list[list[Name]]:
    """Evict the first host."""
    found: list[list[Name]] = []

    async def work(client: Client) -> list[Result]:
        done = await evict(client, HOST, reason="it burnt", definitions=definitions)
        found.extend([done.freed, done.defined])
        return []

    scene.run(work)
    return found


def test_an_evicted_hosts_transient_names_are_free_and_persistent_ones_movable(
    scene: Scene,
) -> None:
    """What was defined survives without a device and can be given to another host."""
    scene.create(ask(1, host=HOST))
    defined(scene, name(2))
    scene.run(lambda client: start(client, [name(2)]))
    gone(scene)
    assert evicted(scene) == [[name(1)], [name(2)]]
    assert scene.desk.records(name(1)) == (None, None)
    (moved,) = scene.run(lambda client: _listed(move(client, name(2), OTHER, None)))
    assert moved.error is None
    (again,) = scene.create(ask(1, host=OTHER))
    assert again.error is None


@pytest.mark.parametrize("how", ["split", "nameless", "unreadable"])
def test_no_single_record_stops_an_evict(scene: Scene, how: str) -> None:
    """What cannot be freed is named, and all the rest is free."""
    scene.create(ask(1, host=HOST), ask(2, host=HOST))
    gone(scene)
    keys, core = scene.desk.keys, scene.desk.core
    oddities: dict[str, Put | Delete] = {
        "split": Put(keys.name(name(1)), encode(NameValue(host=HOST, request="r"))),
        "nameless": Delete(keys.name(name(1))),
        "unreadable": Put(keys.claim(HOST, name(1)), b"{"),
    }
    core.txn(Txn(success=(oddities[how],)))

    async def work(client: Client) -> list[Result]:
        done = await evict(client, HOST, reason="it burnt", definitions=False)
        assert done.freed == [name(2)]
        unreadable = [record.key for record in done.unreadable]
        if how == "unreadable":
            assert (unreadable, done.left) == ([keys.claim(HOST, name(1))], [])
        else:
            assert (unreadable, done.left) == ([], [name(1)])
        assert not done.complete
        return []

    scene.run(work)
    assert scene.desk.records(name(2)) == (None, None)


def test_definitions_are_given_up_only_when_asked_for(scene: Scene) -> None:
    """With --definitions nothing of the host is left."""
    defined(scene)
    gone(scene)
    assert evicted(scene, definitions=True) == [[NAME], []]
    assert scene.desk.records() == (None, None)


def test_a_living_host_is_not_evicted(scene: Scene) -> None:
    """Its session is compared in the transaction that would take its epoch: nothing changes."""
    scene.create(ask(host=HOST))
    before = scene.desk.core.revision
    with pytest.raises(InUse):
        evicted(scene)
    assert scene.desk.core.revision == before


def test_a_host_that_comes_back_meanwhile_ends_the_evict(scene: Scene) -> None:
    """Its enrolment writes another epoch, which every batch of the evict compares."""
    scene.create(ask(host=HOST))
    gone(scene)
    keys = scene.desk.keys

    def back(txn: Txn) -> Fate:
        if any(compare.key == keys.epoch(HOST) for compare in txn.compares):
            scene.desk.core.txn(Txn(success=(Put(keys.epoch(HOST), b"back again"),)))
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, back)
    with pytest.raises(Fenced):
        evicted(scene)
    assert state(scene) is ACTIVE


def test_an_evicted_agent_that_was_only_paused_can_do_nothing(scene: Scene) -> None:
    """Its next transaction meets the new epoch."""
    epoch = scene.desk.keys.epoch(HOST)
    scene.desk.core.txn(Txn(success=(Put(epoch, b"zombie"),)))
    scene.create(ask(host=HOST))
    claim = scene.desk.records()[1]
    assert claim is not None
    zombie = (scene.desk.claims.in_force(HOST, "zombie"),)
    gone(scene)
    evicted(scene)
    adopting = scene.desk.claims.adopt_free(
        NAME, "z", host=HOST, parent="p0", type_=TYPE, boot_id="b", now="t"
    )
    result = scene.desk.core.txn(transaction(zombie, [adopting]))
    assert not result.succeeded


def test_a_forced_act_is_on_record_and_done_once(scene: Scene) -> None:
    """Who, what, which host and why; a lost answer does not make two of it."""
    lost = iter([Fate.LOSE_ANSWER])

    def fate(txn: Txn) -> Fate:
        forced = any("/audit/" in compare.key for compare in txn.compares)
        return next(lost, Fate.DELIVER) if forced else Fate.DELIVER

    gone(scene)
    scene.store = FaultyStore(scene.desk.store, fate)
    evicted(scene)

    async def acts(client: Client) -> list[Result]:
        (act,) = await audit(client)
        assert isinstance(act, AuditValue)
        assert (act.who, act.what, act.host, act.why) == ("me", "evict", HOST, "it burnt")
        return []

    scene.run(acts)


def test_an_empty_host_can_be_forgotten(scene: Scene) -> None:
    """With names, or a living agent, it is refused; afterwards the host is unknown."""

    def forgotten() -> MdevnsError | None:
        async def work(client: Client) -> list[Result]:
            await forget(client, HOST, reason="sold")
            return []

        try:
            scene.run(work)
        except MdevnsError as error:
            return error
        return None

    assert isinstance(forgotten(), InUse)
    defined(scene)
    gone(scene)
    assert isinstance(forgotten(), InUse)
    evicted(scene, definitions=True)
    assert forgotten() is None
    assert isinstance(forgotten(), NotFound)
    (result,) = scene.create(ask(host=HOST))
    assert isinstance(result.error, NotFound)


def test_what_is_being_made_is_neither_started_nor_moved(scene: Scene) -> None:
    """A placeholder is EAGAIN for whatever is asked of it."""
    scene.hosts.clear()
    scene.create(ask(host=HOST), wait=False)
    for work in (
        lambda client: start(client, [NAME]),
        lambda client: stop(client, [NAME]),
        lambda client: _listed(move(client, NAME, OTHER, None)),
    ):
        (result,) = scene.run(work)
        assert isinstance(result.error, TryAgain)


def test_a_start_on_a_host_that_is_down_is_said(scene: Scene) -> None:
    """Exit 16, and it stays defined: no start waits to happen by surprise."""
    defined(scene)
    gone(scene)
    (result,) = scene.run(lambda client: start(client, [NAME]))
    assert isinstance(result.error, HostDown)
    assert state(scene) is DEFINED
