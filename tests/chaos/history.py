"""Who asked what, when, and what was told: written as it happens, read when all is over.

Each process writes a file of its own, a JSON object a line: one when it asks, one when it is
answered, so that a process which is killed leaves what it had asked with an end that nobody
knows. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tests.support.linearizable import ANY, Holder, Kind, Operation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import Self

__all__ = ["Asked", "Diary", "Entry", "Told", "Verb", "operations", "read"]

DONE, NOT_FOUND, TAKEN, UNREACHABLE = 0, 3, 4, 10  # exit codes (docs: what an exit code asks for)


class Verb(StrEnum):
    """What is asked for a name."""

    CREATE = "create"
    REMOVE = "remove"
    RESERVE = "reserve"
    RELEASE = "release"
    DEFINE = "define"
    UNDEFINE = "undefine"
    MOVE = "move"
    STOP = "stop"
    START = "start"
    SHOW = "show"


TAKING = (Verb.CREATE, Verb.RESERVE, Verb.DEFINE)
FREEING = (Verb.REMOVE, Verb.RELEASE, Verb.UNDEFINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for a name. `host` is None where it may be anywhere, or none is named."""

    id: str
    process: str
    verb: Verb
    name: str
    request: str
    host: str | None
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Its answer: the exit code, who holds the name and how as far as it says, and the line."""

    id: str
    code: int
    at: float
    held: bool = False
    host: str | None = None
    request: str | None = None
    state: str | None = None
    line: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A request and its answer; None: nobody knows."""

    asked: Asked
    told: Told | None


class Diary:
    """A process's own file of what it asks and is told."""

    def __init__(self, file: Path, process: str) -> None:
        self._process, self._count = process, 0
        self._file = file.open("a", encoding="utf-8", buffering=1)

    def asks(self, verb: Verb, name: str, request: str, host: str | None) -> Asked:
        """Note a request, before it is sent."""
        self._count += 1
        number = f"{self._process}.{self._count}"
        asked = Asked(
            id=number,
            process=self._process,
            verb=verb,
            name=name,
            request=request,
            host=host,
            at=time.monotonic(),
        )
        self._write("asked", asdict(asked))
        return asked

    def told(self, told: Told) -> None:
        """Note an answer, after it came."""
        self._write("told", asdict(told))

    def _write(self, what: str, of: dict[str, object]) -> None:
        self._file.write(json.dumps({what: of}) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(files: Iterable[Path]) -> list[Entry]:
    """All requests of these files, in the order in which they were asked."""
    asked: dict[str, Asked] = {}
    told: dict[str, Told] = {}
    for file in files:
        for line in _whole_lines(file):
            ((what, of),) = json.loads(line).items()
            if what == "asked":
                asked[of["id"]] = Asked(**of | {"verb": Verb(of["verb"])})
            else:
                told[of["id"]] = Told(**of)
    entries = [Entry(each, told.get(each.id)) for each in asked.values()]
    return sorted(entries, key=lambda entry: entry.asked.at)


def _whole_lines(file: Path) -> list[str]:
    """All but the last one of a process that was killed while it wrote that."""
    *lines, _ = file.read_text(encoding="utf-8").split("\n")
    return lines


# As operations on a register.


def operations(entries: Iterable[Entry]) -> Iterator[Operation]:
    """What the entries say of the register that a name is: free, or held.

    Nothing is taken from an answer that does not say it: a request that failed for a reason of
    its own may have held the name for a while, and one that found it gone may have freed it.
    """
    for entry in entries:
        asked, told = entry.asked, entry.told
        if asked.verb in TAKING:
            yield from _taking(asked, told)
        elif asked.verb in (*FREEING, Verb.SHOW) and told is not None and told.code == NOT_FOUND:
            yield _operation(asked, told, Kind.READ, done=True)
        elif asked.verb in FREEING:
            yield from _freeing(asked, told)
        elif asked.verb is Verb.MOVE:
            yield from _moving(asked, told)
        elif asked.verb is Verb.SHOW and told is not None and told.code == DONE and told.held:
            seen = Holder(told.host or "", told.request or ANY)
            yield _operation(asked, told, Kind.READ, done=True, seen=seen)


def _taking(asked: Asked, told: Told | None) -> Iterator[Operation]:
    host = "" if asked.verb is Verb.RESERVE else asked.host or ANY
    if told is not None and told.code == DONE:
        there = host if told.host is None else told.host
        holder = Holder(there, told.request or asked.request)
        yield from _taken(asked, told, holder)
        if asked.verb is Verb.RESERVE:  # it hangs on a lease
            yield _operation(asked, None, Kind.LAPSE, done=None, holder=holder)
    elif told is not None and told.code == TAKEN and told.held:
        seen = Holder(told.host or "", ANY)
        yield _operation(asked, told, Kind.TAKE, done=False, seen=seen)
    elif told is None or told.code not in (UNREACHABLE, TAKEN):
        # Taken first without a host, by all that define, and given up by whoever gave up.
        for each in {host, ""} if asked.verb is Verb.DEFINE else {host}:
            holder = Holder(each, asked.request)
            yield _operation(asked, None, Kind.TAKE, done=None, holder=holder)
            yield _operation(asked, None, Kind.LAPSE, done=None, holder=holder)


def _taken(asked: Asked, told: Told, holder: Holder) -> Iterator[Operation]:
    """A name that was taken, and what may have stood on the way to that."""
    if asked.verb is Verb.DEFINE:  # held without a host first
        held = Holder("", holder.request)
        yield _operation(asked, told, Kind.TAKE, done=True, holder=held)
        yield _operation(asked, told, Kind.MOVE, done=True, holder=held, to=holder)
        return
    if asked.verb is Verb.CREATE and asked.host is None:
        # Perhaps refused on one host for want of room, and made on another.
        somewhere = Holder(ANY, holder.request)
        yield _operation(asked, told, Kind.TAKE, done=None, holder=somewhere)
        yield _operation(asked, told, Kind.LAPSE, done=None, holder=somewhere)
    yield _operation(asked, told, Kind.TAKE, done=True, holder=holder)


def _freeing(asked: Asked, told: Told | None) -> Iterator[Operation]:
    whoever = Holder(ANY, ANY)
    if told is not None and told.code == DONE:  # it is gone, by us or by who asked beside us
        yield _operation(asked, told, Kind.LAPSE, done=True, holder=whoever)
    elif told is None or told.code != UNREACHABLE:
        yield _operation(asked, None, Kind.LAPSE, done=None, holder=whoever)


def _moving(asked: Asked, told: Told | None) -> Iterator[Operation]:
    whoever, to = Holder(ANY, ANY), Holder(asked.host or ANY, ANY)
    if told is not None and told.code == DONE:
        yield _operation(asked, told, Kind.MOVE, done=True, holder=whoever, to=to)
    elif told is None or told.code not in (UNREACHABLE, NOT_FOUND):
        yield _operation(asked, None, Kind.MOVE, done=None, holder=whoever, to=to)


def _operation(
    asked: Asked,
    told: Told | None,
    kind: Kind,
    *,
    done: bool | None,
    holder: Holder | None = None,
    to: Holder | None = None,
    seen: Holder | None = None,
) -> Operation:
    return Operation(
        name=asked.name,
        process=asked.process,
        kind=kind,
        invoked=asked.at,
        returned=None if told is None else told.at,
        done=done,
        holder=holder,
        to=to,
        seen=seen,
    )
