"""Leases that reservations share."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import StoreReadOnly
from coordinator.leases import SharedLeases
from tests.support.desk import Desk

TTL = 60


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_who_asks_at_the_same_time_shares_one_grant(desk: Desk) -> None:
    """A grant is a commit; 64 who ask together cost one, and go on in the same turn."""
    leases = SharedLeases(desk.store, desk.clock)
    got = await asyncio.gather(*(leases.get(TTL) for _ in range(64)))
    assert len(set(got)) == 1
    assert len(desk.core.leases()) == 1


async def test_a_lease_lives_as_long_as_whoever_asks_for_it_wants(desk: Desk) -> None:
    """It is handed out only while it has the whole time to live left."""
    leases = SharedLeases(desk.store, desk.clock)
    first = await leases.get(TTL)
    desk.core.advance(2)
    assert await leases.get(TTL) == first
    desk.core.advance(TTL)
    assert first in desk.core.leases()
    second = await leases.get(TTL)
    assert second != first
    desk.core.advance(TTL)
    assert second in desk.core.leases()


async def test_one_that_turned_out_to_be_gone_is_not_handed_out_again(desk: Desk) -> None:
    """etcd had bugs that revoke living leases."""
    leases = SharedLeases(desk.store, desk.clock)
    first = await leases.get(TTL)
    desk.core.expire(first)
    leases.forget()
    assert await leases.get(TTL) != first


async def test_a_grant_that_fails_is_told_to_all_and_tried_anew(desk: Desk) -> None:
    """Nobody waits for ever, and the next who asks gets one."""
    leases = SharedLeases(desk.store, desk.clock)
    desk.core.full = True
    failed = await asyncio.gather(*(leases.get(TTL) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [StoreReadOnly] * 3
    desk.core.full = False
    assert await leases.get(TTL) in desk.core.leases()


async def test_one_who_gives_up_takes_nobodys_grant_away(desk: Desk) -> None:
    """The others get theirs."""
    leases = SharedLeases(desk.store, desk.clock)
    doomed, other = (asyncio.create_task(leases.get(TTL)) for _ in range(2))
    asyncio.get_running_loop().call_soon(doomed.cancel)
    assert await other in desk.core.leases()
