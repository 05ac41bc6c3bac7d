"""Who asks in a line: ours as a process has it, and the bare stubs beside it."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Name
from coordinator.store import Put
from tests.bench.raw import Raw, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from coordinator.store import Store
    from coordinator.transactions import Change
    from tests.bench.figures import Stage

__all__ = ["TTL", "Asker", "asker", "new_names"]

TTL = 60  # seconds, of reservations
_PATIENCE = 10.0  # seconds


def new_names() -> Iterator[Name]:
    """Names that nobody has, without end, put together fast: who asks for one has it already."""
    rng = random.Random(random.SystemRandom().getrandbits(64))
    while True:
        bits = f"{rng.getrandbits(128):032x}"
        yield Name(f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-8{bits[17:20]}-{bits[20:]}")


@dataclass(frozen=True, slots=True)
class Asker:
    """One process's access to a cluster, as the CLI makes it, and the bare stubs."""

    keys: Keys
    store: EtcdStore
    client: Client
    raw: Raw

    def client_on(self, store: Store) -> Client:
        """Another client of the same cluster, on a store that shows what it is asked."""
        rng = random.Random(self.client.rng.getrandbits(64))
        return Client(
            store, self.keys, self.client.clock, rng, patience=_PATIENCE, asked_by="bench"
        )

    def apart(self, change: Change) -> list[tuple[bytes, bytes]]:
        """The keys and values that a change puts, under a prefix that is the stubs' alone."""
        puts = [op for op in change.then if isinstance(op, Put)]
        return [(b"/raw" + put.key.encode(), put.value) for put in puts]


@asynccontextmanager
async def asker(stage: Stage) -> AsyncIterator[Asker]:
    """Who asks in this line."""
    keys = Keys(stage.cluster)
    store = EtcdStore([stage.endpoint], probe=keys.hold)
    rng = random.Random(random.SystemRandom().getrandbits(64))
    client = Client(store, keys, SystemClock(), rng, patience=_PATIENCE, asked_by="bench")
    try:
        async with connect(stage.endpoint) as bare:
            yield Asker(keys, store, client, bare)
    finally:
        await client.close()
        await store.close()
