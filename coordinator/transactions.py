"""How transitions become transactions, and how an unknown outcome becomes a known one.

A `Change` is one transition of one name; a `Guard` is a condition that a whole commit shares.
Many changes go into one transaction: the outer one compares the guards, and inside it each
name has a transaction of its own, whose else branch fetches who stands in the way. So one
Raft commit gives every name its own answer, and a name that is taken fails alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from coordinator.errors import (
    MdevnsError,
    NotAllowed,
    OutcomeUnknown,
    SetBack,
    StoreError,
    StoreReadOnly,
    Unreachable,
)
from coordinator.model import Claim, Name
from coordinator.store import (
    MAX_TXN_OPS,
    Compare,
    Delete,
    KeyValue,
    Put,
    Range,
    Txn,
    TxnResult,
    holds,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Sequence

    from tenacity import RetryCallState

    from coordinator.store import Store

__all__ = ["Answer", "Change", "Guard", "answers", "chunks", "settle", "transact", "transaction"]

# etcd refuses requests over 1.5 MiB; what protobuf adds to keys and values stays below this.
_MAX_BYTES = 1 << 20
_OVERHEAD = 128

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds at most; twice as long each time


class Guard(msgspec.Struct, frozen=True, cache_hash=True):
    """A condition that all changes of one commit share, and the error when it fails.

    A guard is a value: any transaction can include it. `told` may say more of what stands in
    the way: why, and what to do.
    """

    compare: Compare
    error: type[MdevnsError]
    what: str
    why: str
    hint: str = ""
    told: Callable[[KeyValue], tuple[str, str] | None] | None = None

    def refusal(self, kv: KeyValue | None) -> MdevnsError | None:
        """The error, if the guard does not hold of the key as it stands."""
        if holds(self.compare, kv):
            return None
        told = None if kv is None or self.told is None else self.told(kv)
        why, hint = told or (self.why, self.hint)
        return self.error(self.what, why, hint)


class Answer(msgspec.Struct, frozen=True):
    """What became of one change.

    Without an `error` it was made, by this copy of the request or an earlier one, and `claim`
    is what stands at `revision` (None: the name is free, or held without a host). `doubted`: it
    was refused, and an earlier copy may have been done all the same, and be undone since.
    """

    revision: int
    claim: Claim | None = None
    error: MdevnsError | None = None
    doubted: bool = False

    def made(self) -> Claim | None:
        """What stands now.

        Raises:
            MdevnsError: why it was refused.
        """
        if self.error is not None:
            raise self.error
        return self.claim


class Change(msgspec.Struct, frozen=True):
    """One transition of one name.

    Its inner transaction compares `when` and does `then`; otherwise it reads `otherwise`,
    from which `refused` tells whether an earlier copy of this very change was applied or
    who is in the way. `done` is what stands when it was applied at a revision.
    """

    name: Name
    when: tuple[Compare, ...]
    then: tuple[Put | Delete, ...]
    otherwise: tuple[Range, ...]
    done: Callable[[int], Answer]
    refused: Callable[[tuple[KeyValue | None, ...], int], Answer]

    @property
    def takes(self) -> bool:
        """Whether it takes a free name: a copy of it may be applied as soon as the name is free."""
        return any(holds(compare, None) for compare in self.when)

    @property
    def longest(self) -> int:
        """The length of its longest list, which etcd counts."""
        return max(len(self.when), len(self.then), len(self.otherwise))

    @property
    def size(self) -> int:
        """About how many bytes it takes in a request."""
        size = _OVERHEAD
        for op in self.then:
            size += len(op.key) + len(op.value) if isinstance(op, Put) else len(op.key)
        size += sum(len(compare.key) for compare in self.when)
        return size + sum(len(read.key) for read in self.otherwise)


def chunks(changes: Iterable[Change], *, beside: int = 0) -> Iterator[list[Change]]:
    """Cut changes into groups that fit one transaction each, with so many short ones `beside`.

    etcd counts outer list + longest inner list against 128 (measured); a name occurs once in
    a group, since no key may be put twice in one transaction.
    """
    group: list[Change] = []
    names: set[Name] = set()
    longest = size = 0
    for change in changes:
        new_longest, new_size = max(longest, change.longest), size + change.size
        full = len(group) + 1 + beside + new_longest > MAX_TXN_OPS or new_size > _MAX_BYTES
        if group and (full or change.name in names):
            yield group
            group, names = [], set()
            new_longest, new_size = change.longest, change.size
        group.append(change)
        names.add(change.name)
        longest, size = new_longest, new_size
    if group:
        yield group


def transaction(guards: Sequence[Guard], changes: Sequence[Change]) -> Txn:
    """The one transaction that makes all `changes` under all `guards`."""
    return Txn(
        compares=tuple(guard.compare for guard in guards),
        success=tuple(Txn(c.when, c.then, c.otherwise) for c in changes),
        failure=tuple(Range(guard.compare.key) for guard in guards),
    )


async def transact(
    store: Store,
    guards: Sequence[Guard],
    changes: Sequence[Change],
    *,
    patience: float | None,
    rng: random.Random,
    doubted: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Make `changes` (which fit one transaction) in one commit; an answer for each, in order.

    `doubted` as in `settle`.

    Raises:
        MdevnsError: a guard does not hold; nothing was done.
        StoreError: as `settle`.
    """
    try:
        result = await settle(
            store, transaction(guards, changes), patience=patience, rng=rng, doubted=doubted
        )
    except StoreReadOnly as error:
        return await _looked_up(store, changes, error)
    return answers(guards, changes, result)


