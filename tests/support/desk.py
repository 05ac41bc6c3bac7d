"""A store in memory with a clock, and what unit tests of the coordinator ask of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.claims import Claims
from coordinator.keys import Keys
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.model import Claim, Name, NameValue, Wish, decode, read_claim
from coordinator.store import get
from coordinator.transactions import Answer, Change, Guard, transact

if TYPE_CHECKING:
    from coordinator.store import KeyValue, Store

__all__ = ["HOST", "NAME", "OTHER", "PARENT", "TYPE", "Desk", "ManualClock", "name", "wish"]

HOST, OTHER, PARENT, TYPE = "gpu01", "gpu02", "0000:3b:00.0", "mtty-2"


def name(number: int) -> Name:
    """The n-th name of a test."""
    return Name(f"aaaaaaaa-0000-4000-8000-{number:012x}")


NAME = name(1)


def wish(
    host: str = HOST, parent: str = PARENT, *, persistent: bool = False, autostart: bool = False
) -> Wish:
    """A wish for a device."""
    return Wish(host=host, parent=parent, type=TYPE, persistent=persistent, autostart=autostart)


@dataclass
class ManualClock:
    """A clock that stands with the store's, and a time of day that tells calls apart."""

    core: MemoryEtcd
    calls: int = 0

    def boottime(self) -> float:
        """Seconds of the store's clock."""
        return self.core.now

    def now(self) -> str:
        """A time of day that was not told before."""
        self.calls += 1
        return f"2026-01-01T00:00:{self.calls:09.6f}Z"


@dataclass
class Desk:
    """The store, the transitions, and one caller's transactions."""

    core: MemoryEtcd = field(default_factory=MemoryEtcd)
    keys: Keys = field(default_factory=lambda: Keys("test"))

    def __post_init__(self) -> None:
        """Make what hangs on the core."""
        self.store: Store = MemoryStore(self.core)
        self.claims = Claims(self.keys)
        self.clock = ManualClock(self.core)
        self.rng = random.Random(7)

    async def make(self, *changes: Change, guards: tuple[Guard, ...] = ()) -> list[Answer]:
        """Make changes in one transaction."""
        return await transact(self.store, guards, changes, patience=None, rng=self.rng)

    async def made(self, change: Change) -> Claim:
        """Make one change that must succeed and leave a claim."""
        (answer,) = await self.make(change)
        claim = answer.made()
        assert claim is not None
        return claim

    async def reserved(
        self, which: Name = NAME, wanted: Wish | None = None, request: str = "r"
    ) -> Claim:
        """A reserved claim."""
        lease = self.core.grant(60).id
        return await self.made(
            self.claims.reserve(
                which, request, wanted or wish(), lease=lease, now=self.clock.now(), by="me"
            )
        )

    async def creating(self, which: Name = NAME, wanted: Wish | None = None) -> Claim:
        """A claim that was begun."""
        reserved = await self.reserved(which, wanted)
        return await self.made(self.claims.begin(reserved, boot_id="b1", now=self.clock.now()))

    async def active(self, which: Name = NAME, wanted: Wish | None = None) -> Claim:
        """An active claim."""
        begun = await self.creating(which, wanted)
        return await self.made(self.claims.activate(begun, boot_id="b1", now=self.clock.now()))

    def kv(self, key: str) -> KeyValue | None:
        """What stands under a key."""
        return self.core.range(get(key)).first

    def records(
        self, which: Name = NAME, host: str = HOST
    ) -> tuple[NameValue | None, Claim | None]:
        """The two records of a name, which must share revision and lease."""
        name_kv, claim_kv = self.kv(self.keys.name(which)), self.kv(self.keys.claim(host, which))
        if name_kv is not None and claim_kv is not None:
            assert name_kv.mod_revision == claim_kv.mod_revision
            assert name_kv.lease == claim_kv.lease
        taken = None if name_kv is None else decode(name_kv, NameValue)
        claim = None if claim_kv is None else read_claim(claim_kv)
        assert taken is None or isinstance(taken, NameValue)
        assert claim is None or isinstance(claim, Claim)
        return taken, claim
