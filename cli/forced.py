"""Forced acts: `evict`, `hosts forget`, and `audit`, which lists them."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated

import typer

from cli.context import Call, command
from cli.failures import Usage
from cli.options import Format
from cli.output import View
from coordinator import evicting
from coordinator.evicting import Evicted
from coordinator.keys import last_part
from coordinator.model import AuditValue, Unreadable, parse_label

__all__ = ["audit", "evict"]

_Host = Annotated[str, typer.Argument(metavar="HOST", help="The host.", show_default=False)]
_INCOMPLETE = 20


@command
def evict(
    call: Call,
    host: _Host,
    *,
    reason: Annotated[str, typer.Option(help="Why; it stands in the audit.")],
    confirm_fenced: Annotated[
        bool,
        typer.Option(
            "--confirm-fenced", help="It is powered off, or cut from all that it could harm."
        ),
    ] = False,
    definitions: Annotated[
        bool, typer.Option("--definitions", help="Give its persistent names up too.")
    ] = False,
) -> int:
    """Give a fenced, unreachable host's names back.

    Transient names are free afterwards, persistent ones are defined and can be moved. If the
    host is not fenced, its devices live on, and their names can be taken a second time. Exits
    with 20 when a damaged record, or a name and claim that disagree, had to be left.
    """
    if not confirm_fenced:
        raise Usage(
            f"host {host}",
            "is evicted only when it is fenced: a device that lives on would lose its name",
            "power it off, then add --confirm-fenced",
        )
    wanted = parse_label(host, "host name")
    evicted = call.run(
        lambda client: evicting.evict(client, wanted, reason=reason, definitions=definitions)
    )
    if call.out.is_object:
        call.out.answer(
            {
                "host": wanted,
                "freed": evicted.freed,
                "defined": evicted.defined,
                "left": [*(last_part(record.key) for record in evicted.unreadable), *evicted.left],
            }
        )
    elif call.out.form is Format.NAME:
        call.out.write("".join(f"{name}\n" for name in (*evicted.freed, *evicted.defined)))
    else:
        call.out.write(_told(wanted, evicted))
    for record in evicted.unreadable:
        call.out.warn(f"{record.key}: cannot be read, and was left; see: mdevns check")
    for name in evicted.left:
        why = "its name and claim disagree or keep changing, and it was left"
        call.out.warn(f"{name}: {why}; see: mdevns check")
    return 0 if evicted.complete else _INCOMPLETE


@command
def audit(call: Call) -> None:
    """List forced acts: who did what to which host, and why."""
    call.out.many(_AUDIT, call.run(evicting.audit))


def _told(host: str, evicted: Evicted) -> str:
    freed, defined = len(evicted.freed), len(evicted.defined)
    return f"{host} is evicted: {freed} names freed, {defined} persistent ones defined\n"


def _act(act: AuditValue | Unreadable) -> dict[str, str | None]:
    """What a record says; of one that cannot be read, why, under the key that it has."""
    if isinstance(act, Unreadable):
        why = f"{act.key}: {act.why}"
        return {"at": None, "what": "unreadable", "host": None, "who": None, "why": why}
    return {"at": act.at, "what": act.what, "host": act.host, "who": act.who, "why": act.why}


_AUDIT: View[AuditValue | Unreadable] = View(
    columns=("AT", "WHAT", "HOST", "WHO", "WHY"),
    rows=lambda act: [tuple(_act(act).values())],
    json=_act,
    name=lambda act: _act(act)["host"] or "-",
)
