"""Forced acts: taking the names of a host that is fenced off, and forgetting an empty one.

Whoever evicts says that the host is fenced: powered off, or cut from whatever its devices
could do harm to. Nothing here can see that. What it can see is that the host has no session,
and that is compared in the very transaction that takes the host's epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.errors import InUse, Moved, NotFound
from coordinator.model import (
    AuditValue,
    Claim,
    IdentityValue,
    Name,
    RestoreValue,
    Unreadable,
    decode,
    encode,
)
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn, absent, get, pages, prefix, prefix_end, unchanged
from coordinator.transactions import settle

if TYPE_CHECKING:
    from coordinator.client import Client
    from coordinator.store import Compare, KeyValue
    from coordinator.transactions import Guard

__all__ = ["Evicted", "audit", "evict", "forget"]

_ROUNDS = 10  # how often what moved or came meanwhile is looked for again


@dataclass(slots=True)
class Evicted:
    """What became of an evicted host's names, and what could not be read."""

    freed: list[Name] = field(default_factory=list)
    defined: list[Name] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)


async def evict(client: Client, host: str, *, reason: str, definitions: bool) -> Evicted:
    """Give a fenced host's names back: transient ones are free, persistent ones defined.

    The first transaction compares that the host has no session and writes, with the record
    for the audit, a new epoch; every later one compares that epoch. So an agent that comes
    back meanwhile ends the evict, and one that was only paused can do nothing any more. With
    `definitions` persistent names are given up too.

    Raises:
        NotFound: no such host.
        InUse: it has a living agent.
        Fenced: its agent enrolled again while it was evicted.
    """
    instance = f"evict-{client.rng.getrandbits(128):032x}"
    await _take_epoch(client, host, instance, _record(client, "evict", host, reason))
    evicted = Evicted()
    guard = client.claims.in_force(host, instance)
    for _ in range(_ROUNDS):
        guards = (await _permitted(client), guard)
        claims, evicted.unreadable = await _claims(client, host)
        left = [claim for claim in claims if definitions or claim.name not in evicted.defined]
        if not left:
            return evicted
        now = client.clock.now()
        changes = [client.claims.evict(c, definitions=definitions, now=now) for c in left]
        for claim, answer in zip(left, await client.commit_under(guards, changes), strict=True):
            if isinstance(answer.error, Moved):
                continue  # looked at again in the next round
            if answer.error is not None:
                raise await client.explained(claim.name, answer.error)
            made = answer.claim
            kept = made is not None and made.state is ClaimState.DEFINED
            (evicted.defined if kept else evicted.freed).append(claim.name)
    raise InUse(f"host {host}", "its names keep changing", "look who asks for them: mdevns list")


async def forget(client: Client, host: str, *, reason: str) -> None:
    """Drop a host that holds no name and has no agent, and the machine behind it.

    Raises:
        NotFound: no such host.
        InUse: it has a living agent, or holds names.
    """
    claims, unreadable = await _claims(client, host)
    if claims or unreadable:
        count = len(claims) + len(unreadable)
        raise InUse(f"host {host}", f"holds {count} names", f"see: mdevns list --host {host}")
    keys = client.keys
    identity = await _identity(client, host)
    gone: list[Put | Delete] = [
        Delete(keys.identity(host)),
        # Not deleted: that there is no epoch tells a host that returns of a store set back.
        Put(keys.epoch(host), f"forget-{client.rng.getrandbits(128):032x}".encode()),
        *(Delete(whole, prefix_end(whole)) for whole in (keys.parents(host), keys.findings(host))),
    ]
    value = decode(identity, IdentityValue)
    if isinstance(value, IdentityValue):
        gone.append(Delete(keys.machine(value.machine_id)))
    await _forced(
        client,
        host,
        (unchanged(identity.key, identity.mod_revision),),
        (*gone, _record(client, "forget", host, reason)),
    )


async def audit(client: Client) -> list[AuditValue]:
    """The forced acts, in the order in which they were done, whatever their clocks said."""
    kvs: list[KeyValue] = []
    async for page in pages(client.store, prefix(client.keys.audits)):
        kvs += page.kvs
    values = (decode(kv, AuditValue) for kv in sorted(kvs, key=lambda kv: kv.create_revision))
    return [value for value in values if isinstance(value, AuditValue)]


async def _take_epoch(client: Client, host: str, instance: str, record: Put) -> None:
    await _identity(client, host)
    await _forced(client, host, (), (Put(client.keys.epoch(host), instance.encode()), record))


async def _forced(
    client: Client, host: str, when: tuple[Compare, ...], ops: tuple[Put | Delete, ...]
) -> None:
    """Do it if the host has no session, in one transaction; sent again until it is known."""
    record = next(op for op in ops if isinstance(op, Put) and op.key.startswith(client.keys.audits))
    permitted = await _permitted(client)
    txn = Txn(
        (absent(client.keys.session(host)), permitted.compare, *when, absent(record.key)),
        ops,
        (get(client.keys.session(host)), get(client.keys.hold), get(record.key)),
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


async def _identity(client: Client, host: str) -> KeyValue:
    kv = (await client.store.range(get(client.keys.identity(host)))).first
    if kv is None:
        raise NotFound(f"host {host}", "no such host", "see: mdevns hosts")
    return kv


async def _claims(client: Client, host: str) -> tuple[list[Claim], list[Unreadable]]:
    claims: list[Claim] = []
    unreadable: list[Unreadable] = []
    async for record in client.views.records(host=host):
        if isinstance(record, Claim):
            claims.append(record)
        elif isinstance(record, Unreadable):
            unreadable.append(record)
    return claims, unreadable


def _record(client: Client, what: str, host: str, reason: str) -> Put:
    now = client.clock.now()
    value = AuditValue(who=client.asked_by, what=what, host=host, why=reason, at=now)
    return Put(client.keys.audit(now, f"{client.rng.getrandbits(64):016x}"), encode(value))
