"""One watch a host for all creates of a process: what it spares, and what falls in between."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from coordinator.creating import create
from coordinator.errors import (
    Compacted,
    HostDown,
    MdevnsError,
    NameTaken,
    NotFound,
    OutcomeUnknown,
    Unreachable,
)
from coordinator.model import Claim, ParentType, ParentValue, SessionValue, encode
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Range, Txn
from tests.support.counting import CountingStore
from tests.support.desk import HOST, TYPE, name
from tests.support.scene import TTL, Scene, ask
from tests.support.virtual_time import pass_time

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from coordinator.client import Client, Result
    from coordinator.store import TxnResult, WatchBatch

_LONG = 20.0  # seconds after which a watch that nobody needs is closed


class _Store(CountingStore):
    """A store whose watches stand when they may, and tell when they may; `open` are so many.

    `before` is done before the next transaction that compares something.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.desk.store)
        self.open = 0
        self.may_stand, self.may_tell = asyncio.Event(), asyncio.Event()
        self.may_stand.set()
        self.may_tell.set()
        self.before: list[Callable[[], object]] = []
        self.error: Exception | None = None

    @asynccontextmanager
    async def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AsyncGenerator[AsyncIterator[WatchBatch]]:
        """As the inner store, when it may."""
        async with super().watch(ranges, start) as batches:
            self.open += 1
            try:
                yield self._told(batches)
            finally:
                self.open -= 1

    async def _told(self, batches: AsyncIterator[WatchBatch]) -> AsyncIterator[WatchBatch]:
        await self.may_stand.wait()
        yield await anext(batches)
        async for batch in batches:
            await self.may_tell.wait()
            if self.error is not None:
                raise self.error
            yield batch

    async def txn(self, txn: Txn) -> TxnResult:
        """As the inner store."""
        while txn.compares and self.before:
            self.before.pop(0)()
        return await super().txn(txn)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def store(scene: Scene) -> _Store:
    scene.store = store = _Store(scene)
    return store


async def _made(client: Client, number: int, *, parent: str | None = None) -> Result:
    asked = ask(number, host=HOST, parent=parent)
    async with asyncio.timeout(5 * TTL):
        (result,) = await create(client, [asked], ttl=TTL)
    return result


async def _made_at_once(client: Client, number: int) -> Result:
    creating = asyncio.create_task(_made(client, number))
    await pass_time(1)
    assert creating.done()
    return await creating


def _put_parent(scene: Scene, parent: str, *types: str) -> None:
    offers = tuple(ParentType(type=each, available=4) for each in types)
    put = Put(scene.desk.keys.parent(HOST, parent), encode(ParentValue(types=offers)))
    scene.desk.core.txn(Txn(success=(put,)))


def _put_session(scene: Scene) -> None:
    session = encode(SessionValue(instance="b", boot_id="b", version="0"))
    put = Put(scene.desk.keys.session(HOST), session, scene.session)
    scene.desk.core.txn(Txn(success=(put,)))


# What it costs.


def test_a_create_on_a_named_host_reads_and_watches_once_a_process(
    scene: Scene, store: _Store
) -> None:
    """The first reads the place and reserves, beside a watch; those after it only reserve."""
    scene.host(HOST, p0=9)

    async def story(client: Client) -> list[Result]:
        results = [await _made(client, 1)]
        assert store.calls == {"txn": 2, "grant": 1, "watch": 1}
        for number in (2, 3):
            store.forget()
            results.append(await _made(client, number, parent="p0"))
            assert store.calls == {"txn": 1}
        return results

    assert [result.error for result in scene.run(story)] == [None] * 3


def test_creates_on_one_host_at_a_time_share_a_watch(scene: Scene, store: _Store) -> None:
    """However many wait; each hears of its own name alone."""
    scene.host(HOST, p0=99)

    async def story(client: Client) -> list[Result]:
        return await asyncio.gather(*(_made(client, number) for number in range(1, 65)))

    results = scene.run(story)
    assert [result.error for result in results] == [None] * 64
    assert [result.name for result in results] == [name(number) for number in range(1, 65)]
    assert store.calls["watch"] == 1


def test_a_watch_that_nobody_needs_is_closed(scene: Scene, store: _Store) -> None:
    """After a while; and at once when the process is through."""
    scene.host(HOST, p0=9)

    async def story(client: Client) -> list[Result]:
        await _made(client, 1)
        await pass_time(1)
        assert store.open == 1
        await pass_time(_LONG)
        assert store.open == 0
        return [await _made(client, 2)]

    (result,) = scene.run(story)
    assert result.error is None
    assert store.open == 0


def test_of_watches_that_nobody_needs_few_stay_open(scene: Scene, store: _Store) -> None:
    """A process that goes from host to host does not gather one of each."""
    hosts = [f"gpu{number:02}" for number in range(20)]
    for host in hosts:
        scene.host(host, p0=1)

    async def story(client: Client) -> list[Result]:
        results = []
        for number, host in enumerate(hosts):
            results += await create(client, [ask(number, host=host)], ttl=TTL)
        await pass_time(0.01)
        assert store.open == 8
        return results

    assert {result.error for result in scene.run(story)} == {None}


