"""Who was told what of a name, and when: for the checker of histories.

What operators ask is recorded as they meet it, from before it is sent until they have its answer.
What agents do and what time does has its one moment: that of its commit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.errors import Moved, NameTaken, OutcomeUnknown
from coordinator.model import NameValue
from coordinator.store import Compare, Delete, Put, Target
from tests.support.linearizable import ANY, Holder, Kind, Operation, violations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.batch import GroupCommit
    from coordinator.keys import Keys
    from coordinator.store import KeyValue
    from coordinator.transactions import Answer, Change, Guard

__all__ = ["History", "Recorded"]

_value = msgspec.json.Decoder(NameValue).decode


def holder_of(kv: KeyValue | None) -> Holder | None:
    """Who holds a name as its key stands."""
    if kv is None:
        return None
    value = _value(kv.value)
    return Holder(value.host or "", value.request)


class History:
    """The operations on names since the store was set back last."""

    def __init__(self, keys: Keys, time: Callable[[], float]) -> None:
        self._keys, self._time = keys, time
        self._operations: dict[int, Operation] = {}
        self._done: dict[tuple[str, str, Holder], float] = {}  # what operators asked: since when
        self.twice = 0  # how often a request in doubt took a name anew
        self._count = 0
        self._carried: set[int] = set()  # what was asked of a store that was set back meanwhile
        self._at: dict[tuple[str, int], Holder] = {}  # by name and revision

    def restart(self, standing: dict[str, KeyValue]) -> None:
        """The store was set back: what was answered before says nothing of what comes.

        What is still asked may be done in the one store or the other; nobody knows in which.
        """
        asked = {n: each for n, each in self._operations.items() if each.returned is None}
        self._operations = {n: replace(each, invoked=self._time()) for n, each in asked.items()}
        self._carried |= asked.keys()
        self._done.clear()
        self._at.clear()
        for name, kv in standing.items():
            self.changed(name, None, kv, asker="")

    def changed(
        self, name: str, before: KeyValue | None, after: KeyValue | None, *, asker: str
    ) -> None:
        """A name was committed."""
        was, is_ = holder_of(before), holder_of(after)
        if after is not None and is_ is not None:
            self._at[name, after.mod_revision] = is_
        if asker and is_ is not None:
            self._asked(asker, name, was, is_)
        if asker or was == is_:
            return
        now, kind, holder, to = self._time(), Kind.MOVE, was, is_
        if was is None:
            kind, holder, to = Kind.TAKE, is_, None
        elif is_ is None:
            kind = Kind.FREE
        self._add(
            Operation(
                name=name,
                process="commit",
                kind=kind,
                invoked=now,
                returned=now,
                done=True,
                holder=holder,
                to=to,
            )
        )

    def _asked(self, asker: str, name: str, was: Holder | None, holder: Holder) -> None:
        """An operator's request was done.

        One in doubt is sent again until it is answered. Where its host has given up meanwhile
        what the first copy took, it is taken anew: the first is one of its own.
        """
        first = self._done.get((asker, name, holder))
        if first is not None and was is None:
            self.twice += 1
            self._add(
                Operation(
                    name=name,
                    process="an earlier copy",
                    kind=Kind.TAKE,
                    invoked=first,
                    returned=first,
                    done=True,
                    holder=holder,
                    to=None,
                )
            )
        self._done[asker, name, holder] = self._time()

    def _add(self, operation: Operation) -> int:
        self._count += 1
        self._operations[self._count] = operation
        return self._count

    def begun(self, process: str, change: Change) -> int:
        """An operator is about to ask for a change; until it is answered nobody knows."""
        kind, holder, to = self._meaning(change)
        if kind is Kind.FREE:
            # It is done when what was read is gone, whoever has given it up since.
            kind = Kind.LAPSE
        target = holder if kind is Kind.TAKE else to
        if target is not None:
            self._done.pop((process, change.name, target), None)
        return self._add(
            Operation(
                name=change.name,
                process=process,
                kind=kind,
                invoked=self._time(),
                returned=None,
                done=None,
                holder=holder,
                to=to,
            )
        )

    def _meaning(self, change: Change) -> tuple[Kind, Holder | None, Holder | None]:
        key = self._keys.name(change.name)
        expected = next((self._expected(change.name, c) for c in change.when if c.key == key), None)
        for op in change.then:
            if isinstance(op, Put) and op.key == key:
                value = _value(op.value)
                to = Holder(value.host or "", value.request)
                return (Kind.TAKE, to, None) if change.takes else (Kind.MOVE, expected, to)
            if isinstance(op, Delete) and op.key == key:
                return Kind.FREE, expected, None
        raise AssertionError("a change of a name that does not write it")

    def _expected(self, name: str, compare: Compare) -> Holder | None:
        if compare.target is not Target.MOD or not isinstance(compare.operand, int):
            return None
        return self._at.get((name, compare.operand), Holder(ANY, ANY))

    def ended(self, number: int, answer: Answer) -> None:
        """An operator has its answer."""
        operation, error = self._operations.get(number), answer.error
        if operation is None or number in self._carried or isinstance(error, OutcomeUnknown):
            return
        told: dict[str, Any] = {"returned": self._time(), "done": error is None}
        if isinstance(error, NameTaken | Moved):
            holder = error.holder
            told["seen"] = None if holder is None else Holder(holder.host or "", ANY)
        if error is not None and (answer.doubted or not isinstance(error, NameTaken | Moved)):
            told["done"] = None  # by an earlier copy, perhaps
        self._operations[number] = replace(operation, **told)

    def check(self) -> list[str]:
        """What cannot have been as it was told."""
        return [str(violation) for violation in violations(self._operations.values())]


class Recorded:
    """A client's group commit, with everything that is asked of it taken down."""

    def __init__(self, inner: GroupCommit, history: History, process: str) -> None:
        self._inner, self._history, self._process = inner, history, process
        self.idle, self.close = inner.idle, inner.close

    async def changes(self, guards: tuple[Guard, ...], changes: Sequence[Change]) -> list[Answer]:
        """As `GroupCommit.changes`."""
        numbers = [self._history.begun(self._process, change) for change in changes]
        answers = await self._inner.changes(guards, changes)
        for number, answer in zip(numbers, answers, strict=True):
            self._history.ended(number, answer)
        return answers
