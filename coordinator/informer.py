"""What the store says of one host: listed at one revision, then watched from there on.

It is listed again, linearizably, every `resync` seconds and after a compaction, whatever the
watch said: the agent is level-triggered and never trusts that it saw every event.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from coordinator.errors import Compacted, Fenced
from coordinator.keys import last_part
from coordinator.model import Claim, Name, Unreadable, read_claim
from coordinator.store import pages, prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from coordinator.keys import Keys
    from coordinator.store import Event, KeyValue, Store, WatchBatch

__all__ = ["Informer", "Recorder"]


class Recorder(Protocol):
    """Hears all that an informer learns, in time with it."""

    def learnt(self, name: Name, claim: Claim | None) -> None:
        """The newest of a name; None: the host has no claim of it."""
        ...

    def listing(self) -> None:
        """A list is asked for: its revision is no lower than what was heard of until now."""
        ...

    def listed(self, revision: int, names: Iterable[Name]) -> None:
        """All claims were listed at a revision, and `learnt` has heard of each."""
        ...

    def told(self, revision: int) -> None:
        """All that happened up to a revision was heard of."""
        ...


class _Nobody:
    """A recorder for who keeps no record."""

    def learnt(self, name: Name, claim: Claim | None) -> None: ...

    def listing(self) -> None: ...

    def listed(self, revision: int, names: Iterable[Name]) -> None: ...

    def told(self, revision: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """The newest that is known of a name; None: it was deleted at `revision`."""

    revision: int
    record: Claim | Unreadable | None


class _Untold(NamedTuple):
    """A change of our own of which the watch has not said anything yet, and since when."""

    name: Name
    revision: int
    since: float


class Informer:
    """The claims of one host, for the enrolment `instance`.

    `changed` is called with the names of which something new is known, after `recorder`.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        *,
        host: str,
        instance: str,
        resync: float,
        changed: Callable[[frozenset[Name]], None],
        recorder: Recorder | None = None,
    ) -> None:
        self._store, self._keys, self._host, self._instance = store, keys, host, instance
        self._resync, self._changed = resync, changed
        self._recorder = recorder or _Nobody()
        self._seen: dict[Name, _Seen] = {}
        self._up_to = 0  # the watch, or a list, has said all up to this revision
        self._untold: deque[_Untold] = deque()
        self.listed = asyncio.Event()
        """Set once all claims are known."""

    def get(self, name: Name) -> Claim | Unreadable | None:
        """The newest that is known of the host's claim of a name; None: it has none."""
        seen = self._seen.get(name)
        return seen.record if seen else None

    def counts(self) -> Counter[str]:
        """How many claims the host has in each state; `unreadable` are those that are none."""
        records = (seen.record for seen in self._seen.values() if seen.record is not None)
        return Counter(
            "unreadable" if isinstance(record, Unreadable) else record.state.value
            for record in records
        )

    def names(self) -> Iterator[Name]:
        """All names that the host has a record of."""
        return (name for name, seen in self._seen.items() if seen.record is not None)

    def learn(self, name: Name, revision: int, claim: Claim | None) -> None:
        """Take note of what a transaction of our own made of a name, ahead of the watch.

        The watch may have been faster than the answer: then it knows as much, or more.
        """
        if revision <= self._up_to:
            return
        # Of a name that is known to be gone nothing more arrives: the answer of a transaction
        # of which an earlier copy was applied has a later revision than the deletion.
        arrives = claim is not None or self.get(name) is not None
        if self._see(name, revision, claim) and arrives:
            self._untold.append(_Untold(name, revision, asyncio.get_running_loop().time()))

    def lag(self) -> float:
        """Seconds since the oldest change of our own that the watch has not told yet."""
        if not self._untold:
            return 0.0
        return asyncio.get_running_loop().time() - self._untold[0].since

    async def run(self) -> None:
        """List and watch, for as long as the enrolment is in force.

        Raises:
            Fenced: a newer enrolment, an evict, or the session is gone.
            StoreError: it could not be listed.
        """
        while True:
            revision = await self._list()
            self.listed.set()
            try:
                async with asyncio.timeout(self._resync):
                    await self._watch(revision + 1)
            except (TimeoutError, Compacted):
                continue  # list again, and go on from there

    async def _list(self) -> int:
        revision, listed, alive = 0, {}, False
        self._recorder.listing()
        async for page in pages(self._store, prefix(self._keys.of_host(self._host))):
            revision = page.revision
            for kv in page.kvs:
                self._check_epoch(kv)
                alive = alive or kv.key == self._keys.session(self._host)
                if (name := self._claimed(kv)) is not None:
                    listed[name] = kv
        if not alive:
            raise self._fenced("its session is gone")
        changed = {name for name, kv in listed.items() if self._see_kv(name, kv)}
        # What is known and was not listed is gone, unless it is newer than the list.
        missing = [name for name in self.names() if name not in listed]
        changed |= {name for name in missing if self._see(name, revision, None)}
        self._recorder.listed(revision, self.names())
        self._told(revision)
        self._tell(changed)
        return revision

    async def _watch(self, start: int) -> None:
        async with self._store.watch([prefix(self._keys.of_host(self._host))], start) as batches:
            async for batch in batches:
                self._tell(self._apply(batch))

    def _apply(self, batch: WatchBatch) -> set[Name]:
        changed = {name for event in batch.events if (name := self._event(event)) is not None}
        self._told(batch.revision)
        return changed

    def _event(self, event: Event) -> Name | None:
        if event.deleted and event.kv.key == self._keys.session(self._host):
            raise self._fenced("its session is gone")
        if not event.deleted:
            self._check_epoch(event.kv)
        name = self._claimed(event.kv)
        if name is None:
            return None
        if event.deleted:
            news = self._see(name, event.kv.mod_revision, None)
            if self.get(name) is None:  # by whichever copy of our transaction
                self._untold = deque(each for each in self._untold if each.name != name)
        else:
            news = self._see_kv(name, event.kv)
        return name if news else None

    def _claimed(self, kv: KeyValue) -> Name | None:
        if kv.key.startswith(self._keys.claims(self._host)):
            return Name(last_part(kv.key))
        return None

    def _check_epoch(self, kv: KeyValue) -> None:
        if kv.key == self._keys.epoch(self._host) and kv.value != self._instance.encode():
            raise self._fenced("a newer agent or an evict took over")

    def _fenced(self, why: str) -> Fenced:
        return Fenced(f"host {self._host}", why, "this agent enrols again")

    def _see_kv(self, name: Name, kv: KeyValue) -> bool:
        if self._is_known(name, kv.mod_revision):
            return False  # an echo of our own word, which need not be read
        return self._see(name, kv.mod_revision, read_claim(kv))

    def _is_known(self, name: Name, revision: int) -> bool:
        known = self._seen.get(name)
        return known is not None and known.revision >= revision

    def _see(self, name: Name, revision: int, record: Claim | Unreadable | None) -> bool:
        """Take it if it is newer than what is known: a late event never undoes our own word."""
        if self._is_known(name, revision):
            return False
        self._seen[name] = _Seen(revision, record)
        if not isinstance(record, Unreadable):
            self._recorder.learnt(name, record)
        return True

    def _told(self, revision: int) -> None:
        """Forget what was only to be remembered until the watch is past a revision.

        Deleted names are, so that no late put revives one.
        """
        self._recorder.told(revision)
        self._up_to = max(self._up_to, revision)
        while self._untold and self._untold[0].revision <= revision:
            self._untold.popleft()
        gone = [n for n, s in self._seen.items() if s.record is None and s.revision <= revision]
        for name in gone:
            del self._seen[name]

    def _tell(self, changed: Iterable[Name]) -> None:
        names = frozenset(changed)
        if names:
            self._changed(names)
