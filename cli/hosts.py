"""Hosts, their parents, and the types that these offer: `hosts parents types`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.context import Call, command
from cli.drawing import bar_maker
from cli.failures import Usage
from cli.inventory import Offer, offers
from cli.options import Format
from cli.output import View
from coordinator import evicting, renaming
from coordinator.client import Client
from coordinator.model import ParentValue, parse_label
from coordinator.states import ClaimState
from coordinator.views import HostView, ParentView

__all__ = ["hosts", "parents", "types"]


class Act(StrEnum):
    """What is done about a host."""

    FORGET = "forget"
    RENAME = "rename"


@command
def hosts(
    call: Call,
    act: Annotated[
        Act | None,
        typer.Argument(
            metavar="forget|rename", help="Drop a host without names, or rename a host."
        ),
    ] = None,
    host: Annotated[str | None, typer.Argument(metavar="HOST", help="The host.")] = None,
    to: Annotated[
        str | None, typer.Argument(metavar="NEW", help="The new name, for rename.")
    ] = None,
    *,
    reason: Annotated[
        str, typer.Option(help="Why the host is forgotten or renamed, for the audit.")
    ] = "not given",
) -> None:
    """List hosts and their names; or forget or rename one.

    FREE is how many devices more its parents say they have room for; at a terminal a bar
    shows how full it is. TROUBLES counts what its agent found wrong with its parents, which
    `-o wide` says in words. `mdevns hosts forget HOST` drops a host that holds no name and has
    no living agent. `mdevns hosts rename HOST NEW` gives the claims of a machine its new host
    name: stop its agent first, and start it as NEW afterwards.
    """
    if act is None:
        call.out.many(_hosts_view(), call.run(lambda client: client.views.host_views()))
        return
    if host is None or (to is None) == (act is Act.RENAME):
        usage = "takes nothing, or: forget HOST, or: rename HOST NEW"
        raise Usage(call.path, usage, f"see: {call.path} --help")
    gone = parse_label(host, "host name")
    if to is None:
        call.run(lambda client: evicting.forget(client, gone, reason=reason))
        return
    new = parse_label(to, "host name")
    moved = call.run(lambda client: renaming.rename(client, gone, new, reason=reason))
    call.out.note(f"{gone} is renamed to {new} with {len(moved)} names; start its agent as {new}")


@command
def parents(
    call: Call, *, host: Annotated[str | None, typer.Option(help="Only this host's.")] = None
) -> None:
    """List parents and what they have available.

    USED counts a parent's devices of all types, which share its room. TROUBLES counts what
    its agent found wrong with it, which `-o wide` says in words.
    """
    where = None if host is None else parse_label(host, "host name")

    async def ask(client: Client) -> tuple[list[ParentView], Mapping[tuple[str, str], int]]:
        if where is not None:
            await client.views.enrolled(where)
        views = await client.views.parents(None if where is None else [where])
        if call.out.form not in (Format.TABLE, Format.WIDE):
            return views, Counter()
        return views, await client.views.used({view.host: None for view in views})

    views, used = call.run(ask)
    call.out.many(_parents_view(used), views)


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
        "troubles": view.troubles,
    }


def _seen(*, alive: bool) -> str:
    return "alive" if alive else "unreachable"


def _hosts_view() -> View[HostView]:
    """Hosts; at a terminal with a bar that shows how full each is."""
    bar = bar_maker()

    def row(view: HostView) -> tuple[object, ...]:
        session, identity = view.session, view.identity
        return (
            view.host,
            _seen(alive=view.alive),
            session and session.version,
            *(view.claims.get(state, 0) for state in ClaimState),
            view.free,
            *((bar(view.used, view.free),) if bar else ()),
            len(view.troubles) or None,
            session and session.boot_id,
            identity and identity.machine_id,
            identity and identity.product_uuid,
            view.epoch,
            "; ".join(view.troubles),
        )

    counts = (state.upper() for state in ClaimState)
    return View(
        columns=("HOST", "SESSION", "VERSION", *counts, "FREE", *_full(bar), "TROUBLES"),
        rows=lambda view: [row(view)],
        json=_host_json,
        name=lambda view: view.host,
        wide=("BOOT ID", "MACHINE ID", "PRODUCT UUID", "EPOCH", "WHAT IS WRONG"),
    )


def _parents_view(used: Mapping[tuple[str, str], int]) -> View[ParentView]:
    """Parents, of which so many devices are `used`; at a terminal with a bar."""
    bar = bar_maker()

    def rows(view: ParentView) -> Iterator[tuple[object, ...]]:
        taken, value = used[view.host, view.parent], view.value
        for each in value.types or (None,):  # of one that cannot be read no type may be known
            room = each.room if each else 0
            yield (
                view.host,
                view.parent,
                each and each.type,
                taken,
                room,
                *((bar(taken, room),) if bar else ()),
                each and each.device_api,
                each and each.name,
                len(value.troubles) + (value.failures > 0) or None,
                _seen(alive=view.alive),
                each and each.description,
                "; ".join((*_failures(value), *value.troubles)),
            )

    return View(
        columns=(
            "HOST",
            "PARENT",
            "TYPE",
            "USED",
            "AVAILABLE",
            *_full(bar),
            "API",
            "NAME",
            "TROUBLES",
        ),
        rows=rows,
        json=_parent_json,
        name=lambda view: f"{view.host}/{view.parent}",
        wide=("SESSION", "DESCRIPTION", "WHAT IS WRONG"),
    )


def _parent_json(view: ParentView) -> dict[str, Any]:
    return {
        "host": view.host,
        "parent": view.parent,
        "types": view.value.types,
        "usable": view.value.usable,
        "troubles": view.value.troubles,
        "failures": view.value.failures,
    }


def _failures(value: ParentValue) -> Iterator[str]:
    """What its driver refused, where it did."""
    if value.failures:
        yield f"it refused to create {value.failures} names since the last that it took"


def _full(bar: object) -> tuple[str, ...]:
    return ("FULL",) if bar else ()


_TYPES: View[Offer] = View(
    columns=("TYPE", "AVAILABLE", "PARENTS", "API", "NAME"),
    rows=lambda offer: [(offer.type, offer.available, offer.parents, offer.device_api, offer.name)],
    json=lambda offer: offer,
    name=lambda offer: offer.type,
)