async def _looked_up(store: Store, changes: Sequence[Change], error: StoreReadOnly) -> list[Answer]:
    """What a transaction that was answered with "no space" has done all the same.

    etcd raises that alarm after it has applied a transaction, too (3.5.1: 17 of 67 that were
    refused stood in the store). Whatever it did is done by the time of its answer, and a
    linearizable read shows it; a transaction would be refused.
    """
    found = []
    for change in changes:
        try:
            reads = [await store.range(read) for read in change.otherwise]
        except StoreError as unread:
            why = f"{error.why}, and what stands cannot be read: {unread.why}"
            raise OutcomeUnknown(error.what, why, "send the very same again to learn it") from None
        kvs = tuple(read.first for read in reads)
        answer = change.refused(kvs, max(read.revision for read in reads))
        found.append(answer if answer.error is None else Answer(0, error=error))
    return found


def answers(guards: Sequence[Guard], changes: Sequence[Change], result: TxnResult) -> list[Answer]:
    """Read the answers to a `transaction` of these guards and changes.

    Raises:
        MdevnsError: a guard does not hold; nothing was done.
    """
    if not result.succeeded:
        raise _guard_error(guards, result)
    return [
        _answer(change, inner, result.revision)
        for change, inner in zip(changes, result.results, strict=True)
        if isinstance(inner, TxnResult)
    ]


def _answer(change: Change, inner: TxnResult, revision: int) -> Answer:
    if inner.succeeded:
        return change.done(revision)
    return change.refused(tuple(read.first for read in inner.ranges()), revision)


def _guard_error(guards: Sequence[Guard], result: TxnResult) -> MdevnsError:
    for guard, read in zip(guards, result.ranges(), strict=True):
        error = guard.refusal(read.first)
        if error is not None:
            return error
    # The reads are of the same revision as the compares, so one of them must explain it.
    raise AssertionError("a transaction was refused and every guard holds")


async def settle(
    store: Store,
    txn: Txn,
    *,
    patience: float | None,
    rng: random.Random,
    doubted: Callable[[], None] = lambda: None,
) -> TxnResult:
    """Apply a transaction, sending the very same one again while its outcome is unknown.

    While what an earlier copy wrote stands, its compares make a second application impossible, so
    sending it again is asking. What takes a free name can take it once more when it was given up
    in between: nobody has been answered yet. Nothing else may be done with its names until this
    returns. `patience` in seconds bounds it, None
    does not. `doubted` is called when an outcome was unknown: copies may then be under way
    for longer than this takes.

    Raises:
        OutcomeUnknown: patience is over and it may have been, or may yet be, applied.
        StoreError: it was certainly not applied.
    """
    try:
        return await store.txn(txn)
    except OutcomeUnknown as error:
        unknown = error
    doubted()
    from tenacity import AsyncRetrying, retry_if_exception_type  # noqa: PLC0415 - slow to load, and seldom needed

    # From here on no refusal but these two says anything about the first copy: on a lease that
    # is gone, or over the limits, no copy is ever applied.
    retrying = AsyncRetrying(
        retry=retry_if_exception_type((OutcomeUnknown, Unreachable, StoreReadOnly, NotAllowed)),
        wait=_pauses(rng),
    )
    try:
        async with asyncio.timeout(patience):  # the loop's time, not the machine's
            return await retrying(store.txn, txn)
    except (TimeoutError, SetBack):  # of the store as it is now, nothing can be learnt of it
        raise unknown from None


def _pauses(rng: random.Random) -> Callable[[RetryCallState], float]:
    """Exponential backoff with full jitter, drawn from a source that is handed in."""

    def pause(state: RetryCallState) -> float:
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(state.attempt_number - 1, 10))
        return rng.uniform(0, longest)

    return pause
