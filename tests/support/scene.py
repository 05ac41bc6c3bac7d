"""A cluster in memory whose hosts answer as they are told, and one client, on virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.claims import Failure
from coordinator.client import Client, Result
from coordinator.creating import Ask, create
from coordinator.model import (
    Claim,
    IdentityValue,
    LastError,
    MachineValue,
    Name,
    ParentType,
    ParentValue,
    SessionValue,
    encode,
    read_claim,
)
from coordinator.operating import remove
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn, prefix
from coordinator.transactions import transaction
from tests.support.desk import TYPE, Desk, name
from tests.support.virtual_time import pass_time, run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from coordinator.store import Store
    from coordinator.transactions import Change

__all__ = ["TTL", "Scene", "ToldHost", "ask"]

TTL = 60


class ToldHost:
    """Stands in for a host's agent: moves claims on as a test tells it to."""

    def __init__(self, desk: Desk, host: str, parents: dict[str, int], lease: int) -> None:
        self.desk, self.host = desk, host
        keys, claims = desk.keys, desk.claims
        session = SessionValue(instance=host, boot_id="b", version="0")
        puts = [
            Put(keys.machine(f"m-{host}"), encode(MachineValue(host=host))),
            Put(keys.identity(host), encode(IdentityValue(machine_id=f"m-{host}"))),
            Put(keys.session(host), encode(session), lease),
        ]
        for parent, available in parents.items():
            types = (ParentType(type=TYPE, available=available),)
            puts.append(Put(keys.parent(host, parent), encode(ParentValue(types=types))))
        desk.core.txn(Txn(success=tuple(puts)))
        self.claims = claims
        self.refuses: dict[str, str] = {}  # parent: errno
        self.begun: list[str] = []  # parents on which a create was begun
        self.busy = False

    def claims_now(self) -> list[Claim]:
        """All claims of the host."""
        kvs = self.desk.core.range(prefix(self.desk.keys.claims(self.host))).kvs
        return [claim for kv in kvs if isinstance(claim := read_claim(kv), Claim)]

    def work(self) -> None:
        """One step on each claim."""
        for claim in self.claims_now():
            change = self._next(claim)
            if change is not None:
                self.desk.core.txn(transaction((), [change]))

    def _next(self, claim: Claim) -> Change | None:
        claims = self.claims
        errno = self.refuses.get(claim.parent)
        if claim.state is ClaimState.RESERVED:
            self.begun.append(claim.parent)
            return claims.begin(claim, boot_id="b", now="t")
        if claim.state is ClaimState.CREATING and errno:
            failure = Failure(LastError(errno, f"the kernel said {errno}", "t"), 0)
            return claims.abort(claim, failure, now="t")
        if claim.state is ClaimState.CREATING:
            return claims.activate(claim, boot_id="b", now="t")
        if claim.state is ClaimState.REMOVING and self.busy:
            return claims.restore(claim, LastError("EBUSY", "it is open", "t"), now="t")
        if claim.state is ClaimState.REMOVING:
            return claims.release(claim, boot_id="b", now="t")
        return None


class Scene:
    """A cluster in memory, its hosts and one client."""

    def __init__(self, store: Store | None = None) -> None:
        self.desk = Desk()
        self.session = self.desk.core.grant(100_000).id
        self.hosts: list[ToldHost] = []
        self.store = store or self.desk.store
        self.patience = 5.0

    def host(self, host: str, **parents: int) -> ToldHost:
        """A living host whose parents have so many instances left."""
        told = ToldHost(self.desk, host, parents, self.session)
        self.hosts.append(told)
        return told

    def run(self, work: Callable[[Client], Coroutine[None, None, list[Result]]]) -> list[Result]:
        """Run a request while the hosts work."""

        async def scene() -> list[Result]:
            client = Client(
                self.store,
                self.desk.keys,
                self.desk.clock,
                self.desk.rng,
                patience=self.patience,
                asked_by="me",
            )
            hosts = asyncio.create_task(self._hosts())
            try:
                return await work(client)
            finally:
                hosts.cancel()
                await client.close()

        return run_virtual(scene(), self.desk.core)

    async def _hosts(self) -> None:
        while True:
            await pass_time(0.1)
            self.work()

    def work(self) -> None:
        """One step of each host's agent."""
        for host in self.hosts:
            host.work()

    def end_session(self, host: str) -> None:
        """A host's agent is not seen any more, and does nothing."""
        self.hosts = [told for told in self.hosts if told.host != host]
        self.desk.core.txn(Txn(success=(Delete(self.desk.keys.session(host)),)))

    def create(self, *asks: Ask, wait: bool = True) -> list[Result]:
        """Create and wait."""
        return self.run(lambda client: create(client, asks, ttl=TTL, wait=wait))

    def remove(self, *names: Name) -> list[Result]:
        """Remove and wait."""
        return self.run(lambda client: remove(client, names))


def ask(
    number: int = 1, *, host: str | None = None, parent: str | None = None, type_: str = TYPE
) -> Ask:
    return Ask(name=name(number), request="req", type=type_, host=host, parent=parent)
