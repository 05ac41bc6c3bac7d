"""Forced acts: taking the names of a host that is fenced off, and forgetting an empty one.

Whoever evicts says that the host is fenced: powered off, or cut from whatever its devices
could do harm to. Nothing here can see that. What it can see is that the host has no session,
and that is compared in the very transaction that takes the host's epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.errors import InUse, Moved
from coordinator.keys import last_part
from coordinator.model import (
    AuditValue,
    Claim,
    IdentityValue,
    MachineValue,
    Name,
    RestoreValue,
    Unreadable,
    decode,
    encode,
)
from coordinator.states import ClaimState
from coordinator.store import (
    Delete,
    Put,
    Txn,
    absent,
    get,
    pages,
    prefix,
    prefix_end,
    unchanged,
    vacant,
)
from coordinator.transactions import settle
from coordinator.views import no_such_host

if TYPE_CHECKING:
    from coordinator.client import Client
    from coordinator.store import Compare, KeyValue
    from coordinator.transactions import Guard

__all__ = [
    "Evicted",
    "audit",
    "claims_of",
    "departed",
    "evict",
    "evicted_epoch",
    "forced",
    "forget",
    "machines_of",
    "record",
]

_ROUNDS = 10  # how often what moved or came meanwhile is looked for again


@dataclass(slots=True)
class Evicted:
    """What became of an evicted host's names.

    `unreadable` could not be read; of those `left` the claim never stood as it was read, as
    where name and claim disagree.
    """

    freed: list[Name] = field(default_factory=list)
    defined: list[Name] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    left: list[Name] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing of the host was left."""
        return not self.unreadable and not self.left


async def evict(client: Client, host: str, *, reason: str, definitions: bool) -> Evicted:
    """Give a fenced host's names back: transient ones are free, persistent ones defined.

    The first transaction compares that the host has no session and writes, with the record
    for the audit, a new epoch; every later one compares that epoch. So an agent that comes
    back meanwhile ends the evict, and one that was only paused can do nothing any more. With
    `definitions` persistent names are given up too. A record that cannot be read, or whose name
    and claim disagree, stops no other.

    Raises:
        NotFound: it never enrolled, and has no claim either.
        InUse: it has a living agent.
        Fenced: its agent enrolled again while it was evicted.
    """
    instance = f"evict-{client.rng.getrandbits(128):032x}"
    await _take_epoch(client, host, instance, record(client, "evict", host, reason))
    evicted = Evicted()
    guard = client.claims.in_force(host, instance)
    for _ in range(_ROUNDS):
        guards = (await _permitted(client), guard)
        claims, evicted.unreadable = await claims_of(client, host)
        todo = [claim for claim in claims if definitions or claim.name not in evicted.defined]
        evicted.left = []
        if not todo:
            break
        now = client.clock.now()
        changes = [client.claims.evict(c, definitions=definitions, now=now) for c in todo]
        for claim, answer in zip(todo, await client.commit_under(guards, changes), strict=True):
            if isinstance(answer.error, Moved):
                evicted.left.append(claim.name)  # looked at again in the next round
                continue
            if answer.error is not None:
                raise await client.explained(claim.name, answer.error)
            made = answer.claim
            kept = made is not None and made.state is ClaimState.DEFINED
            (evicted.defined if kept else evicted.freed).append(claim.name)
    return evicted


async def forget(client: Client, host: str, *, reason: str) -> None:
    """Drop a host that holds no name and has no agent, and the machine behind it.

    The transaction compares that the host has no claim, so a claim that appears after the look
    stops it.

    Raises:
        NotFound: no such host.
        InUse: it has a living agent, or holds names.
    """
    claims, unreadable = await claims_of(client, host)
    if claims or unreadable:
        count = len(claims) + len(unreadable)
        raise InUse(f"host {host}", f"holds {count} names", f"see: mdevns list --host {host}")
    keys = client.keys
    identity = (await client.store.range(get(keys.identity(host)))).first
    machines = await machines_of(client, host, identity)
    if identity is None and not machines:
        raise no_such_host(host)
    await forced(
        client,
        host,
        (
            unchanged(keys.identity(host), 0 if identity is None else identity.mod_revision),
            *(unchanged(machine.key, machine.mod_revision) for machine in machines),
            vacant(prefix(keys.claims(host))),
        ),
        (
            *departed(client, host),
            *(Delete(machine.key) for machine in machines),
            record(client, "forget", host, reason),
        ),
    )


