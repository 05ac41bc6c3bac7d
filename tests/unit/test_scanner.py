"""Looks at the bus: each begins after it was asked for, and misses no write."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.bus import Presence
from agent.metrics import Metrics
from agent.scanner import Scanner
from agent.simulated import SimulatedBus
from coordinator.clock import SystemClock
from coordinator.model import Name
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.bus import Scan
    from agent.scanner import Look

PARENT, TYPE = "0000:3b:00.0", "mtty-1"
NAME = Name("aaaaaaaa-0000-4000-8000-000000000001")


class Bus(SimulatedBus):
    """A bus whose scans call somebody when they have seen what they see."""

    seen: Callable[[], None] = staticmethod(lambda: None)

    def scan(self) -> Scan:
        """One scan."""
        scan = super().scan()
        self.seen()
        return scan


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    simulated.init(tmp_path / "host", 1, {TYPE: 4})
    return Bus(tmp_path / "host")


def scanner(bus: Bus, in_flight: Callable[[], frozenset[Name]] = frozenset) -> Scanner:
    return Scanner(bus, SystemClock(), in_flight, Metrics())


async def test_who_asks_during_a_scan_gets_one_that_begins_after_it(bus: Bus) -> None:
    """What has changed since that scan looked is in the look that is handed out."""
    looks, go, at = scanner(bus), threading.Event(), threading.Event()

    def held() -> None:
        at.set()
        assert go.wait(60.0)

    bus.seen = held
    first = asyncio.create_task(looks.fresh())
    await wait_until_async(at.is_set)
    bus.create(PARENT, TYPE, NAME)
    asked = asyncio.Event()

    async def ask() -> Look:
        asked.set()  # and asks before anybody else goes on
        return await looks.fresh()

    second = asyncio.create_task(ask())
    await asked.wait()
    go.set()
    assert (await first).scan.presence(NAME) is Presence.ABSENT
    assert (await second).scan.presence(NAME) is Presence.PRESENT


async def test_a_write_that_ends_during_a_look_is_seen(bus: Bus) -> None:
    """It is in flight or it is in the scan: a look that has neither frees a name that lives."""
    under_way = {NAME}

    def returns() -> None:
        """The create's write returns when the scan has looked."""
        bus.seen = lambda: None
        bus.create(PARENT, TYPE, NAME)
        under_way.clear()

    bus.seen = returns
    look = await scanner(bus, lambda: frozenset(under_way)).fresh()
    assert look.scan.presence(NAME) is Presence.ABSENT
    assert look.in_flight == {NAME}
