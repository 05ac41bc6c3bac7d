"""What names look like in a table and in JSON (cli.md, JSON)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.output import View
from coordinator.model import Claim
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from coordinator.claims import Hold
    from coordinator.client import Result

__all__ = ["CLAIMS", "FREED", "claim_json", "claim_row", "manner"]


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


def claim_row(record: Claim | Hold) -> tuple[object, ...]:
    """The cells of a claim, or of a reservation without a host."""
    if not isinstance(record, Claim):
        state = ClaimState.RESERVED.value
        return (record.name, None, None, None, state, None, record.request, None, None, None, None)
    return (
        record.name,
        record.host,
        record.parent,
        record.type,
        record.state.value,
        record.since,
        record.request,
        record.asked_by,
        manner(record),
        " ".join(f"{key}={value}" for key, value in record.attrs),
        record.error and f"{record.error.errno}: {record.error.text}",
    )


def manner(claim: Claim) -> str:
    """How it is kept, and how it is being removed: `persistent, autostart`."""
    words = {
        "persistent": claim.persistent,
        "autostart": claim.autostart,
        "adopted": claim.adopted,
        "by force": claim.removal is not None and claim.removal.force,
    }
    return ", ".join(word for word, is_so in words.items() if is_so)


CLAIMS: View[Claim | Hold] = View(
    columns=("NAME", "HOST", "PARENT", "TYPE", "STATE"),
    rows=lambda record: [claim_row(record)],
    json=claim_json,
    name=lambda record: record.name,
    wide=("SINCE", "REQUEST", "ASKED BY", "KEPT", "ATTRIBUTES", "ERROR"),
)


def _freed_json(result: Result) -> dict[str, Any]:
    """A name that is free, and what had it: as it was read before it was asked to go."""
    was = result.was
    claim = was if isinstance(was, Claim) else None
    return {
        "name": result.name,
        "state": None,
        "host": claim and claim.host,
        "parent": claim and claim.parent,
        "request": was and was.request,
        "revision": was and was.revision,
    }


FREED: View[Result] = View(
    columns=(),
    rows=lambda result: [(result.name,)],
    json=_freed_json,
    name=lambda result: result.name,
)
