"""Create, remove and reservations from the asking side, with a host that answers as told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from coordinator.check import check
from coordinator.claims import Failure, Hold
from coordinator.creating import Ask, create
from coordinator.errors import (
    HostDown,
    InUse,
    KernelRefused,
    LeaseGone,
    NameTaken,
    NoCapacity,
    NotFound,
    OutcomeUnknown,
    StoreReadOnly,
    TryAgain,
    Unreachable,
)
from coordinator.model import (
    Claim,
    LastError,
    ParentType,
    ParentValue,
    Removal,
    Wish,
    encode,
)
from coordinator.reserving import release, renew, reserve
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Range, Txn, may_write
from coordinator.transactions import transaction
from tests.support.counting import CountingStore
from tests.support.desk import HOST, NAME, OTHER, PARENT, TYPE, Desk, name, wish
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import TTL, Scene, ask
from tests.support.virtual_time import pass_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from coordinator.client import Client, Result
    from coordinator.store import TxnResult, WatchBatch


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_create_ends_with_an_active_claim(scene: Scene) -> None:
    """The caller gets the claim as it stands when the device is made."""
    scene.host(HOST, p0=4)
    (result,) = scene.create(ask())
    assert isinstance(result.record, Claim)
    assert (result.record.state, result.record.host) == (ClaimState.ACTIVE, HOST)
    assert result.record.asked_by == "me"


def test_devices_are_spread_over_hosts_and_parents(scene: Scene) -> None:
    """Without host or parent each goes where most is free."""
    scene.host(HOST, p0=2, p1=2)
    scene.host(OTHER, p0=4)
    results = scene.create(*[ask(n) for n in range(8)])
    where = [(r.record.host, r.record.parent) for r in results if isinstance(r.record, Claim)]
    assert sorted(where) == [(HOST, "p0")] * 2 + [(HOST, "p1")] * 2 + [(OTHER, "p0")] * 4


@pytest.mark.parametrize("errno", ["ENOSPC", "EUSERS"])
def test_what_the_kernel_refuses_for_want_of_room_is_placed_elsewhere(
    scene: Scene, errno: str
) -> None:
    """The hint said that there was room, the kernel's answer counts, another parent has some."""
    full = scene.host(HOST, p0=9)
    full.refuses["p0"] = errno
    scene.host(OTHER, p0=1)
    (result,) = scene.create(ask())
    assert isinstance(result.record, Claim)
    assert result.record.host == OTHER
    assert full.claims_now() == []


def test_when_no_parent_is_left_it_is_enospc(scene: Scene) -> None:
    """All that offer the type were tried: exit 7, and nothing is left behind."""
    host = scene.host(HOST, p0=2, p1=0)
    host.refuses.update(p0="ENOSPC", p1="EUSERS")
    (result,) = scene.create(ask())
    assert isinstance(result.error, NoCapacity)
    assert result.error.exit_code == 7
    assert host.claims_now() == []


def test_a_parent_that_was_named_is_the_only_one_tried(scene: Scene) -> None:
    """The kernel's own errno is told: nobody asked for another parent."""
    host = scene.host(HOST, p0=0, p1=9)
    host.refuses["p0"] = "EUSERS"
    (result,) = scene.create(ask(parent="p0"))
    assert result.error is not None
    assert (result.error.errno, result.error.exit_code) == ("EUSERS", 7)


@pytest.mark.parametrize("errno", ["ENODEV", "EIO", "EINVAL", "EAGAIN", "EPERM"])
def test_what_a_kernel_refuses_for_any_reason_is_placed_elsewhere(scene: Scene, errno: str) -> None:
    """One parent whose driver is broken fails no create that another parent can take."""
    scene.host(HOST, p0=9).refuses["p0"] = errno
    scene.host(OTHER, p0=1)
    (result,) = scene.create(ask())
    assert isinstance(result.record, Claim)
    assert result.record.host == OTHER


