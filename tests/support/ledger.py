"""What users asked and were told, and whether it is so: every request with its answer.

An answer is a definite success (then the claim stands), a definite failure (then it does not,
and nothing arrives late), or exit 11 (then either, and the same request again settles it). The
ledger keeps for each name what may stand after each answer, and judges that against the truth.
It knows the exit codes of the command line and not a line of what is tested.

The requests for one name are asked one after the other, so that they have an order.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.truth import Truth

__all__ = ["Asked", "Exit", "Ledger", "Told", "Verb"]


class Exit(IntEnum):
    """The exit codes that say something of what stands; all others only that it did not go."""

    DONE = 0
    DEFECT = 1
    NOT_FOUND = 3
    TAKEN = 4
    UNREACHABLE = 10
    UNKNOWN = 11
    READ_ONLY = 14
    HOST_DOWN = 16


class Verb(StrEnum):
    """What is asked for a name."""

    CREATE = "create"
    REMOVE = "remove"
    RESERVE = "reserve"
    RELEASE = "release"

    @property
    def takes(self) -> bool:
        """Whether the name is held when it is done; else it is free."""
        return self in (Verb.CREATE, Verb.RESERVE)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a name. Without a `host` it may be made anywhere."""

    verb: Verb
    name: str
    request: str = ""
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """An answer: the exit code, the line, and the host and state of the claim that it names."""

    code: int
    line: str = ""
    host: str | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """A name that is held by a request: with a device on the host, or without any."""

    request: str
    host: str | None
    device: bool

    def may_be_on(self, host: str | None) -> bool:
        """Whether it is on a host, as far as that is known."""
        return None in (host, self.host) or self.host == host

    def __str__(self) -> str:
        what = f"a device on {self.host or 'any host'}" if self.device else "a reservation"
        return f"{what} by {self.request}"


_Standing = _Held | None
_FREE: frozenset[_Standing] = frozenset({None})


@dataclass
class Ledger:
    """All requests and answers; what they leave open, and what of them was untrue."""

    history: dict[str, list[tuple[Asked, Told]]] = field(default_factory=dict)
    answers: Counter[tuple[Verb, int]] = field(default_factory=Counter)
    _may: dict[str, frozenset[_Standing]] = field(default_factory=dict)
    _untrue: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def told(self, asked: Asked, told: Told) -> None:
        """A request was answered, after whatever was asked for its name before."""
        with self._lock:
            self.history.setdefault(asked.name, []).append((asked, told))
            self.answers[asked.verb, told.code] += 1
            before = self._may.get(asked.name, _FREE)
            after = _taken(asked, told, before) if asked.verb.takes else _freed(told, before)
            if told.code == Exit.DEFECT or not after:
                stood = " or ".join(str(each or "nothing") for each in before)
                self._untrue.append(f"{asked.name}: {asked.verb} was told {told}; held was {stood}")
            self._may[asked.name] = after or before

    def gave_up(self, host: str) -> None:
        """All names of a host were given up by force."""
        with self._lock:
            for name, may in self._may.items():
                self._may[name] = frozenset(
                    None if each is not None and each.host == host else each for each in may
                )

    def count(self, code: int, *verbs: Verb) -> int:
        """How many requests (of these verbs, or all) were answered with an exit code."""
        return sum(self.answers[verb, code] for verb in verbs or Verb)

    def is_settled(self, name: str) -> bool:
        """Whether it is known what stands."""
        return len(self._may.get(name, _FREE)) == 1

    def must_stand(self, host: str) -> list[str]:
        """The names of which it is known that they have a device on a host."""
        return [
            name
            for name, may in self._may.items()
            if any(each is not None and each.device and each.host == host for each in may)
            and len(may) == 1
        ]

    def wrong(self, truth: Truth) -> list[str]:
        """What was told and is not so, now that nothing is under way, a line each."""
        return [*self._untrue, *self._not_so(truth)]

    def story(self) -> str:
        """The answers, counted, for a failure."""
        counts = sorted(self.answers.items(), key=str)
        return ", ".join(f"{verb} exit {code}: {count}" for (verb, code), count in counts)

    def _not_so(self, truth: Truth) -> Iterator[str]:
        for name, may in self._may.items():
            if not any(_stands(name, each, truth) for each in may):
                wanted = " or ".join(str(each or "nothing") for each in may)
                found = f"{truth.names.get(name)}, {truth.claims.get(name)}"
                lines = [f"    {asked}: {told}" for asked, told in self.history[name]]
                found += f", devices on {truth.hosts_with(name)}"
                first = f"{name}: {wanted} was to stand, there is {found}; it was asked for:"
                yield "\n".join([first, *lines])
        for name in truth.names.keys() - self._may.keys():
            yield f"{name}: held, and nobody asked for it"


def _taken(asked: Asked, told: Told, before: frozenset[_Standing]) -> frozenset[_Standing]:
    """What may stand after the answer to a request that takes a name; empty: it is untrue."""
    others = frozenset(each for each in before if each and each.request != asked.request)
    may_be_mine = before != others
    match told.code:
        case Exit.DONE:
            return frozenset({_mine(asked, told.host)} if may_be_mine else ())
        case Exit.TAKEN:  # somebody else has it, and who is told
            return frozenset(each for each in others if each.may_be_on(told.host))
        case Exit.UNKNOWN if may_be_mine:
            return before | {_mine(asked, asked.host)}
        case Exit.HOST_DOWN if told.state is not None and may_be_mine:
            return frozenset({_mine(asked, told.host)})  # the claim stays: its host goes on
    if any(each is not None and not each.device for each in before - others):
        return before | _FREE  # a reservation of its own may have been used up by the try
    return before


def _mine(asked: Asked, host: str | None) -> _Held:
    return _Held(asked.request, host or asked.host, device=asked.verb is Verb.CREATE)


def _freed(told: Told, before: frozenset[_Standing]) -> frozenset[_Standing]:
    """What may stand after the answer to a request that frees a name; empty: it is untrue."""
    match told.code:
        case Exit.DONE:
            return frozenset() if before == _FREE else _FREE
        case Exit.NOT_FOUND:
            return before & _FREE
        case Exit.UNKNOWN:
            return before | _FREE
        case Exit.HOST_DOWN if told.state == "removing":  # the claim stays: its host goes on
            return _FREE
    return before


def _stands(name: str, wanted: _Standing, truth: Truth) -> bool:
    taken, claim, hosts = truth.names.get(name), truth.claim(name), truth.hosts_with(name)
    if wanted is None:
        return taken is None and not truth.claims.get(name) and not hosts
    if taken is None or taken.request != wanted.request:
        return False
    if not wanted.device:
        return taken.host is None and not hosts
    return (
        claim is not None
        and claim.state == "active"
        and wanted.host in (None, claim.host)
        and hosts == [claim.host]
    )
