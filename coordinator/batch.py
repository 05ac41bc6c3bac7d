"""Group commit: what is asked for while a transaction is in flight goes into the next one.

A Raft commit costs the same for one name as for a hundred, so concurrent requests of one
process share it. Requests with different guards never share a transaction, and one request
that makes etcd refuse the whole (a lease that died, a size) fails alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from coordinator.errors import LeaseGone, MdevnsError, OutcomeUnknown, TooLarge
from coordinator.transactions import Answer, Change, Guard, chunks, transact

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from coordinator.late import LateCopies
    from coordinator.store import Store

__all__ = ["GroupCommit"]


_NOT_YET = Answer(0)


class _Caller:
    """Who waits until each of some changes is answered. One future, however many they are."""

    __slots__ = ("_answers", "_left", "done")

    def __init__(self, count: int) -> None:
        self._answers, self._left = [_NOT_YET] * count, count
        self.done: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()

    def hear(self, place: int, answer: Answer) -> None:
        """The answer to one of its changes; it may have left."""
        self._answers[place] = answer
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(self._answers)

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(slots=True)
class _Asked:
    change: Change
    caller: _Caller
    place: int

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.caller.done.done()


class GroupCommit:
    """Makes changes, gathered; one transaction in flight for each set of guards.

    `patience` in seconds is how long an unknown outcome is asked for again (None: until it
    is answered). With `late` what is asked for stays as it was answered (`coordinator.late`);
    without, `left` is called with each change that was refused after its outcome was unknown: a
    copy of it may be under way for longer than anybody waits.
    """

    def __init__(
        self,
        store: Store,
        *,
        patience: float | None,
        rng: random.Random,
        late: LateCopies | None = None,
        left: Callable[[Change], None] = lambda _: None,
    ) -> None:
        self._store, self._patience, self._rng = store, patience, rng
        self._late, self._left = late, left
        self._waiting: dict[tuple[Guard, ...], list[_Asked]] = {}
        self._tasks: dict[tuple[Guard, ...], asyncio.Task[None]] = {}

    async def change(self, guards: tuple[Guard, ...], change: Change) -> Answer:
        """Make one change."""
        (answer,) = await self.changes(guards, [change])
        return answer

    async def changes(self, guards: tuple[Guard, ...], changes: Sequence[Change]) -> list[Answer]:
        """Make changes; an answer for each, in order, also where a guard or the store failed.

        What fits goes into one transaction (126 reservations or begins).
        """
        if not changes:
            return []
        caller = _Caller(len(changes))
        asked = [_Asked(change, caller, place) for place, change in enumerate(changes)]
        self._waiting.setdefault(guards, []).extend(asked)
        if guards not in self._tasks:
            # A task of its own: it starts after everybody who is ready now has asked, and a
            # caller that is cancelled takes nobody's transaction with it.
            self._tasks[guards] = asyncio.create_task(self._run(guards))
        return await caller.done

    async def idle(self, seconds: float) -> bool:
        """Wait, for so long, until nothing is in flight; whether that is so."""
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return not self._tasks

    async def close(self) -> None:
        """Stop sending. What is in flight stays unknown to whoever waits for it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has told nobody.
        for one in (one for asked in self._waiting.values() for one in asked):
            one.caller.done.cancel()
        self._waiting.clear()
        self._tasks.clear()

    async def _run(self, guards: tuple[Guard, ...]) -> None:
        batch: list[_Asked] = []
        try:
            while batch := self._next(guards):
                await self._send(guards, batch)
        except Exception as error:  # noqa: BLE001 - a defect; whoever waits must see it
            for one in (*batch, *self._waiting.pop(guards, ())):
                one.caller.fail(error)
        finally:
            self._tasks.pop(guards, None)
            for one in (*batch, *self._waiting.pop(guards, ())):
                one.caller.done.cancel()

    def _next(self, guards: tuple[Guard, ...]) -> list[_Asked]:
        waiting = [one for one in self._waiting.pop(guards, ()) if not one.left]
        if len(waiting) < 2:
            return waiting
        size = len(next(chunks(one.change for one in waiting)))
        if waiting[size:]:
            self._waiting[guards] = waiting[size:]
        return waiting[:size]

    async def _transact(self, guards: Sequence[Guard], changes: Sequence[Change]) -> list[Answer]:
        if self._late is not None:
            return await self._late.transact(guards, changes)
        doubts: list[bool] = []
        refused = list(changes)
        try:
            answers = await self._sent(guards, changes, lambda: doubts.append(True))
            refused = [c for c, a in zip(changes, answers, strict=True) if a.error is not None]
        except MdevnsError as error:
            if not doubts or isinstance(error, OutcomeUnknown | LeaseGone | TooLarge):
                raise
            answers = [Answer(0, error=error)] * len(changes)
        finally:
            for change in refused if doubts else ():
                self._left(change)
        return [replace(a, doubted=True) if doubts and a.error else a for a in answers]

    async def _sent(
        self, guards: Sequence[Guard], changes: Sequence[Change], doubted: Callable[[], None]
    ) -> list[Answer]:
        return await transact(
            self._store,
            guards,
            changes,
            patience=self._patience,
            rng=self._rng,
            doubted=doubted,
        )

    async def _send(self, guards: tuple[Guard, ...], batch: list[_Asked]) -> None:
        changes = [one.change for one in batch]
        try:
            answers = await self._transact(guards, changes)
        except (LeaseGone, TooLarge) as error:
            if len(batch) > 1:
                for one in batch:
                    await self._send(guards, [one])
                return
            answers = [Answer(0, error=error)]
        except MdevnsError as error:
            answers = [Answer(0, error=error)] * len(batch)
        for one, answer in zip(batch, answers, strict=True):
            one.caller.hear(one.place, answer)