def test_a_create_that_every_parent_refuses_is_not_tried_everywhere(scene: Scene) -> None:
    """After eight refusals it is taken to be the create's own fault, with the last errno."""
    host = scene.host(HOST, **{f"p{n}": 1 for n in range(20)})
    host.refuses.update({f"p{n}": "EINVAL" for n in range(20)})
    (result,) = scene.create(ask())
    assert result.error is not None
    assert result.error.errno == "EINVAL"
    assert len(host.begun) == 8


def test_a_parent_that_was_named_alone_is_any_hosts(scene: Scene) -> None:
    """The address is full on one host and has room on another: it is created there."""
    scene.host(HOST, p0=0)
    scene.host(OTHER, p0=4)
    (result,) = scene.create(ask(parent="p0"))
    assert isinstance(result.record, Claim)
    assert result.record.host == OTHER


def _says(scene: Scene, host: str, parent: str, **says: object) -> None:
    """Have a host's agent report a parent so."""
    types = (ParentType(type=TYPE, available=99),)
    value = msgspec.structs.replace(ParentValue(types=types), **says)
    put = Put(scene.desk.keys.parent(host, parent), encode(value))
    scene.desk.core.txn(Txn(success=(put,)))


def test_a_parent_that_refused_two_names_is_taken_last(scene: Scene) -> None:
    """However much room it says that it has, another comes first; alone it is asked."""
    scene.host(HOST, p0=99, p1=1)
    _says(scene, HOST, "p0", failures=2)
    results = scene.create(ask(1), ask(2))
    assert [r.record.parent for r in results if isinstance(r.record, Claim)] == ["p1", "p0"]


def test_a_parent_that_cannot_be_used_gets_no_create(scene: Scene) -> None:
    """Nothing is placed there; where there is no other, the answer says what is wrong, at once."""
    scene.host(HOST, p0=99)
    _says(scene, HOST, "p0", usable=False, troubles=("the bus cannot be read",))
    (result,) = scene.create(ask(host=HOST))
    assert isinstance(result.error, HostDown)
    assert "the bus cannot be read" in result.error.line
    scene.host(OTHER, p0=1)
    (result,) = scene.create(ask(2))
    assert isinstance(result.record, Claim)
    assert result.record.host == OTHER


def test_a_count_that_cannot_be_draws_nothing(scene: Scene) -> None:
    """A parent that says 4294967295 has no room that counts."""
    scene.host(HOST, p0=4_294_967_295)
    scene.host(OTHER, p0=3)
    results = scene.create(*[ask(n) for n in range(3)])
    where = [r.record.host for r in results if isinstance(r.record, Claim)]
    assert where == [OTHER] * 3


def test_a_stale_hint_of_no_room_is_asked_about(scene: Scene) -> None:
    """A parent that said 0 a moment ago may have room: the kernel is asked before ENOSPC."""
    scene.host(HOST, p0=0)
    (result,) = scene.create(ask())
    assert isinstance(result.record, Claim)


def test_a_drivers_own_refusal_keeps_its_errno(scene: Scene) -> None:
    """An errno without a meaning of its own is the driver's: exit 15."""
    scene.host(HOST, p0=1).refuses["p0"] = "EIO"
    (result,) = scene.create(ask())
    assert isinstance(result.error, KernelRefused)
    assert (result.error.errno, result.error.exit_code) == ("EIO", 15)


@pytest.mark.parametrize(
    ("asked", "errno"),
    [
        (ask(host="gpu77"), "ENOENT"),
        (ask(parent="p7"), "ENODEV"),
        (ask(type_="no-such"), "ENOENT"),
    ],
    ids=["host", "parent", "type"],
)
def test_what_is_not_there_is_said(scene: Scene, asked: Ask, errno: str) -> None:
    """No such host, parent or type: exit 3, and the others of the same request are made."""
    scene.host(HOST, p0=1)
    good = ask(2)
    result, other = scene.create(asked, good)
    assert isinstance(result.error, NotFound)
    assert (result.error.errno, result.error.exit_code) == (errno, 3)
    assert other.error is None


