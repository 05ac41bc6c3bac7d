"""The leases on which reservations and outcomes hang: shared, since a grant is a commit.

A process grants one lease for all that it puts with the same TTL within a short window, as
the Kubernetes API server does for its events. A shared lease is never revoked or kept alive
for the sake of one name.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.clock import Clock
    from coordinator.store import Store

__all__ = ["SharedLeases"]

# A lease lives this much longer than was asked for, and is shared for so long.
_SHARE = 0.05
_SHARE_AT_LEAST = 1.0


@dataclass(frozen=True, slots=True)
class _Granted:
    id: int
    until: float  # boottime until which it gives what it promises


class SharedLeases:
    """Leases by TTL; each lives at least as long as whoever asks for it wants."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._granted: dict[int, _Granted] = {}
        self._granting: dict[int, asyncio.Lock] = {}

    async def get(self, ttl: int) -> int:
        """The id of a lease with at least `ttl` seconds to live.

        Raises:
            StoreError: none could be granted.
        """
        async with self._granting.setdefault(ttl, asyncio.Lock()):
            granted = self._granted.get(ttl)
            # The grant's age counts from before it was asked for: never too long a promise.
            asked = self._clock.boottime()
            if granted is not None and asked < granted.until:
                return granted.id
            window = max(_SHARE_AT_LEAST, ttl * _SHARE)
            lease = await self._store.grant(math.ceil(ttl + window))
            self._granted[ttl] = _Granted(lease.id, asked + lease.ttl - ttl)
            return lease.id

    def forget(self) -> None:
        """A lease turned out to be gone before its time; hand out none that was granted."""
        self._granted.clear()
