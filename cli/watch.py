"""`watch`: the changes of names, live."""

# No `from __future__ import annotations`: Typer reads the annotations.

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Annotated, Any

import typer

from cli.context import Call, command
from cli.ending import until_nobody_reads
from cli.output import View
from cli.shapes import claim_json, claim_row
from coordinator.changes import Change
from coordinator.client import Client
from coordinator.model import Unreadable, parse_label
from coordinator.watching import changes

__all__ = ["watch"]


@command
def watch(
    call: Call,
    *,
    host: Annotated[str | None, typer.Option(help="Only this host's.")] = None,
    all_: Annotated[
        bool, typer.Option("--list", help="Begin with all that stands now, as puts.")
    ] = False,
) -> None:
    """Tell changes of names as they happen, until it is interrupted.

    A line a change: `put` with what stands now, `delete` with what stood last. With --host a
    claim that moves to another host is deleted. With -o json each line is an object.
    """
    where = None if host is None else parse_label(host, "host name")

    async def ask(client: Client) -> None:
        if where is not None:
            await client.views.enrolled(where)
        try:
            with until_nobody_reads(call.out):
                await _tell(call, client, where, begin_with_all=all_)
        except asyncio.CancelledError:
            return  # it was to go on until somebody ends it; somebody did

    call.run(ask)


async def _tell(call: Call, client: Client, host: str | None, *, begin_with_all: bool) -> None:
    print_ = call.out.live(_CHANGES)

    def listed(again: bool) -> None:  # noqa: FBT001 - what `changes` calls
        if again:
            call.out.warn(
                "the store has forgotten what happened meanwhile: all was looked at again, and "
                "of each name that changed its newest state is told"
            )

    found = changes(
        client.store, client.keys, host=host, begin_with_all=begin_with_all, listed=listed
    )
    async with aclosing(found):
        async for change in found:
            if isinstance(change.record, Unreadable):
                call.out.note(f"{change.record.key}: cannot be read; see: mdevns check")
            else:
                print_(change)
            if call.out.unread:
                return


def _rows(change: Change) -> Iterator[tuple[object, ...]]:
    if not isinstance(change.record, Unreadable):
        yield (change.revision, _event(change), *claim_row(change.record))


def _json(change: Change) -> dict[str, Any]:
    record = change.record
    claim = None if isinstance(record, Unreadable) else claim_json(record)
    return {"revision": change.revision, "event": _event(change), "claim": claim}


def _event(change: Change) -> str:
    return "delete" if change.deleted else "put"


_CHANGES: View[Change] = View(
    columns=("REVISION", "EVENT", "NAME", "HOST", "PARENT", "TYPE", "STATE"),
    rows=_rows,
    json=_json,
    name=lambda change: getattr(change.record, "name", "-"),
    wide=("SINCE", "REQUEST", "ASKED BY", "KEPT", "ATTRIBUTES", "ERROR"),
)