def test_a_host_that_is_down_is_said_and_nothing_is_reserved(scene: Scene) -> None:
    """Nobody could make it now: exit 16."""
    host = scene.host(HOST, p0=1)
    scene.desk.core.txn(Txn(success=(Delete(scene.desk.keys.session(HOST)),)))
    (result,) = scene.create(ask(host=HOST))
    assert isinstance(result.error, HostDown)
    assert host.claims_now() == []


def test_a_name_that_is_taken_is_told_by_whom_and_in_which_state(scene: Scene) -> None:
    """Exit 4, with host, parent and state of whoever has it."""
    scene.host(HOST, p0=2)
    scene.create(ask())
    taken = Ask(name=NAME, request="another", type=TYPE)
    (result,) = scene.create(taken)
    assert isinstance(result.error, NameTaken)
    assert str(result.error.holder) == f"{HOST}/p0 (active)"


def test_the_same_request_again_waits_for_the_same_device(scene: Scene) -> None:
    """A create that is repeated with its request id is not refused but answered."""
    scene.host(HOST, p0=2)
    (first,) = scene.create(ask())
    (again,) = scene.create(ask())
    assert again.error is None
    assert isinstance(again.record, Claim)
    assert isinstance(first.record, Claim)
    assert again.record.revision == first.record.revision


def test_a_reservation_is_turned_into_a_device_by_its_own_request_only(scene: Scene) -> None:
    """`create NAME --request ID` makes the name that the request holds; another is refused."""
    scene.host(HOST, p0=2)
    scene.run(lambda client: reserve(client, [NAME], request="req", ttl=TTL))
    (refused,) = scene.create(Ask(name=NAME, request="another", type=TYPE))
    assert isinstance(refused.error, NameTaken)
    (made,) = scene.create(ask())
    assert isinstance(made.record, Claim)
    assert made.record.state is ClaimState.ACTIVE


def test_whoever_cannot_be_told_who_has_a_name_is_told_just_that(scene: Scene) -> None:
    """The store goes away when a name was found taken: it may be by this very request."""
    scene.host(HOST, p0=2)
    scene.run(lambda client: reserve(client, [NAME], request="req", ttl=TTL))
    was_refused = False

    def fate(txn: Txn) -> Fate:
        nonlocal was_refused
        if was_refused and not may_write(txn):
            return Fate.UNREACHABLE
        was_refused = may_write(txn)
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, fate)
    mine, free = scene.create(ask(), ask(2), wait=False)
    assert isinstance(mine.error, Unreachable), mine
    assert isinstance(free.record, Claim)


def test_a_reservation_of_its_own_that_lapses_meanwhile_is_nobody_elses(scene: Scene) -> None:
    """It lapses between the refusal and the look at who has the name: try again."""
    scene.host(HOST, p0=2)
    scene.run(lambda client: reserve(client, [NAME], request="req", ttl=TTL))
    held = scene.desk.kv(scene.desk.keys.name(NAME))
    assert held is not None
    was_refused = False

    def fate(txn: Txn) -> Fate:
        nonlocal was_refused
        if was_refused:
            scene.desk.core.expire(held.lease)
        was_refused = may_write(txn)
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, fate)
    (lapsed,) = scene.create(ask(), wait=False)
    assert isinstance(lapsed.error, TryAgain), lapsed


def test_a_host_that_goes_away_while_it_creates_is_said_and_the_claim_stays(
    scene: Scene,
) -> None:
    """Exit 16: its agent goes on when it is back, and the name stays taken."""
    host = scene.host(HOST, p0=1)
    scene.hosts.clear()

    async def dies_in_the_middle(client: Client) -> list[Result]:
        creating = asyncio.create_task(create(client, [ask()], ttl=TTL))
        await pass_time(1)
        host.work()  # begins
        scene.desk.core.expire(scene.session)
        return await creating

    (result,) = scene.run(dies_in_the_middle)
    assert isinstance(result.error, HostDown)
    assert [claim.state for claim in host.claims_now()] == [ClaimState.CREATING]


