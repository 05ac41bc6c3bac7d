"""Persistent names: `define undefine start stop move`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated

import typer

from cli import asking
from cli.answering import Told, answered, freed, record
from cli.context import Call, command
from cli.shapes import CLAIMS, FREED
from coordinator import defining, operating
from coordinator.client import Client, Result
from coordinator.model import Wish, parse_attribute, parse_label, parse_name

__all__ = ["define", "move", "start", "stop", "undefine"]

_Name = Annotated[str, typer.Argument(metavar="NAME", help="A UUID.", show_default=False)]
_Names = Annotated[list[str], typer.Argument(metavar="NAME", help="A UUID, or more.")]
_Force = Annotated[
    bool,
    typer.Option("--force", help="Wait, in the kernel, for whoever has the device open."),
]

_OnlyRequest = Annotated[
    str | None,
    typer.Option(help="Only what this request holds.", show_default=False),
]
_OnlyRevision = Annotated[
    int | None,
    typer.Option(help="Only this revision, as `show` has it.", show_default=False),
]


@command
def define(
    call: Call,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A UUID; when left out one of the request, or a random one."
        ),
    ] = None,
    *,
    type_: Annotated[str, typer.Option("--type", help="The type of the device.")],
    host: Annotated[str, typer.Option(help="The host that shall have it.")],
    parent: Annotated[str, typer.Option(help="The parent that shall have it.")],
    attr: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="A vendor attribute to write; repeat for more, in order."),
    ] = None,
    autostart: Annotated[
        bool, typer.Option("--autostart", help="Made at each boot of its host.")
    ] = False,
    request: Annotated[
        str | None,
        typer.Option(
            help="An id of this request, which chooses a name that is left out: the same again "
            "is answered as the first was.  [default: a random one]"
        ),
    ] = None,
) -> int:
    """Take a name for a persistent device, and do not make it yet."""
    cluster = "" if request is None else call.settings.cluster
    (parsed,) = asking.names(name, None, call.rng, cluster=cluster, request=request)
    id_ = asking.request_id(request, call.rng)
    wish = Wish(
        host=parse_label(host, "host name"),
        parent=parse_label(parent, "parent"),
        type=parse_label(type_, "type"),
        attrs=tuple(map(parse_attribute, attr or ())),
        persistent=True,
        autostart=autostart,
    )

    async def ask(client: Client, _: Told) -> list[Result]:
        return [await defining.define(client, parsed, wish, request=id_)]

    return answered(call, [parsed], ask, CLAIMS, record, array=False)


@command
def undefine(
    call: Call, name: _Name, *, request: _OnlyRequest = None, revision: _OnlyRevision = None
) -> int:
    """Give a persistent name up that has no device."""
    parsed, only = parse_name(name), asking.only(request, revision)

    async def ask(client: Client, _: Told) -> list[Result]:
        return [await operating.undefine(client, parsed, only=only)]

    return answered(call, [parsed], ask, FREED, freed, array=False)


@command
def start(
    call: Call, names: _Names, *, request: _OnlyRequest = None, revision: _OnlyRevision = None
) -> int:
    """Have the devices of defined names made."""
    parsed = list(dict.fromkeys(map(parse_name, names)))
    only = asking.only(request, revision, len(parsed))

    async def ask(client: Client, told: Told) -> list[Result]:
        return await operating.start(client, parsed, only=only, told=told)

    return answered(call, parsed, ask, CLAIMS, record, array=True)


@command
def stop(
    call: Call,
    names: _Names,
    *,
    force: _Force = False,
    request: _OnlyRequest = None,
    revision: _OnlyRevision = None,
) -> int:
    """Remove the devices of persistent names, which stay defined."""
    parsed = list(dict.fromkeys(map(parse_name, names)))
    only = asking.only(request, revision, len(parsed))

    async def ask(client: Client, told: Told) -> list[Result]:
        return await operating.stop(client, parsed, force=force, only=only, told=told)

    return answered(call, parsed, ask, CLAIMS, record, array=True)


@command
def move(
    call: Call,
    name: _Name,
    *,
    to: Annotated[str, typer.Option(metavar="HOST[/PARENT]", help="Where it shall live.")],
    request: _OnlyRequest = None,
    revision: _OnlyRevision = None,
) -> int:
    """Give a name without a device to another host."""
    parsed, only = parse_name(name), asking.only(request, revision)
    host, slash, parent = to.partition("/")
    host = parse_label(host, "host name")
    wanted = parse_label(parent, "parent") if slash else None

    async def ask(client: Client, _: Told) -> list[Result]:
        return [await defining.move(client, parsed, host, wanted, only=only)]

    return answered(call, [parsed], ask, CLAIMS, record, array=False)
