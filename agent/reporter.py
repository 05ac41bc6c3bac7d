"""What the agent tells the cluster of its host: parents, and devices that are not ours.

Level-triggered: what should stand is compared with what was written last, and the difference
goes into the store in one fenced transaction, gathered over a short while.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from agent.threads import in_thread
from coordinator.errors import Fenced
from coordinator.model import ParentValue, encode
from coordinator.sequences import batched
from coordinator.store import MAX_TXN_OPS, Delete, Put, Txn, get, prefix
from coordinator.transactions import settle

if TYPE_CHECKING:
    import random

    from agent.bus import Bus
    from coordinator.keys import Keys
    from coordinator.model import FindingValue, Name
    from coordinator.session import Session
    from coordinator.store import Store
    from coordinator.transactions import Guard

__all__ = ["Reporter"]

_log = structlog.get_logger()

_GATHER = 0.1  # seconds in which changes are gathered into one commit
_RETRY = 2.0  # seconds after which a report that failed is tried again


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
    ) -> None:
        self._store, self._keys, self._bus, self._rng = store, keys, bus, rng
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
        parents = await in_thread(self._bus.parents)
        puts = [
            Put(self._keys.parent(host, parent), encode(ParentValue(types=types)))
            for parent, types in parents.items()
        ]
        # What was found holds as long as somebody is there who sees it.
        puts += [
            Put(self._keys.finding(host, name), encode(finding), lease)
            for name, finding in self._findings.items()
        ]
        return {put.key: put for put in puts}

    async def _write(self, changes: tuple[Put | Delete, ...]) -> None:
        guard = self._in_force
        txn = Txn((guard.compare,), changes, (get(guard.compare.key),))
        # Settled, or a copy that comes late would stand over what is written after it.
        result = await settle(self._store, txn, patience=None, rng=self._rng)
        if not result.succeeded:
            error = guard.refusal(result.ranges()[0].first)
            if error is not None:
                raise error