def test_a_host_that_never_begins_leaves_nothing(scene: Scene) -> None:
    """The reservation lapses and the waiter is told: exit 16."""
    host = scene.host(HOST, p0=1)
    scene.hosts.clear()

    async def waits(client: Client) -> list[Result]:
        passing = asyncio.create_task(pass_time(2 * TTL))
        results = await create(client, [ask()], ttl=TTL)
        await passing
        return results

    (result,) = scene.run(waits)
    assert isinstance(result.error, HostDown)
    assert host.claims_now() == []


def test_126_names_cost_one_grant_and_one_transaction() -> None:
    """Reading apart, a bulk create reserves in one commit and grants one lease."""
    scene = Scene()
    written: list[Txn] = []

    def count(txn: Txn) -> Fate:
        if txn.compares:
            written.append(txn)
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, count)
    scene.host(HOST, p0=126)
    leases = len(scene.desk.core.leases())
    results = scene.create(*[ask(n) for n in range(126)])
    assert all(result.error is None for result in results)
    assert len(written) == 1
    assert len(scene.desk.core.leases()) == leases + 1


def test_an_unknown_outcome_is_said_as_such_and_leaves_only_a_lease() -> None:
    """Exit 11: the line says how to find out, and what may have arrived lapses by itself."""
    scene = Scene()
    scene.store = FaultyStore(
        scene.desk.store, lambda txn: Fate.LOSE_ANSWER if txn.compares else Fate.DELIVER
    )
    host = scene.host(HOST, p0=1)
    scene.hosts.clear()
    (result,) = scene.create(ask())
    assert isinstance(result.error, OutcomeUnknown)
    assert result.error.exit_code == 11
    assert "mdevns show" in result.error.line
    scene.desk.core.advance(2 * TTL)
    assert host.claims_now() == []


def test_a_lease_that_was_revoked_early_is_replaced(scene: Scene) -> None:
    """etcd had bugs that revoke living leases: the shared one is not handed out for ever."""
    scene.host(HOST, p0=4)

    async def twice(client: Client) -> list[Result]:
        await create(client, [ask(1)], ttl=TTL)
        scene.desk.core.expire(await client.leases.get(TTL))
        return await create(client, [ask(2)], ttl=TTL)

    (result,) = scene.run(twice)
    assert result.error is None
    assert not isinstance(result.error, LeaseGone)


def test_while_a_store_is_being_restored_nothing_is_created(scene: Scene) -> None:
    """Exit 14, at once."""
    scene.host(HOST, p0=1)
    scene.desk.core.txn(Txn(success=(Put(scene.desk.keys.hold, b"{}"),)))
    (result,) = scene.create(ask())
    assert isinstance(result.error, StoreReadOnly)


class _Slow(CountingStore):
    """A store on which all that is to happen does so before a watch stands."""

    def __init__(self, scene: Scene, *happens: Callable[[], object]) -> None:
        super().__init__(scene.desk.store)
        self._happens = list(happens)

    def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """As the inner store, later."""
        while self._happens:
            self._happens.pop(0)()
        return super().watch(ranges, start)


def created(scene: Scene, *happens: Callable[[], object]) -> tuple[Result, _Slow]:
    """What a create is told when that happens before its watch stands."""
    store = scene.store = _Slow(scene, *happens)
    scene.hosts.clear()

    async def work(client: Client) -> list[Result]:
        async with asyncio.timeout(60):
            return await create(client, [ask()], ttl=TTL)

    (result,) = scene.run(work)
    return result, store


