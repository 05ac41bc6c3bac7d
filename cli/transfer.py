"""The namespace as a file: `export`, `import`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated

import typer

from cli.asking import lines_of
from cli.context import Call, command
from cli.objects import json_of
from cli.under_way import bar
from coordinator.claims import Hold
from coordinator.client import Client
from coordinator.exporting import End, Header, line_of, read
from coordinator.importing import Importer
from coordinator.model import Unreadable
from coordinator.states import ClaimState

__all__ = ["export", "import_"]

_UNREADABLE = 20


@command
def export(call: Call) -> int:
    """Write the namespace as JSON lines, all of one moment.

    A header, then a line for each claim, then how many there were. Reservations are left out:
    they end by themselves. A record that cannot be read is told and left out: exit 20.
    """

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
        str, typer.Argument(metavar="FILE", help="An export; - is stdin.", show_default=False)
    ],
) -> None:
    """Read an export into an empty namespace: all of it, or nothing.

    While it runs nobody can take a name. When it is killed what it wrote is not in force, and
    the next import takes that back first; `mdevns check` tells of it.
    """
    claims = read(lines_of(file))

    async def ask(client: Client) -> None:
        with bar(len(claims), call.path, shown=call.out.shows_progress) as moved:
            await Importer(client, moved).run(claims)

    call.run(ask)
    call.out.note(f"{len(claims)} claims imported")
