"""Waiting for what the hosts' agents make of claims: a watch, and what its events mean."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from coordinator.errors import (
    Compacted,
    HostDown,
    MdevnsError,
    Moved,
    OutcomeUnknown,
    SetBack,
    StoreError,
    Unreachable,
    from_kernel,
)
from coordinator.keys import last_part
from coordinator.model import Claim, Name, OutcomeValue, Unreadable, decode, read_claim
from coordinator.sequences import batched
from coordinator.states import ClaimState
from coordinator.store import FROM_NOW, MAX_TXN_OPS, Txn, get, prefix

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from coordinator.feeds import Hearer
    from coordinator.keys import Keys
    from coordinator.store import Event, KeyValue, Range, Store, WatchBatch

__all__ = ["await_gone", "await_made"]

_LOOK_AGAIN = 10.0  # seconds after which what is waited for is read again, whatever was told

_UNDER_WAY = frozenset({ClaimState.RESERVED, ClaimState.CREATING, ClaimState.REMOVING})


@dataclass(slots=True)
class _Pending:
    """A claim as last seen (None: deleted), and how its request failed, if it did."""

    first: Claim
    now: Claim | None
    was_active: bool = False  # for however short a time: whoever removed it came later
    failure: OutcomeValue | None = None
    host_gone: bool = False

    @property
    def name(self) -> Name:
        return self.first.name

    @property
    def may_have_failed(self) -> bool:
        """Whether the claim is where a failed request leaves it, and it is not known yet."""
        if self.failure is not None or self.was_active:
            return False
        plainly = (ClaimState.RESERVED, ClaimState.CREATING, ClaimState.ACTIVE)
        return self.now is None or self.now.adopted or self.now.state not in plainly


def _watched(keys: Keys, host: str, names: Sequence[Name]) -> list[Range]:
    """The session and the one claim, or all of the host's."""
    one = len(names) == 1
    claims = get(keys.claim(host, names[0])) if one else prefix(keys.claims(host))
    return [claims, get(keys.session(host))]


async def await_made(
    store: Store,
    keys: Keys,
    claims: Sequence[Claim],
    ended: Callable[[Claim, MdevnsError | None], None],
    hearer: Hearer | None = None,
) -> None:
    """Wait until each claim's device is made, or it is known why not; `ended` hears each.

    With `hearer` the host must have been seen alive in the commits of its claims, or later.
    """
    await _wait(store, keys, claims, _made, ended, hearer)


async def await_gone(
    store: Store,
    keys: Keys,
    claims: Sequence[Claim],
    ended: Callable[[Claim, MdevnsError | None], None],
) -> None:
    """Wait until each claim is gone, or it is known why not; `ended` hears each."""
    await _wait(store, keys, claims, _gone, ended)


class _Going:
    """Not ended yet."""


_GOING = _Going()

Verdict: TypeAlias = "Callable[[_Pending], MdevnsError | _Going | None]"
"""How a claim that is waited for stands: an error, done (None), or still going."""


def _made(pending: _Pending) -> MdevnsError | _Going | None:
    """How a create stands: an error, done (None), or still going."""
    if pending.was_active and pending.failure is None:
        return None
    claim = pending.now
    under_way = claim is not None and claim.state in _UNDER_WAY
    if pending.failure is not None:
        # Told only once the host is through with it, so that nothing is left behind.
        return _GOING if under_way else _failed(pending.name, pending.failure)
    if claim is None:
        return HostDown(
            f"host {pending.first.host}",
            f"did not begin {pending.name} before its reservation lapsed or was released",
            "nothing is left of it; see: mdevns hosts",
            name=pending.name,
        )
    if claim.request == pending.first.request:
        if pending.host_gone and claim.state is not ClaimState.RESERVED:
            return _host_gone(claim, "made")
        if under_way:
            return _GOING
    return Moved(pending.name, claim.holder)


def _failed(name: Name, failure: OutcomeValue) -> MdevnsError:
    attribute = failure.attribute is not None
    return from_kernel(failure.errno, name, failure.text, attribute=attribute)


