"""One host's persistent names and mdevctl's definitions, from one to the other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from cli.answering import Told, answered, record
from cli.asking import request_id
from cli.definitions import Definition, Definitions, Unusable
from cli.output import View
from cli.shapes import CLAIMS
from coordinator.claims import Hold
from coordinator.defining import take_over
from coordinator.errors import MdevnsError
from coordinator.exporting import unreadable
from coordinator.model import AfterRemoval, Claim, Name, Unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.context import Call
    from coordinator.client import Client, Result

__all__ = ["export_definitions", "import_definitions"]

_AT_A_TIME = 100  # names that are taken over at a time, so that they share commits


def import_definitions(call: Call, host: str, definitions: Definitions) -> int:
    """Take the definitions over as persistent names of a host; the exit code."""
    found = list(definitions.read())
    usable = [one for one in found if isinstance(one, Definition)]
    request = request_id(None, call.rng)

    async def ask(client: Client, told: Told) -> list[Result]:
        await client.views.enrolled(host)

        async def one(definition: Definition) -> Result:
            wish = definition.wish(host)
            result = await take_over(client, definition.name, wish, request=request)
            told(result)
            return result

        results = []
        for some in _apart(usable):
            results += await asyncio.gather(*map(one, some))
        return results

    names = [one.name for one in usable]
    code = answered(call, names, ask, CLAIMS, record, array=True) if usable else 0
    for unusable in found:
        if isinstance(unusable, Unusable):
            call.out.error(unusable.error, str(unusable.path))
            code = code or unusable.error.exit_code
    call.out.note(f"{len(found)} definitions on this host")
    return code


def _apart(definitions: Sequence[Definition]) -> list[list[Definition]]:
    """In groups in which no name is twice: mdevctl lets one be defined on two parents."""
    groups: list[dict[Name, Definition]] = [{}]
    for one in definitions:
        if one.name in groups[-1] or len(groups[-1]) == _AT_A_TIME:
            groups.append({})
        groups[-1][one.name] = one
    return [list(group.values()) for group in groups]


def export_definitions(call: Call, host: str, definitions: Definitions, *, force: bool) -> int:
    """Write a host's persistent names as definitions; the exit code."""

    async def ask(client: Client) -> list[Claim | Unreadable]:
        await client.views.enrolled(host)
        records = client.views.records(host=host)
        return [one async for one in records if isinstance(one, Unreadable) or _is_kept(one)]

    code = 0
    with call.out.stream(_WRITTEN) as add:
        for claim in call.run(ask):
            try:
                if isinstance(claim, Unreadable):
                    raise unreadable(claim)
                add((claim.name, definitions.place(claim), definitions.write(claim, force=force)))
            except MdevnsError as error:
                call.out.error(error, error.name or error.what)
                code = code or error.exit_code
    return code


def _is_kept(record: Claim | Hold) -> TypeGuard[Claim]:
    """Whether it is persistent, and stays so."""
    if isinstance(record, Hold) or not record.persistent:
        return False
    return record.removal is None or record.removal.then is AfterRemoval.DEFINED


_Written = tuple[Name, Path, bool]


def _written_json(one: _Written) -> dict[str, Any]:
    name, path, written = one
    return {"name": name, "file": str(path), "written": written}


_WRITTEN: View[_Written] = View(
    columns=("NAME", "FILE", "WRITTEN"),
    rows=lambda one: [(one[0], str(one[1]), "yes" if one[2] else "it was there")],
    json=_written_json,
    name=lambda one: one[0],
)
