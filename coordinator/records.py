"""What each key of a cluster is, so that no record is passed over for want of a reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.model import (
    AuditValue,
    ClaimValue,
    FindingValue,
    IdentityValue,
    MachineValue,
    NameValue,
    OutcomeValue,
    ParentValue,
    RestoredValue,
    SessionValue,
    Unreadable,
    decode,
)

if TYPE_CHECKING:
    from coordinator.keys import Keys
    from coordinator.store import KeyValue

__all__ = ["UNKNOWN", "damage"]

UNKNOWN = "this key is none of mdevns's"
"""Why a record is unreadable whose key nothing here spells."""

_Kind = (
    type[IdentityValue | SessionValue | RestoredValue | ClaimValue | ParentValue | FindingValue]
    | type[NameValue | MachineValue | AuditValue | OutcomeValue]
    | None
)
"""The kind of a record's value; None where any bytes are right."""

# By the number of parts that follow the cluster's, and the part that says what it is.
_OF_HOST: dict[tuple[int, str], _Kind] = {
    (1, "epoch"): None,
    (1, "identity"): IdentityValue,
    (1, "session"): SessionValue,
    (1, "restored"): RestoredValue,
    (2, "claims"): ClaimValue,
    (2, "parents"): ParentValue,
    (2, "findings"): FindingValue,
}
_OF_CLUSTER: dict[tuple[int, str], _Kind] = {
    (1, "hold"): None,  # two kinds of value; `check` reads it itself
    (1, "importer"): None,
    (2, "names"): NameValue,
    (2, "machines"): MachineValue,
    (2, "spent"): None,
    (2, "audit"): AuditValue,
    (3, "outcomes"): OutcomeValue,
    (3, "imports"): None,
}


def damage(keys: Keys, kv: KeyValue) -> Unreadable | None:
    """What is wrong with one record of the cluster, if it cannot be read as what its key is."""
    parts = kv.key.removeprefix(keys.root).split("/")
    kinds = _OF_CLUSTER
    if parts[0] == "hosts" and len(parts) > 1 and parts[1]:
        parts, kinds = parts[2:], _OF_HOST
    place = (len(parts), parts[0]) if parts else (0, "")
    if place not in kinds or not all(parts):
        return Unreadable(kv.key, UNKNOWN, kv.mod_revision)
    kind = kinds[place]
    value = None if kind is None else decode(kv, kind)
    return value if isinstance(value, Unreadable) else None
