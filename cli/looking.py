"""Looking at names: `list show`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated

import typer

from cli.context import Call, command
from cli.shapes import CLAIMS
from coordinator.client import Client
from coordinator.model import Unreadable, parse_label, parse_name
from coordinator.states import ClaimState
from coordinator.views import not_found, unreadable

__all__ = ["list_", "show"]


@command
def list_(
    call: Call,
    *,
    host: Annotated[str | None, typer.Option(help="Only this host's.")] = None,
    state: Annotated[ClaimState | None, typer.Option(help="Only those in this state.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only those of this type.")] = None,
) -> None:
    """List names and who holds them."""
    where = None if host is None else parse_label(host, "host name")

    async def ask(client: Client) -> None:
        if where is not None:
            await client.views.enrolled(where)
        with call.out.stream(CLAIMS) as add:
            async for record in client.views.records(host=where, state=state, type_=type_):
                if call.out.unread:
                    return
                if isinstance(record, Unreadable):
                    call.out.note(f"{record.key}: cannot be read; see: mdevns check")
                else:
                    add(record)

    call.run(ask)


@command
def show(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A UUID.", show_default=False)],
) -> None:
    """Say who holds a name, why, and what would free it."""
    from cli import showing  # noqa: PLC0415 - list does without

    parsed = parse_name(name)

    async def ask(client: Client) -> None:
        record = await client.views.find(parsed)
        if record is None:
            raise not_found(parsed)
        if isinstance(record, Unreadable):
            raise unreadable(parsed, record)
        call.out.one(showing.SHOWN, await showing.look(client, record))

    call.run(ask)
