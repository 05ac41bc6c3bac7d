"""The store as processes reach it: requests that take time, and answers that may not come.

`Cluster` is the etcd itself, `SimStore` one process's access to it, with what the real layer
(`coordinator.etcd`) makes of failures: a write without an answer is OutcomeUnknown, a read is
asked again until its time is over, a stream that broke goes on where it was.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from coordinator.errors import MdevnsError, OutcomeUnknown, Unreachable
from coordinator.history import History
from coordinator.memory import MemoryEtcd
from coordinator.store import FROM_NOW, Lease, WatchBatch, may_write, within

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from coordinator.memory import Snapshot
    from coordinator.store import Range, RangeResult, Txn, TxnResult
    from tests.sim.loop import Handle, SimLoop

__all__ = ["FATES", "Cluster", "Link", "SimStore"]

FATES = ("lost", "dropped", "late", "doubled", "refused", "slow")

T = TypeVar("T")

_TICK = 0.5  # seconds between two looks of etcd at its leases
_AGAIN = 0.2  # seconds between two tries at a read
_LATE = 6.0  # seconds that a late copy takes at most


class Cluster(MemoryEtcd):
    """An etcd whose clock is the loop's. `committed` hears of each revision's changes."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self._loop, self.time = loop, loop.time
        self.id = 1
        self.requests = 0
        self.deaf: set[int] = set()  # leases that are gone and renewed with success
        self.committed: Callable[[Sequence[Any]], None] = lambda _: None
        self.sender: tuple[str, bytes] | None = None
        """The host whose agent sent what is applied now, and the epoch that it had then."""
        self.wrote_epoch = b""
        self.asker = ""
        """Who sent what is applied now, of those whose history is recorded."""
        self.admitted: Link | None = None
        """Whoever alone may connect, as to a store that was just restored."""
        self.watches: list[_SimWatch] = []
        loop.after(_TICK, self._tick)

    def _commit(self) -> None:
        changes = tuple(self._pending)
        super()._commit()
        if changes:
            self.committed(changes)
            keys = [change.event.kv.key for change in changes]
            for watch in self.watches:
                watch.stir(keys)

    def _tick(self) -> None:
        self.advance(self._loop.time() - self.now)
        self._loop.after(_TICK, self._tick)

    def keep_alive(self, lease: int) -> int:
        """Refresh a lease, or say so."""
        return 10 if lease in self.deaf else super().keep_alive(lease)

    def set_back(self, snapshot: Snapshot) -> None:
        """Restore it as `etcdutl snapshot restore` does: another cluster, with fresh leases."""
        next_lease, now = self._next_lease, self.now
        self.restore(snapshot)
        self._next_lease, self.now = next_lease, now
        self.id += 1
        self.full = False
        for lease in self.leases():
            super().keep_alive(lease)
        for watch in self.watches:
            watch.stir(None)

    def admits(self, link: Link) -> bool:
        """Whether a process may connect."""
        return self.admitted is None or self.admitted is link

    def forget(self, link: Link) -> None:
        """A process is gone, and with it its streams."""
        self.watches = [watch for watch in self.watches if watch.link is not link]


class Link:
    """How a process reaches the store. `until` is a time before which it does not."""

    def __init__(self, loop: SimLoop, rng: random.Random, network: float) -> None:
        self.loop, self.rng, self._network = loop, rng, network
        self.down = self.cut = 0.0
        self.host, self.epoch = "", b""  # of an agent: its host, and the epoch that it wrote last
        self.recorded = ""  # as whom histories have what is asked, from when it was asked
        self.fates: dict[int, tuple[str, float]] = {}
        self.asked: Callable[[int], None] = lambda _: None
        self.count = 0

    def delay(self) -> float:
        """Seconds that a message takes."""
        chance: float = self.rng.random()
        return self._network * (0.2 + chance + 10.0 * chance**12)

    @property
    def is_down(self) -> bool:
        """Whether nothing goes through."""
        return self.loop.time() < self.down

    def next_fate(self) -> tuple[str, float]:
        """What becomes of the next request."""
        number = self.count
        self.count += 1
        self.asked(number)
        return self.fates.get(number, ("", 0.0))


