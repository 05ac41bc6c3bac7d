"""What the agent tells the cluster of its host: parents, and devices that are not ours.

Level-triggered: what should stand is compared with what was written last, and the difference
goes into the store in one fenced transaction, gathered over a short while.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from agent.offers import Offer, Offers, without_room
from coordinator.errors import Fenced
from coordinator.keys import last_part
from coordinator.model import ParentValue, decode, encode
from coordinator.sequences import batched
from coordinator.store import MAX_TXN_OPS, Delete, KeyValue, Put, Txn, get, prefix
from coordinator.transactions import settle

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from agent.bus import Bus
    from coordinator.keys import Keys
    from coordinator.model import FindingValue, Name, ParentType
    from coordinator.session import Session
    from coordinator.store import Store
    from coordinator.transactions import Guard

__all__ = ["Reporter"]

_log = structlog.get_logger()

_GATHER = 0.1  # seconds in which changes are gathered into one commit
_RETRY = 2.0  # seconds after which a report that failed is tried again
_MOST_FAILURES = 16  # names that are kept of those that a parent refused


class Reporter:
    """Reports for one enrolment."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        bus: Bus,
        session: Session,
        in_force: Guard,
        rng: random.Random,
        *,
        stuck: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`stuck` gives the parents whose driver lets writes hang, and how many."""
        self._store, self._keys, self._rng = store, keys, rng
        self._offers, self._stuck = Offers(bus), stuck
        self._types: dict[str, tuple[ParentType, ...]] = {}
        self._failed: dict[str, set[Name]] = {}
        self.bus_trouble: str | None = None
        """Why the bus cannot be looked at, so that no parent is offered."""
        self.parents: Mapping[str, ParentValue] = {}
        """What was last read of the parents, and is reported."""
        self._session, self._in_force = session, in_force
        self._findings: dict[Name, FindingValue] = {}
        self._written: dict[str, Put] = {}
        self._trouble: str | None = None
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Something may have changed."""
        self._poked.set()

    def found(self, name: Name, finding: FindingValue | None) -> None:
        """A device that is not ours; None: it is gone, or ours by now."""
        if self._findings.get(name) == finding:
            return
        if finding is None:
            del self._findings[name]
        else:
            self._findings[name] = finding
        self.poke()

    def failed(self, parent: str, name: Name) -> None:
        """The parent's driver has refused to create a device, and not for want of room."""
        names = self._failed.setdefault(parent, set())
        if len(names) < _MOST_FAILURES:
            names.add(name)

    def succeeded(self, parent: str) -> None:
        """The parent's driver has created a device."""
        self._failed.pop(parent, None)

    def troubles(self) -> dict[str, tuple[str, ...]]:
        """What is wrong with the parents, by parent."""
        return {parent: value.troubles for parent, value in self.parents.items() if value.troubles}

    def known(self) -> list[Name]:
        """The names that are reported as found."""
        return list(self._findings)

    def stands(self, name: Name) -> bool:
        """Whether it stands in the store what was found of a name."""
        finding, key = self._findings.get(name), self._keys.finding(self._session.host, name)
        written = self._written.get(key)
        return finding is not None and written == Put(key, encode(finding), self._session.lease)

    def counts(self) -> Counter[str]:
        """How many findings there are of each kind."""
        return Counter(finding.kind.value for finding in self._findings.values())

    async def run(self) -> None:
        """Report, for as long as the enrolment lasts.

        Raises:
            Fenced: a newer enrolment or an evict took over.
        """
        await self._read_written()
        while True:
            try:
                await self._report()
            except Fenced:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a driver's files made of it
                self._note(str(error) or repr(error))
                self._retry_later(_RETRY)
            else:
                self._note(None)
            await self._poked.wait()
            await asyncio.sleep(_GATHER)
            self._poked.clear()

    def _note(self, trouble: str | None) -> None:
        """Say what is wrong when it begins, not each time that it is tried."""
        if trouble not in (None, self._trouble):
            _log.warning("report failed", error=trouble)
        self._trouble = trouble

    def _retry_later(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.poke)

    async def _read_written(self) -> None:
        """What an agent before us left standing, so that what is no longer true goes."""
        host = self._session.host
        for part in (self._keys.parents(host), self._keys.findings(host)):
            answer = await self._store.range(prefix(part))
            self._written |= {kv.key: Put(kv.key, kv.value, kv.lease) for kv in answer.kvs}

    async def _report(self) -> None:
        wanted = await self._wanted()
        changes: list[Put | Delete] = [
            put for key, put in wanted.items() if self._written.get(key) != put
        ]
        changes += [Delete(key) for key in self._written if key not in wanted]
        for some in batched(changes, MAX_TXN_OPS):
            await self._write(some)
        self._written = wanted

    async def _wanted(self) -> dict[str, Put]:
        host, lease = self._session.host, self._session.lease
        self.parents = await self._read_parents()
        puts = [
            Put(self._keys.parent(host, parent), encode(value))
            for parent, value in self.parents.items()
        ]
        # What was found holds as long as somebody is there who sees it.
        puts += [
            Put(self._keys.finding(host, name), encode(finding), lease)
            for name, finding in self._findings.items()
        ]
        return {put.key: put for put in puts}

    async def _read_parents(self) -> dict[str, ParentValue]:
        """The parents as they are reported: those of a bus that is not seen stay, without room."""
        try:
            offers = await self._offers.read()
        except OSError as error:
            offers = self._unseen(f"the bus cannot be read: {error}")
        else:
            if self.bus_trouble is not None:
                offers = self._unseen(f"the bus {self.bus_trouble}") | dict(offers)
        stuck = self._stuck()
        return {parent: self._value(parent, offer, stuck) for parent, offer in offers.items()}

    def _unseen(self, why: str) -> dict[str, Offer]:
        prefix_ = self._keys.parents(self._session.host)
        known = {last_part(key) for key in self._written if key.startswith(prefix_)}
        return {parent: Offer.unusable(why) for parent in sorted(known)}

    def _value(self, parent: str, offer: Offer, stuck: Mapping[str, int]) -> ParentValue:
        troubles, usable = offer.troubles, offer.usable
        if self.bus_trouble is not None and usable:
            troubles, usable = (f"the bus {self.bus_trouble}", *troubles), False
        if parent in stuck:
            troubles, usable = (f"{stuck[parent]} writes to its driver hang", *troubles), False
        if usable:
            self._types[parent] = offer.types
        types = offer.types if usable else without_room(offer, self._known_types(parent))
        failures = len(self._failed.get(parent, ()))
        return ParentValue(types=types, usable=usable, troubles=troubles, failures=failures)

    def _known_types(self, parent: str) -> tuple[ParentType, ...]:
        """The types that were last read of a parent, by this agent or the one before it."""
        known = self._types.get(parent)
        written = self._written.get(self._keys.parent(self._session.host, parent))
        if known is not None or written is None:
            return known or ()
        value = decode(KeyValue(written.key, written.value, 0, 0, 0), ParentValue)
        return value.types if isinstance(value, ParentValue) else ()

    async def _write(self, changes: tuple[Put | Delete, ...]) -> None:
        guard = self._in_force
        txn = Txn((guard.compare,), changes, (get(guard.compare.key),))
        # Settled, or a copy that comes late would stand over what is written after it.
        result = await settle(self._store, txn, patience=None, rng=self._rng)
        if not result.succeeded:
            error = guard.refusal(result.ranges()[0].first)
            if error is not None:
                raise error
