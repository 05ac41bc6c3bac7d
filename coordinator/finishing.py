"""The end of a restore: who is waited for, which claims give way, and the commit that ends it.

`coordinator.restoring` tells the whole.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from coordinator.claims import Hold
from coordinator.errors import InUse, TryAgain
from coordinator.keys import last_part
from coordinator.model import (
    Claim,
    FindingKind,
    FindingValue,
    Name,
    RestoredValue,
    RestoreValue,
    Unreadable,
    decode,
    encode,
)
from coordinator.restoring import record_of, settled
from coordinator.states import ClaimState
from coordinator.store import (
    Compare,
    Delete,
    Put,
    Range,
    Target,
    Txn,
    get,
    pages,
    prefix,
    unchanged,
    unwritten_since,
    valued,
)
from coordinator.transactions import Guard, transact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.client import Client
    from coordinator.errors import MdevnsError
    from coordinator.store import KeyValue
    from coordinator.views import Record

__all__ = ["Conflict", "Finished", "finish"]

_AGAIN = 0.5  # seconds between looks at what is waited for
_WITHOUT_A_DEVICE = (ClaimState.RESERVED, ClaimState.DEFINED)


@dataclass(frozen=True, slots=True)
class Conflict:
    """A device of a name that another host's claim holds."""

    name: Name
    host: str


@dataclass(slots=True)
class Finished:
    """What became of a restore. It is finished when nothing is `left`.

    `restore` is None when there was none. `yielded` are the names of claims that gave way.
    """

    restore: RestoreValue | None = None
    hosts: list[str] = field(default_factory=list)
    yielded: list[Name] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    left: list[MdevnsError] = field(default_factory=list)


@dataclass(slots=True)
class _Host:
    """What stands in the store of one host."""

    known: bool = False
    alive: bool = False
    epoch: KeyValue | None = None
    restored: KeyValue | None = None
    conflicts: dict[Name, KeyValue] = field(default_factory=dict)

    def take_down(self, kind: str, kv: KeyValue) -> None:
        """Take note of one of its records."""
        match kind:
            case "identity" | "claims":  # an import brings claims of hosts that never enrolled
                self.known = True
            case "session":
                self.alive = True
            case "epoch":
                self.epoch = kv
            case "restored":
                self.restored = kv
            case "findings":
                value = decode(kv, FindingValue)
                if isinstance(value, FindingValue) and value.kind is FindingKind.CONFLICT:
                    self.conflicts[Name(last_part(kv.key))] = kv

    def told(self, restore: RestoreValue) -> RestoredValue | Unreadable | None:
        """What its present agent has told of the restore."""
        if self.restored is None or self.epoch is None:
            return None
        value = decode(self.restored, RestoredValue)
        if isinstance(value, Unreadable):
            return value
        ours = (value.restore, value.instance.encode()) == (restore.restore, self.epoch.value)
        return value if ours else None

    def evicted_since(self, hold: KeyValue) -> bool:
        """Whether it was evicted under this hold."""
        epoch = self.epoch
        if epoch is None or not epoch.value.startswith(b"evict-"):
            return False
        return epoch.mod_revision > hold.mod_revision


async def finish(client: Client, *, wait: float = 0.0) -> Finished:
    """End the restore, once every host has told that all is noted; waits so many seconds for it.

    Raises:
        InUse: the hold is an import's.
        OutcomeUnknown: it may have been ended, now or later.
    """
    end = client.clock.boottime() + wait
    finished = Finished()
    while True:
        finished.left, finished.conflicts = [], []
        look = await _look(client)
        if look.hold is None:
            return finished
        await _Pass(client, look, look.hold, finished).run()
        if not finished.left or client.clock.boottime() >= end:
            return finished
        await asyncio.sleep(_AGAIN)


@dataclass(frozen=True, slots=True)
class _Look:
    """The hold, and what stands of every host, all at one revision."""

    hold: KeyValue | None
    hosts: dict[str, _Host]
    revision: int


async def _look(client: Client) -> _Look:
    keys, hosts, revision = client.keys, dict[str, _Host](), 0
    async for page in pages(client.store, prefix(keys.hosts)):
        revision = page.revision
        for kv in page.kvs:
            host, _, rest = kv.key.removeprefix(keys.hosts).partition("/")
            hosts.setdefault(host, _Host()).take_down(rest.partition("/")[0], kv)
    hold = (await client.store.range(Range(keys.hold, revision=revision))).first
    return _Look(hold, hosts, revision)


