"""Group commit: what is asked for while a transaction is in flight goes into the next one.

A Raft commit costs the same for one name as for a hundred, so concurrent requests of one
process share it. Requests with different guards never share a transaction, and one request
that makes etcd refuse the whole (a lease that died, a size) fails alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from coordinator.errors import LeaseGone, MdevnsError, OutcomeUnknown, TooLarge
from coordinator.transactions import Answer, Change, Guard, chunks, transact

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from coordinator.late import LateCopies
    from coordinator.model import Name
    from coordinator.store import Store

__all__ = ["GroupCommit"]


_NOT_YET = Answer(0)

_IN_FLIGHT = 2  # transactions at a time for one set of guards
_WORTH_A_COMMIT = 32  # names that wait, for which a second one is worth its own


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


class _Asked(msgspec.Struct):
    change: Change
    caller: _Caller
    place: int

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.caller.done.done()


class _Lane:
    """What waits under one set of guards, and what of it is in flight."""

    __slots__ = ("names", "senders", "waiting")

    def __init__(self) -> None:
        self.waiting: list[_Asked] = []
        self.senders: set[asyncio.Task[None]] = set()
        self.names: set[Name] = set()

    @property
    def needs_sender(self) -> bool:
        """Whether a transaction should be on its way with what waits, and is not."""
        if not self.senders:
            return True
        return len(self.senders) < _IN_FLIGHT and len(self.waiting) >= _WORTH_A_COMMIT

    def take(self, *, again: bool) -> list[_Asked]:
        """What goes into the next transaction, first come first; its names are in flight then.

        `again`: by a sender that has sent before. One that would leave nothing to be done while
        its transaction is in flight then takes half, and another sender the other half.
        """
        waiting = [one for one in self.waiting if not one.left]
        ready = [one for one in waiting if one.change.name not in self.names]
        batch = ready
        if again and not self.names:
            batch = ready[: _half(ready)]
        if len(batch) > 1:
            batch = batch[: len(next(chunks(one.change for one in batch)))]
        if len(batch) == len(waiting):
            self.waiting = []
        else:
            taken = set(map(id, batch))
            self.waiting = [one for one in waiting if id(one) not in taken]
        self.names.update(one.change.name for one in batch)
        return batch

    def through(self, batch: Sequence[_Asked]) -> None:
        """The batch was answered, or never will be."""
        self.names.difference_update(one.change.name for one in batch)


def _half(ready: Sequence[_Asked]) -> int:
    """How many of these are half of them; all, where that is not worth a commit.

    What one caller asked for stays together.
    """
    half = -(-len(ready) // 2)
    while half < len(ready) and ready[half].caller is ready[half - 1].caller:
        half += 1
    return half if len(ready) - half >= _WORTH_A_COMMIT else len(ready)


class GroupCommit:
    """Makes changes, gathered; at most two transactions in flight for each set of guards.

    The second one goes when many callers wait, and many who ask again as soon as they are answered
    are parted in halves: while etcd is at the one, this process is at the other. A name is in one
    of them only, and its changes are made in the order in which they were asked for.

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
        self._lanes: dict[tuple[Guard, ...], _Lane] = {}

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
        lane = self._lanes.get(guards)
        if lane is None:
            lane = self._lanes[guards] = _Lane()
        lane.waiting += [_Asked(change, caller, place) for place, change in enumerate(changes)]
        if lane.needs_sender:
            # A task of its own: it starts after everybody who is ready now has asked, and a
            # caller that is cancelled takes nobody's transaction with it.
            lane.senders.add(asyncio.create_task(self._run(guards, lane)))
        return await caller.done

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, nor waits."""
        return not self._lanes

    async def idle(self, seconds: float) -> bool:
        """Wait, for so long, until nothing is in flight; whether that is so."""
        tasks = [task for lane in self._lanes.values() for task in lane.senders]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        return self.is_idle

    async def close(self) -> None:
        """Stop sending. What is in flight stays unknown to whoever waits for it."""
        lanes = list(self._lanes.values())
        tasks = [task for lane in lanes for task in lane.senders]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has told nobody.
        for one in (one for lane in lanes for one in lane.waiting):
            one.caller.done.cancel()
        self._lanes.clear()

    async def _run(self, guards: tuple[Guard, ...], lane: _Lane) -> None:
        batch: list[_Asked] = []
        sender = asyncio.current_task()
        assert sender is not None
        try:
            again = False
            while batch := lane.take(again=again):
                await self._send(guards, batch)
                again = True
                lane.through(batch)
                # Who was answered and asks again at once goes into the next one.
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - a defect; whoever waits must see it
            for one in (*batch, *lane.waiting):
                one.caller.fail(error)
        except asyncio.CancelledError:
            for one in (*batch, *lane.waiting):
                one.caller.done.cancel()
            raise
        finally:
            lane.through(batch)
            lane.senders.remove(sender)
            if not lane.senders:
                self._lanes.pop(guards, None)

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
