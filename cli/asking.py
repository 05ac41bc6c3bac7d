"""What a create asks for, from its options or from a file with a request a line."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

from cli.failures import Usage
from coordinator.creating import Ask
from coordinator.errors import InvalidValue, NotFound
from coordinator.model import (
    parse_attribute,
    parse_label,
    parse_name,
    parse_request,
    random_name,
)
from coordinator.requests import Only, request_name

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from coordinator.model import Name

__all__ = [
    "Line",
    "asks",
    "bounded",
    "lines_of",
    "names",
    "only",
    "read_lines",
    "request_id",
    "unnamed",
]

_COUNT = 100_000
_TTL = 365 * 24 * 3600


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request. What a line of a file leaves out is as the options say."""

    name: str | None = None
    type: str | None = None
    host: str | None = None
    parent: str | None = None
    attrs: tuple[tuple[str, str], ...] | None = None
    persistent: bool | None = None
    autostart: bool | None = None
    request: str | None = None

    def over(self, options: Line) -> Line:
        """This line, and the options where it says nothing."""
        mine = {f: getattr(self, f) for f in self.__struct_fields__}
        return msgspec.structs.replace(
            options, **{field: value for field, value in mine.items() if value is not None}
        )

    def ask(self, rng: random.Random, *, repeats: bool) -> Ask:
        """The request itself, every value looked at.

        Raises:
            Usage: it names no type.
            InvalidValue: a value that can't be.
        """
        if self.type is None:
            raise Usage("create", "no type is given", "give --type, or type in each line")
        return Ask(
            name=_name(self.name, rng),
            request=request_id(self.request, rng),
            type=parse_label(self.type, "type"),
            host=None if self.host is None else parse_label(self.host, "host name"),
            parent=None if self.parent is None else parse_label(self.parent, "parent"),
            attrs=tuple(_attribute(key, value) for key, value in self.attrs or ()),
            persistent=bool(self.persistent or self.autostart),
            autostart=bool(self.autostart),
            repeats=repeats,
        )


def _name(text: str | None, rng: random.Random) -> Name:
    return random_name(rng.getrandbits(128)) if text is None else parse_name(text)


def _attribute(key: str, value: str) -> tuple[str, str]:
    if "=" in key:
        raise InvalidValue(key, "not an attribute", "write it as [NAME, VALUE]")
    return parse_attribute(f"{key}={value}")


def only(request: str | None, revision: int | None, names: int = 1) -> Only:
    """What an act is limited to, of its options.

    Raises:
        Usage: a revision, and several names.
        InvalidValue: no request id, or no revision.
    """
    if revision is not None and names > 1:
        raise Usage("--revision", "is that of one name, and several are named", "give one NAME")
    return Only(
        request=None if request is None else parse_request(request),
        revision=None if revision is None else bounded(revision, "--revision", 1, (1 << 63) - 1),
    )


def request_id(text: str | None, rng: random.Random) -> str:
    """The id of a request: the one that is given, or a random one.

    Raises:
        InvalidValue: it is not one.
    """
    return f"{rng.getrandbits(64):016x}" if text is None else parse_request(text)


def names(
    name: str | None,
    count: int | None,
    rng: random.Random,
    *,
    cluster: str = "",
    request: str | None = None,
) -> list[Name]:
    """The one that is named, or `count` others: of the request that is given, else random ones.

    Raises:
        Usage: both are given.
        InvalidValue: it is not a name, or not a count.
    """
    many = len(unnamed(name, count))
    if name is None and request is not None:
        id_ = parse_request(request)
        return [request_name(cluster, id_, index, many) for index in range(many)]
    return [_name(name, rng) for _ in range(many)]


def unnamed(name: str | None, count: int | None) -> list[str | None]:
    """The one that is named, or None for each of `count` others.

    Raises:
        Usage: both are given.
        InvalidValue: it is not a count.
    """
    if name is not None and count is not None:
        raise Usage("--count", "chooses the names, and one is named", "give one of the two")
    return [name] * (1 if count is None else bounded(count, "--count", 1, _COUNT))


def bounded(value: int, what: str, low: int = 1, high: int = _TTL) -> int:
    """A number between its bounds; seconds unless told otherwise.

    Raises:
        InvalidValue: it is not.
    """
    if not low <= value <= high:
        raise InvalidValue(f"{what} {value}", "cannot be", f"give {low} to {high}")
    return value


def asks(
    options: Line, lines: Iterable[tuple[str, Line]], rng: random.Random, *, cluster: str
) -> list[Ask]:
    """A request for each line; `lines` carry where they stand, for errors.

    A line without a name gets the next name of its request, where that has an id, else a random
    name.

    Raises:
        MdevnsError: for the first that is wrong, with where it stands.
    """
    known: dict[Name, str] = {}
    found: list[Ask] = []
    nameless: dict[str, list[int]] = {}
    given = options.request is not None
    # One request for all of them, so that whoever has its id finds them again.
    options = msgspec.structs.replace(options, request=request_id(options.request, rng))
    for where, line in lines:
        try:
            ask = line.over(options).ask(rng, repeats=given or line.request is not None)
        except (Usage, InvalidValue) as error:
            what = f"{where}: {error.what}" if where else error.what
            raise type(error)(what, error.why, error.hint, name=error.name) from None
        if ask.name in known:
            raise InvalidValue(f"{where}: {ask.name}", f"asked for before, in {known[ask.name]}")
        known[ask.name] = where
        if line.name is None and ask.repeats:
            nameless.setdefault(ask.request, []).append(len(found))
        found.append(ask)
    for request, places in nameless.items():
        many = bounded(len(places), f"request {request}: a count of", 1, _COUNT)
        for index, place in enumerate(places):
            name = request_name(cluster, request, index, many)
            if name in known:
                raise InvalidValue(f"{known[name]}: {name}", f"is name {index} of {request}, too")
            found[place] = replace(found[place], name=name, count=many)
    return found


def read_lines(file: str) -> Iterator[tuple[str, Line]]:
    """The requests in a file of JSON lines (`-`: stdin), each with where it stands.

    Raises:
        NotFound, InvalidValue: it cannot be read, or a line of it is wrong.
    """
    for where, text in lines_of(file):
        if text.strip():
            yield where, _line(where, text)


def lines_of(file: str) -> Iterator[tuple[str, str]]:
    """The lines of a file (`-`: stdin), each with where it stands.

    Raises:
        NotFound, InvalidValue: it cannot be read.
    """
    try:
        with _opened(file) as lines:
            for number, text in enumerate(lines, 1):
                yield f"{'stdin' if file == '-' else file} line {number}", text
    except FileNotFoundError:
        raise NotFound(file, "no such file") from None
    except OSError as error:
        raise InvalidValue(file, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidValue(file, "is not UTF-8") from None


def _opened(file: str) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdin) if file == "-" else Path(file).open(encoding="utf-8")


def _line(where: str, text: str) -> Line:
    try:
        return msgspec.json.decode(text, type=Line)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidValue(where, str(error), "nothing was done") from None
