"""Whether what everybody was told of a name can have happened in one order.

A name is a register: free, or held by a host and a request. A history is linearizable when
each operation can be given a moment between its beginning and its end so that, one after the
other, they do and see what was told (Herlihy and Wing, 1990). An operation whose outcome
nobody knows may have any moment after its beginning, or none.

The history is walked in time with all that may stand at once, and who has had his moment
(Lowe's just-in-time linearization): when an operation ends, only those ways of telling it
are kept in which it has had its moment. When none is left, it was untrue.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ANY", "FREE", "Holder", "Kind", "Operation", "Violation", "violations"]

ANY = "*"  # a host or a request of which nothing is known


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """Who holds a name. A host of "" is none yet; each may be `ANY`, where it is not known."""

    host: str
    request: str

    def __str__(self) -> str:
        return f"{self.host or 'no host'}/{self.request}"


FREE = None
"""The state of a name that nobody holds."""

State = Holder | None


class Kind(StrEnum):
    """What an operation does to a name."""

    TAKE = "take"  # free, or of the same request: held by `holder`
    FREE = "free"  # held by `holder`: free
    MOVE = "move"  # held by `holder`: held by `to`
    LAPSE = "lapse"  # held by `holder`: free; else nothing (an expiry, an evict)
    READ = "read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation on a name, as its caller met it.

    `invoked` and `returned` are moments of one clock or counter. `done`: it did what it was
    to do; False: it was refused, and saw `seen`; None: nobody knows. `returned` None: it may
    take effect at any time. A read is done, and saw `seen`.
    """

    name: str
    process: str
    kind: Kind
    invoked: float
    returned: float | None
    done: bool | None
    holder: State = None
    to: State = None
    seen: State = None

    def __str__(self) -> str:
        told = {True: "done", False: f"refused, {self.seen or 'free'}", None: "unknown"}[self.done]
        if self.kind is Kind.READ:
            told = str(self.seen or "free")
        of = "" if self.holder is None else f" {self.holder}"
        to = "" if self.to is None else f" to {self.to}"
        when = f"{self.invoked:g}-{'' if self.returned is None else f'{self.returned:g}'}"
        return f"{when} {self.process}: {self.kind}{of}{to}: {told}"

    def after(self, state: State) -> Iterator[State]:
        """What may stand after its moment, when `state` stood before; none: it cannot be then."""
        if self.done is False or self.kind is Kind.READ:
            if state == self.seen or _both(state, self.seen):
                yield _both(state, self.seen)
        elif self.kind is Kind.TAKE:
            if state is None or (self.holder and _same(state.request, self.holder.request)):
                yield self.holder
        elif _both(state, self.holder):
            yield self.to if self.kind is Kind.MOVE else FREE
            if self.kind is Kind.LAPSE and _both(state, self.holder) != state:
                yield state  # it was perhaps another's
        elif self.kind is Kind.LAPSE:
            yield state


@dataclass(frozen=True, slots=True)
class Violation:
    """The first operation of a name that can not have been as it was told, and what might stand."""

    operation: Operation
    might: tuple[State, ...]
    history: tuple[Operation, ...]

    def __str__(self) -> str:
        might = " or ".join(str(state or "free") for state in self.might)
        lines = "\n".join(f"    {operation}" for operation in self.history)
        return f"{self.operation.name}: {self.operation}; it was {might}:\n{lines}"


@dataclass(frozen=True, slots=True)
class _Telling:
    """One way to tell what has happened so far.

    `had` are operations that are not over and have had their moment; `tried` are those of
    unknown outcome that have.
    """

    state: State
    had: frozenset[int] = frozenset()
    tried: frozenset[int] = frozenset()


def violations(history: Iterable[Operation]) -> list[Violation]:
    """For each name whose history is not linearizable, where that shows first."""
    by_name: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_name[operation.name].append(operation)
    found = (_violation(operations) for operations in by_name.values())
    return [violation for violation in found if violation is not None]


def _violation(history: list[Operation]) -> Violation | None:
    history = sorted(history, key=lambda operation: operation.invoked)
    tellings = {_Telling(FREE)}
    open_: dict[int, Operation] = {}
    for _, ends, which in _events(history):
        operation = history[which]
        if not ends:
            open_[which] = operation
            continue
        told = _expanded(tellings, open_)
        if operation.done is not None:
            told = {telling for telling in told if which in telling.had}
        if not told:
            might = {telling.state for telling in _expanded(tellings, open_)}
            upto = tuple(each for each in history if each.invoked <= (operation.returned or 0))
            return Violation(operation, tuple(sorted(might, key=str)), upto)
        del open_[which]
        tellings = _fewest({_without(telling, which) for telling in told})
    return None


def _events(history: list[Operation]) -> list[tuple[float, bool, int]]:
    """Beginnings and ends in time. At one moment beginnings first: those two overlap."""
    begun = [(each.invoked, False, which) for which, each in enumerate(history)]
    ended = [
        (each.returned, True, which)
        for which, each in enumerate(history)
        if each.returned is not None
    ]
    return sorted([*begun, *ended])


def _expanded(tellings: set[_Telling], open_: dict[int, Operation]) -> set[_Telling]:
    """All that can be told when operations that are not over may have their moments now."""
    found, fresh = set(tellings), list(tellings)
    while fresh:
        telling = fresh.pop()
        for which, operation in open_.items():
            if which in telling.had or which in telling.tried:
                continue
            for state in operation.after(telling.state):
                following = _moment(telling, which, operation, state)
                if following is not None and following not in found:
                    found.add(following)
                    fresh.append(following)
    return found


def _moment(telling: _Telling, which: int, operation: Operation, state: State) -> _Telling | None:
    if operation.done is not None:
        return _Telling(state, telling.had | {which}, telling.tried)
    if state == telling.state:
        return None  # it might as well have had none
    return _Telling(state, telling.had, telling.tried | {which})


def _without(telling: _Telling, which: int) -> _Telling:
    return replace(telling, had=telling.had - {which}, tried=telling.tried - {which})


def _fewest(tellings: set[_Telling]) -> set[_Telling]:
    """Without those that another one can do all of: it has more unknown outcomes left to use."""
    kept: defaultdict[tuple[State, frozenset[int]], list[_Telling]] = defaultdict(list)
    for telling in sorted(tellings, key=lambda each: len(each.tried)):
        others = kept[telling.state, telling.had]
        if not any(other.tried <= telling.tried for other in others):
            others.append(telling)
    return {telling for others in kept.values() for telling in others}


def _same(one: str, other: str) -> bool:
    return ANY in (one, other) or one == other


def _both(one: State, other: State) -> State:
    """Who both may be, as far as either is known; None: they are not the same."""
    if one is None or other is None or not _same(one.host, other.host):
        return None
    if not _same(one.request, other.request):
        return None
    host = other.host if one.host == ANY else one.host
    return Holder(host, other.request if one.request == ANY else one.request)
