"""Names: `create remove reserve renew release`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated

import typer

from cli import asking
from cli.answering import Told, answered, freed, record
from cli.context import Call, command
from cli.failures import Usage
from cli.shapes import CLAIMS, FREED
from coordinator import creating, operating, reserving
from coordinator.client import Client, Result
from coordinator.model import parse_attribute, parse_name
from coordinator.placement import Strategy

__all__ = ["create", "release", "remove", "renew", "reserve"]

_Name = Annotated[str, typer.Argument(metavar="NAME", help="A UUID.", show_default=False)]
_SomeName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="A UUID; when left out one of the request, or a random one."
    ),
]
_Names = Annotated[list[str], typer.Argument(metavar="NAME", help="A UUID, or more.")]
_Count = Annotated[
    int | None, typer.Option(help="So many, under names of the request, or random ones.")
]
_Ttl = Annotated[int, typer.Option(help="Seconds that the reservation holds, unless renewed.")]
_Request = Annotated[
    str | None,
    typer.Option(
        help="An id of this request, which chooses the names that are left out: the same again "
        "asks for the same names, and is answered as the first was.  "
        "[default: a random one]"
    ),
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
def create(  # noqa: PLR0913 - each is an option of the command
    call: Call,
    name: _SomeName = None,
    *,
    type_: Annotated[str | None, typer.Option("--type", help="The type of the device.")] = None,
    host: Annotated[str | None, typer.Option(help="The host to make it on.")] = None,
    parent: Annotated[str | None, typer.Option(help="The parent to make it on.")] = None,
    place: Annotated[
        Strategy,
        typer.Option(help="Where host or parent are left out: where most is free, or least."),
    ] = Strategy.SPREAD,
    count: _Count = None,
    attr: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="A vendor attribute to write; repeat for more, in order."),
    ] = None,
    persistent: Annotated[
        bool, typer.Option("--persistent", help="It keeps its name over a reboot.")
    ] = False,
    autostart: Annotated[
        bool, typer.Option("--autostart", help="Persistent, and made again at each boot.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Whether to wait for the device.")
    ] = True,
    ttl: Annotated[int, typer.Option(help="Seconds that the host has to begin.")] = 60,
    request: _Request = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="One request a line, as JSON; - is stdin. What a line leaves out is as the "
            "options say.",
        ),
    ] = None,
) -> int:
    """Claim a name and have its device made."""
    options = asking.Line(
        type=type_,
        host=host,
        parent=parent,
        attrs=tuple(map(parse_attribute, attr or ())),
        persistent=persistent,
        autostart=autostart,
        request=request,
    )
    if file is not None and (name is not None or count is not None):
        raise Usage("--from", "names come from the file", "leave NAME and --count out")
    lines = (
        asking.read_lines(file)
        if file is not None
        else (("", asking.Line(name=one)) for one in asking.unnamed(name, count))
    )
    cluster = "" if request is None and file is None else call.settings.cluster
    asks = asking.asks(options, lines, call.rng, cluster=cluster)
    ttl = asking.bounded(ttl, "--ttl")

    async def ask(client: Client, told: Told) -> list[Result]:
        return await creating.create(client, asks, ttl=ttl, wait=wait, strategy=place, told=told)

    array = file is not None or count is not None
    return answered(call, [one.name for one in asks], ask, CLAIMS, record, array=array)


@command
def remove(
    call: Call,
    names: _Names,
    *,
    force: Annotated[
        bool,
        typer.Option("--force", help="Wait, in the kernel, for whoever has the device open."),
    ] = False,
    request: _OnlyRequest = None,
    revision: _OnlyRevision = None,
) -> int:
    """Remove devices, and free their names."""
    parsed = list(dict.fromkeys(map(parse_name, names)))
    only = asking.only(request, revision, len(parsed))

    async def ask(client: Client, told: Told) -> list[Result]:
        return await operating.remove(client, parsed, force=force, only=only, told=told)

    return answered(call, parsed, ask, FREED, freed, array=True)


@command
def reserve(
    call: Call,
    name: _SomeName = None,
    *,
    ttl: _Ttl = 60,
    count: _Count = None,
    request: _Request = None,
) -> int:
    """Hold a name with no host yet."""
    cluster = "" if request is None else call.settings.cluster
    names = asking.names(name, count, call.rng, cluster=cluster, request=request)
    id_ = asking.request_id(request, call.rng)
    ttl = asking.bounded(ttl, "--ttl")
    of = len(names) if request is not None and name is None else None

    async def ask(client: Client, _: Told) -> list[Result]:
        return await reserving.reserve(client, names, request=id_, ttl=ttl, count=of)

    return answered(call, names, ask, CLAIMS, record, array=count is not None)


@command
def renew(
    call: Call,
    name: _Name,
    *,
    ttl: _Ttl = 60,
    request: _OnlyRequest = None,
    revision: _OnlyRevision = None,
) -> int:
    """Hold a reservation for longer."""
    only = asking.only(request, revision)
    parsed, ttl = parse_name(name), asking.bounded(ttl, "--ttl")

    async def ask(client: Client, _: Told) -> list[Result]:
        return [await reserving.renew(client, parsed, ttl=ttl, only=only)]

    return answered(call, [parsed], ask, CLAIMS, record, array=False)


@command
def release(
    call: Call, name: _Name, *, request: _OnlyRequest = None, revision: _OnlyRevision = None
) -> int:
    """Give a reservation back."""
    parsed, only = parse_name(name), asking.only(request, revision)

    async def ask(client: Client, _: Told) -> list[Result]:
        return [await reserving.release(client, parsed, only=only)]

    return answered(call, [parsed], ask, FREED, freed, array=False)
