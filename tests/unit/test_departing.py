"""Hosts that are gone, renamed, or known from their claims alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.defining import define, move
from coordinator.errors import Fenced, HostDown, InUse, MdevnsError, NameTaken, NotFound
from coordinator.evicting import audit, evict, forget
from coordinator.finishing import finish
from coordinator.model import IdentityValue, MachineValue, Name, Wish, decode, encode
from coordinator.operating import remove, undefine
from coordinator.renaming import rename
from coordinator.restoring import begin
from coordinator.session import Enroller
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, TYPE, name
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import Scene
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from coordinator.client import Client, Result

NEW = "gpu01-b"


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.host(HOST, p0=9)
    scene.host(OTHER, p0=9)
    return scene


def run(scene: Scene, work: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    """Run an operator's request while the hosts work; its result."""
    results: list[Any] = []

    async def once(client: Client) -> list[Result]:
        results.append(await work(client))
        return []

    scene.run(once)
    return results[0]


def lasting(host: str = HOST, parent: str = "p0", type_: str = TYPE) -> Wish:
    return Wish(host=host, parent=parent, type=type_, persistent=True)


def defined(scene: Scene, which: Name = NAME, wanted: Wish | None = None) -> Result:
    result: Result = run(scene, lambda c: define(c, which, wanted or lasting(), request="req"))
    return result


def evicted(scene: Scene, host: str = HOST) -> Any:
    return run(scene, lambda c: evict(c, host, reason="it burnt", definitions=False))


def imported(scene: Scene, host: str = "gpu99", which: Name = NAME) -> None:
    """A claim of a host that never enrolled here, as an import brings it."""
    claim = run_virtual(scene.desk.active(which), scene.desk.core)
    (answer,) = run_virtual(scene.desk.make(scene.desk.claims.rename(claim, host)), scene.desk.core)
    assert answer.error is None


def claimed(scene: Scene) -> None:
    """Another process claims the name for the first host at this moment."""
    change = scene.desk.claims.claim(
        NAME, "beside", lasting(), boot_id="b", now=scene.desk.clock.now(), by=None
    )
    scene.desk.core.txn(transaction((), [change]))


def enroller(scene: Scene, host: str, machine: str) -> Enroller:
    desk = scene.desk
    return Enroller(
        desk.store,
        desk.keys,
        desk.clock,
        desk.rng,
        host=host,
        identity=IdentityValue(machine_id=machine),
        boot_id="b",
        version="0",
        ttl=10,
    )


# Claims are evidence of a host.


def test_a_host_that_only_an_import_brought_is_listed(scene: Scene) -> None:
    """Its claims hold names, so an operator sees who has them; a forgotten host is not listed."""
    imported(scene)
    scene.end_session(OTHER)
    run(scene, lambda c: forget(c, OTHER, reason="sold"))
    views = run(scene, lambda c: c.views.host_views())
    assert [(view.host, view.alive, view.used) for view in views] == [
        (HOST, True, 0),
        ("gpu99", False, 1),
    ]


def test_a_host_whose_machine_record_is_gone_is_listed(scene: Scene) -> None:
    """Its identity shows it, so a damaged index hides no host."""
    scene.desk.core.txn(Txn(success=(Delete(scene.desk.keys.machine(f"m-{HOST}")),)))
    views = run(scene, lambda c: c.views.host_views())
    assert [view.host for view in views] == [HOST, OTHER]


def test_a_host_that_only_an_import_brought_is_evicted(scene: Scene) -> None:
    """Its names are free afterwards, and nothing of it is listed."""
    imported(scene)
    assert evicted(scene, "gpu99").freed == [NAME]
    assert scene.desk.records(NAME, "gpu99") == (None, None)
    assert [view.host for view in run(scene, lambda c: c.views.host_views())] == [HOST, OTHER]
    with pytest.raises(NotFound):
        evicted(scene, "gpu99")


def test_a_restore_waits_for_a_host_that_only_an_import_brought(scene: Scene) -> None:
    """Its devices are not known, so its claims are not handed out until its agent enrols."""
    imported(scene)
    for host in (HOST, OTHER):
        scene.end_session(host)
        run(scene, partial(forget, host=host, reason="sold"))
    run(scene, begin)
    finished = run(scene, finish)
    assert finished.hosts == ["gpu99"]
    assert [error.what for error in finished.left] == ["host gpu99"]
    evicted(scene, "gpu99")
    assert run(scene, finish).left == []


# Forget and define, side by side.


