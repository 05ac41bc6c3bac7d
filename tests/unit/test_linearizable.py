"""The checker of histories finds what cannot have been, and lets pass what can."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support.linearizable import (
    ANY,
    FREE,
    Holder,
    Kind,
    Operation,
    Violation,
    violations,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = Holder("gpu01", "a"), Holder("gpu02", "b")
NAME = "aaaaaaaa-0000-4000-8000-000000000001"


def op(
    kind: Kind,
    times: tuple[float, float | None],
    holder: Holder | None = None,
    *,
    done: bool | None = True,
    seen: Holder | None = None,
    to: Holder | None = None,
    name: str = NAME,
) -> Operation:
    """An operation, shortly."""
    return Operation(
        name=name,
        process="p",
        kind=kind,
        invoked=times[0],
        returned=times[1],
        done=done,
        holder=holder,
        to=to,
        seen=seen,
    )


def take(began: float, ended: float | None, holder: Holder, **more: object) -> Operation:
    """Somebody takes the name."""
    return op(Kind.TAKE, (began, ended), holder, **more)  # type: ignore[arg-type]  # as `op`


def free(began: float, ended: float | None, holder: Holder, **more: object) -> Operation:
    """Somebody frees it."""
    return op(Kind.FREE, (began, ended), holder, **more)  # type: ignore[arg-type]  # as `op`


def read(began: float, ended: float, seen: Holder | None) -> Operation:
    """Somebody looks."""
    return op(Kind.READ, (began, ended), seen=seen)


GOOD = {
    "one after the other": [take(0, 1, A), read(2, 3, A), free(4, 5, A), take(6, 7, B)],
    "two at once, one is refused": [take(0, 9, A), take(1, 8, B, done=False, seen=A)],
    "a read that overlaps may see either": [take(0, 9, A), read(1, 2, A), read(1, 2, FREE)],
    "the same request again": [take(0, 1, A), take(2, 3, A)],
    "a reservation gets its host": [take(0, 1, Holder("", "a")), take(2, 3, A), read(4, 5, A)],
    "unknown, and was": [take(0, None, A, done=None), read(5, 6, FREE), read(7, 8, A)],
    "unknown, and never was": [take(0, None, A, done=None), take(5, 6, B), read(7, 8, B)],
    "unknown, late, after it was free again": [
        take(0, None, A, done=None),
        take(1, 2, B),
        free(3, 4, B),
        read(5, 6, A),
    ],
    "moved": [
        take(0, 1, A),
        op(Kind.MOVE, (2, 3), A, to=Holder("gpu02", "a")),
        free(4, 5, Holder("gpu02", "a")),
    ],
    "lapsed at some time": [
        take(0, 1, A),
        op(Kind.LAPSE, (1, None), A, done=None),
        read(2, 3, A),
        take(4, 5, B),
    ],
    "the host is not known": [take(0, 1, Holder(ANY, "a")), read(2, 3, A), read(4, 5, A)],
    "an evict of a host that did not hold it": [
        take(0, 1, A),
        op(Kind.LAPSE, (2, 3), Holder("gpu02", ANY)),
        read(4, 5, A),
    ],
}

BAD = {
    "taken twice": [take(0, 1, A), take(2, 3, B)],
    "taken twice at once": [take(0, 9, A), take(1, 8, B), read(10, 11, A)],
    "lost": [take(0, 1, A), read(2, 3, FREE)],
    "freed twice": [take(0, 1, A), free(2, 3, A), free(4, 5, A)],
    "another's freed": [take(0, 1, A), free(2, 3, B)],
    "refused by who had it no more": [
        take(0, 1, A),
        free(2, 3, A),
        take(4, 5, B, done=False, seen=A),
    ],
    "seen, gone, and seen again": [
        take(0, 20, A),
        read(1, 2, A),
        read(3, 4, FREE),
    ],
    "unknown, and was only once": [
        take(0, None, A, done=None),
        read(1, 2, A),
        free(3, 4, A),
        read(5, 6, A),
    ],
    "unknown, but over": [take(0, 3, A, done=None), read(4, 5, FREE), read(6, 7, A)],
    "on two hosts": [take(0, 1, Holder(ANY, "a")), read(2, 3, A), read(4, 5, Holder("gpu02", "a"))],
    "evicted, and there still": [
        take(0, 1, A),
        op(Kind.LAPSE, (2, 3), Holder("gpu01", ANY)),
        read(4, 5, A),
    ],
    "moved back by nobody": [
        take(0, 1, A),
        op(Kind.MOVE, (2, 3), A, to=Holder("gpu02", "a")),
        read(4, 5, A),
    ],
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_what_can_have_been_passes(history: list[Operation]) -> None:
    """A history that some order explains is none to complain of, in whatever order it is given."""
    assert violations(history) == []
    assert violations(reversed(history)) == []


@pytest.mark.parametrize("history", BAD.values(), ids=BAD)
def test_what_cannot_have_been_is_found(history: list[Operation]) -> None:
    """A history that no order explains is found, whatever lies around it on other names."""
    others = [replace(each, name="another") for each in GOOD["one after the other"]]
    (violation,) = violations([*others, *history])
    assert violation.operation in history


def test_a_violation_tells_the_operation_and_what_might_have_stood() -> None:
    """Whoever reads it learns the first answer that was untrue, and what would have been true."""
    (violation,) = violations(BAD["lost"])
    assert violation.operation == BAD["lost"][1]
    assert violation.might == (A,)
    assert str(violation).splitlines() == [
        f"{NAME}: 2-3 p: read: free; it was gpu01/a:",
        "    0-1 p: take gpu01/a: done",
        "    2-3 p: read: free",
    ]


class _Register:
    """A name as it is: each operation is done at its one moment."""

    def __init__(self) -> None:
        self.state: Holder | None = FREE

    def play(self, kind: Kind, holder: Holder) -> tuple[bool, Holder | None]:
        before = self.state
        if kind is Kind.TAKE and before in (FREE, holder):
            self.state = holder
        elif kind is Kind.FREE and before == holder:
            self.state = FREE
        else:
            return kind is Kind.READ, before
        return True, None


def _histories(seed: int, count: int) -> Iterator[list[Operation]]:
    """Histories that were: random operations, each with a moment inside of its time."""
    rng = random.Random(seed)
    for _ in range(count):
        register, history = _Register(), []
        for moment in range(rng.randint(2, 12)):
            kind = rng.choice((Kind.TAKE, Kind.FREE, Kind.READ))
            holder = rng.choice((A, B))
            lost = kind is not Kind.READ and rng.random() < 0.2
            happens = not lost or rng.random() < 0.6
            done, seen = register.play(kind, holder) if happens else (False, None)
            times = (moment - rng.random() * 3, moment + rng.random() * 3)
            subject = None if kind is Kind.READ else holder
            if lost:
                history.append(op(kind, (times[0], None), subject, done=None))
            else:
                history.append(op(kind, times, subject, done=done, seen=seen))
        yield history


def _can_have_been(history: list[Operation]) -> bool:
    """The definition, word by word: some order of some of them, in which each is as told."""
    certain = [each for each in history if each.done is not None]
    unknown = [each for each in history if each.done is None]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            if any(map(_explains, itertools.permutations([*certain, *some]))):
                return True
    return False


def _explains(order: tuple[Operation, ...]) -> bool:
    for place, operation in enumerate(order):
        ends = operation.returned
        if any(ends is not None and ends < before.invoked for before in order[:place]):
            return False
    state: Holder | None = FREE
    for operation in order:
        after = list(operation.after(state))
        if not after:
            return False
        (state,) = after
    return True


def test_what_was_is_never_complained_of() -> None:
    """Any history of a register that is one passes."""
    assert [each for history in _histories(1, 1000) for each in violations(history)] == []


def test_the_checker_agrees_with_the_definition() -> None:
    """Histories with one answer changed are found exactly when no order at all explains them."""
    rng = random.Random(2)
    found = 0
    for history in _histories(3, 400):
        certain = [each for each in history if each.done is not None]
        if len(history) > 6 or not certain:
            continue
        wrong = rng.choice(certain)
        seen = rng.choice((A, B, FREE))
        changed = replace(wrong, done=wrong.kind is Kind.READ or not wrong.done, seen=seen)
        lied = [changed if each is wrong else each for each in history]
        complaint: list[Violation] = violations(lied)
        assert bool(complaint) is not _can_have_been(lied), lied
        found += bool(complaint)
    assert found > 20
