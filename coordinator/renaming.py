"""The rename of a host: one machine that enrols under another host name from now on.

The machine record names the host that a machine may enrol as, so a machine whose host name
changed is refused until its claims, in whatever state, belong to the new name. A rename is many
commits:

1. *Take the epoch* of the old name, if no agent has a session under it; the new name gets the
   same epoch, which marks its claims as those of this rename. From here an agent of the old
   name is fenced, unless it enrols again: then the rename ends, and a repeat goes on.
2. *Move the claims*, each with its state and lease, under that epoch.
3. *Finish*: in one commit the identity and the machine record get the new name, if no claim is
   left under the old one.

Until 3 the machine is refused under the new name, so no agent meets half of its claims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.errors import Fenced, InUse, InvalidValue, Moved, NotFound
from coordinator.evicting import claims_of, departed, forced, machines_of, record
from coordinator.keys import last_part
from coordinator.model import IdentityValue, MachineValue, Name, Unreadable, decode, encode
from coordinator.store import Delete, Put, Txn, absent, get, prefix, unchanged, vacant, valued
from coordinator.transactions import settle
from coordinator.views import no_such_host, unreadable

if TYPE_CHECKING:
    from coordinator.client import Client
    from coordinator.store import Compare, KeyValue

__all__ = ["rename"]

_ROUNDS = 10  # how often claims that changed or appeared meanwhile are read again


async def rename(client: Client, host: str, to: str, *, reason: str) -> list[Name]:
    """Give all claims of `host`, and its machine, the host name `to`; returns the names.

    Devices, leases and states stay as they are. The agent must be stopped: it enrols as `to`
    afterwards. A rename that was cut off is finished by the same call.

    Raises:
        NotFound: no such host.
        InUse: an agent is alive under one of the names, or `to` is a host already.
        Fenced: the agent of `host` enrolled again meanwhile.
        MdevnsError: a claim cannot be read.
    """
    if host == to:
        raise InvalidValue(f"host {host}", "it has this name", "Name another one.")
    frozen = client.claims.no_hold().refusal(await client.views.hold())
    if frozen is not None:
        raise frozen
    identity = await _begin(client, host, to, reason)
    epoch = await _epoch(client, host)
    moved = await _move_claims(client, host, to, epoch)
    await _finish(client, host, to, identity, epoch)
    return moved


async def _begin(client: Client, host: str, to: str, reason: str) -> KeyValue:
    """Step 1; returns the identity of `host`."""
    keys = client.keys
    reads = (keys.identity(host), keys.identity(to), keys.session(to), keys.epoch(to))
    result = await client.store.txn(Txn(success=tuple(map(get, reads))))
    identity, taken, session, marked = (read.first for read in result.ranges())
    if identity is None:
        raise no_such_host(host)
    if taken is not None or session is not None:
        hint = f"Choose another name, or drop that host first: mdevns hosts forget {to}"
        raise InUse(f"host {to}", "it is enrolled already", hint)
    epoch = f"rename-{client.rng.getrandbits(128):032x}-{host}".encode()
    when: tuple[Compare, ...] = (
        unchanged(identity.key, identity.mod_revision),
        absent(keys.identity(to)),
        absent(keys.session(to)),
        unchanged(keys.epoch(to), 0 if marked is None else marked.mod_revision),
    )
    if not _is_ours(marked, host):
        when = (*when, vacant(prefix(keys.claims(to))))
    act = record(client, "rename", host, f"to {to}: {reason}")
    ops = (Put(keys.epoch(host), epoch), Put(keys.epoch(to), epoch), act)
    await forced(client, host, when, ops)
    return identity


def _is_ours(marked: KeyValue | None, host: str) -> bool:
    """Whether the claims under the new name come from an earlier rename of `host`."""
    if marked is None or not marked.value.startswith(b"rename-"):
        return False
    return marked.value.decode(errors="replace").split("-", 2)[2] == host


async def _epoch(client: Client, host: str) -> str:
    kv = (await client.store.range(get(client.keys.epoch(host)))).first
    value = "" if kv is None else kv.value.decode(errors="replace")
    if not value.startswith("rename-"):
        raise Fenced(f"host {host}", "its agent enrolled again", "Stop it, and repeat the rename.")
    return value


async def _move_claims(client: Client, host: str, to: str, epoch: str) -> list[Name]:
    """Step 2."""
    moved: list[Name] = []
    guard = client.claims.in_force(host, epoch)
    for _ in range(_ROUNDS):
        claims, unread = await claims_of(client, host)
        if unread:
            raise unreadable(Name(last_part(unread[0].key)), unread[0])
        if not claims:
            return moved
        changes = [client.claims.rename(claim, to) for claim in claims]
        for claim, answer in zip(claims, await client.commit(changes, guard), strict=True):
            if answer.error is None:
                moved.append(claim.name)
            elif not isinstance(answer.error, Moved):
                raise answer.error
    raise InUse(f"host {host}", "its names keep changing", "See who asks for them: mdevns list")


async def _finish(client: Client, host: str, to: str, identity: KeyValue, epoch: str) -> None:
    """Step 3; resent until its outcome is known."""
    keys = client.keys
    value = decode(identity, IdentityValue)
    if isinstance(value, Unreadable):
        raise NotFound(f"host {host}", f"its identity cannot be read: {value.why}")
    gone = departed(client, host)
    (left,) = (op for op in gone if isinstance(op, Put))
    machine = Put(keys.machine(value.machine_id), encode(MachineValue(host=to)))
    known = await machines_of(client, host, identity)
    txn = Txn(
        (
            valued(keys.epoch(host), epoch.encode()),
            valued(keys.epoch(to), epoch.encode()),
            absent(keys.session(host)),
            absent(keys.identity(to)),
            unchanged(identity.key, identity.mod_revision),
            *(unchanged(kv.key, kv.mod_revision) for kv in known),
            vacant(prefix(keys.claims(host))),
            client.claims.no_hold().compare,
        ),
        (
            *gone,
            *(Delete(kv.key) for kv in known if kv.key != machine.key),
            Put(keys.identity(to), identity.value),
            machine,
        ),
        (get(keys.epoch(host)), get(keys.hold)),
    )
    result = await settle(client.store, txn, patience=client.patience, rng=client.rng)
    if result.succeeded:
        return
    now, hold = (read.first for read in result.ranges())
    if now is not None and now.value == left.value:
        return  # an earlier copy of this very transaction
    refused = client.claims.no_hold().refusal(hold)
    if refused is not None:
        raise refused
    hint = f"Repeat the rename: mdevns hosts rename {host} {to}"
    raise InUse(f"host {host}", "it changed meanwhile", hint)
