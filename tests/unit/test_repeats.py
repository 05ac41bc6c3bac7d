"""Requests that are repeated under the id of their first run."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from coordinator.claims import Hold
from coordinator.creating import Ask
from coordinator.defining import define
from coordinator.errors import AskedOtherwise, NotFound
from coordinator.model import Claim, Name, Wish
from coordinator.requests import request_name
from coordinator.reserving import reserve
from coordinator.states import ClaimState
from tests.support.counting import CountingStore
from tests.support.desk import HOST, NAME, TYPE
from tests.support.scene import TTL, Scene

if TYPE_CHECKING:
    from coordinator.client import Client, Result


@pytest.fixture
def scene() -> Scene:
    return Scene()


def asks(scene: Scene, count: int, type_: str = TYPE) -> list[Ask]:
    cluster = scene.desk.keys.cluster
    return [
        Ask(
            name=request_name(cluster, "r", index, count),
            request="r",
            type=type_,
            repeats=True,
            count=count,
        )
        for index in range(count)
    ]


def reserved(scene: Scene, count: int) -> list[Result]:
    names = [request_name(scene.desk.keys.cluster, "r", index, count) for index in range(count)]

    async def work(client: Client) -> list[Result]:
        return await reserve(client, names, request="r", ttl=TTL, count=count)

    return scene.run(work)


def test_names_follow_from_cluster_request_index_and_count() -> None:
    """Each is a UUID of version 8, always the same, and no two are alike."""
    every = [
        request_name(cluster, request, index, count)
        for cluster in ("a", "b")
        for request in ("r", "s")
        for count in (1, 2, 100_000)
        for index in (0, count - 1)
    ]
    assert len(set(every)) == 2 * 2 * 5
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in every} == {
        (8, uuid.RFC_4122)
    }
    assert request_name("a", "r", 0, 1) == Name("e980051c-aadf-8efa-8000-20000fd94807")


def test_a_create_that_took_the_last_place_is_repeated(scene: Scene) -> None:
    """It is answered with its own device, though no parent has room and its host is away."""
    scene.host(HOST, p0=2)
    first = scene.create(*asks(scene, 2))
    scene.end_session(HOST)
    again = scene.create(*asks(scene, 2))
    assert [each.record for each in again] == [each.record for each in first]
    assert all(isinstance(each.record, Claim) for each in again)


def test_a_request_that_was_half_done_is_completed(scene: Scene) -> None:
    """What the first run did not take is taken by the second."""
    scene.host(HOST, p0=4)
    (first,) = scene.create(asks(scene, 3)[1])
    results = scene.create(*asks(scene, 3))
    assert [each.error for each in results] == [None] * 3
    assert results[1].record == first.record


@pytest.mark.parametrize("count", [1, 3])
def test_another_count_under_the_same_id_is_refused(scene: Scene, count: int) -> None:
    """Fewer or more names than the first run asked for: nothing is taken."""
    scene.host(HOST, p0=9)
    scene.create(*asks(scene, 2))
    with pytest.raises(AskedOtherwise, match="asked for 2 names, not"):
        scene.create(*asks(scene, count))
    with pytest.raises(AskedOtherwise):
        reserved(scene, count)


def test_another_type_under_the_same_id_is_refused(scene: Scene) -> None:
    """The answer says what the first run asked for."""
    scene.host(HOST, p0=9)
    scene.create(*asks(scene, 1))
    (result,) = scene.create(*asks(scene, 1, "other"))
    assert isinstance(result.error, AskedOtherwise)
    assert TYPE in result.error.message


def test_a_reservation_is_repeated_and_taken_over_and_that_repeated(scene: Scene) -> None:
    """The same request holds the same names; its create has them, once."""
    scene.host(HOST, p0=9)
    first, again = reserved(scene, 2), reserved(scene, 2)
    assert all(isinstance(each.record, Hold) for each in again)
    assert [each.name for each in first] == [each.name for each in again]
    made = scene.create(*asks(scene, 2))
    assert [each.record for each in scene.create(*asks(scene, 2))] == [r.record for r in made]


def test_reserved_names_are_bound_in_few_commits(scene: Scene) -> None:
    """A create of 300 names that its request holds binds 126 of them in a commit."""
    scene.host(HOST, p0=300)
    reserved(scene, 300)
    scene.store = counted = CountingStore(scene.desk.store)
    results = scene.create(*asks(scene, 300), wait=False)
    assert [each.error for each in results] == [None] * 300
    bound = counted.that_made("reserved")
    tried, rest = sum(bound[: len(bound) // 2]), sum(bound[len(bound) // 2 :])
    assert (tried, rest, len(bound)) == (300, 300, 6)


def test_what_cannot_be_placed_is_explained_once_for_each_kind(scene: Scene) -> None:
    """Each name has the same error under its own name; the parents are looked through once."""
    scene.host(HOST, p0=0)
    results = scene.create(*asks(scene, 200, "none"))
    errors = [each.error for each in results]
    assert all(isinstance(error, NotFound) for error in errors)
    assert [error.name for error in errors if error] == [each.name for each in results]
    assert len({error.line for error in errors if error}) == 1


def test_a_define_recognizes_itself(scene: Scene) -> None:
    """Defined twice under one id it is one definition; defined otherwise it is refused."""
    scene.host(HOST, p0=9)

    def defined(*, autostart: bool) -> Result:
        wish = Wish(host=HOST, parent="p0", type=TYPE, persistent=True, autostart=autostart)

        async def work(client: Client) -> list[Result]:
            return [await define(client, NAME, wish, request="r")]

        (result,) = scene.run(work)
        return result

    first = defined(autostart=False)
    assert isinstance(first.record, Claim)
    assert first.record.state is ClaimState.DEFINED
    assert defined(autostart=False) == first
    assert isinstance(defined(autostart=True).error, AskedOtherwise)
