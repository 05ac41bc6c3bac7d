"""The namespace as a file, and one host's names as mdevctl's definitions: `export`, `import`."""

# No `from __future__ import annotations`: Typer reads the annotations.

import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.asking import lines_of
from cli.context import Call, command
from cli.definitions import Definitions
from cli.exchange import export_definitions, import_definitions
from cli.failures import Usage
from cli.objects import json_of
from cli.under_way import bar
from coordinator.claims import Hold
from coordinator.client import Client
from coordinator.exporting import End, Header, line_of, read
from coordinator.importing import Importer
from coordinator.model import Unreadable, parse_label
from coordinator.states import ClaimState

__all__ = ["export", "import_"]

_UNREADABLE = 20
_MDEVCTL = "mdevctl"


class As(StrEnum):
    """In which form names leave."""

    MDEVCTL = _MDEVCTL


_Host = Annotated[
    str | None, typer.Option(help="With mdevctl: whose definitions.  [default: this host's]")
]
_Root = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With mdevctl: where its file system begins.  [default: /]"),
]


@command
def export(
    call: Call,
    form: Annotated[
        As | None,
        typer.Argument(metavar="mdevctl", help="Write definitions for mdevctl instead."),
    ] = None,
    *,
    host: _Host = None,
    root: _Root = None,
    force: Annotated[
        bool, typer.Option("--force", help="With mdevctl: replace definitions that differ.")
    ] = False,
) -> int:
    """Write the namespace as JSON lines, all of one moment.

    A header, then a line for each claim, then how many there were. Reservations are left out:
    they end by themselves. A record that cannot be read is told and left out: exit 20.

    `mdevns export mdevctl` writes one host's persistent names as mdevctl's definitions, each a
    file in /etc/mdevctl.d that is there whole or not at all. What is there already stays as it
    is: a definition that says the same, and without --force one that does not (exit 4).
    """
    if form is None:
        _only_with_mdevctl(call, host=host, root=root, force=force)
        return _export_all(call)
    there = Definitions(root or Path("/"))
    return export_definitions(call, _host(call, host), there, force=force)


def _export_all(call: Call) -> int:
    async def ask(client: Client) -> int:
        revision = await client.views.revision()
        now, cluster = client.clock.now(), client.keys.cluster
        call.out.write(json_of(Header(cluster=cluster, revision=revision, at=now)) + "\n")
        claims = reservations = unreadable = 0
        async for record in client.views.records(revision=revision):
            if isinstance(record, Unreadable):
                unreadable += 1
                call.out.warn(f"{record.key}: cannot be read, and is left out; see: mdevns check")
            elif isinstance(record, Hold) or record.state is ClaimState.RESERVED:
                reservations += 1
            else:
                claims += 1
                call.out.write(json_of(line_of(record)) + "\n")
            if call.out.unread:
                return 0
        call.out.write(json_of(End(claims=claims, reservations=reservations)) + "\n")
        if reservations:
            call.out.note(f"{reservations} reservations are left out")
        return _UNREADABLE if unreadable else 0

    return call.run(ask)


@command
def import_(
    call: Call,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE|mdevctl",
            help="An export; - is stdin. Or the definitions of mdevctl.",
            show_default=False,
        ),
    ],
    *,
    host: _Host = None,
    root: _Root = None,
) -> int:
    """Read an export into an empty namespace: all of it, or nothing.

    While it runs nobody can take a name. When it is killed what it wrote is not in force, and
    the next import takes that back first; `mdevns check` tells of it.

    `mdevns import mdevctl` takes one host's definitions over, as persistent names of that host,
    into any namespace. Each gets its own answer: one that is this host's already is kept as its
    definition says, one that is held elsewhere is refused, and a file that cannot be read stops
    no other. One that starts by itself does so with the next boot. An export that is called
    mdevctl is imported as ./mdevctl.
    """
    if file == _MDEVCTL:
        return import_definitions(call, _host(call, host), Definitions(root or Path("/")))
    _only_with_mdevctl(call, host=host, root=root)
    claims = read(lines_of(file))

    async def ask(client: Client) -> None:
        with bar(len(claims), call.path, shown=call.out.shows_progress) as moved:
            await Importer(client, moved).run(claims)

    call.run(ask)
    call.out.note(f"{len(claims)} claims imported")
    return 0


# mdevctl's definitions.


def _only_with_mdevctl(call: Call, **options: object) -> None:
    for option, value in options.items():
        if value:
            raise Usage(f"--{option}", "goes with mdevctl alone", f"see: {call.path} --help")


def _host(call: Call, given: str | None) -> str:
    return parse_label(
        given or call.settings.agent.host or socket.gethostname(),
        "host name",
    )
