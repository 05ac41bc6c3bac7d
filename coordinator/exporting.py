"""The namespace as lines of JSON, and such lines read and looked through.

The first line is a header, then comes a line for each claim in the order of names, and the
last line says how many there were, so that a file that broke off is not taken for a whole
one. A line is the contract's claim and what else its record has, so that an import brings it
back as it was; its revision is of the store that it came from, and is not imported.

Reservations are left out, and counted: they hang on leases, which no file can keep, and no
device stands behind one. Whoever waits for one asks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from coordinator.errors import InvalidValue, MdevnsError
from coordinator.model import (
    SCHEMA,
    Claim,
    ClaimValue,
    Name,
    Unreadable,
    parse_attribute,
    parse_label,
    parse_name,
    parse_request,
)
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["End", "Header", "Imported", "line_of", "read"]

# What `line_of` takes of a claim's value as it is.
_AS_IT_IS = (
    *("parent", "type", "state", "persistent", "autostart", "adopted", "attrs", "request"),
    *("since", "error", "first", "removal", "boot_id", "created", "asked_by"),
)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line: which schema, of which cluster, at which revision, when (RFC 3339)."""

    mdevns: int = SCHEMA
    cluster: str
    revision: int
    at: str


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last line: how many claims there were, and how many reservations were left out."""

    claims: int
    reservations: int


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a claim's line has besides its value."""

    name: str
    host: str
    revision: int


class Imported(msgspec.Struct, frozen=True):
    """A claim to be: its name, its host and the value of its record."""

    name: Name
    host: str
    value: ClaimValue


def line_of(claim: Claim) -> dict[str, Any]:
    """A claim's line, as an object."""
    own = {field: getattr(claim, field) for field in _AS_IT_IS}
    return {"name": claim.name, "host": claim.host, "revision": claim.revision, **own}


def read(lines: Iterable[tuple[str, str]]) -> list[Imported]:
    """All claims of an export, whose lines come each with where it stands.

    Raises:
        InvalidValue: a line is wrong, or a name is there twice, or the file is not whole.
    """
    claims: dict[Name, Imported] = {}
    begun = ended = False
    for where, text in lines:
        if not text.strip():
            continue
        if ended:
            raise _wrong(where, "something stands after the last line")
        if not begun:
            _check_header(where, text)
            begun = True
        elif '"claims"' in text and "name" not in _decoded(where, text, dict):
            ended = _is_end(where, text, len(claims))
        else:
            claim = _claim(where, text)
            if claim.name in claims:
                raise _wrong(where, f"{claim.name} is there twice")
            claims[claim.name] = claim
    if not ended:
        raise _wrong("the export", "it broke off: its last line is missing")
    return list(claims.values())


def _check_header(where: str, text: str) -> None:
    header = _decoded(where, text, Header)
    if header.mdevns > SCHEMA:
        raise _wrong(where, f"schema {header.mdevns} is newer than {SCHEMA}")


def _is_end(where: str, text: str, count: int) -> bool:
    end = _decoded(where, text, End)
    if end.claims != count:
        raise _wrong(where, f"it says {end.claims} claims, and there are {count}")
    return True


def _claim(where: str, text: str) -> Imported:
    fields = _decoded(where, text, dict)
    own = {key: fields.pop(key) for key in ("name", "host", "revision") if key in fields}
    try:
        line = msgspec.convert(own, _Line)
        missing = [field for field in _AS_IT_IS if field not in fields]
        if missing:
            raise _wrong(where, f"without {', '.join(missing)}")
        value = msgspec.convert(fields, ClaimValue)
        _check(line.host, value)
        return Imported(parse_name(line.name), line.host, value)
    except msgspec.MsgspecError as error:
        raise _wrong(where, str(error)) from None
    except InvalidValue as error:
        if error.what == where:
            raise
        raise _wrong(where, f"{error.what}: {error.why}") from None


def _check(host: str, value: ClaimValue) -> None:
    """See that it is a claim that could stand in the store.

    Raises:
        InvalidValue: it cannot.
    """
    parse_label(host, "host name")
    parse_label(value.parent, "parent")
    parse_label(value.type, "type")
    parse_request(value.request)
    for key, text in value.attrs:
        parse_attribute(f"{key}={text}")
    if value.state is ClaimState.RESERVED:
        raise InvalidValue("reserved", "a reservation cannot be imported: its lease is gone")
    if (value.state is ClaimState.REMOVING) != (value.removal is not None):
        raise InvalidValue(value.state.value, "what follows removing goes with removing alone")


T = TypeVar("T")


def _decoded(where: str, text: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise _wrong(where, str(error)) from None
    except RecursionError:
        raise _wrong(where, "nested too deeply") from None


def _wrong(where: str, why: str) -> InvalidValue:
    return InvalidValue(where, why, "nothing was imported")


def unreadable(record: Unreadable) -> MdevnsError:
    """The error for a record that no line can be made of."""
    return MdevnsError(record.key, f"cannot be read: {record.why}", "see: mdevns check")
