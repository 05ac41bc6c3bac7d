"""What names look like in a table and in JSON (cli.md, JSON)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.output import View
from coordinator.model import Claim
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from coordinator.claims import Hold
    from coordinator.model import Name

__all__ = ["CLAIMS", "FREED", "claim_json"]


def claim_json(record: Claim | Hold) -> dict[str, Any]:
    """One claim, or a reservation without a host, whose other fields are null."""
    claim = record if isinstance(record, Claim) else None
    return {
        "name": record.name,
        "host": claim and claim.host,
        "parent": claim and claim.parent,
        "type": claim and claim.type,
        "state": claim.state if claim else ClaimState.RESERVED,
        "persistent": claim is not None and claim.persistent,
        "autostart": claim is not None and claim.autostart,
        "adopted": claim is not None and claim.adopted,
        "attrs": claim.attrs if claim else (),
        "request": record.request,
        "since": claim and claim.since,
        "revision": record.revision,
        "error": claim and claim.error,
    }


def _row(record: Claim | Hold) -> tuple[object, ...]:
    if isinstance(record, Claim):
        return (record.name, record.host, record.parent, record.type, record.state.value)
    return (record.name, None, None, None, ClaimState.RESERVED.value)


CLAIMS: View[Claim | Hold] = View(
    columns=("NAME", "HOST", "PARENT", "TYPE", "STATE"),
    rows=lambda record: [_row(record)],
    json=claim_json,
    name=lambda record: record.name,
)

FREED: View[Name] = View(
    columns=(),
    rows=lambda name: [(name,)],
    json=lambda name: {"name": name, "state": None},
    name=str,
)
