"""A copy of a reservation that arrives when its name was given back takes it no more."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from coordinator.creating import create
from coordinator.errors import OutcomeUnknown
from coordinator.late import LateCopies
from coordinator.model import Name
from coordinator.operating import remove
from coordinator.reserving import release, reserve
from coordinator.store import Delete, Put, Txn, prefix
from tests.support.desk import HOST, NAME, OTHER, Desk, name
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import TTL, Scene, ask
from tests.support.virtual_time import run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.client import Client, Result
    from coordinator.store import TxnResult
    from coordinator.transactions import Answer


def reserves(txn: Txn) -> bool:
    """Whether it is a transaction with which a name is reserved."""
    inner = [op for op in txn.success if isinstance(op, Txn)]
    return any(isinstance(op, Put) and op.lease > 0 for each in inner for op in each.success)


def spends(scene: Scene, txn: Txn) -> bool:
    """Whether it ends what may be late."""
    spent = scene.desk.keys.spent("")
    return any(isinstance(op, Put) and op.key.startswith(spent) for op in txn.success)


def with_fates(scene: Scene, which: Callable[[Txn], bool], *fates: Fate) -> FaultyStore:
    """Let the first transactions of a kind meet these fates."""
    script = iter(fates)
    faulty = FaultyStore(
        scene.desk.store, lambda txn: next(script, Fate.DELIVER) if which(txn) else Fate.DELIVER
    )
    scene.store = faulty
    return faulty


async def arrives(faulty: FaultyStore) -> None:
    """The copies that were under way arrive at last."""
    assert faulty.late
    await faulty.release_late()


def is_free(scene: Scene) -> bool:
    keys = scene.desk.keys
    return scene.desk.kv(keys.name(NAME)) is None and scene.desk.kv(keys.claim(HOST, NAME)) is None


def test_a_released_name_stays_free() -> None:
    """A reservation whose first copy is late was settled by a second, and then given back."""
    scene = Scene()
    faulty = with_fates(scene, reserves, Fate.DELAY)

    async def work(client: Client) -> list[Result]:
        (held,) = await reserve(client, [NAME], request="r", ttl=TTL)
        assert held.error is None
        freed = await release(client, NAME)
        await arrives(faulty)
        return [freed]

    (freed,) = scene.run(work)
    assert freed.error is None
    assert is_free(scene)


def test_a_removed_device_stays_gone() -> None:
    """No host begins a device again that was made, and removed, before a copy of its create."""
    scene = Scene()
    scene.host(HOST, p0=4)
    faulty = with_fates(scene, reserves, Fate.DELAY)

    async def work(client: Client) -> list[Result]:
        (made,) = await create(client, [ask(host=HOST)], ttl=TTL)
        assert made.error is None
        (gone,) = await remove(client, [made.name])
        await arrives(faulty)
        scene.work()
        return [gone]

    (gone,) = scene.run(work)
    assert gone.error is None
    assert scene.hosts[0].claims_now() == []


def test_what_was_given_up_as_unknown_is_settled_by_the_same_request() -> None:
    """After exit 11 the same request again leaves no copy that could arrive later."""
    scene = Scene()
    scene.patience = 0.5
    faulty = with_fates(scene, reserves, Fate.DELAY, *[Fate.UNREACHABLE] * 9)

    async def work(client: Client) -> list[Result]:
        (first,) = await reserve(client, [NAME], request="r", ttl=TTL)
        assert isinstance(first.error, OutcomeUnknown)
        faulty.decide = lambda _: Fate.DELIVER
        (again,) = await reserve(client, [NAME], request="r", ttl=TTL)
        assert again.error is None
        freed = await release(client, NAME)
        await arrives(faulty)
        return [freed]

    (freed,) = scene.run(work)
    assert freed.error is None
    assert is_free(scene)


def test_a_refused_reservation_arrives_no_later() -> None:
    """Taken by another, then free: the copy of whoever was refused does not take it."""
    scene = Scene()
    faulty = with_fates(scene, reserves, Fate.DELIVER, Fate.DELAY)

    async def work(client: Client) -> list[Result]:
        await reserve(client, [NAME], request="first", ttl=TTL)
        (refused,) = await reserve(client, [NAME], request="second", ttl=TTL)
        assert refused.error is not None
        assert refused.error.exit_code == 4
        freed = await release(client, NAME)
        await arrives(faulty)
        return [freed]

    scene.run(work)
    assert is_free(scene)


def test_who_cannot_be_sure_says_so() -> None:
    """When a copy may be late and that cannot be ended, it is exit 11 and not a success."""
    scene = Scene()
    scene.patience = 0.5
    script = iter([Fate.DELAY])

    def fate(txn: Txn) -> Fate:
        if spends(scene, txn):
            return Fate.UNREACHABLE
        return next(script, Fate.DELIVER) if reserves(txn) else Fate.DELIVER

    scene.store = FaultyStore(scene.desk.store, fate)
    (told,) = scene.run(lambda client: reserve(client, [NAME], request="r", ttl=TTL))
    assert isinstance(told.error, OutcomeUnknown)


def test_where_no_answer_is_lost_nothing_more_is_written() -> None:
    """A reservation that is answered at once leaves no key but its own."""
    scene = Scene()
    scene.run(lambda client: reserve(client, [NAME], request="r", ttl=TTL))
    kvs = scene.desk.core.range(prefix(scene.desk.keys.root)).kvs
    assert [kv.key for kv in kvs] == [scene.desk.keys.name(NAME)]


def test_the_key_that_ends_it_goes_with_the_lease() -> None:
    """What was written against a late copy is gone when that would be refused anyway."""
    scene = Scene()
    with_fates(scene, reserves, Fate.DELAY)
    scene.run(lambda client: reserve(client, [NAME], request="r", ttl=TTL))
    (kv,) = scene.desk.core.range(prefix(scene.desk.keys.spent(""))).kvs
    name = scene.desk.kv(scene.desk.keys.name(NAME))
    assert name is not None
    assert kv.lease == name.lease
    assert kv.lease


async def test_a_copy_on_two_leases_is_refused_by_the_one_that_lives() -> None:
    """When the shorter of two leases of one commit is gone, the other's name stays free too."""
    # etcd looks only at the leases of what would be put, so a lease that is gone refuses nothing
    # once its name is held by somebody else.
    desk, rng = Desk(), random.Random(0)
    fates = iter([Fate.DELAY])
    faulty = FaultyStore(
        desk.store, lambda txn: next(fates, Fate.DELIVER) if reserves(txn) else Fate.DELIVER
    )
    late = LateCopies(faulty, desk.keys, patience=5.0, rng=rng)
    short, long = await desk.store.grant(5), await desk.store.grant(1000)
    changes = [
        desk.claims.hold(Name(name), "r", lease=lease.id)
        for name, lease in ((NAME, short), (OTHER, long))
    ]
    assert all(answer.error is None for answer in await late.transact((), changes))
    desk.core.advance(10)
    await desk.store.txn(Txn(success=(Put(desk.keys.name(NAME), b"somebody else's"),)))
    await desk.store.txn(Txn(success=(Delete(desk.keys.name(OTHER)),)))
    await arrives(faulty)
    assert desk.kv(desk.keys.name(OTHER)) is None


def test_what_another_request_owes_makes_no_answer_unknown() -> None:
    """Of two that are in flight one is given up as unknown: the other is answered as it was."""
    scene = Scene()
    desk, given_up = scene.desk, asyncio.Event()

    class Slow(FaultyStore):
        async def txn(self, txn: Txn) -> TxnResult:
            if reserves(txn) and NAME in repr(txn):
                await given_up.wait()
            return await super().txn(txn)

    def fate(txn: Txn) -> Fate:
        return Fate.DELIVER if reserves(txn) and NAME in repr(txn) else Fate.DROP

    late = LateCopies(Slow(desk.store, fate), desk.keys, patience=1.0, rng=desk.rng)
    lease = desk.core.grant(TTL).id

    async def both() -> list[Answer]:
        sure, doubtful = (
            asyncio.create_task(late.transact((), [desk.claims.hold(one, "r", lease=lease)]))
            for one in (NAME, name(2))
        )
        with pytest.raises(OutcomeUnknown):
            await doubtful
        given_up.set()
        return await sure

    (answer,) = run_virtual(both(), desk.core)
    assert answer.error is None
