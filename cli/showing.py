"""`show`: one name, and why it is as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.output import View
from cli.shapes import claim_json, manner
from coordinator.claims import Hold
from coordinator.model import ParentValue, decode
from coordinator.states import ClaimState
from coordinator.store import Txn, get

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.client import Client
    from coordinator.model import Claim
    from coordinator.store import KeyValue

__all__ = ["SHOWN", "Shown", "look"]

_ONLY_ITS_AGENT = "its host's agent only, when the kernel has answered"
_FREED_BY = {
    ClaimState.RESERVED: "mdevns release {name}, or its time; until then its host may begin it",
    ClaimState.CREATING: _ONLY_ITS_AGENT,
    ClaimState.ACTIVE: "mdevns remove {name}",
    ClaimState.REMOVING: _ONLY_ITS_AGENT,
    ClaimState.DEFINED: "mdevns remove {name}",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What holds a name, whether its host's agent is seen, and why the namespace is held.

    `troubles` are what the agent found wrong with its parent.
    """

    record: Claim | Hold
    alive: bool
    held: str | None = None
    troubles: tuple[str, ...] = ()


async def look(client: Client, record: Claim | Hold) -> Shown:
    """What there is to say of a record besides itself."""
    if isinstance(record, Hold):
        return Shown(record, alive=True, held=_held(client, await client.views.hold()))
    keys = client.keys
    parent = get(keys.parent(record.host, record.parent))
    asked = Txn(success=(get(keys.session(record.host)), get(keys.hold), parent))
    session, hold, said = (read.first for read in (await client.store.txn(asked)).ranges())
    value = None if said is None else decode(said, ParentValue)
    troubles = value.troubles if isinstance(value, ParentValue) else ()
    return Shown(record, session is not None, _held(client, hold), troubles)


def _held(client: Client, hold: KeyValue | None) -> str | None:
    refusal = client.claims.no_hold().refusal(hold)
    return None if refusal is None else f"{refusal.why}; {refusal.hint}"


def _rows(shown: Shown) -> Iterator[tuple[object, object]]:
    record = shown.record
    if shown.held is not None:
        yield "held up", f"the store: {shown.held}"
    if isinstance(record, Hold):
        yield "held by", "a reservation, for no host yet"
        yield "asked by", f"request {record.request}"
        yield "freed by", f"mdevns release {record.name}, or its time unless it is renewed"
        return
    kept = manner(record)
    yield "held by", f"{record.host}/{record.parent}"
    yield "state", f"{record.state}{f' ({kept})' if kept else ''}, since {record.since}"
    yield "type", record.type
    yield "asked by", f"{record.asked_by or 'nobody known'}, request {record.request}"
    if record.attrs:
        yield "attributes", " ".join(f"{key}={value}" for key, value in record.attrs)
    if record.error is not None:
        error = record.error
        yield "last error", f"{error.errno}: {error.text} ({error.at})"
    if record.maker is not None:
        yield "maker", f"process {record.maker.pid} of its host; the agent waits for it to end"
    if not shown.alive:
        yield "host", "unreachable: nothing goes on until its agent is back"
    for trouble in shown.troubles:
        yield "parent", f"in trouble: {trouble}"
    yield "freed by", _FREED_BY[record.state].format(name=record.name)


SHOWN: View[Shown] = View(
    columns=(),
    rows=lambda shown: [("name", shown.record.name), *_rows(shown)],
    json=lambda shown: claim_json(shown.record),
    name=lambda shown: shown.record.name,
)