class SimStore:
    """One process's access to the store (`coordinator.store.Store`)."""

    def __init__(self, cluster: Cluster, link: Link, timeout: float) -> None:
        self._cluster, self._link, self._timeout = cluster, link, timeout
        self._loop = link.loop
        self.history = History()

    async def txn(self, txn: Txn) -> TxnResult:
        """As `Store.txn`."""
        cluster = self._cluster
        if may_write(txn):
            return await self._write(lambda: cluster.txn(txn))
        return await self._read(lambda: cluster.txn(txn))

    async def range(self, request: Range) -> RangeResult:
        """As `Store.range`."""
        return await self._read(lambda: self._cluster.range(request))

    async def grant(self, ttl: int) -> Lease:
        """As `Store.grant`."""
        return await self._read(lambda: self._cluster.grant(ttl))

    async def keep_alive(self, lease: int) -> int:
        """As `Store.keep_alive`."""
        return await self._read(lambda: self._cluster.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """As `Store.revoke`."""
        await self._write(lambda: self._cluster.expire(lease))

    @asynccontextmanager
    async def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AsyncGenerator[AsyncIterator[WatchBatch], None]:
        """As `Store.watch`."""
        watch = _SimWatch(self._cluster, self._link, self.history, ranges, start)
        try:
            yield watch
        finally:
            watch.close()

    async def status(self) -> str:
        """As `Store.status`."""
        return "3.5.30"

    async def until_set_back(self) -> NoReturn:
        """As `Store.until_set_back`."""
        await self.history.until_lost()

    def begin_anew(self) -> None:
        """As `Store.begin_anew`."""
        self.history.begin_anew()

    async def close(self) -> None:
        """Nothing to let go of."""

    # What a request goes through.

    async def _read(self, what: Callable[[], T]) -> T:
        until = self._loop.time() + self._timeout
        while True:
            self.history.check()
            fate, some = self._link.next_fate()
            if fate == "refused":
                raise Unreachable("store", "it was decided so")
            lost = fate in ("lost", "dropped", "late", "doubled")
            slow = some if fate == "slow" else 0.0
            answer = await self._ask(what, until, slow=slow, lost=lost)
            if answer is not None:
                return cast("T", self._taken(answer, must_be_ours=True))
            if self._loop.time() + _AGAIN >= until:
                raise Unreachable("store", "no answer in time")
            await self._loop.pass_time(_AGAIN)

    async def _write(self, what: Callable[[], T]) -> T:
        self.history.check()
        fate, some = self._link.next_fate()
        if fate == "refused" or (self._link.is_down and self._link.rng.random() < 0.5):
            raise Unreachable("store", "it was decided so")
        until = self._loop.time() + self._timeout
        if fate in ("late", "doubled"):
            copy = (what, self._cluster.id, self._link.epoch)
            self._loop.after(self._link.delay() + some, self._apply_late, *copy)
        dropped = fate in ("dropped", "late")
        answer = None
        if not dropped:
            delay = some if fate == "slow" else 0.0
            lost = fate in ("lost", "doubled")
            answer = await self._ask(what, until, slow=delay, lost=lost)
        else:
            await self._loop.pass_time(min(self._timeout, 0.3))
        if answer is None:
            raise OutcomeUnknown("store", "no answer in time")
        return cast("T", self._taken(answer, must_be_ours=False))

    def _apply_late(self, what: Callable[[], object], cluster: int, epoch: bytes) -> None:
        if cluster == self._cluster.id and self._cluster.admits(
            self._link
        ):  # else its server is no more
            self._applied(what, epoch)

    def _applied(
        self, what: Callable[[], T], epoch: bytes
    ) -> tuple[T | None, Exception | None, int, int]:
        cluster, link = self._cluster, self._link
        cluster.advance(self._loop.time() - cluster.now)
        cluster.requests += 1
        cluster.sender = (link.host, epoch) if link.host else None
        cluster.asker = link.recorded
        try:
            result, error = what(), None
        except MdevnsError as refused:
            result, error = None, refused
        finally:
            if cluster.wrote_epoch:
                link.epoch, cluster.wrote_epoch = cluster.wrote_epoch, b""
            cluster.sender, cluster.asker = None, ""
        return result, error, cluster.id, cluster.revision

    async def _ask(
        self,
        what: Callable[[], T],
        until: float,
        *,
        slow: float,
        lost: bool,
    ) -> tuple[T | None, Exception | None, int, int, int] | None:
        """Send it; None: no answer came."""
        link, floor = self._link, self.history.revision
        done = self._loop.create_future()
        if not link.is_down:
            sent = (what, self._cluster.id, floor, link.epoch)
            self._loop.after(link.delay() + slow, self._arrive, sent, done, lost)
        handle = self._loop.call_at(until, _give_up, done)
        answer = await done
        handle.cancel()
        return answer  # type: ignore[no-any-return]  # as _arrive has made it

    def _arrive(
        self,
        sent: tuple[Callable[[], T], int, int, bytes],
        done: asyncio.Future[Any],
        lost: bool,  # noqa: FBT001 - handed on to `call_later`, which knows no keywords
    ) -> None:
        what, to, floor, epoch = sent
        if self._link.is_down or to != self._cluster.id or not self._cluster.admits(self._link):
            return  # or its server is no more, or lets nobody in yet
        answer = (*self._applied(what, epoch), floor)
        if not lost:
            self._loop.after(self._link.delay(), self._answer, done, answer)

    def _answer(self, done: asyncio.Future[Any], answer: object) -> None:
        if not done.done() and not self._link.is_down:
            done.set_result(answer)

    def _taken(
        self, answer: tuple[Any, Exception | None, int, int, int], *, must_be_ours: bool
    ) -> Any:
        result, error, cluster, revision, floor = answer
        if error is not None:
            raise error
        if not self.history.see("store", cluster, revision, floor) and must_be_ours:
            self.history.check()
        return result


def _give_up(done: asyncio.Future[Any]) -> None:
    if not done.done():
        done.set_result(None)


class _SimWatch:
    """One watch; its own iterator. `_sent` is up to where the server has sent."""

    def __init__(
        self,
        cluster: Cluster,
        link: Link,
        history: History,
        ranges: Sequence[Range],
        start: int,
    ) -> None:
        self._cluster, self.link, self._history = cluster, link, history
        self._loop = link.loop
        self._ranges = tuple(ranges)
        self._sent = max(start, 1) - 1
        self._from_now = start == FROM_NOW
        self._batches: deque[WatchBatch | Exception] = deque()
        self._heard: asyncio.Future[None] | None = None
        self._flush: Handle | None = None
        self._closed = False
        cluster.watches.append(self)
        if self._from_now or self._sent < cluster.revision:
            self.stir(None)

    def stir(self, keys: Sequence[str] | None) -> None:
        """Keys were changed; None: who knows which."""
        if self._flush is not None or self._closed:
            return
        if keys is None or any(within(key, each) for key in keys for each in self._ranges):
            self._flush = self._loop.after(self.link.delay(), self._send)
        elif self._loop.time() >= max(self.link.down, self.link.cut):
            self._sent = self._cluster.revision  # the server has told all that concerns it

    def _send(self) -> None:
        self._flush = None
        if self._closed:
            return
        until = max(self.link.down, self.link.cut)
        if not self._cluster.admits(self.link):
            until = self._loop.time() + _AGAIN
        if self._loop.time() < until:
            self._flush = self._loop.at(until + self.link.delay(), self._send)
            return
        cluster = self._cluster
        self._history.see("watch", cluster.id, cluster.revision, self._sent)
        try:
            self._history.check()
            batch = self._changes()
        except MdevnsError as error:
            self._batches.append(error)
        else:
            if batch is None:
                return
            self._sent = batch.revision
            self._batches.append(batch)
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    def _changes(self) -> WatchBatch | None:
        if self._from_now:
            self._from_now = False
            return WatchBatch(self._cluster.revision)
        return self._cluster.changes(self._sent, self._ranges)

    def __aiter__(self) -> _SimWatch:
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._batches:
            self._history.check()
            self._heard = self._loop.create_future()
            await self._heard
        batch = self._batches.popleft()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self in self._cluster.watches:
            self._cluster.watches.remove(self)