def test_a_host_that_gets_a_claim_meanwhile_is_not_forgotten(scene: Scene) -> None:
    """The transaction compares that the host has no claim."""
    scene.end_session(HOST)

    def beside(txn: Txn) -> Fate:
        forgetting = any("/audit/" in compare.key for compare in txn.compares)
        if forgetting and scene.desk.records()[1] is None:
            claimed(scene)
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, beside)
    with pytest.raises(InUse):
        run(scene, lambda c: forget(c, HOST, reason="sold"))
    assert scene.desk.kv(scene.desk.keys.identity(HOST)) is not None


@pytest.mark.parametrize("asked", ["define", "move"])
def test_a_host_that_is_forgotten_meanwhile_gets_no_claim(scene: Scene, asked: str) -> None:
    """The transaction that writes the claim compares that the host is known."""
    keys = scene.desk.keys
    defined(scene, name(2), lasting(OTHER))

    def beside(txn: Txn) -> Fate:
        if any(compare.key == keys.identity(HOST) for compare in txn.compares):
            scene.desk.core.txn(Txn(success=(Delete(keys.identity(HOST)),)))
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, beside)
    if asked == "define":
        result = defined(scene)
    else:
        result = run(scene, lambda c: move(c, name(2), HOST, None))
    assert isinstance(result.error, NotFound)
    assert scene.desk.records(NAME if asked == "define" else name(2), HOST)[1] is None


def test_all_machine_records_of_a_forgotten_host_go(scene: Scene) -> None:
    """Whatever its identity says, no machine record names it afterwards."""
    desk = scene.desk
    desk.core.txn(Txn(success=(Put(desk.keys.identity(HOST), b"{"),)))
    scene.end_session(HOST)
    run(scene, lambda c: forget(c, HOST, reason="sold"))
    assert run(scene, lambda c: c.views.hosts()) == [OTHER]


def test_a_machine_that_is_another_host_by_now_stays_it(scene: Scene) -> None:
    """An identity that names another host's machine does not take that host's record."""
    desk = scene.desk
    claimed = encode(IdentityValue(machine_id=f"m-{OTHER}"))
    desk.core.txn(Txn(success=(Put(desk.keys.identity(HOST), claimed),)))
    scene.end_session(HOST)
    run(scene, lambda c: forget(c, HOST, reason="sold"))
    assert desk.kv(desk.keys.machine(f"m-{OTHER}")) is not None


# What is defined where.


@pytest.mark.parametrize("wanted", [lasting(parent="p7"), lasting(type_="mtty-9")])
def test_a_definition_on_what_its_host_does_not_report_is_refused(
    scene: Scene, wanted: Wish
) -> None:
    """Exit 3, and no name is held for it."""
    with pytest.raises(NotFound, match="mdevns parents --host gpu01"):
        defined(scene, wanted=wanted)
    assert scene.desk.kv(scene.desk.keys.name(NAME)) is None


def test_a_name_is_not_moved_to_a_parent_that_is_not_there(scene: Scene) -> None:
    """The name stays where it is defined."""
    defined(scene)
    with pytest.raises(NotFound):
        run(scene, lambda c: move(c, NAME, OTHER, "p7"))
    assert scene.desk.records(NAME, HOST)[1] is not None


# Definitions of a host that was evicted.


@pytest.mark.parametrize("asked", ["undefine", "remove"])
def test_a_definition_of_an_evicted_host_is_freed_without_its_agent(
    scene: Scene, asked: str
) -> None:
    """The operator's word stands for the agent's look: the host is fenced."""
    defined(scene)
    scene.end_session(HOST)

    def freed() -> Result:
        if asked == "undefine":
            result: Result = run(scene, lambda c: undefine(c, NAME))
        else:
            (result,) = run(scene, lambda c: remove(c, [NAME]))
        return result

    assert isinstance(freed().error, HostDown)  # without an evict its agent must look
    evicted(scene)
    assert freed().error is None
    assert scene.desk.records() == (None, None)


def test_a_definition_is_not_freed_when_its_host_enrols_at_that_moment(scene: Scene) -> None:
    """The transaction compares the epoch of the evict."""
    defined(scene)
    scene.end_session(HOST)
    evicted(scene)
    epoch = scene.desk.keys.epoch(HOST)

    def back(txn: Txn) -> Fate:
        if any(compare.key == epoch for compare in txn.compares):
            scene.desk.core.txn(Txn(success=(Put(epoch, b"back again"),)))
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, back)
    assert isinstance(run(scene, lambda c: undefine(c, NAME)).error, Fenced)
    assert scene.desk.records()[1] is not None


# A rename.