def test_a_device_that_was_made_before_the_watch_is_seen(scene: Scene) -> None:
    """It costs one watch and one look, however fast the host was."""
    host = scene.host(HOST, p0=1)
    result, store = created(scene, host.work, host.work)
    assert result.error is None
    assert store.calls["watch"] == 1


def test_a_device_that_was_made_and_removed_before_the_watch_was_made(scene: Scene) -> None:
    """Whoever removed it came later, so the create is told as done."""
    host = scene.host(HOST, p0=1)

    def removed() -> None:
        (claim,) = host.claims_now()
        change = scene.desk.claims.retire(claim, Removal(), now="t")
        scene.desk.core.txn(transaction((), [change]))

    result, _ = created(scene, host.work, host.work, removed, host.work)
    assert host.claims_now() == []
    assert result.error is None


def test_a_device_that_was_refused_before_the_watch_is_told_as_refused(scene: Scene) -> None:
    """The request's outcome says how, when its claim is gone."""
    host = scene.host(HOST, p0=1)
    host.refuses["p0"] = "EIO"
    result, _ = created(scene, host.work, host.work)
    assert isinstance(result.error, KernelRefused)


def test_a_removed_name_is_free(scene: Scene) -> None:
    """Remove returns when device and claim are gone."""
    host = scene.host(HOST, p0=1)
    scene.create(ask())
    (result,) = scene.remove(NAME)
    assert result.error is None
    assert host.claims_now() == []


def test_a_device_in_use_is_ebusy_and_stays(scene: Scene) -> None:
    """Exit 5; the claim is active again and says why."""
    host = scene.host(HOST, p0=1)
    scene.create(ask())
    host.busy = True
    (result,) = scene.remove(NAME)
    assert isinstance(result.error, InUse)
    (claim,) = host.claims_now()
    assert claim.error is not None
    assert (claim.state, claim.error.errno) == (ClaimState.ACTIVE, "EBUSY")


def test_a_placeholder_is_not_a_device(scene: Scene) -> None:
    """To remove what is reserved or being created is EAGAIN, exit 6, and changes nothing."""
    host = scene.host(HOST, p0=1)
    scene.hosts.clear()
    scene.create(ask(), wait=False)
    states = []
    for _ in range(2):
        (result,) = scene.remove(NAME)
        assert isinstance(result.error, TryAgain)
        assert result.error.exit_code == 6
        states += [claim.state for claim in host.claims_now()]
        host.work()
    assert states == [ClaimState.RESERVED, ClaimState.CREATING]


def test_a_remove_on_a_host_that_is_down_is_said_and_asks_for_nothing(scene: Scene) -> None:
    """Exit 16, and the claim is as it was: no remove waits to happen by surprise."""
    host = scene.host(HOST, p0=1)
    scene.create(ask())
    scene.desk.core.txn(Txn(success=(Delete(scene.desk.keys.session(HOST)),)))
    (result,) = scene.remove(NAME)
    assert isinstance(result.error, HostDown)
    assert [claim.state for claim in host.claims_now()] == [ClaimState.ACTIVE]


def test_of_several_names_each_gets_its_own_answer(scene: Scene) -> None:
    """In the order in which they were asked for; a name twice is one."""
    scene.host(HOST, p0=4)
    scene.create(ask(1), ask(2))
    results = scene.remove(name(1), name(9), name(2), name(1))
    assert [(r.name, type(r.error)) for r in results] == [
        (name(1), type(None)),
        (name(9), NotFound),
        (name(2), type(None)),
    ]


def test_reserve_renew_release(scene: Scene) -> None:
    """A hold lives as long as it is renewed, and is free when it is given back."""

    async def story(client: Client) -> list[Result]:
        (held,) = await reserve(client, [NAME], request="req", ttl=TTL)
        assert isinstance(held.record, Hold)
        await pass_time(TTL - 1)
        assert (await renew(client, NAME, ttl=TTL)).error is None
        await pass_time(TTL - 1)
        assert (await client.views.find(NAME)) is not None
        assert (await release(client, NAME)).error is None
        assert (await client.views.find(NAME)) is None
        return [await release(client, NAME)]

    (again,) = scene.run(story)
    assert isinstance(again.error, NotFound)


