"""Acts that are limited to a request or a revision, and names that change hands under an act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.creating import Ask
from coordinator.defining import define, move
from coordinator.errors import HeldByAnother, Moved
from coordinator.model import Claim, Wish
from coordinator.operating import remove, start, stop, undefine
from coordinator.requests import ANY, Only
from coordinator.reserving import release, renew, reserve
from coordinator.states import ClaimState
from coordinator.store import Delete, Txn
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, TYPE
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import TTL, Scene

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.client import Client, Result

    Act = Callable[[Client, Only], Awaitable[Result]]

WISH = Wish(host=HOST, parent="p0", type=TYPE, persistent=True)


async def removed(client: Client, only: Only) -> Result:
    return (await remove(client, [NAME], only=only))[0]


async def stopped(client: Client, only: Only) -> Result:
    return (await stop(client, [NAME], only=only))[0]


async def started(client: Client, only: Only) -> Result:
    return (await start(client, [NAME], only=only))[0]


async def undefined(client: Client, only: Only) -> Result:
    return await undefine(client, NAME, only=only)


async def moved(client: Client, only: Only) -> Result:
    return await move(client, NAME, OTHER, None, only=only)


async def released(client: Client, only: Only) -> Result:
    return await release(client, NAME, only=only)


async def renewed(client: Client, only: Only) -> Result:
    return await renew(client, NAME, ttl=TTL, only=only)


async def reservation(client: Client, request: str) -> None:
    await reserve(client, [NAME], request=request, ttl=TTL)


async def definition(client: Client, request: str) -> None:
    await define(client, NAME, WISH, request=request)


async def device(client: Client, request: str) -> None:
    await definition(client, request)
    await start(client, [NAME])


CASES = [
    (device, removed),
    (device, stopped),
    (definition, started),
    (definition, undefined),
    (definition, moved),
    (reservation, released),
    (reservation, renewed),
]


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.host(HOST, p0=9)
    scene.host(OTHER, p0=9)
    return scene


def ran(scene: Scene, work: Callable[[Client], Awaitable[Result]]) -> Result:
    async def results(client: Client) -> list[Result]:
        return [await work(client)]

    (result,) = scene.run(results)
    return result


@pytest.mark.parametrize(("begin", "act"), CASES)
@pytest.mark.parametrize("only", [Only(request="first"), Only(revision=1)])
def test_what_another_request_holds_is_left_alone(
    scene: Scene, begin: Callable[[Client, str], Awaitable[None]], act: Act, only: Only
) -> None:
    """The answer is EEXIST and names who has it, by which request and revision."""

    async def work(client: Client) -> Result:
        await begin(client, "second")
        before = await client.views.find(NAME)
        result = await act(client, only)
        assert await client.views.find(NAME) == before
        return result

    error = ran(scene, work).error
    assert isinstance(error, HeldByAnother)
    assert "request second, revision" in error.line


@pytest.mark.parametrize(("begin", "act"), CASES)
def test_what_the_request_holds_at_that_revision_is_acted_on(
    scene: Scene, begin: Callable[[Client, str], Awaitable[None]], act: Act
) -> None:
    """Request and revision as they stand are no obstacle."""

    async def work(client: Client) -> Result:
        await begin(client, "first")
        record = await client.views.find(NAME)
        assert record is not None
        return await act(client, Only(request="first", revision=record.revision))

    assert ran(scene, work).error is None


@pytest.mark.parametrize(("begin", "act"), CASES)
def test_a_name_that_changes_hands_under_an_act_is_left_to_its_next_owner(
    scene: Scene, begin: Callable[[Client, str], Awaitable[None]], act: Act
) -> None:
    """What was read is gone before the act commits: what frees has its end, the rest is refused."""
    desk = scene.desk
    faulty = FaultyStore(desk.store, lambda _: Fate.DELIVER)
    scene.store = faulty

    def change_hands() -> None:
        taken, claim = desk.records()
        assert taken is not None
        keys = [desk.keys.name(NAME)] + ([desk.keys.claim(HOST, NAME)] if claim else [])
        desk.core.txn(Txn(success=tuple(map(Delete, keys))))
        if claim is None:
            lease = desk.core.grant(TTL).id
            change = desk.claims.hold(NAME, "second", lease=lease)
        else:
            change = desk.claims.claim(NAME, "second", WISH, boot_id="b", now="t", by="me")
        desk.core.txn(transaction((), [change]))

    async def work(client: Client) -> Result:
        await begin(client, "first")
        pending = [change_hands]

        def decide(txn: Txn) -> Fate:
            if pending and any(isinstance(op, Txn) and op.success for op in txn.success):
                pending.pop()()
            return Fate.DELIVER

        faulty.decide = decide
        scene.hosts.clear()
        result = await act(client, ANY)
        assert not pending
        now = await client.views.find(NAME)
        assert now is not None
        assert getattr(now, "request", None) == "second"
        assert not isinstance(now, Claim) or now.state is ClaimState.CREATING
        return result

    result = ran(scene, work)
    if act in (removed, undefined, released):
        assert result.error is None
        assert result.was is not None
        assert result.was.request == "first"
    else:
        assert isinstance(result.error, Moved)


def test_a_removal_says_what_it_removed(scene: Scene) -> None:
    """Host, parent, request and revision of what was there."""
    (made,) = scene.create(Ask(name=NAME, request="r", type=TYPE))
    (result,) = scene.remove(NAME)
    assert (result.error, result.was) == (None, made.record)
