"""One host's part in a restore: what is left to be noted, and what is told of it.

While the hold of a restore stands the agent takes note of what exists and does nothing else.
`standing` says whether that is done, from one look at the bus that began after the claims were
read; `Restoring` tells the operator's `restore finish`, and hears when a restore begins or ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from agent.reconcile import Action, Sight, decide
from coordinator.errors import Fenced
from coordinator.model import Name, RestoredValue, RestoreValue, Unreadable, decode, encode
from coordinator.states import ClaimState
from coordinator.store import Put, Txn, get, unchanged, valued
from coordinator.transactions import settle

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping

    from agent.bus import Device
    from agent.notes import Notes
    from agent.reconcile import Facts
    from agent.scanner import Look
    from agent.steps import Enrolled
    from coordinator.clock import Clock
    from coordinator.keys import Keys
    from coordinator.model import Claim
    from coordinator.session import Session
    from coordinator.store import KeyValue, Store
    from coordinator.transactions import Guard

__all__ = ["Before", "Restoring", "Standing", "before", "standing", "told_of"]

_log = structlog.get_logger()

_EVERY = 10.0  # seconds from one read of the hold to the next, where there is none
_TOLD = 3  # names of those that are left, of which one is told why

_MAY_HAVE_A_DEVICE = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
# What a hold does not forbid, and so is waited for.
_TAKES_NOTE = frozenset(
    {Action.CONFIGURE, Action.ADOPT_OVER, Action.FAIL_AND_ADOPT, Action.RESTORE}
)


def told_of(restore: RestoreValue) -> dict[str, str]:
    """A restore in the words of the log."""
    return {"since": restore.at, "by": restore.begun_by, "why": restore.why}


@dataclass(frozen=True, slots=True)
class Before:
    """What was known before a look: the claims, and for which names a maker may be writing."""

    claims: Mapping[Name, Claim | Unreadable]
    makers: frozenset[Name]


@dataclass(frozen=True, slots=True)
class Standing:
    """Why not all is noted yet (None: it is), and the claims whose device was seen absent."""

    waits: str | None
    absent: dict[str, int] = field(default_factory=dict)


def before(enrolled: Enrolled) -> Before:
    """What is known now, for a look that begins after it."""
    notes, informer = enrolled.notes, enrolled.informer
    claims = {name: record for name in informer.names() if (record := informer.get(name))}
    names = {*claims, *notes.lost, *notes.permits}

    def may_write(name: Name) -> bool:
        claim = claims.get(name)
        return enrolled.makers.may_write(name, None if isinstance(claim, Unreadable) else claim)

    return Before(claims, frozenset(filter(may_write, names)))


def standing(
    enrolled: Enrolled,
    facts: Callable[[Name, Claim | None, Device | None, Look, bool], Facts],
    known: Before,
    look: Look,
) -> Standing:
    """What is left to be noted, and which claims have no device, of a look that began after it."""
    absent: dict[str, int] = {}
    left: list[str] = []
    for name in sorted({*_names(enrolled, look), *known.claims}):
        claim, device = enrolled.informer.get(name), look.device(name)
        if claim != known.claims.get(name):
            left.append(f"{name} changed meanwhile")
            continue
        if isinstance(claim, Unreadable):
            continue  # nothing is done about it, and `check` tells
        seen = facts(name, claim, device, look, name in known.makers)
        why = _left(enrolled, name, claim, seen)
        if why is not None:
            left.append(f"{name} {why}")
        elif claim and _holds(claim) and _is_absent(seen):
            absent[name] = claim.revision
    return Standing(_gist(left), absent)


def _names(enrolled: Enrolled, look: Look) -> Iterator[Name]:
    yield from enrolled.informer.names()
    yield from enrolled.notes.lost
    yield from look.scan.devices
    yield from look.in_flight


def _left(enrolled: Enrolled, name: Name, claim: Claim | None, seen: Facts) -> str | None:
    """Why a name is not done with yet.

    What is under way under a claim that holds the name for its device is not waited for: it may
    hang for as long as a VM runs, and frees nothing.
    """
    action = decide(claim, seen).action
    if action is Action.WAIT:
        if claim is not None and _holds(claim):
            return None
        return _uncertain(seen)
    if claim is not None:
        return "is to be taken note of" if action in _TAKES_NOTE else None
    if seen.sight is Sight.ABSENT:
        return "is to be put back from the journal" if name in enrolled.notes.lost else None
    return None if enrolled.reporter.stands(name) else "has a device that is to be claimed"


def _uncertain(seen: Facts) -> str:
    if seen.in_flight:
        return "is being written to the kernel"
    if seen.made_elsewhere:
        return "is made or removed by another process"
    return "cannot be seen for certain, or was not there for long"


def _holds(claim: Claim) -> bool:
    """Whether it is one that nobody gives up before its device was seen absent."""
    return claim.state in _MAY_HAVE_A_DEVICE


def _is_absent(seen: Facts) -> bool:
    return seen.sight is Sight.ABSENT and not seen.in_flight and not seen.made_elsewhere


def _gist(left: list[str]) -> str | None:
    if not left:
        return None
    more = len(left) - _TOLD
    return ", ".join(left[:_TOLD]) + (f", and {more} names more" if more > 0 else "")


class Restoring:
    """The restore that is under way, as one enrolment knows it."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: Clock,
        rng: random.Random,
        session: Session,
        in_force: Guard,
        *,
        notes: Notes,
    ) -> None:
        self._store, self._keys, self._clock, self._rng = store, keys, clock, rng
        self._session, self._in_force, self._notes = session, in_force, notes
        self.restore = session.restore
        """The restore that is under way, or None."""
        self.frozen = self.restore is not None
        """Whether the hold of a restore or of an import was there at the last look."""
        self._looked = clock.boottime()
        self._suspected = False
        self._told: Standing | None = None
        self._revision = 0  # of what was told last

    def suspect(self) -> None:
        """Something was refused as under a hold."""
        self._suspected = True

    async def look(self) -> None:
        """Look whether a restore has begun or ended: at each call during one, else every 10 s.

        Raises:
            Fenced: one has begun. What was ordered before must not come late into it, so the
                agent enrols again.
            StoreError: the store failed.
        """
        now = self._clock.boottime()
        due = self._suspected or self.restore is not None or now >= self._looked + _EVERY
        if not due or not self._session.alive:  # a store that is away is not waited for
            return
        hold = (await self._store.range(get(self._keys.hold))).first
        self._suspected, self._looked, self.frozen = False, now, hold is not None
        value = None if hold is None else decode(hold, RestoreValue)
        found = value if isinstance(value, RestoreValue) else None
        if found is not None and found != self.restore:
            raise Fenced(f"host {self._session.host}", "a restore has begun", "it enrols again")
        if found is None and self.restore is not None:
            _log.warning("the restore is finished", **told_of(self.restore))
            self.restore = None

    async def tell(self, now: Standing) -> None:
        """Have it in the store how the host stands.

        Raises:
            Fenced: a newer enrolment or an evict took over.
            StoreError: the store failed.
            JournalFailed: the journal vouches still for what would be told as absent.
        """
        if self.restore is None or now == self._told:
            return
        for name in now.absent:  # it may give way, and nobody here hear of it
            self._notes.unsure(Name(name))
        await self._notes.written()
        keys, host = self._keys, self._session.host
        key, wanted = keys.restored(host), self._value(self.restore, now)
        txn = Txn(
            (
                self._in_force.compare,
                valued(keys.hold, encode(self.restore)),
                unchanged(key, self._revision),  # or a late copy would stand over a newer one
            ),
            (Put(key, wanted, self._session.lease),),
            (get(self._in_force.compare.key), get(key)),
        )
        result = await settle(self._store, txn, patience=None, rng=self._rng)
        if result.succeeded:
            self._have_told(now, result.revision)
            return
        epoch, standing_ = (read.first for read in result.ranges())
        error = self._in_force.refusal(epoch)
        if error is not None:
            raise error
        self._stands(standing_, wanted, now)

    def _value(self, restore: RestoreValue, now: Standing) -> bytes:
        return encode(
            RestoredValue(
                restore=restore.restore,
                instance=self._session.instance,
                at=self._clock.now(),
                waits=now.waits,
                absent=now.absent,
            )
        )

    def _have_told(self, now: Standing, revision: int) -> None:
        self._told, self._revision = now, revision
        _log.info("told of the restore", waits=now.waits, absent=len(now.absent))

    def _stands(self, kv: KeyValue | None, wanted: bytes, now: Standing) -> None:
        """It was refused: by an earlier copy, or what stands is told over at the next look."""
        self._revision = 0 if kv is None else kv.mod_revision
        if kv is not None and kv.value == wanted:
            self._have_told(now, kv.mod_revision)