def renamed(scene: Scene, to: str = NEW) -> list[Name]:
    names: list[Name] = run(scene, lambda c: rename(c, HOST, to, reason="a new rack"))
    return names


def test_a_renamed_host_keeps_its_names_whatever_their_state(scene: Scene) -> None:
    """Its machine enrols under the new name and under no other; the audit says who did it."""
    desk = scene.desk
    defined(scene)
    run_virtual(desk.active(name(2)), desk.core)
    scene.end_session(HOST)
    assert renamed(scene) == [NAME, name(2)]
    states = {which: desk.records(which, NEW)[1] for which in (NAME, name(2))}
    assert [claim and claim.state for claim in states.values()] == [
        ClaimState.DEFINED,
        ClaimState.ACTIVE,
    ]
    with pytest.raises(MdevnsError, match=f"--host {NEW}"):
        run_virtual(enroller(scene, HOST, f"m-{HOST}").enrol(), desk.core)
    session = run_virtual(enroller(scene, NEW, f"m-{HOST}").enrol(), desk.core)
    assert session.restore is None
    assert [view.host for view in run(scene, lambda c: c.views.host_views())] == [NEW, OTHER]
    (act,) = run(scene, audit)
    assert (act.what, act.host, act.why) == ("rename", HOST, f"to {NEW}: a new rack")


def test_a_host_whose_agent_lives_is_not_renamed(scene: Scene) -> None:
    """Its session is compared in the transaction that takes its epoch: nothing changes."""
    before = scene.desk.core.revision
    with pytest.raises(InUse, match="alive"):
        renamed(scene)
    assert scene.desk.core.revision == before


@pytest.mark.parametrize("to", [OTHER, "gpu99"])
def test_a_host_does_not_get_the_name_of_another(scene: Scene, to: str) -> None:
    """Neither of one that enrolled, nor of one of which only claims are known."""
    imported(scene, "gpu99", name(3))
    scene.end_session(HOST)
    with pytest.raises((InUse, NameTaken)):
        renamed(scene, to)
    assert scene.desk.kv(scene.desk.keys.identity(HOST)) is not None


def test_a_machine_is_refused_under_its_new_name_before_the_rename_ends(scene: Scene) -> None:
    """No agent meets half of its claims; the error names the command, which then ends it."""
    desk = scene.desk
    defined(scene)
    scene.end_session(HOST)

    def cut(txn: Txn) -> Fate:
        ends = any(isinstance(op, Put) and op.key == desk.keys.identity(NEW) for op in txn.success)
        return Fate.UNREACHABLE if ends else Fate.DELIVER

    scene.store = FaultyStore(desk.store, cut)
    with pytest.raises(MdevnsError):
        renamed(scene)
    with pytest.raises(MdevnsError, match=f"mdevns hosts rename {HOST} {NEW}"):
        run_virtual(enroller(scene, NEW, f"m-{HOST}").enrol(), desk.core)
    scene.store = desk.store
    assert renamed(scene) == []  # the claims had moved
    run_virtual(enroller(scene, NEW, f"m-{HOST}").enrol(), desk.core)


def test_an_agent_that_enrols_again_ends_the_rename(scene: Scene) -> None:
    """Its enrolment writes another epoch, which every commit of the rename compares."""
    desk = scene.desk
    defined(scene)
    scene.end_session(HOST)
    epoch = desk.keys.epoch(HOST)

    def back(txn: Txn) -> Fate:
        if any(compare.key == epoch for compare in txn.compares):
            desk.core.txn(Txn(success=(Put(epoch, b"back again"),)))
        return Fate.DELIVER

    scene.store = FaultyStore(desk.store, back)
    with pytest.raises(Fenced):
        renamed(scene)
    assert desk.records(NAME, HOST)[1] is not None
    scene.store = desk.store
    assert renamed(scene) == [NAME]


def test_a_claim_that_appears_meanwhile_is_renamed_by_a_repeat(scene: Scene) -> None:
    """The last commit compares that no claim is left under the old name."""
    desk = scene.desk
    scene.end_session(HOST)

    def beside(txn: Txn) -> Fate:
        ends = any(isinstance(op, Put) and op.key == desk.keys.identity(NEW) for op in txn.success)
        if ends and desk.records()[1] is None:
            claimed(scene)
        return Fate.DELIVER

    scene.store = FaultyStore(desk.store, beside)
    with pytest.raises(InUse):
        renamed(scene)
    scene.store = desk.store
    assert renamed(scene) == [NAME]
    kv = desk.kv(desk.keys.machine(f"m-{HOST}"))
    assert kv is not None
    assert decode(kv, MachineValue) == MachineValue(host=NEW)
