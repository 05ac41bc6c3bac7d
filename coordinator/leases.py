"""The leases on which reservations and outcomes hang: shared, since a grant is a commit.

A process grants one lease for all that it puts with the same TTL within a short window, as
the Kubernetes API server does for its events. A shared lease is never revoked or kept alive
for the sake of one name.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from coordinator.clock import Clock
    from coordinator.store import Store

__all__ = ["SharedLeases"]

# A lease lives this much longer than was asked for, and is shared for so long.
_SHARE = 0.05
_SHARE_AT_LEAST = 1.0


class _Granted(msgspec.Struct, frozen=True):
    id: int
    until: float  # boottime until which it gives what it promises


class SharedLeases:
    """Leases by TTL; each lives at least as long as whoever asks for it wants."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._granted: dict[int, _Granted] = {}
        self._granting: dict[int, asyncio.Task[_Granted]] = {}

    async def get(self, ttl: int) -> int:
        """The id of a lease with at least `ttl` seconds to live.

        Raises:
            StoreError: none could be granted.
        """
        granted = self._granted.get(ttl)
        if granted is None or self._clock.boottime() >= granted.until:
            # Whoever asks meanwhile waits for the same grant, and all go on in one turn.
            if ttl not in self._granting:
                self._granting[ttl] = asyncio.create_task(self._grant(ttl))
            granted = await asyncio.shield(self._granting[ttl])
        return granted.id

    async def _grant(self, ttl: int) -> _Granted:
        try:
            # Its age counts from before it was asked for: never too long a promise.
            asked = self._clock.boottime()
            window = max(_SHARE_AT_LEAST, ttl * _SHARE)
            lease = await self._store.grant(math.ceil(ttl + window))
            granted = self._granted[ttl] = _Granted(lease.id, asked + lease.ttl - ttl)
            return granted
        finally:
            del self._granting[ttl]

    def forget(self) -> None:
        """A lease turned out to be gone before its time; hand out none that was granted."""
        self._granted.clear()