class _Pass:
    """One look at all hosts, and what follows from it."""

    def __init__(self, client: Client, look: _Look, hold: KeyValue, finished: Finished) -> None:
        self._client, self._hold, self._finished = client, hold, finished
        self._hosts, self._revision = look.hosts, look.revision
        restore = decode(hold, RestoreValue)
        if not isinstance(restore, RestoreValue):
            why = "is held, and not by a restore"
            raise InUse("the namespace", why, "see: mdevns check")
        self._restore = finished.restore = restore
        finished.hosts = sorted(host for host, one in look.hosts.items() if one.known)
        self._ready: set[str] = set()

    async def run(self) -> None:
        """Let what must give way, and end the hold when nothing is left to wait for."""
        finished = self._finished
        if self._hold.lease:
            finished.left.append(TryAgain("the restore", "is just being begun", "try again"))
        for host in finished.hosts:
            why = self._waits(host)
            if why is None:
                self._ready.add(host)
            else:
                finished.left.append(why)
        for host, one in self._hosts.items():
            await self._settle_conflicts(host, one.conflicts)
        if not finished.left:
            await self._lift()

    def _waits(self, host: str) -> MdevnsError | None:
        """Why a host is waited for."""
        one, what = self._hosts[host], f"host {host}"
        if one.evicted_since(self._hold):
            return None
        told = one.told(self._restore)
        if isinstance(told, Unreadable):
            return TryAgain(what, f"what it tells cannot be read: {told.why}", "upgrade this one")
        if told is not None:
            if told.waits is None:
                return None
            hint = "try again; more is in the log of its agent"
            return TryAgain(what, f"is not done: {told.waits}", hint)
        if one.alive:
            return TryAgain(what, "its agent has not told yet that all is noted", "try again")
        hint = (
            f"start it; if it never comes back: mdevns evict {host} --confirm-fenced "
            f"--reason TEXT, or where it holds no name: mdevns hosts forget {host}"
        )
        return TryAgain(what, "its agent was not seen since the restore began", hint)

    async def _settle_conflicts(self, host: str, conflicts: dict[Name, KeyValue]) -> None:
        """For each device of a host that another one's claim stands against: who gives way?"""
        records = await self._client.views.find_all(list(conflicts)) if conflicts else {}
        for name, record in records.items():
            if record is None:
                self._unclaimed(name, host, "is free")
            elif not self._is_open(host, record):
                proof = self._proof(record)
                if proof is None or isinstance(record, Unreadable):
                    self._finished.conflicts.append(Conflict(name, host))
                    continue
                finding = unchanged(
                    self._client.keys.finding(host, name), conflicts[name].mod_revision
                )
                await self._give_way(record, host, (finding, *proof))
                self._unclaimed(name, host, "was given up")

    def _unclaimed(self, name: Name, host: str, what: str) -> None:
        """A name that nobody holds and that somebody else could take, were the hold to go."""
        why = f"{what}, and {host} has yet to claim it for its device"
        self._finished.left.append(TryAgain(name, why, "try again", name=name))

    def _is_open(self, host: str, record: Record) -> bool:
        """Whether it is settled by itself, or what is behind the claim is not known yet."""
        if not isinstance(record, Claim):
            return False
        if record.host == host:
            return True  # it has its name by now, and the finding is about to go
        holder = self._hosts.get(record.host)
        return holder is not None and holder.known and record.host not in self._ready

    def _proof(self, record: Record) -> tuple[Compare, ...] | None:
        """What shows that no device is behind a claim; None when there may be one."""
        if isinstance(record, Unreadable):
            return None
        if isinstance(record, Hold) or record.state in _WITHOUT_A_DEVICE:
            return ()
        holder = self._hosts.get(record.host)
        if holder is not None and holder.epoch and holder.evicted_since(self._hold):
            # Its evict was cut off, or is under way: it is fenced off, and its names are given up.
            return (unchanged(holder.epoch.key, holder.epoch.mod_revision),)
        told = None if holder is None else holder.told(self._restore)
        if holder is None or holder.restored is None or not isinstance(told, RestoredValue):
            return None
        if told.absent.get(record.name) != record.revision:
            return None
        key = self._client.keys.restored(record.host)
        return (unchanged(key, holder.restored.mod_revision),)

    async def _give_way(self, record: Claim | Hold, host: str, proofs: Sequence[Compare]) -> None:
        """Free a name for the device that `host` has, unless something has changed meanwhile."""
        client, name = self._client, record.name
        why = f"{name}: its device is on {host}, after a restore"
        act = record_of(client, "yield", record.holder.host, why)
        change = client.claims.give_way(record)
        change = msgspec.structs.replace(change, then=(*change.then, act))
        guards = [Guard(proof, TryAgain, name, "changed meanwhile") for proof in proofs]
        guards.insert(0, client.claims.restoring(self._hold))
        try:
            (answer,) = await transact(
                client.store, guards, [change], patience=client.patience, rng=client.rng
            )
        except TryAgain:  # it is looked at again
            return
        if answer.error is None:
            self._finished.yielded.append(name)

    async def _lift(self) -> None:
        """End the hold; that of an import comes back, for the next import to take back."""
        client, restore, finished = self._client, self._restore, self._finished
        why = (
            f"restore {restore.restore}, begun by {restore.begun_by} at {restore.at}: "
            f"{restore.why}; {len(finished.yielded)} claims gave way, "
            f"{len(finished.conflicts)} conflicts"
        )
        hold, back = client.keys.hold, restore.imported
        record = record_of(client, "restore finish", None, why)
        result = await settled(
            client,
            Txn(
                (
                    valued(hold, self._hold.value),
                    Compare(hold, Target.LEASE, "=", 0),
                    # An enrolment writes its machine. Whoever comes after the look is waited for.
                    unwritten_since(prefix(client.keys.machines), self._revision),
                ),
                (Delete(hold) if back is None else Put(hold, encode(back)), record),
                (get(record.key),),
            ),
        )
        if not result.succeeded and result.ranges()[0].first is None:
            why = "its hold changed, or a host enrolled, at that moment"
            finished.left.append(TryAgain("the restore", why, "try again"))
