"""What of a namespace is offered to a shell, however large it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cli import offering
from coordinator.claims import Hold
from coordinator.model import Claim, MachineValue, Name, NameValue, SessionValue, encode
from coordinator.states import ClaimState
from coordinator.store import MAX_TXN_OPS, Put, Txn
from coordinator.views import Views
from tests.support.desk import HOST, OTHER, Desk, name, wish

if TYPE_CHECKING:
    from collections.abc import Iterable

MANY = 4096
DEFINED = frozenset({ClaimState.DEFINED})


async def reserved(desk: Desk, names: Iterable[Name]) -> list[Name]:
    """Take names without a host."""
    value, taken = encode(NameValue(host=None, request="r")), list(names)
    for first in range(0, len(taken), MAX_TXN_OPS):
        some = taken[first : first + MAX_TXN_OPS]
        await desk.store.txn(Txn(success=tuple(Put(desk.keys.name(one), value) for one in some)))
    return taken


async def defined(desk: Desk, one: Name) -> Name:
    """A name that is defined."""
    await reserved(desk, [one])
    hold = await Views(desk.store, desk.keys).find(one)
    assert isinstance(hold, Hold)
    claim = await desk.made(desk.claims.define(hold, wish(persistent=True), now="t", by=None))
    assert isinstance(claim, Claim)
    return one


def spread(count: int, start: str = "") -> list[Name]:
    """Names that begin with `start` and go on with every digit."""
    width = 8 - len(start)
    parts = (f"{start}{one * (16**width // count):0{width}x}" for one in range(count))
    return [Name(f"{part}-0000-4000-8000-000000000000") for part in parts]


async def test_all_names_are_offered_where_they_are_few() -> None:
    """Those that begin with what was typed, in order."""
    desk = Desk()
    taken = await reserved(desk, spread(64))
    assert await offering.names(desk.store, desk.keys, "") == taken
    assert await offering.names(desk.store, desk.keys, taken[5][:9]) == [taken[5]]


@pytest.mark.parametrize(("crowded", "start"), [("", ""), ("0", ""), ("7", "7"), ("70", "7")])
async def test_of_too_many_names_some_are_offered_that_leave_all_open(
    crowded: str, start: str
) -> None:
    """A shell that types what they have in common rules none of the others out."""
    desk = Desk()
    await reserved(desk, {*spread(MANY, crowded), *spread(64, start)})
    found = await offering.names(desk.store, desk.keys, start)
    assert 1 < len(found) <= MANY // 2
    assert len({one[: len(start) + 1] for one in found if one.startswith(start)}) > 1


async def test_of_too_many_names_that_cannot_be_told_apart_none_is_offered() -> None:
    """They have more in common than was typed, and so may not all the names have."""
    desk = Desk()
    await reserved(desk, (name(number) for number in range(MANY)))
    assert await offering.names(desk.store, desk.keys, "") == []
    assert len(await offering.names(desk.store, desk.keys, name(0)[:-2])) == 256


async def test_a_state_is_found_among_many_names_of_others() -> None:
    """One that is defined is offered although a thousand reservations come before it."""
    desk = Desk()
    await reserved(desk, (name(number) for number in range(1000)))
    last = await defined(desk, name(1000))
    assert await offering.names(desk.store, desk.keys, "", DEFINED) == [last]


async def test_one_of_a_state_is_not_offered_as_the_only_one_unless_all_were_looked_at() -> None:
    """There may be more of them among the names that were not."""
    desk = Desk()
    await reserved(desk, spread(MANY))
    first = await defined(desk, Name("00000000-0000-4000-8000-00000000000f"))
    assert await offering.names(desk.store, desk.keys, "", DEFINED) == []
    assert await offering.names(desk.store, desk.keys, first[:8], DEFINED) == [first]


async def test_only_hosts_that_are_not_seen_are_unreachable() -> None:
    """A host with a session is neither evicted nor forgotten."""
    desk = Desk()
    keys, alive = desk.keys, encode(SessionValue(instance="i", boot_id="b", version="1"))
    machines = (Put(keys.machine(host), encode(MachineValue(host=host))) for host in (HOST, OTHER))
    await desk.store.txn(Txn(success=(*machines, Put(keys.session(OTHER), alive))))
    assert await offering.hosts(desk.store, keys, "gpu") == [HOST, OTHER]
    assert await offering.unreachable_hosts(desk.store, keys, "gpu") == [HOST]
