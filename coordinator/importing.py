"""A namespace from an export: all of it or nothing, whatever is killed, lost or late.

One transaction holds 125 names and a namespace may have a hundred thousand, so an import is
many commits. Until the last of them nothing that it wrote is in force, and everything that it
wrote can be told apart and taken back. What stands in the store meanwhile:

- `hold`, with an id that nobody else has. While it is present nobody takes, begins or frees a
  name; agents take note of what exists. Every batch compares it **by value**, so that no two
  importers mix and no late batch of one that is gone is applied.
- `importer`, on a lease: the importer lives. Nobody takes over from one that does.
- `imports/<id>/<n>`, put by batch n in its own commit: its revision is the revision of all
  that the batch wrote, and of nothing else.

Step by step, and what a kill, a lost answer or a late copy leaves:

1. *Take*: `hold` on a lease, if there is none. A late copy holds the cluster up for as long
   as that lease lives, and no longer. Only now is it looked whether the namespace is empty:
   behind a hold it stays so, but for what agents adopt.
2. *Keep*: `hold` by its value, off the lease. From here a hold stays until somebody ends it:
   were it to lapse, half a namespace would be in force. A late copy finds the value gone
   unless its importer died within the lease, and then it is a hold of a dead importer as any.
3. *Batches*: names, claims and the batch's record. Sent again, a batch finds what it wrote.
4. *Finish*: in one commit `hold`, `importer` and the batches' records go and the audit gets
   its record. Before it nothing is imported, after it all is.

A failure before 4 (a name that an agent has adopted meanwhile, Ctrl-C) takes back, and so does
the next import after one that was killed, as soon as its `importer` has lapsed: first `hold`
gets another id, which makes every batch that is still under way void; then the records say
what was written; it is deleted where name and claim still have the batch's revision; then the
records and the hold go. What an agent has written since (it adopted the name or saw its
device) has another revision and stays: the device is there, and without the import the agent
would have adopted it.

What is imported is no transition: a claim is put back as it was, not moved on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coordinator.errors import (
    Fenced,
    Interrupted,
    InUse,
    MdevnsError,
    Moved,
    NameTaken,
    NotEmpty,
    OutcomeUnknown,
    StoreError,
)
from coordinator.model import (
    AuditValue,
    Claim,
    HoldValue,
    Unreadable,
    decode,
    encode,
    read_claim,
)
from coordinator.store import (
    Delete,
    Put,
    Range,
    Txn,
    absent,
    get,
    pages,
    prefix,
    prefix_end,
    unchanged,
    valued,
)
from coordinator.transactions import Answer, Change, Guard, chunks, settle, transact

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.client import Client
    from coordinator.exporting import Imported
    from coordinator.model import Name
    from coordinator.store import TxnResult

__all__ = ["Importer"]

_LOST = (
    "the import",
    "its hold is gone: it took too long to begin, or another import took over",
    "nothing of it is left in force; see: mdevns check",
)
_LATER = "try again when it has ended; one that was killed counts as alive for 20 s"
_TTL = 20  # seconds for which an importer that is not heard of counts as alive


class Importer:
    """One import into the cluster of `client`; `moved` is told how many names were written."""

    def __init__(self, client: Client, moved: Callable[[int], None] = lambda _: None) -> None:
        self._client, self._store, self._keys = client, client.store, client.keys
        self._moved = moved
        self._lease, self._renewed = 0, 0.0
        self._hold = self._anew()
        self._record = client.keys.audit(self._hold.at, self._hold.id)

    async def run(self, claims: Sequence[Imported]) -> None:
        """Write all claims into an empty namespace, or leave it as it was.

        Raises:
            NotEmpty: there are names.
            InUse: another import is under way.
            NameTaken: an agent has adopted one of the names meanwhile.
            Fenced: another import took over, which takes back what this one wrote.
            OutcomeUnknown: it may have been finished, now or later.
            MdevnsError: a store that is being restored, or one that fails; the error's hint
                says when something is left to be taken back.
        """
        await self._take()
        try:
            await self._take_back()  # what a dead import wrote
            await self._refuse_names()
            await self._put_hold(self._hold)
            await self._write(claims)
            await self._finish(len(claims))
        except (MdevnsError, asyncio.CancelledError) as error:
            if await self._gave_up(error):
                return
            raise

    # The hold.

    def _anew(self) -> HoldValue:
        client = self._client
        id_ = f"{client.rng.getrandbits(128):032x}"
        return HoldValue(id=id_, who=client.asked_by, at=client.clock.now())

    async def _take(self) -> None:
        """Put our hold where there is none, or where an import that is dead has left one."""
        standing = (await self._store.range(get(self._keys.hold))).first
        if standing is None:
            await self._refuse_names()  # so that a mistake does not even hold the cluster up
        wanted, importer = encode(self._hold), self._keys.importer
        if standing is not None and isinstance(decode(standing, HoldValue), Unreadable):
            refusal = self._client.claims.no_hold().refusal(standing)
            assert refusal is not None
            raise refusal
        self._renewed = self._client.clock.boottime()
        self._lease = (await self._store.grant(_TTL)).id
        # Over a hold that stays another one is put that stays; else it hangs on the lease.
        free = absent(self._keys.hold)
        when = free if standing is None else valued(self._keys.hold, standing.value)
        result = await self._settle(
            Txn(
                (when, absent(importer)),
                (
                    Put(self._keys.hold, wanted, 0 if standing else self._lease),
                    Put(importer, self._hold.id.encode(), self._lease),
                ),
                (get(self._keys.hold), get(importer)),
            )
        )
        if result.succeeded:
            return
        hold, _ = (read.first for read in result.ranges())
        if hold is None or hold.value != wanted:  # else: an earlier copy of this transaction
            raise InUse("the namespace", "another import is under way", _LATER)

    async def _put_hold(self, hold: HoldValue) -> None:
        """Put a hold that stays in the place of ours, by its value."""
        ours, wanted = encode(self._hold), encode(hold)
        result = await self._settle(
            Txn(
                (valued(self._keys.hold, ours),),
                (Put(self._keys.hold, wanted),),
                (get(self._keys.hold),),
            )
        )
        if not result.succeeded:
            standing = result.ranges()[0].first
            if standing is None or standing.value != wanted:  # else: an earlier copy of this
                raise self._lost()
        self._hold = hold

    def _guard(self) -> Guard:
        return Guard(valued(self._keys.hold, encode(self._hold)), Fenced, *_LOST)

    def _lost(self) -> Fenced:
        return Fenced(*_LOST)

    # Writing.

    async def _refuse_names(self) -> None:
        whole = prefix(self._keys.names)
        found = await self._store.range(Range(whole.key, whole.end, count_only=True))
        if found.count:
            raise NotEmpty(
                f"cluster {self._keys.cluster}",
                f"holds {found.count} names, and an import is for an empty namespace",
                "see: mdevns list; or name another cluster with --cluster",
            )

    async def _write(self, claims: Sequence[Imported]) -> None:
        changes = (self._change(claim) for claim in claims)
        for number, group in enumerate(chunks(changes, beside=1)):
            await self._renew()
            answers = await self._transact([self._batch(number, group[0].name), *group])
            for change, answer in zip(group, answers[1:], strict=True):
                if isinstance(answer.error, Moved) and answer.error.holder is not None:
                    raise NameTaken(change.name, answer.error.holder)
                answer.made()
            self._moved(len(group))

    def _change(self, claim: Imported) -> Change:
        return self._client.claims.put_back(claim.name, claim.host, claim.value)

    def _batch(self, number: int, first: Name) -> Change:
        """The record of a batch, of which the value is but for people."""
        key = self._keys.import_batch(self._hold.id, number)
        return Change(
            first,
            (absent(key),),
            (Put(key, first.encode()),),
            (get(key),),
            Answer,
            lambda _, revision: Answer(revision),  # it stands: an earlier copy put it
        )

    async def _renew(self) -> None:
        """Say that we live. Should that be too late, the next batch is refused, no more."""
        now = self._client.clock.boottime()
        if now - self._renewed > _TTL / 4:
            self._renewed = now
            await self._store.keep_alive(self._lease)

    async def _finish(self, count: int) -> None:
        client = self._client
        record = AuditValue(
            who=client.asked_by, what="import", host=None, why=f"{count} claims", at=self._hold.at
        )
        done = await self._lift(Put(self._record, encode(record)))
        if not done:
            raise self._lost()

    async def _lift(self, *more: Put) -> bool:
        """End the hold; whether it was ours to end, or an earlier copy of this has done it."""
        keys = self._keys
        result = await self._settle(
            Txn(
                (valued(keys.hold, encode(self._hold)),),
                (
                    Delete(keys.hold),
                    Delete(keys.importer),
                    Delete(keys.imports, prefix_end(keys.imports)),
                    *more,
                ),
                (get(keys.hold), get(self._record)),
            )
        )
        if result.succeeded:
            return True
        hold, record = (read.first for read in result.ranges())
        return record is not None if more else hold is None

    # Taking back.

    async def _gave_up(self, error: BaseException) -> bool:
        """Leave nothing behind; whether it turned out to be finished all the same.

        Raises:
            OutcomeUnknown: whether it was finished cannot be found out.
            Interrupted: it was, or something is left, and somebody has pressed Ctrl-C.
        """
        try:
            if await self._void():
                await self._take_back()
                await self._lift()
                return False
            done = (await self._store.range(get(self._record))).first is not None
        except Fenced:
            return False  # another import took over while we took back, and does it itself
        except StoreError as failed:
            raise self._left(error, failed) from None
        if done and isinstance(error, asyncio.CancelledError):
            raise Interrupted("the import", "interrupted, and all was imported already")
        return done

    async def _void(self) -> bool:
        """Make all void that is still under way; whether the hold was still ours."""
        try:
            await self._put_hold(self._anew())
        except Fenced:
            return False
        return True

    def _left(self, error: BaseException, failed: StoreError) -> MdevnsError:
        """The error when the store does not let us take back."""
        if isinstance(error, OutcomeUnknown):
            why = f"it is not known whether it was done: {error.why}"
            return OutcomeUnknown("the import", why, "find out with: mdevns audit, mdevns check")
        why = f"{failed.why}; what it wrote is not in force and was not taken back"
        hint = "import again, which does; until then no name can be taken"
        if isinstance(error, asyncio.CancelledError):
            return Interrupted("the import", f"interrupted: {why}", hint)
        left = MdevnsError("the import", why, hint, errno_name=failed.errno)
        left.exit_code = failed.exit_code
        return left

    async def _take_back(self) -> None:
        """Delete what the batches that stand recorded have written and nobody has moved since."""
        keys = self._keys
        written: set[int] = set()
        async for page in pages(self._store, prefix(keys.imports)):
            written.update(kv.mod_revision for kv in page.kvs)
        if not written:
            return
        async for page in pages(self._store, prefix(keys.hosts)):
            records = [read_claim(kv) for kv in page.kvs if keys.is_claim(kv.key)]
            ours = [one for one in records if isinstance(one, Claim) and one.revision in written]
            for group in chunks(map(self._deletion, ours)):
                await self._renew()
                await self._transact(group)
        result = await self._settle(
            Txn(
                (self._guard().compare,),
                (Delete(keys.imports, prefix_end(keys.imports)),),
            )
        )
        if not result.succeeded:
            raise self._lost()

    def _deletion(self, claim: Claim) -> Change:
        """Name and claim go where both are as the import wrote them; else they are not its own."""
        both = (self._keys.name(claim.name), self._keys.claim(claim.host, claim.name))
        return Change(
            claim.name,
            tuple(unchanged(key, claim.revision) for key in both),
            tuple(map(Delete, both)),
            (get(both[0]),),
            Answer,
            lambda _, revision: Answer(revision),
        )

    async def _transact(self, changes: Sequence[Change]) -> list[Answer]:
        client = self._client
        return await transact(
            self._store, (self._guard(),), changes, patience=client.patience, rng=client.rng
        )

    async def _settle(self, txn: Txn) -> TxnResult:
        client = self._client
        return await settle(self._store, txn, patience=client.patience, rng=client.rng)