# What happens while it is not heard.


def test_what_was_made_before_the_watch_stands_is_looked_up(scene: Scene, store: _Store) -> None:
    """The host was faster than the watch: one look tells what no event will."""
    host = scene.host(HOST, p0=9)
    scene.hosts.clear()
    store.may_stand.clear()

    async def story(client: Client) -> list[Result]:
        creating = asyncio.create_task(_made(client, 1))
        await pass_time(1)
        host.work()
        host.work()
        store.may_stand.set()
        await pass_time(1)
        assert creating.done()
        return [await creating]

    (result,) = scene.run(story)
    assert isinstance(result.record, Claim)
    assert result.record.state is ClaimState.ACTIVE
    assert store.calls["txn"] == 3


def test_a_host_that_went_away_before_the_watch_stands_is_said(scene: Scene, store: _Store) -> None:
    """Its session was there when the name was reserved and is not any more: exit 16."""
    host = scene.host(HOST, p0=9)
    scene.hosts.clear()
    store.may_stand.clear()

    async def story(client: Client) -> list[Result]:
        creating = asyncio.create_task(_made(client, 1))
        await pass_time(1)
        host.work()  # begins
        scene.end_session(HOST)
        store.may_stand.set()
        await pass_time(1)
        assert creating.done()
        return [await creating]

    (result,) = scene.run(story)
    assert isinstance(result.error, HostDown)
    assert [claim.state for claim in host.claims_now()] == [ClaimState.CREATING]


def test_a_host_that_goes_away_while_it_is_heard_of_is_said(scene: Scene, store: _Store) -> None:
    """All who wait for it hear so from the one watch: exit 16."""
    host = scene.host(HOST, p0=9)
    scene.hosts.clear()

    async def story(client: Client) -> list[Result]:
        creating = [asyncio.create_task(_made(client, number)) for number in (1, 2)]
        await pass_time(1)
        host.work()  # begins
        scene.end_session(HOST)
        await pass_time(1)
        return [await each for each in creating if each.done()]

    results = scene.run(story)
    assert [type(result.error) for result in results] == [HostDown] * 2
    assert store.calls["watch"] == 1


def test_on_a_host_that_went_away_since_the_read_nothing_is_reserved(
    scene: Scene, store: _Store
) -> None:
    """The reservation compares that it is there: exit 16, at once and with nothing left."""
    host = scene.host(HOST, p0=9)
    store.before.append(lambda: scene.end_session(HOST))

    async def story(client: Client) -> list[Result]:
        return [await _made_at_once(client, 1)]

    (result,) = scene.run(story)
    assert isinstance(result.error, HostDown)
    assert host.claims_now() == []


def test_what_changes_before_the_watch_stands_is_read_again(scene: Scene, store: _Store) -> None:
    """What was read before is not kept up by what the watch tells: a gap is between the two."""
    scene.host(HOST, p0=9)
    store.may_stand.clear()

    async def story(client: Client) -> list[Result]:
        creating = asyncio.create_task(_made(client, 1))
        await pass_time(1)
        _put_parent(scene, "p0", "another")
        _put_parent(scene, "p1", TYPE)
        store.may_stand.set()
        return [await creating, await _made(client, 2)]

    first, second = scene.run(story)
    assert first.error is None
    assert isinstance(second.record, Claim)
    assert second.record.parent == "p1"


# What is known of the parents.


def test_what_is_heard_of_parents_is_kept_up(scene: Scene, store: _Store) -> None:
    """A parent that came is used, without a read; one that went is not."""
    scene.host(HOST, p0=9)

    async def story(client: Client) -> list[Result]:
        await _made(client, 1)
        _put_parent(scene, "p1", TYPE)
        scene.desk.core.txn(Txn(success=(Delete(scene.desk.keys.parent(HOST, "p0")),)))
        await pass_time(1)
        store.forget()
        came = await _made(client, 2, parent="p1")
        assert store.calls == {"txn": 1}
        return [came, await _made(client, 3, parent="p0"), await _made(client, 4)]

    came, went, anywhere = scene.run(story)
    assert came.error is None
    assert isinstance(went.error, NotFound)
    assert went.error.errno == "ENODEV"
    assert isinstance(anywhere.record, Claim)
    assert anywhere.record.parent == "p1"


def test_nobody_is_refused_for_what_was_heard(scene: Scene, store: _Store) -> None:
    """It may be late: a host that is back, and a parent that has come, are found by a read."""
    scene.host(HOST, p0=9)
    told = scene.hosts[:]

    async def story(client: Client) -> list[Result]:
        results = [await _made(client, 1)]
        scene.end_session(HOST)
        await pass_time(1)
        store.may_tell.clear()  # from here on nothing is heard but what the next look finds
        _put_parent(scene, "p7", TYPE)
        _put_session(scene)
        await pass_time(1)
        scene.hosts = told
        return [*results, await _made(client, 2), await _made(client, 3, parent="p7")]

    assert [result.error for result in scene.run(story)] == [None] * 3


