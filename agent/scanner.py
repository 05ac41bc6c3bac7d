"""Looks at the bus, shared by all who need one, and what was learnt of devices over time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.bus import Presence
from agent.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.bus import Bus, Device, Scan
    from agent.metrics import Metrics
    from coordinator.clock import Clock
    from coordinator.model import Name

__all__ = ["SETTLE", "Look", "Scanner"]

SETTLE = 1.0
"""Seconds for which a device that we did not make must have been seen before we touch it.

Seen is one that has a type, so no phantom of a create that fails: in the kernel the type comes
after the driver has taken it, and right before the write of its create returns (read, 6.1).
"""


@dataclass(frozen=True, slots=True)
class Look:
    """One look: the names with a write in flight, taken first, then the scan.

    In that order: a write that ends in between is seen in flight, never missed.
    """

    in_flight: frozenset[Name]
    scan: Scan

    def device(self, name: Name) -> Device | None:
        """The device of a name, if the scan met one."""
        return self.scan.devices.get(name)


class Scanner:
    """Fresh looks, one scan for all who ask at the same time, off the event loop."""

    def __init__(
        self, bus: Bus, clock: Clock, in_flight: Callable[[], frozenset[Name]], metrics: Metrics
    ) -> None:
        self._bus, self._clock, self._in_flight = bus, clock, in_flight
        self._metrics = metrics
        self._next: asyncio.Task[Look] | None = None
        self._running: asyncio.Task[Look] | None = None
        self._first_seen: dict[Name, float] = {}
        self._made: set[Name] = set()

    async def fresh(self) -> Look:
        """A look that begins after this call.

        Raises:
            OSError: the bus could not be scanned; nothing is known.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        return await asyncio.shield(self._next)

    def settled_in(self, name: Name) -> float:
        """Seconds until a device counts as settled; 0 when it does. Ours do at once."""
        if name in self._made:
            return 0.0
        seen = self._first_seen.get(name)
        return SETTLE if seen is None else max(0.0, seen + SETTLE - self._clock.boottime())

    def made(self, name: Name) -> None:
        """The write of our own create of this device has returned."""
        self._made.add(name)

    def stirred(self, names: Iterable[Name]) -> None:
        """Events came for these devices: what was seen of them begins anew."""
        now = self._clock.boottime()
        for name in names:
            if name in self._first_seen:
                self._first_seen[name] = now

    async def _after(self, running: asyncio.Task[Look] | None) -> Look:
        if running is not None:
            await asyncio.wait([running])
        # From here on whoever asks comes too late for this look and gets the next.
        self._running, self._next = self._next, None
        look = await in_thread(self._look)
        self._remember(look)
        return look

    def _look(self) -> Look:
        in_flight = self._in_flight()
        with self._metrics.scanning():
            return Look(in_flight, self._bus.scan())

    def _remember(self, look: Look) -> None:
        now = self._clock.boottime()
        # Without a type its create is under way: it is not seen yet.
        here = {
            n for n, d in look.scan.devices.items() if d.presence is Presence.PRESENT and d.type
        }
        for name in here:
            self._first_seen.setdefault(name, now)
        gone = [n for n in self._first_seen if look.scan.presence(n) is Presence.ABSENT]
        for name in gone:
            del self._first_seen[name]
            self._made.discard(name)