def _gone(pending: _Pending) -> MdevnsError | _Going | None:
    """How a remove stands: an error, done (None), or still going."""
    claim = pending.now
    if claim is None or claim.request != pending.first.request:
        return None
    if claim.state is ClaimState.REMOVING:
        return _host_gone(claim, "removed") if pending.host_gone else _GOING
    if claim.state is ClaimState.ACTIVE and claim.error is not None:
        return from_kernel(claim.error.errno, claim.name, claim.error.text)
    return None if claim.state is ClaimState.DEFINED else Moved(claim.name, claim.holder)


def _host_gone(claim: Claim, done: str) -> HostDown:
    return HostDown(
        f"host {claim.host}",
        f"went away while {claim.name} was being {done}; the claim stays ({claim.state})",
        f"its agent goes on when it is back; see: mdevns show {claim.name}",
        name=claim.name,
        holder=claim.holder,
    )


async def _wait(
    store: Store,
    keys: Keys,
    claims: Sequence[Claim],
    verdict: Verdict,
    ended: Callable[[Claim, MdevnsError | None], None],
    hearer: Hearer | None = None,
) -> None:
    """Wait for claims host by host: what a host's watch tells is of that host alone."""
    by_host: dict[str, list[Claim]] = {}
    for claim in claims:
        by_host.setdefault(claim.host, []).append(claim)
    waits = [
        _HostWait(store, keys, mine, verdict, ended).run(
            hearer if hearer is not None and hearer.host == host else None
        )
        for host, mine in by_host.items()
    ]
    if len(waits) == 1:
        await waits[0]  # no task, and nobody hears of its end a turn later
        return
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _HostWait:
    """A watch over the claims of one host that are waited for, and its session."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        claims: Sequence[Claim],
        verdict: Verdict,
        ended: Callable[[Claim, MdevnsError | None], None],
    ) -> None:
        self._store, self._keys, self._verdict, self._ended = store, keys, verdict, ended
        self._host = claims[0].host
        self._pending = {
            claim.name: _Pending(
                claim, claim, claim.state is ClaimState.ACTIVE and not claim.adopted
            )
            for claim in claims
        }

    async def run(self, hearer: Hearer | None) -> None:
        """Watch until nothing is pending; now and then look at all of it, whatever was told.

        When the store is away, what becomes of the claims is not known: each is told so. A watch
        resumes for ever and never says so; a read has a deadline, so each round ends with a look
        that no timer cuts off.
        """
        try:
            await self._judge(self._pending.values())
            while self._pending:
                with suppress(Compacted, TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN):
                        await (self._watch() if hearer is None else self._go_on(hearer))
                hearer = None
                if self._pending:
                    await self._look()
        except (Unreachable, SetBack) as error:
            for one in list(self._pending.values()):
                self._end(one, _not_known(one.name, error))

    async def _watch(self) -> None:
        """Watch from now on, then look at what stands: nothing falls between the two."""
        watched = _watched(self._keys, self._host, list(self._pending))
        async with self._store.watch(watched, FROM_NOW) as batches:
            await anext(batches)
            await self._hear(batches, await self._look())

    async def _go_on(self, hearer: Hearer) -> None:
        """Go on with a watch that may have stood before all claims did: then it has told all."""
        asked = min(one.first.revision for one in self._pending.values())
        begun = await hearer.begun()
        await self._hear(hearer, asked if begun <= asked else await self._look())

    async def _hear(self, batches: AsyncIterator[WatchBatch], seen: int) -> None:
        """Hear of what happened after revision `seen`, up to which all is known."""
        if not self._pending:
            return
        async for batch in batches:
            events = (event for event in batch.events if event.kv.mod_revision > seen)
            told = [each for event in events for each in self._apply(event)]
            await self._judge(told)
            if not self._pending:
                return

    def _apply(self, event: Event) -> list[_Pending]:
        """Take note of an event; returns those of whom it tells something new."""
        if event.kv.key == self._keys.session(self._host):
            for each in self._pending.values():
                each.host_gone = event.deleted
            return list(self._pending.values())
        one = self._pending.get(Name(last_part(event.kv.key)))
        # What is older is of an earlier attempt at the same name.
        if one is None or event.kv.mod_revision <= one.first.revision:
            return []
        self._take(one, None if event.deleted else event.kv)
        return [one]

    def _take(self, one: _Pending, kv: KeyValue | None) -> None:
        claim = None if kv is None else read_claim(kv)
        if isinstance(claim, Unreadable):
            return  # wait for a version that can be read
        one.now = claim
        if claim is not None and claim.request == one.first.request and not claim.adopted:
            one.was_active = one.was_active or claim.state is ClaimState.ACTIVE

    async def _judge(self, concerned: Iterable[_Pending]) -> None:
        """End what has ended. How a request failed is looked up when its claim tells that it did.

        It was written in the transaction that moved the claim, so it is there by now.
        """
        concerned = list(concerned)
        if self._verdict is _made:
            await self._look_up([one for one in concerned if one.may_have_failed])
        for one in concerned:
            verdict = self._verdict(one)
            if not isinstance(verdict, _Going) and one.name in self._pending:
                self._end(one, verdict)

    def _end(self, one: _Pending, verdict: MdevnsError | None) -> None:
        del self._pending[one.name]
        self._ended(one.now or one.first, verdict)

    async def _look_up(self, failed: Sequence[_Pending]) -> None:
        for some in batched(failed, MAX_TXN_OPS):
            keys = [self._keys.outcome(one.first.request, one.name) for one in some]
            result = await self._store.txn(Txn(success=tuple(map(get, keys))))
            for one, read in zip(some, result.ranges(), strict=True):
                kv = read.first
                if kv is not None and kv.mod_revision > one.first.revision:
                    one.failure = _outcome(kv)

    async def _look(self) -> int:
        """Look at what stands; returns the oldest revision that was seen."""
        revision = 0
        for some in batched(list(self._pending.values()), MAX_TXN_OPS - 1):
            keys = [self._keys.claim(self._host, one.name) for one in some]
            reads = (get(self._keys.session(self._host)), *map(get, keys))
            result = await self._store.txn(Txn(success=reads))
            session, *kvs = (read.first for read in result.ranges())
            for one, kv in zip(some, kvs, strict=True):
                one.host_gone = session is None
                self._take(one, kv)
            if self._verdict is _made:
                await self._recollect([one for one in some if one.may_have_failed])
            await self._judge(some)
            revision = min(revision or result.revision, result.revision)
        return revision

    async def _recollect(self, over: Sequence[_Pending]) -> None:
        """Learn of claims that have moved on since whether they were active in between.

        Their changes are in the history; how one ends that is over is the last that is asked.
        """
        left = {one.name: one for one in over}
        if not left:
            return
        start = 1 + min(one.first.revision for one in over)
        claims = prefix(self._keys.claims(self._host))
        with suppress(Compacted):  # then what stands is all that can be known
            async with self._store.watch([claims], start) as batches:
                async for batch in batches:
                    for event in batch.events:
                        self._recollect_one(left, event)
                    if not left:
                        return

    def _recollect_one(self, left: dict[Name, _Pending], event: Event) -> None:
        one = left.get(Name(last_part(event.kv.key)))
        if one is None or event.kv.mod_revision <= one.first.revision:
            return
        now = one.now
        self._take(one, None if event.deleted else event.kv)
        is_over = one.was_active or one.may_have_failed
        one.now = now
        if is_over:
            del left[one.name]


def _not_known(name: Name, error: StoreError) -> OutcomeUnknown:
    why = f"it is not known what became of it: {error.why}"
    return OutcomeUnknown(name, why, f"find out with: mdevns show {name}", name=name)


def _outcome(kv: KeyValue) -> OutcomeValue:
    value = decode(kv, OutcomeValue)
    if isinstance(value, Unreadable):
        return OutcomeValue(errno="EIO", text=value.why, host="", parent="", at="")
    return value