def test_what_is_no_reservation_cannot_be_released(scene: Scene) -> None:
    """A device is removed, not released: exit 5, and it says so."""
    scene.host(HOST, p0=1)
    scene.create(ask())

    async def released(client: Client) -> list[Result]:
        return [await release(client, NAME)]

    (result,) = scene.run(released)
    assert isinstance(result.error, InUse)
    assert "mdevns remove" in result.error.line


def test_a_store_that_goes_away_during_the_wait_is_said(scene: Scene) -> None:
    """Exit 11: what becomes of the claim is not known, and the line says how to find out."""
    scene.host(HOST, p0=1)
    scene.hosts.clear()
    away = False

    def fate(_: Txn) -> Fate:
        return Fate.UNREACHABLE if away else Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, fate)

    async def loses_the_store(client: Client) -> list[Result]:
        nonlocal away
        creating = asyncio.create_task(create(client, [ask()], ttl=TTL))
        await pass_time(1)
        away = True
        return await creating

    (result,) = scene.run(loses_the_store)
    assert isinstance(result.error, OutcomeUnknown)
    assert "mdevns show" in result.error.line


def test_a_refused_attribute_is_the_drivers_own_refusal(scene: Scene) -> None:
    """Whatever its errno, exit 15: no name, host, parent or type is missing."""
    host = scene.host(HOST, p0=1)
    scene.hosts.clear()

    async def refused(client: Client) -> list[Result]:
        creating = asyncio.create_task(create(client, [ask()], ttl=TTL))
        await pass_time(1)
        host.work()
        (claim,) = host.claims_now()
        failure = Failure(LastError("ENOENT", "no such attribute", "t"), 0, attribute="mode")
        undone = host.claims.undo(claim, failure, now="t")
        scene.desk.core.txn(transaction((), [undone]))
        await pass_time(1)
        assert not creating.done()  # told once the device is gone
        host.work()
        return await creating

    (result,) = scene.run(refused)
    assert isinstance(result.error, KernelRefused)
    assert (result.error.errno, result.error.exit_code) == ("ENOENT", 15)
    assert host.claims_now() == []


def test_the_same_request_is_not_told_that_somebody_elses_device_is_its_own(scene: Scene) -> None:
    """The host had a device of that name: EEXIST, and EEXIST again when it is asked once more."""
    host = scene.host(HOST, p0=1)
    scene.hosts.clear()

    async def meets_a_foreign_device(client: Client) -> list[Result]:
        creating = asyncio.create_task(create(client, [ask()], ttl=TTL))
        await pass_time(1)
        (claim,) = host.claims_now()
        failure = Failure(LastError("EEXIST", "a device of that name", "t"), 0)
        adopt = host.claims.adopt_over(
            claim, parent="p9", type_="other", boot_id="b", now="t", failure=failure
        )
        scene.desk.core.txn(transaction((), [adopt]))
        first = await creating
        return [*first, *(await create(client, [ask()], ttl=TTL))]

    first, again = scene.run(meets_a_foreign_device)
    assert first.error is not None
    assert (first.error.errno, first.error.exit_code) == ("EEXIST", 4)
    assert isinstance(again.error, NameTaken)


def test_a_request_id_that_is_used_for_something_else_is_no_success(scene: Scene) -> None:
    """The name is taken by what was asked for before: exit 4."""
    scene.host(HOST, p0=2)
    scene.create(ask())
    (other,) = scene.create(Ask(name=NAME, request="req", type=TYPE, attrs=(("a", "1"),)))
    assert isinstance(other.error, NameTaken)


