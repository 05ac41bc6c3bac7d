"""Around a restore of etcd from a snapshot: `begin` holds the namespace, `finish` lets it go.

A store that is set back has forgotten names that live. While its `hold` is a restore's, agents
take note of what exists and nobody takes, begins or frees a name. Step by step:

1. *Begin*, before agents may connect; one that meets a store set back does it itself, in the
   transaction by which it enrols. An operator's hold is first put on a lease and then, by its
   value, taken off it together with the audit's record, which the first compares to be absent: a
   copy that comes late finds the record, or goes with the lease. So none can hold a store that
   was finished meanwhile.
2. Each host's agent enrols under the hold, so that nothing of an enrolment before it can come
   late, looks at its devices, and tells in `hosts/<host>/restored` when all is noted.
3. *Finish*: where a host has a device of a name that another one's claim holds, behind which no
   device can be, that claim gives way. The name had moved after the snapshot; were it begun on
   the host that held it then, there would be two devices of one name. Once every host that the
   store knows has told, or was evicted since, and every such device has its name, one commit
   ends the hold. Two devices of one name stay what they are, a conflict.

A host that enrolled for the first time after the snapshot is unknown to the store until it is
back, and nobody waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.errors import InUse, OutcomeUnknown
from coordinator.model import (
    AuditValue,
    HoldValue,
    RestoreValue,
    Unreadable,
    decode,
    encode,
)
from coordinator.store import Put, Txn, absent, get, unchanged, valued
from coordinator.transactions import settle

if TYPE_CHECKING:
    from coordinator.client import Client
    from coordinator.store import Compare, KeyValue, TxnResult

__all__ = ["Begun", "begin", "record_of", "settled"]

_TTL = 20  # seconds for which a hold stays whose beginning was cut off
_ROUNDS = 10  # how often a hold that changed meanwhile is read again


@dataclass(frozen=True, slots=True)
class Begun:
    """The restore that was begun, and the one whose hold it has replaced."""

    restore: RestoreValue
    before: RestoreValue | None


async def begin(client: Client) -> Begun:
    """Hold the namespace; an import's hold is carried along.

    Also where a restore holds it already: that hold may have been in the snapshot, with the words
    of hosts that have not noted what came after it. So all of them tell again.

    Raises:
        InUse: another process is just beginning one.
        OutcomeUnknown: it may have been begun, or may be within 20 s; not later.
    """
    for _ in range(_ROUNDS):
        hold = (await client.store.range(get(client.keys.hold))).first
        known = None if hold is None else decode(hold, RestoreValue)
        before = known if isinstance(known, RestoreValue) else None
        if before is not None and hold is not None and hold.lease:
            raise InUse("the restore", "is just being begun", "try again in a moment")
        begun = await _begin_over(client, hold, before)
        if begun is not None:
            return Begun(begun, before)
    raise InUse("the namespace", "its hold keeps changing", "who imports? see: mdevns check")


async def _begin_over(
    client: Client, hold: KeyValue | None, before: RestoreValue | None
) -> RestoreValue | None:
    """Put a hold in the place of what stands; None when that has changed meanwhile."""
    value = RestoreValue(
        restore=f"{client.rng.getrandbits(128):032x}",
        who=client.asked_by,
        why="an operator has begun it",
        at=client.clock.now(),
        imported=before.imported if before else _import(client, hold),
    )
    record = record_of(client, "restore begin", None, f"restore {value.restore}")
    compare = valued(client.keys.hold, encode(value))
    if hold is not None:
        compare = unchanged(client.keys.hold, hold.mod_revision)
    elif not await _take(client, value, record):
        return None
    return value if await _keep(client, compare, value, record) else None


def _import(client: Client, hold: KeyValue | None) -> HoldValue | None:
    """The import whose hold it is, if there is anything of it to be taken back.

    Raises:
        StoreReadOnly: it is nobody's that is known here.
    """
    imported = None if hold is None else decode(hold, HoldValue)
    if hold is not None and isinstance(imported, Unreadable):
        refusal = client.claims.no_hold().refusal(hold)
        assert refusal is not None
        raise refusal
    # One that hangs on a lease has written nothing yet.
    return imported if isinstance(imported, HoldValue) and hold and not hold.lease else None


async def _take(client: Client, value: RestoreValue, record: Put) -> bool:
    """Put the hold on a lease, where there is none; whether it is ours."""
    hold, wanted = client.keys.hold, encode(value)
    lease = (await client.store.grant(_TTL)).id
    result = await settled(
        client,
        Txn((absent(hold), absent(record.key)), (Put(hold, wanted, lease),), (get(hold),)),
    )
    if result.succeeded:
        return True
    standing = result.ranges()[0].first
    return standing is not None and standing.value == wanted


async def _keep(client: Client, compare: Compare, value: RestoreValue, record: Put) -> bool:
    """Put the hold to stay, with the audit's record; whether that is done."""
    result = await settled(
        client,
        Txn(
            (compare,),
            (Put(client.keys.hold, encode(value)), record),
            (get(record.key),),
        ),
    )
    return result.succeeded or result.ranges()[0].first is not None


async def settled(client: Client, txn: Txn) -> TxnResult:
    """Apply a transaction; as `settle`, in the words of a restore."""
    try:
        return await settle(client.store, txn, patience=client.patience, rng=client.rng)
    except OutcomeUnknown as error:
        why = f"it is not known whether it was done: {error.why}"
        hint = "find out with: mdevns audit, mdevns check"
        raise OutcomeUnknown("the restore", why, hint) from None


def record_of(client: Client, what: str, host: str | None, why: str) -> Put:
    """The audit's record of an act."""
    now = client.clock.now()
    value = AuditValue(who=client.asked_by, what=what, host=host, why=why, at=now)
    return Put(client.keys.audit(now, f"{client.rng.getrandbits(64):016x}"), encode(value))