def test_what_was_heard_late_is_no_reason_to_reserve_on_a_dead_host(
    scene: Scene, store: _Store
) -> None:
    """Its session is compared in the commit, whatever was heard: exit 16, nothing is left."""
    host = scene.host(HOST, p0=9)

    async def story(client: Client) -> list[Result]:
        await _made(client, 1)
        store.may_tell.clear()
        scene.end_session(HOST)
        return [await _made_at_once(client, 2)]

    (result,) = scene.run(story)
    assert isinstance(result.error, HostDown)
    assert [claim.name for claim in host.claims_now()] == [name(1)]


# The other ends.


def test_a_refused_create_leaves_nobody_listening(scene: Scene, store: _Store) -> None:
    """A name that is taken, a host that is unknown: the watch is closed as any other."""
    scene.host(HOST, p0=9)

    async def story(client: Client) -> list[Result]:
        await create(client, [ask(1)], ttl=TTL)
        taken = replace(ask(1, host=HOST), request="another")
        unknown = ask(2, host="gpu77")
        results = [(await create(client, [each], ttl=TTL))[0] for each in (taken, unknown)]
        await pass_time(_LONG)
        assert store.open == 0
        return results

    taken, unknown = scene.run(story)
    assert isinstance(taken.error, NameTaken)
    assert isinstance(unknown.error, NotFound)


def test_a_create_that_is_cancelled_leaves_nobody_listening(scene: Scene, store: _Store) -> None:
    """Before the watch stands, and while it is heard."""
    scene.host(HOST, p0=9)
    scene.hosts.clear()
    store.may_stand.clear()

    async def story(client: Client) -> list[Result]:
        for number in (1, 2):
            creating = asyncio.create_task(_made(client, number))
            await pass_time(1)
            assert store.open == 1
            creating.cancel()
            await asyncio.gather(creating, return_exceptions=True)
            await pass_time(_LONG)
            assert store.open == 0
            store.may_stand.set()
        return []

    scene.run(story)


def test_the_same_request_again_hears_of_the_same_device(scene: Scene, store: _Store) -> None:
    """While it is being made, and when it is there."""
    host = scene.host(HOST, p0=9)
    scene.hosts.clear()

    async def story(client: Client) -> list[Result]:
        first = asyncio.create_task(_made(client, 1))
        await pass_time(1)
        host.work()  # begins
        second = asyncio.create_task(_made(client, 1))
        await pass_time(1)
        host.work()
        return [await first, await second, await _made(client, 1)]

    results = scene.run(story)
    assert {type(result.record) for result in results} == {Claim}
    assert len({result.record.revision for result in results if result.record}) == 1
    assert len(host.claims_now()) == 1
    assert store.calls["watch"] == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [(Unreachable("etcd", "it is away"), OutcomeUnknown), (Compacted("watch", 7), None)],
    ids=["away", "compacted"],
)
def test_a_watch_that_fails_is_told_to_all_who_hear(
    scene: Scene, store: _Store, error: MdevnsError, told: type[MdevnsError] | None
) -> None:
    """Without the store nothing is known (exit 11); what was compacted is watched anew."""
    host = scene.host(HOST, p0=9)
    scene.hosts.clear()

    async def story(client: Client) -> list[Result]:
        creating = [asyncio.create_task(_made(client, number)) for number in (1, 2)]
        await pass_time(1)
        store.error = error
        host.work()
        await pass_time(0)
        store.error = None
        host.work()
        results = [await each for each in creating]
        store.forget()
        scene.hosts = [host]
        again = await _made(client, 3)  # nor does it spoil the next
        assert store.calls["watch"] == 1
        assert again.error is None
        return results

    for result in scene.run(story):
        assert result.error is None if told is None else isinstance(result.error, told)


def test_whoever_still_waits_when_the_process_is_through_is_told(
    scene: Scene, store: _Store
) -> None:
    """What becomes of the name is not known: exit 11."""
    scene.host(HOST, p0=9)
    scene.hosts.clear()
    assert store.open == 0

    async def story(client: Client) -> list[Result]:
        creating = asyncio.create_task(_made(client, 1))
        await pass_time(1)
        await client.close()
        return [await creating]

    (result,) = scene.run(story)
    assert isinstance(result.error, OutcomeUnknown)


def test_a_parent_that_is_full_is_left_for_another_of_the_host(scene: Scene, store: _Store) -> None:
    """What the kernel says counts, not what was heard; the second try has a watch of its own."""
    host = scene.host(HOST, p0=9, p1=1)
    host.refuses["p0"] = "ENOSPC"

    async def story(client: Client) -> list[Result]:
        return [await _made(client, 1)]

    (result,) = scene.run(story)
    assert isinstance(result.record, Claim)
    assert result.record.parent == "p1"
    assert store.calls["watch"] == 2