@pytest.mark.parametrize(("host", "parent"), [(OTHER, None), (HOST, "p1"), (None, "p1")])
def test_a_request_id_that_is_used_for_another_place_is_no_success(
    scene: Scene, host: str | None, parent: str | None
) -> None:
    """Whoever names a host or a parent is not told that a device elsewhere is there."""
    scene.host(HOST, p0=2, p1=2)
    scene.host(OTHER, p0=2, p1=2)
    scene.create(ask(host=HOST, parent="p0"))
    (other,) = scene.create(ask(host=host, parent=parent))
    assert isinstance(other.error, NameTaken)
    assert str(other.error.holder) == f"{HOST}/p0 (active)"


def test_a_persistent_create_is_placed_elsewhere_too(scene: Scene) -> None:
    """A first create that the kernel refuses leaves no definition on the full parent."""
    full = scene.host(HOST, p0=9)
    full.refuses["p0"] = "ENOSPC"
    scene.host(OTHER, p0=1)
    wanted = Ask(name=NAME, request="req", type=TYPE, persistent=True)
    (result,) = scene.create(wanted)
    assert isinstance(result.record, Claim)
    assert (result.record.host, result.record.persistent) == (OTHER, True)
    assert full.claims_now() == []


def test_a_refusal_that_cannot_be_explained_takes_nobodys_answer_away(scene: Scene) -> None:
    """The store goes away after the commit: whose name is taken is told so, the rest are made."""
    host = scene.host(HOST, p0=9)
    scene.create(ask(1))
    committed = False

    def fate(txn: Txn) -> Fate:
        nonlocal committed
        if txn.compares:
            committed = True
            return Fate.DELIVER
        return Fate.UNREACHABLE if committed else Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, fate)
    others = [Ask(name=name(n), request="other", type=TYPE) for n in (1, 2, 3)]
    results = scene.create(*others, wait=False)
    assert isinstance(results[0].error, NameTaken)
    assert [result.error for result in results[1:]] == [None, None]
    assert len(host.claims_now()) == 3


@pytest.mark.parametrize("taken_anew", [False, True])
def test_a_remove_whose_answer_was_lost_is_done_when_the_host_was_faster(
    scene: Scene, *, taken_anew: bool
) -> None:
    """The device is gone by the time it is asked again: that is told, and no other is touched."""
    host = scene.host(HOST, p0=9)
    scene.create(ask())
    asked = False
    keys = scene.desk.keys

    def fate(txn: Txn) -> Fate:
        nonlocal asked
        retires = any(op.key == keys.session(HOST) for op in txn.failure if isinstance(op, Range))
        if not retires:
            return Fate.DELIVER
        if not asked:
            asked = True
            return Fate.LOSE_ANSWER
        if host.claims_now() and host.claims_now()[0].request == "req":
            return Fate.DROP
        if taken_anew and not host.claims_now():
            other = scene.desk.claims.reserve(
                name(1), "other", wish(HOST), lease=scene.session, now="t", by=None
            )
            scene.desk.core.txn(transaction((), [other]))
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, fate)
    (gone,) = scene.remove(name(1))
    assert gone.error is None
    assert [claim.request for claim in host.claims_now()] == ["other"] * taken_anew


def test_a_full_store_that_has_applied_it_all_the_same_is_asked_what_it_did(scene: Scene) -> None:
    """etcd answers "no space" after applying, too: what stands is what is told."""
    scene.host(HOST, p0=9)
    alarms = iter([True])

    class Alarming(FaultyStore):
        async def txn(self, txn: Txn) -> TxnResult:
            result = await super().txn(txn)
            writes = bool(txn.compares)
            if writes and next(alarms, False):
                raise StoreReadOnly("etcd", "its space quota is used up (NOSPACE)")
            return result

    scene.store = Alarming(scene.desk.store, lambda _: Fate.DELIVER)
    (result,) = scene.create(ask())
    assert isinstance(result.record, Claim)


