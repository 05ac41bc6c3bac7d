"""Waiting for what the hosts' agents make of claims: a watch, and what its events mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.errors import Compacted, HostDown, MdevnsError, Moved, from_kernel
from coordinator.keys import last_part
from coordinator.model import Claim, Name, OutcomeValue, Unreadable, decode, read_claim
from coordinator.states import ClaimState
from coordinator.store import Range, Txn, get, prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coordinator.keys import Keys
    from coordinator.store import Event, KeyValue, Store, WatchBatch

__all__ = ["Ended", "await_gone", "await_made"]

_UNDER_WAY = frozenset({ClaimState.RESERVED, ClaimState.CREATING, ClaimState.REMOVING})


@dataclass(slots=True)
class _Pending:
    """A claim as last seen (None: deleted), and how its request failed, if it did."""

    first: Claim
    now: Claim | None
    failure: OutcomeValue | None = None
    host_gone: bool = False

    @property
    def name(self) -> Name:
        return self.first.name


Ended = "Callable[[Claim, MdevnsError | None], None]"


async def await_made(
    store: Store,
    keys: Keys,
    claims: Sequence[Claim],
    ended: Callable[[Claim, MdevnsError | None], None],
) -> None:
    """Wait until each claim's device is made, or it is known why not; `ended` hears each."""
    await _Wait(store, keys, claims, _made).run(ended)


async def await_gone(
    store: Store,
    keys: Keys,
    claims: Sequence[Claim],
    ended: Callable[[Claim, MdevnsError | None], None],
) -> None:
    """Wait until each claim is gone, or it is known why not; `ended` hears each."""
    await _Wait(store, keys, claims, _gone).run(ended)


class _Going:
    """Not ended yet."""


_GOING = _Going()


def _made(pending: _Pending) -> MdevnsError | _Going | None:
    """How a create stands: an error, done (None), or still going."""
    claim = pending.now
    under_way = claim is not None and claim.state in _UNDER_WAY
    if pending.failure is not None:
        # Told only once the host is through with it, so that nothing is left behind.
        failure = pending.failure
        return _GOING if under_way else from_kernel(failure.errno, pending.name, failure.text)
    if claim is None:
        return HostDown(
            f"host {pending.first.host}",
            f"did not begin {pending.name} before its reservation lapsed or was released",
            "nothing is left of it; see: mdevns hosts",
            name=pending.name,
        )
    if claim.request == pending.first.request:
        if claim.state is ClaimState.ACTIVE:
            return None
        if pending.host_gone and claim.state is not ClaimState.RESERVED:
            return _host_gone(claim, "made")
        if under_way:
            return _GOING
    return Moved(pending.name, claim.holder)


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


class _Wait:
    """One watch over the claims, outcomes and sessions that matter."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        claims: Sequence[Claim],
        verdict: Callable[[_Pending], MdevnsError | _Going | None],
    ) -> None:
        self._store, self._keys, self._verdict = store, keys, verdict
        self._pending = {claim.name: _Pending(claim, claim) for claim in claims}

    async def run(self, ended: Callable[[Claim, MdevnsError | None], None]) -> None:
        """Watch until nothing is pending."""
        ranges = list(self._ranges())
        self._end(ended)
        start = 1 + min((one.first.revision for one in self._pending.values()), default=0)
        while self._pending:
            try:
                async with self._store.watch(ranges, start) as batches:
                    async for batch in batches:
                        self._apply(batch)
                        self._end(ended)
                        if not self._pending:
                            return
            except Compacted:
                start = 1 + await self._read_again()
                self._end(ended)

    def _ranges(self) -> Iterator[Range]:
        claims = [one.first for one in self._pending.values()]
        for host in sorted({claim.host for claim in claims}):
            mine = [claim for claim in claims if claim.host == host]
            one = len(mine) == 1
            yield (
                get(self._keys.claim(host, mine[0].name))
                if one
                else prefix(self._keys.claims(host))
            )
            yield get(self._keys.session(host))
        for request in sorted({claim.request for claim in claims}):
            yield prefix(self._keys.outcomes(request))

    def _end(self, ended: Callable[[Claim, MdevnsError | None], None]) -> None:
        for one in list(self._pending.values()):
            verdict = self._verdict(one)
            if not isinstance(verdict, _Going):
                del self._pending[one.name]
                ended(one.now or one.first, verdict)

    def _apply(self, batch: WatchBatch) -> None:
        for event in batch.events:
            self._apply_event(event)

    def _apply_event(self, event: Event) -> None:
        key = event.kv.key
        for one in self._concerned(key):
            if event.kv.mod_revision <= one.first.revision:
                continue  # of an earlier attempt at the same name
            if key == self._keys.session(one.first.host):
                one.host_gone = event.deleted
            elif key == self._keys.claim(one.first.host, one.name):
                self._take(one, None if event.deleted else event.kv)
            elif key == self._keys.outcome(one.first.request, one.name) and not event.deleted:
                self._fail(one, event.kv)

    def _concerned(self, key: str) -> list[_Pending]:
        named = self._pending.get(Name(last_part(key)))
        return [named] if named is not None else list(self._pending.values())

    def _take(self, one: _Pending, kv: KeyValue | None) -> None:
        claim = None if kv is None else read_claim(kv)
        if not isinstance(claim, Unreadable):  # else wait for a version that can be read
            one.now = claim

    def _fail(self, one: _Pending, kv: KeyValue) -> None:
        value = decode(kv, OutcomeValue)
        if isinstance(value, Unreadable):
            value = OutcomeValue(errno="EIO", text=value.why, host="", parent="", at="")
        one.failure = value

    async def _read_again(self) -> int:
        """Events were compacted away: look at what stands. Returns the oldest revision seen."""
        revisions = []
        for one in self._pending.values():
            keys = (
                self._keys.claim(one.first.host, one.name),
                self._keys.outcome(one.first.request, one.name),
                self._keys.session(one.first.host),
            )
            result = await self._store.txn(Txn(success=tuple(map(get, keys))))
            claim, outcome, session = (read.first for read in result.ranges())
            self._take(one, claim)
            if outcome is not None and outcome.mod_revision > one.first.revision:
                self._fail(one, outcome)
            one.host_gone = session is None
            revisions.append(result.revision)
        return min(revisions)
