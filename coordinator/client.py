"""What one process, an operator's or an orchestrator's, needs to ask of the namespace.

The requests themselves are `reserving`, `creating`, `operating`, `defining` and `evicting`. What
a process puts first into etcd always hangs on a lease, so that nothing that arrives late stays.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from coordinator.batch import GroupCommit
from coordinator.claims import UNTOLD, Claims, Hold
from coordinator.errors import (
    MdevnsError,
    NameTaken,
    NotAllowed,
    OutcomeUnknown,
    StoreError,
)
from coordinator.feeds import Feeds
from coordinator.late import LateCopies
from coordinator.leases import SharedLeases
from coordinator.model import Claim, Name
from coordinator.views import Views

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from coordinator.clock import Clock
    from coordinator.keys import Keys
    from coordinator.store import Store
    from coordinator.transactions import Answer, Change, Guard

__all__ = ["Client", "Result", "in_doubt"]


class Result(msgspec.Struct, frozen=True):
    """What became of one name: what stands now, or why not."""

    name: Name
    record: Claim | Hold | None = None
    error: MdevnsError | None = None
    was: Claim | Hold | None = None
    """What was asked about, as it was read before it was removed."""


class Client:
    """One process's access to one cluster.

    `patience` in seconds is how long an unknown outcome is asked for again before the
    process says that it does not know. `asked_by` stands in the claims, for people.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: Clock,
        rng: random.Random,
        *,
        patience: float,
        asked_by: str | None = None,
    ) -> None:
        self.store, self.keys, self.clock, self.asked_by = store, keys, clock, asked_by
        self.claims = Claims(keys)
        self.leases = SharedLeases(store, clock)
        self.views = Views(store, keys)
        self.feeds = Feeds(store, keys)
        self.patience, self.rng = patience, rng
        late = LateCopies(store, keys, patience=patience, rng=rng)
        self._commit = GroupCommit(store, patience=patience, rng=rng, late=late)

    async def commit(self, changes: Sequence[Change], *guards: Guard) -> list[Answer]:
        """Make changes that an operator may make: refused while a store is being restored."""
        return await self.commit_under((self.claims.no_hold(), *guards), changes)

    async def commit_under(
        self, guards: tuple[Guard, ...], changes: Sequence[Change]
    ) -> list[Answer]:
        """Make changes under these guards alone."""
        return await self._commit.changes(guards, changes)

    async def result(self, name: Name, answer: Answer, record: Claim | Hold | None) -> Result:
        """The result of an answer; a refusal says by whom the name is held, and how."""
        if answer.error is None:
            return Result(name, record)
        error = await self.explained(name, answer.error)
        return Result(name, error=in_doubt(name, error) if answer.doubted else error)

    async def settled(self, seconds: float) -> bool:
        """Wait, for so long, until no request is under way; whether that is so."""
        return await self._commit.idle(seconds)

    async def close(self) -> None:
        """Stop sending and listening. The store stays open: whoever made it closes it."""
        await self._commit.close()
        await self.feeds.close()

    async def explained(self, name: Name, error: MdevnsError) -> MdevnsError:
        """The error with all that can be read of why."""
        if isinstance(error, NameTaken) and error.holder and error.holder.state == UNTOLD:
            # The refusal brought the host; its claim has parent and state, where it can be read.
            # A host's agent may not read another's.
            with suppress(StoreError, NotAllowed):
                holder = await self.views.holder(name)
                return error if holder is None else NameTaken(name, holder)
            return error
        return in_doubt(name, error) if isinstance(error, OutcomeUnknown) else error


def in_doubt(name: Name, error: MdevnsError) -> MdevnsError:
    """The error of a request that was refused in the end, and may have been done before.

    That somebody else has the name says enough.
    """
    if isinstance(error, NameTaken) or (isinstance(error, OutcomeUnknown) and error.name == name):
        return error
    why = f"it is not known whether it was done: {error.why}"
    return OutcomeUnknown(name, why, f"find out with: mdevns show {name}", name=name)