def test_in_a_large_cluster_a_create_does_not_read_every_host() -> None:
    """What it reads to find a place does not grow with the cluster, as long as there is room."""
    scene = Scene()
    read: list[int] = []

    def count(txn: Txn) -> Fate:
        read.append(sum(isinstance(op, Range) and bool(op.end) for op in txn.success))
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, count)
    for number in range(200):
        scene.host(f"gpu{number:03}", p0=1)
    (result,) = scene.create(ask())
    assert result.error is None
    assert sum(read) < 100
    many = scene.create(*[ask(n) for n in range(2, 180)])
    assert all(result.error is None for result in many)


def test_many_refusals_are_explained_by_two_reads(scene: Scene) -> None:
    """Who holds the names that are taken is asked for all of them together."""
    scene.host(HOST, p0=99)
    scene.create(*[ask(n) for n in range(1, 31)])
    reads: list[Txn] = []

    def count(txn: Txn) -> Fate:
        if not txn.compares:
            reads.append(txn)
        return Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, count)
    others = [Ask(name=name(n), request="other", type=TYPE, host=HOST) for n in range(1, 31)]
    results = scene.create(*others)
    errors = [result.error for result in results]
    assert all(isinstance(e, NameTaken) and e.holder and e.holder.parent == "p0" for e in errors)
    assert len(reads) == 3  # the place, the names, their claims


def test_giving_one_reservation_back_leaves_those_that_share_its_lease(scene: Scene) -> None:
    """Each name is freed by itself: the lease holds others, and is left to lapse."""

    async def story(client: Client) -> list[Result]:
        first, second = await reserve(client, [NAME, name(2)], request="req", ttl=TTL)
        assert isinstance(first.record, Hold)
        assert isinstance(second.record, Hold)
        assert first.record.lease == second.record.lease
        return [await release(client, NAME)]

    (released,) = scene.run(story)
    assert released.error is None
    assert scene.desk.records(NAME)[0] is None
    assert scene.desk.records(name(2))[0] is not None


def test_what_is_reserved_anew_after_a_revoked_lease_hangs_on_one_again(scene: Scene) -> None:
    """A host that never begins it leaves nothing, whatever became of the first lease."""
    host = scene.host(HOST, p0=4)

    async def twice(client: Client) -> list[Result]:
        await create(client, [ask(1)], ttl=TTL)
        scene.hosts.clear()
        scene.desk.core.expire(await client.leases.get(TTL))
        return await create(client, [ask(2)], ttl=TTL, wait=False)

    (result,) = scene.run(twice)
    assert result.error is None
    assert {claim.name for claim in host.claims_now()} == {name(1), name(2)}
    scene.desk.core.advance(2 * TTL)
    assert {claim.name for claim in host.claims_now()} == {name(1)}


async def test_check_tells_what_the_agents_found() -> None:
    """A parent's troubles, a type that is two models, and a definition that nothing offers."""
    desk = Desk()
    keys = desk.keys
    for host, model in ((HOST, "A40-1Q"), (OTHER, "T4-1Q")):
        value = ParentValue(
            types=(ParentType(type=TYPE, available=1, name=model),),
            troubles=("its count is none",) if host == HOST else (),
            failures=2,
        )
        desk.core.txn(Txn(success=(Put(keys.parent(host, PARENT), encode(value)),)))
    reserved = Hold(NAME, "r", 0, 0)
    gone = Wish(host=HOST, parent="gone", type=TYPE, persistent=True)
    change = desk.claims.define(reserved, gone, now="t", by=None)
    desk.core.txn(Txn(success=change.then))
    report = await check(desk.store, keys)
    told = {(finding.kind, finding.host, finding.name) for finding in report.findings}
    assert told >= {
        ("trouble", HOST, None),
        ("refuses", OTHER, None),
        ("type-differs", None, None),
        ("not-offered", HOST, NAME),
    }
