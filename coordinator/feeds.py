"""What is heard of hosts: one watch a host for all who wait in a process, kept for a while.

A first request opens it side by side with the read that it needs. Those after it find it open,
and what was read kept up by it: they ask for no more than they want.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coordinator.errors import Unreachable
from coordinator.keys import last_part
from coordinator.model import Name
from coordinator.store import FROM_NOW, KeyValue, Txn, WatchBatch, get, prefix
from coordinator.views import parent_views, reads_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.keys import Keys
    from coordinator.store import Event, Store
    from coordinator.views import ParentView

__all__ = ["Feeds", "Hearer"]

_KEPT = 10.0  # seconds for which a watch that nobody needs stays open
_MOST_IDLE = 8  # and so many of them


class Hearer:
    """Hears of some names of a host, and of its session; its own iterator."""

    def __init__(self, feed: _Feed, names: Sequence[Name]) -> None:
        self.host, self.names = feed.host, frozenset(names)
        self._feed, self._since = feed, feed.told
        self._heard: asyncio.Queue[WatchBatch | BaseException] = asyncio.Queue()

    async def begun(self) -> int:
        """The revision from which on all is told here; waits until the watch stands.

        Raises:
            StoreError: it never will.
        """
        return self._since or await asyncio.shield(self._feed.begun)

    def parents(self) -> list[ParentView] | None:
        """The host's parents as they were last heard of; None when nothing was read of them.

        They may have changed since: what rests on it is no reason to refuse anything.
        """
        return self._feed.parents()

    async def read_parents(self) -> list[ParentView] | None:
        """The host's parents as they are now; None when it never enrolled."""
        return await self._feed.read_parents()

    def tell(self, heard: WatchBatch | BaseException) -> None:
        """Let it be heard, or raised, in its turn."""
        self._heard.put_nowait(heard)

    def __aiter__(self) -> Hearer:
        return self

    async def __anext__(self) -> WatchBatch:
        heard = await self._heard.get()
        if isinstance(heard, BaseException):
            raise heard
        return heard


class _Feed:
    """The watch over a host, who hears of it, and what is known of its parents."""

    def __init__(self, store: Store, keys: Keys, host: str) -> None:
        self.host = host
        self._store, self._keys = store, keys
        self._claims, self._session = keys.claims(host), keys.session(host)
        self.told = 0
        """The revision up to which all was told; 0: the watch does not stand yet."""
        self.begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.hearers: set[Hearer] = set()
        self._read_at, self._read = 0, dict[str, KeyValue]()
        self._changed: dict[str, Event] = {}
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(self._ended)

    async def _run(self) -> None:
        parents = prefix(self._keys.parents(self.host))
        ranges = [prefix(self._claims), parents, get(self._session)]
        async with self._store.watch(ranges, FROM_NOW) as batches:
            self.told = (await anext(batches)).revision
            self.begun.set_result(self.told)
            async for batch in batches:
                self._take(batch)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whoever hears of the host is told why that is over."""
        error = None if task.cancelled() else task.exception()
        error = error or Unreachable("watch", "nobody listens any more")
        if not self.begun.done():
            self.begun.set_exception(error)
            self.begun.exception()  # nobody need ask for it
        for hearer in self.hearers:
            hearer.tell(error)

    def _take(self, batch: WatchBatch) -> None:
        self.told = batch.revision
        of_session: list[Event] = []
        by_name: dict[Name, list[Event]] = {}
        for event in batch.events:
            key = event.kv.key
            if key.startswith(self._claims):
                by_name.setdefault(Name(last_part(key)), []).append(event)
                continue
            self._changed[key] = event
            if key == self._session:
                of_session.append(event)
        for hearer in self.hearers:
            of_names = (each for name in hearer.names & by_name.keys() for each in by_name[name])
            if events := sorted((*of_names, *of_session), key=_revision):
                hearer.tell(WatchBatch(batch.revision, tuple(events)))

    # The parents.

    def parents(self) -> list[ParentView] | None:
        """As last heard of, if they were read when the watch stood: nothing fell in between."""
        if not self.told or self._read_at < self.begun.result():
            return None
        standing = dict(self._read)
        for key, event in self._changed.items():
            if event.kv.mod_revision > self._read_at:
                standing[key] = event.kv
                if event.deleted:
                    del standing[key]
        alive = standing.pop(self._session, None) is not None
        return parent_views(self.host, alive=alive, kvs=standing.values())

    async def read_parents(self) -> list[ParentView] | None:
        """As they are now; None when the host never enrolled."""
        result = await self._store.txn(Txn(success=reads_of(self._keys, self.host)))
        identity, session, parents = result.ranges()
        if identity.first is None:
            return None
        if result.revision >= self._read_at:  # else a later read was answered before this one
            self._read_at = result.revision
            self._read = {kv.key: kv for kv in (*session.kvs, *parents.kvs)}
        return parent_views(self.host, alive=session.first is not None, kvs=parents.kvs)


def _revision(event: Event) -> int:
    return event.kv.mod_revision


class Feeds:
    """The watches of one process, by host."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys
        self._feeds: dict[str, _Feed] = {}
        self._idle: dict[str, asyncio.TimerHandle] = {}

    @contextmanager
    def hearing(self, host: str, names: Sequence[Name]) -> Iterator[Hearer]:
        """Hear of names of a host, from now on or (`Hearer.begun`) soon."""
        feed = self._feeds.get(host)
        if feed is None or feed.task.done():
            feed = self._feeds[host] = _Feed(self._store, self._keys, host)
        if timer := self._idle.pop(host, None):
            timer.cancel()
        hearer = Hearer(feed, names)
        feed.hearers.add(hearer)
        try:
            yield hearer
        finally:
            feed.hearers.remove(hearer)
            if not feed.hearers and self._feeds.get(host) is feed:
                self._rest(host)

    def _rest(self, host: str) -> None:
        """Nobody needs this one now."""
        loop = asyncio.get_running_loop()
        self._idle[host] = loop.call_later(_KEPT, self._end, host)
        while len(self._idle) > _MOST_IDLE:
            self._end(next(iter(self._idle)))

    def _end(self, host: str) -> None:
        self._idle.pop(host).cancel()
        self._feeds.pop(host).task.cancel()

    async def close(self) -> None:
        """End all; whoever still hears is told so."""
        for timer in self._idle.values():
            timer.cancel()
        tasks = [feed.task for feed in self._feeds.values()]
        self._idle.clear()
        self._feeds.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
