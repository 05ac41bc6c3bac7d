"""Copies of a reservation that may still be under way: harmless before anybody is answered.

A reservation compares that its name is free, which can become true again. A copy of it that
arrives when the name was given back would take it anew, and its host would make the device.
So each such transaction compares, too, that a key of its own is absent. When its outcome was
unknown for a while, that key is put before anybody is answered, on the lease that the
reservation names: a copy is refused by the key while the lease lives, and by the lease after.
Each lease that it names has a key: etcd looks only at the leases of what would be put.
It costs a commit where an answer was lost, and nothing where none was.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from coordinator.errors import (
    LeaseGone,
    MdevnsError,
    OutcomeUnknown,
    StoreError,
    Unreachable,
)
from coordinator.store import Put, Txn, absent
from coordinator.transactions import Guard, settle, transact

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from coordinator.keys import Keys
    from coordinator.store import Store
    from coordinator.transactions import Answer, Change

__all__ = ["LateCopies"]


class _Sent(msgspec.Struct, frozen=True):
    """Of one transaction: a lease that it names, and the key that refuses it while that lives."""

    key: str
    lease: int

    @property
    def guard(self) -> Guard:
        return Guard(absent(self.key), Unreachable, self.key, "this copy came late")


class LateCopies:
    """Sends the transactions of one process; `patience` as in `settle`."""

    def __init__(
        self, store: Store, keys: Keys, *, patience: float | None, rng: random.Random
    ) -> None:
        self._store, self._keys = store, keys
        self._patience, self._rng = patience, rng
        self._owed: list[_Sent] = []

    async def transact(self, guards: Sequence[Guard], changes: Sequence[Change]) -> list[Answer]:
        """As `transactions.transact`; what was sent before can no longer be applied late.

        What is refused after an outcome was unknown is `doubted`: the first copy may have been
        applied, and others have moved on since what it did.

        Raises:
            OutcomeUnknown: also when it is known what stands, and not whether it stays so; and
                when a guard does not hold any more, or a lease is gone, with which the first
                copy may have been done.
        """
        await self._spend_before()
        puts = (op for change in changes for op in change.then if isinstance(op, Put))
        leases = sorted({put.lease for put in puts if put.lease})
        sent = [
            _Sent(self._keys.spent(f"{self._rng.getrandbits(64):016x}"), lease) for lease in leases
        ]
        guards = (*guards, *(one.guard for one in sent))
        doubts: list[bool] = []
        try:
            answers = await transact(
                self._store,
                guards,
                changes,
                patience=self._patience,
                rng=self._rng,
                doubted=lambda: doubts.append(True),
            )
        except MdevnsError as error:
            self._owed += sent if doubts else []
            if doubts and not isinstance(error, OutcomeUnknown):
                await self._spend_what_was_answered(sent)
            if doubts:  # the first copy may have been done, and its lease be gone since
                raise OutcomeUnknown(error.what, error.why, error.hint) from None
            raise
        if doubts:
            self._owed += sent
            await self._spend_what_was_answered(sent)
        return [replace(a, doubted=True) if doubts and a.error else a for a in answers]

    async def _spend_before(self) -> None:
        """What an earlier request owes; this one is not sent before that is done."""
        try:
            while self._owed:
                await self._spend(self._owed[0])
        except StoreError as error:
            raise Unreachable(error.what, error.why, "nothing was done; try again") from None

    async def _spend_what_was_answered(self, sent: Sequence[_Sent]) -> None:
        """What this request owes, and no other: one beside it may have been given up meanwhile."""
        try:
            for one in sent:
                await self._spend(one)
        except StoreError as error:
            why = f"a copy of it may arrive late: {error.why}"
            raise OutcomeUnknown(error.what, why, error.hint) from None

    async def _spend(self, sent: _Sent) -> None:
        """Put the key of what may be late. Nothing of it is sent any more."""
        put = Txn(success=(Put(sent.key, b"", sent.lease),))
        with suppress(LeaseGone):  # and with it every copy
            await settle(self._store, put, patience=self._patience, rng=self._rng)
        if sent in self._owed:
            self._owed.remove(sent)
