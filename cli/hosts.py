"""Hosts, their parents, and the types that these offer: `hosts parents types`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated, Any

import typer

from cli.context import Call, command
from cli.failures import Usage
from cli.inventory import Offer, offers
from cli.output import View
from coordinator import evicting
from coordinator.client import Client
from coordinator.model import parse_label
from coordinator.states import ClaimState
from coordinator.views import HostView, ParentView

__all__ = ["hosts", "parents", "types"]


@command
def hosts(
    call: Call,
    act: Annotated[
        str | None, typer.Argument(metavar="forget", help="Drop a host that holds no name.")
    ] = None,
    host: Annotated[str | None, typer.Argument(metavar="HOST", help="Which.")] = None,
    *,
    reason: Annotated[
        str, typer.Option(help="Why it is forgotten; it stands in the audit.")
    ] = "not given",
) -> None:
    """List hosts, and how many names they hold; or forget one.

    `mdevns hosts forget HOST` drops a host that holds no name and has no living agent.
    """
    if act is None:
        call.out.many(_HOSTS, call.run(lambda client: client.views.host_views()))
        return
    if act != "forget" or host is None:
        raise Usage(call.path, "takes nothing, or: forget HOST", f"see: {call.path} --help")
    gone = parse_label(host, "host name")
    call.run(lambda client: evicting.forget(client, gone, reason=reason))


@command
def parents(
    call: Call, *, host: Annotated[str | None, typer.Option(help="Only this host's.")] = None
) -> None:
    """List parents and what they have available."""
    where = None if host is None else parse_label(host, "host name")

    async def ask(client: Client) -> list[ParentView]:
        if where is None:
            return await client.views.parents()
        await client.views.enrolled(where)
        return await client.views.parents([where])

    call.out.many(_PARENTS, call.run(ask))


@command
def types(call: Call) -> None:
    """List types, and what the cluster has available of each."""
    call.out.many(_TYPES, offers(call.run(lambda client: client.views.parents())))


def _host_json(view: HostView) -> dict[str, Any]:
    session = view.session
    return {
        "host": view.host,
        "session": _seen(alive=view.alive),
        "boot_id": session and session.boot_id,
        "version": session and session.version,
        "claims": view.claims,
    }


def _seen(*, alive: bool) -> str:
    return "alive" if alive else "unreachable"


def _host_row(view: HostView) -> tuple[object, ...]:
    counts = (view.claims.get(state, 0) for state in ClaimState)
    return (view.host, _seen(alive=view.alive), view.session and view.session.version, *counts)


_HOSTS: View[HostView] = View(
    columns=("HOST", "SESSION", "VERSION", *(state.upper() for state in ClaimState)),
    rows=lambda view: [_host_row(view)],
    json=_host_json,
    name=lambda view: view.host,
)

_PARENTS: View[ParentView] = View(
    columns=("HOST", "PARENT", "TYPE", "AVAILABLE", "API", "NAME"),
    rows=lambda view: [
        (view.host, view.parent, each.type, each.available, each.device_api, each.name)
        for each in view.value.types
    ],
    json=lambda view: {"host": view.host, "parent": view.parent, "types": view.value.types},
    name=lambda view: f"{view.host}/{view.parent}",
)

_TYPES: View[Offer] = View(
    columns=("TYPE", "AVAILABLE", "PARENTS", "API", "NAME"),
    rows=lambda offer: [(offer.type, offer.available, offer.parents, offer.device_api, offer.name)],
    json=lambda offer: offer,
    name=lambda offer: offer.type,
)
