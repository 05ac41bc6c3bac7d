"""The journal as the agent keeps it, and what it makes of the words of the store."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.journal import Changes, JournalFailed, Permit
from agent.threads import in_thread
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.journal import Journal
    from coordinator.model import Claim, Name

__all__ = ["Notes"]

_log = structlog.get_logger()

_BEYOND = 1 << 62  # a revision that no store reaches


class Notes:
    """The journal as the agent keeps it: known in memory, written off the event loop.

    What is learnt is taken down soon; `written` waits for it. What is learnt while a
    transaction is on its way to the disk goes there with the next one.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._kept = journal.read()
        self._changes = Changes()
        self._writing: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self._awaiting: list[asyncio.Future[None]] = []
        self._older: dict[Name, Claim] = {}
        self._displaced: dict[Name, Claim] = {}
        self._floor: int | None = None
        self._why = ""

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that changes only with what is learnt."""
        while not holds():
            heard = asyncio.get_running_loop().create_future()
            self._awaiting.append(heard)
            await heard

    def stir(self) -> None:
        """What is waited for in `until` may hold now, for another reason."""
        self._heard()

    def _heard(self) -> None:
        for heard in self._awaiting:
            if not heard.done():
                heard.set_result(None)
        self._awaiting.clear()

    @property
    def claims(self) -> dict[Name, Claim]:
        """The host's claims, as far as it has heard."""
        return self._kept.claims

    @property
    def lost(self) -> dict[Name, Claim]:
        """Claims that the store no longer has although nobody has freed them."""
        return self._kept.lost

    @property
    def reverted(self) -> set[Name]:
        """Names whose removal had failed before the store was set back to before that."""
        return self._kept.reverted

    @property
    def permits(self) -> dict[Name, Permit]:
        """Leave that was given while the store was away."""
        return self._kept.permits

    @property
    def in_doubt(self) -> set[Name]:
        """Names whose permit cannot be read: some process may write for them, and which is lost."""
        return self._kept.in_doubt

    # What the informer tells.

    def learnt(self, name: Name, claim: Claim | None) -> None:
        """The newest that the store says of a name; None: the host has no claim of it."""
        self._heard()
        self._kept.unsure.discard(name)
        # What is told again, in another enrolment, is the same removal.
        same = name in self._kept.reverted and claim == self._kept.claims.get(name)
        if not same:
            self._kept.reverted.discard(name)
        if claim is None:
            self._displaced.pop(name, None)
            if self._kept.claims.pop(name, None) is None or name in self._kept.lost:
                return
        else:
            self._supersede(name, claim)
            if claim.state is ClaimState.RESERVED:
                return  # nothing was begun for it: what the file has of the name stays lost
            self._kept.lost.pop(name, None)
        self._changes.claims[name] = claim
        self._changes.lost.pop(name, None)
        self._changes.unsure.discard(name)
        (self._changes.reverted.add if same else self._changes.reverted.discard)(name)
        self._begin()

    def _supersede(self, name: Name, claim: Claim) -> None:
        before = self._kept.claims.get(name)
        if before is not None and before.revision > claim.revision:
            self._older[name] = before  # by the number: whether it was set back, `listed` tells
        if claim.state is not ClaimState.RESERVED:
            self._displaced.pop(name, None)  # or the next list would drop this one
        elif before is not None and before.state is not ClaimState.RESERVED:
            self._displaced[name] = before  # it was freed, or the store was set back
        self._kept.claims[name] = claim
        if claim.revision > self._kept.revision:
            self._seen(claim.revision)

    def found(self, epoch: str | None, revision: int = _BEYOND) -> str | None:
        """The store has this epoch, which an enrolment is about to replace, and this revision.

        Where it is an instance of ours that a later one had replaced, or there is none any more,
        the store was set back: so it is found out although others have written more since than
        was lost. Returns why it is known that it was set back, also when that was found before
        and the claims were not listed since; None: it is not.
        """
        instances, seen = self._kept.instances, self._kept.revision
        if instances and epoch is None:
            self.set_back("it does not know this host any more")
        elif epoch in instances[:-1]:
            self.set_back("it has an older enrolment of this host")
        elif revision < seen < _BEYOND:
            self.set_back(f"it is at revision {revision}, and was at {seen} before")
        if self._kept.revision < _BEYOND:
            return None
        return self._why or "it was set back before this agent was started"

    def enrolled(self, instance: str) -> None:
        """An enrolment of this host's has replaced the epoch."""
        self._kept.instances.append(instance)
        self._changes.instances.append(instance)
        self._begin()

    def set_back(self, why: str) -> None:
        """The store was found to be another, or an older one.

        No store is as far as the mark that is set here, so the next list tells it again, after
        a crash too.
        """
        self._why = why
        self._seen(_BEYOND)
        self._changes.urgent = True
        self._begin()

    def listing(self) -> None:
        """A list is asked for. What we do while it is under way is newer than it may be."""
        self._floor = self._kept.revision

    def listed(self, revision: int, names: Iterable[Name]) -> None:
        """All claims of the host were listed at a revision; `learnt` has heard of each.

        What is not among them was freed by whoever may, unless the store is behind what was
        seen of it: then it was set back, and they are lost. So it is with what a reservation now
        stands in the place of. Reservations are not lost: no device was begun for them.
        """
        self._heard()
        newest, floor, self._floor = self._kept.revision, self._floor, None
        if newest < _BEYOND and floor is not None:
            newest = min(newest, floor)
        seen = max([newest, *(one.revision for one in self._older.values())])
        set_back = revision < seen
        missing = self._kept.claims.keys() - set(names)
        if set_back:
            _log.error(
                "the store was set back",
                revision=revision,
                seen=seen if seen < _BEYOND else "another store",
                claims_lost=len(missing) + len(self._displaced),
            )
        self._kept.reverted.difference_update(missing)
        self._changes.reverted -= missing
        gone = {name: self._kept.claims.pop(name) for name in missing} | self._displaced
        self._displaced = {}
        for name, claim in gone.items():
            if set_back and claim.state is not ClaimState.RESERVED:
                self._kept.lost[name] = claim
                self._changes.lost[name] = True
            elif name not in self._kept.lost:
                self._changes.claims[name] = None
        older, self._older = self._older, {}
        if set_back:
            self._keep_makers({**older, **gone})
            reverted = {name for name, one in older.items() if self._has_failed(name, one)}
            self._kept.reverted.update(reverted)
            self._changes.reverted |= reverted
        self._seen(revision if set_back else max(revision, self._kept.revision))
        self._why = ""
        self._begin()

    def _keep_makers(self, before: dict[Name, Claim]) -> None:
        """Who writes to the kernel under claims that the store has forgotten is not forgotten."""
        for name, claim in before.items():
            if claim.maker is not None and claim.boot_id is not None:
                self.permit(name, Permit(maker=claim.maker, boot_id=claim.boot_id))

    def _has_failed(self, name: Name, before: Claim) -> bool:
        now = self._kept.claims.get(name)
        removing = now is not None and now.state is ClaimState.REMOVING
        return removing and before.state is ClaimState.ACTIVE

    def told(self, revision: int) -> None:
        """The watch has told all up to a revision."""
        if revision > self._kept.revision:
            self._seen(revision)  # written along with the next claim, or at the end

    # What the agent does.

    def unsure(self, name: Name) -> None:
        """A transaction that gives the name up is about to be sent.

        It may be applied although nobody is told, even after we are gone, so the journal no
        longer vouches for the claim, until the store's next word on it.
        """
        self._kept.unsure.add(name)
        self._changes.unsure.add(name)
        self._begin()

    def vouches(self, name: Name) -> Claim | None:
        """The claim of a name if nobody but this host, or an evict, can have freed it since.

        That is so while a device of it may exist. A claim that is `defined` can be moved.
        """
        claim = self._kept.claims.get(name)
        certain = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
        if claim is None or name in self._kept.unsure or claim.state not in certain:
            return None
        return claim

    def settled(self, name: Name) -> None:
        """A lost claim is one no more: the name is another's, or there is nothing to put back."""
        if self._kept.lost.pop(name, None) is not None:
            self._changes.lost.pop(name, None)
            self._changes.claims[name] = None
            self._begin()

    def permit(self, name: Name, permit: Permit | None) -> None:
        """Give leave for a device, or take it back."""
        self._kept.in_doubt.discard(name)
        if permit is not None:
            self._kept.permits[name] = permit
        elif self._kept.permits.pop(name, None) is None:
            return
        self._changes.permits[name] = permit
        self._begin()

    async def written(self) -> None:
        """Wait until all that was learnt so far is on the disk.

        Raises:
            JournalFailed: it is not, and whoever waits must not go on.
        """
        while self._changes or self._writing:
            self._begin()
            assert self._writing is not None
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Take down what is left, and let go of the file."""
        with suppress(JournalFailed):  # told when it began
            await self.written()
            await in_thread(self._journal.write, self._changes)
        self._journal.close()

    def _seen(self, revision: int) -> None:
        self._kept = replace(self._kept, revision=revision)
        self._changes.revision = revision

    def _begin(self) -> None:
        if self._writing is None and self._changes:
            self._writing = asyncio.get_running_loop().create_task(self._write())
            self._writing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _write(self) -> None:
        try:
            # A breath, so that all that is learnt at the same moment goes in one transaction.
            await asyncio.sleep(0)
            while self._changes:
                changes, self._changes = self._changes, Changes()
                try:
                    await in_thread(self._journal.write, changes)
                except BaseException:
                    self._changes = changes.under(self._changes)
                    raise
            self._note(None)
        except JournalFailed as error:
            self._note(error.line)
            raise
        finally:
            self._writing = None

    def _note(self, trouble: str | None) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            said = "journal cannot be written" if trouble else "journal is well again"
            _log.warning(said, why=trouble)