def departed(client: Client, host: str) -> tuple[Put | Delete, ...]:
    """Drop all records of a host but its claims, and leave an epoch that no agent has.

    The epoch stays since its absence shows a returning host that etcd was rolled back.
    """
    keys = client.keys
    return (
        Delete(keys.identity(host)),
        Delete(keys.restored(host)),
        Put(keys.epoch(host), f"forget-{client.rng.getrandbits(128):032x}".encode()),
        *(Delete(whole, prefix_end(whole)) for whole in (keys.parents(host), keys.findings(host))),
    )


async def machines_of(client: Client, host: str, identity: KeyValue | None) -> list[KeyValue]:
    """The machine records of a host: the one that its identity names, and all that name it."""
    value = None if identity is None else decode(identity, IdentityValue)
    own = value.machine_id if isinstance(value, IdentityValue) else None
    found = []
    async for page in pages(client.store, prefix(client.keys.machines)):
        for kv in page.kvs:
            machine = decode(kv, MachineValue)
            named = isinstance(machine, MachineValue) and machine.host == host
            if named or (isinstance(machine, Unreadable) and last_part(kv.key) == own):
                found.append(kv)
    return found


async def evicted_epoch(client: Client, host: str) -> str | None:
    """The epoch of a host that was evicted and has not enrolled since; None of any other.

    Such a host is fenced by an operator's word. A transaction under `in_force` of this epoch is
    refused as soon as its agent enrols.
    """
    kv = (await client.store.range(get(client.keys.epoch(host)))).first
    epoch = "" if kv is None else kv.value.decode(errors="replace")
    return epoch if epoch.startswith("evict-") else None


async def audit(client: Client) -> list[AuditValue | Unreadable]:
    """The forced acts, in the order in which they were done, whatever their clocks said.

    A record that cannot be read is there as such.
    """
    kvs: list[KeyValue] = []
    async for page in pages(client.store, prefix(client.keys.audits)):
        kvs += page.kvs
    return [decode(kv, AuditValue) for kv in sorted(kvs, key=lambda kv: kv.create_revision)]


async def _take_epoch(client: Client, host: str, instance: str, record: Put) -> None:
    if not await client.views.is_known(host):
        raise no_such_host(host)
    await forced(client, host, (), (Put(client.keys.epoch(host), instance.encode()), record))


async def forced(
    client: Client, host: str, when: tuple[Compare, ...], ops: tuple[Put | Delete, ...]
) -> None:
    """Apply `ops` in one transaction if the host has no session; resent until it is known.

    `ops` hold exactly one record of the audit, by which an earlier copy is recognised.

    Raises:
        InUse: the host has a living agent, or `when` does not hold.
    """
    act = next(op for op in ops if isinstance(op, Put) and op.key.startswith(client.keys.audits))
    permitted = await _permitted(client)
    txn = Txn(
        (absent(client.keys.session(host)), permitted.compare, *when, absent(act.key)),
        ops,
        (get(client.keys.session(host)), get(client.keys.hold), get(act.key)),
    )
    result = await settle(client.store, txn, patience=client.patience, rng=client.rng)
    if result.succeeded:
        return
    session, hold, done = (read.first for read in result.ranges())
    if done is not None:
        return  # an earlier copy of this very transaction
    error = permitted.refusal(hold)
    if error is not None:
        raise error
    if session is not None:
        hint = "fence it first, and let its session lapse"
        raise InUse(f"host {host}", "its agent is alive", hint)
    raise InUse(f"host {host}", "changed meanwhile", "try again")


async def _permitted(client: Client) -> Guard:
    """That nothing is held, or only for a restore, which a host that is gone would hold up.

    What an evict frees is not handed out before the restore is finished.
    """
    hold = (await client.store.range(get(client.keys.hold))).first
    if hold is not None and isinstance(decode(hold, RestoreValue), RestoreValue):
        return client.claims.restoring(hold)
    return client.claims.no_hold()


async def claims_of(client: Client, host: str) -> tuple[list[Claim], list[Unreadable]]:
    """The claims of a host, and the records among them that cannot be read."""
    claims: list[Claim] = []
    unreadable: list[Unreadable] = []
    async for record in client.views.records(host=host):
        if isinstance(record, Claim):
            claims.append(record)
        elif isinstance(record, Unreadable):
            unreadable.append(record)
    return claims, unreadable


def record(client: Client, what: str, host: str, reason: str) -> Put:
    """The audit record of a forced act: what was done to which host, by whom and why."""
    now = client.clock.now()
    value = AuditValue(who=client.asked_by, what=what, host=host, why=reason, at=now)
    return Put(client.keys.audit(now, f"{client.rng.getrandbits(64):016x}"), encode(value))
