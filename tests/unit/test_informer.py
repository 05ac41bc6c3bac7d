"""List, watch from there, list again: what an agent knows of its host's claims."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
from structlog.testing import capture_logs

from agent.notes import Notes
from coordinator.errors import Fenced
from coordinator.informer import Informer, Recorder
from coordinator.model import Claim, Removal, Unreadable
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn
from coordinator.transactions import Answer, answers, transaction
from tests.sim.journal import Disk, MemoryJournal
from tests.support.desk import HOST, NAME, OTHER, PARENT, TYPE, Desk, name, wish
from tests.support.faulty import Fate, FaultyStore
from tests.support.virtual_time import pass_time, run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from coordinator.model import Name
    from coordinator.store import Range, RangeResult
    from coordinator.transactions import Change

RESYNC = 100.0


class Watched:
    """A desk with an enrolled host and its informer; the test does things meanwhile."""

    def __init__(self, desk: Desk | None = None, recorder: Recorder | None = None) -> None:
        self.desk = desk or Desk()
        self.session = self.desk.core.grant(100_000).id
        keys = self.desk.keys
        puts = (Put(keys.epoch(HOST), b"me"), Put(keys.session(HOST), b"{}", self.session))
        self.desk.core.txn(Txn(success=puts))
        self.told: list[Name] = []
        self.states: list[ClaimState | None] = []
        self.informer = Informer(
            self.desk.store,
            keys,
            host=HOST,
            instance="me",
            resync=RESYNC,
            changed=self._changed,
            recorder=recorder,
        )

    def _changed(self, names: frozenset[Name]) -> None:
        self.told.extend(names)
        self.states.extend(self.state(each) for each in names)

    def while_running(self, work: Coroutine[None, None, None]) -> None:
        """Run the informer and, once it has listed, `work`; the informer's errors are raised."""

        async def both() -> None:
            running = asyncio.create_task(self.informer.run())
            await self.informer.listed.wait()
            working = asyncio.create_task(work)
            await asyncio.wait([running, working], return_when=asyncio.FIRST_COMPLETED)
            await working
            await pass_time(1)
            running.cancel()
            await running

        with pytest.raises(asyncio.CancelledError):
            run_virtual(both(), self.desk.core)

    def state(self, which: Name = NAME) -> ClaimState | None:
        """The state of a claim as the informer knows it."""
        record = self.informer.get(which)
        return record.state if isinstance(record, Claim) else None


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_what_was_there_is_listed_and_what_comes_is_told(watched: Watched) -> None:
    """Claims from before and after the list are known, those of other hosts never are."""
    desk = watched.desk
    asyncio.run(_active(desk, name(1)))

    async def work() -> None:
        await desk.active(name(2))
        await desk.reserved(name(3), wish(OTHER))

    watched.while_running(work())
    assert [watched.state(name(n)) for n in (1, 2, 3)] == ["active", "active", None]
    assert set(watched.told) == {name(1), name(2)}


async def _active(desk: Desk, which: Name) -> Claim:
    return await desk.active(which)


def test_a_late_event_never_undoes_our_own_word(watched: Watched) -> None:
    """What a transaction of ours told is newer than an event that was under way meanwhile."""
    desk = watched.desk

    async def work() -> None:
        # All in one turn of the loop, so the watch is behind our own transaction.
        came = desk.claims.adopt_free(
            NAME, "r", host=HOST, parent=PARENT, type_=TYPE, boot_id="b", now="t"
        )
        desk.core.txn(transaction((), [came]))
        _, older = desk.records()
        assert older is not None
        newer = msgspec.structs.replace(
            older, state=ClaimState.REMOVING, revision=older.revision + 1
        )
        watched.informer.learn(NAME, newer.revision, newer)
        await pass_time(1)
        assert watched.state() is ClaimState.REMOVING
        assert ClaimState.ACTIVE not in watched.states

    watched.while_running(work())


def test_a_release_of_our_own_is_not_revived_by_an_older_event(watched: Watched) -> None:
    """The put that is told after the delete that we know of is of an older revision."""
    desk = watched.desk

    async def work() -> None:
        retired = await desk.made(desk.claims.retire(await desk.active(), Removal(), now="t"))
        (answer,) = await desk.make(desk.claims.release(retired, boot_id="b", now="t"))
        watched.informer.learn(NAME, answer.revision, None)
        assert list(watched.informer.names()) == []
        await pass_time(1)
        assert list(watched.informer.names()) == []

    watched.while_running(work())


@pytest.mark.parametrize("is_first", [True, False], ids=["watch first", "answer first"])
@pytest.mark.parametrize("later", [0, 1], ids=["the copy", "an earlier copy"])
def test_the_watch_does_not_lag_behind_a_release(
    watched: Watched, *, is_first: bool, later: int
) -> None:
    """Whichever of watch and answer is first, and whichever copy of the transaction was applied."""
    desk = watched.desk

    async def work() -> None:
        retired = await desk.made(desk.claims.retire(await desk.active(), Removal(), now="t"))
        await pass_time(1)
        # All in one turn of the loop from here, so the watch is behind, unless it is first.
        release = desk.claims.release(retired, boot_id="b", now="t")
        done = desk.core.txn(transaction((), [release]))
        if later:  # when the copy is answered, something else was written
            desk.core.txn(Txn(success=(Put("/elsewhere", b""),)))
        if is_first:
            await pass_time(1)
        watched.informer.learn(NAME, done.revision + later, None)
        await pass_time(60)
        assert watched.informer.lag() == 0
        assert list(watched.informer.names()) == []

    watched.while_running(work())


def test_an_answer_that_is_late_revives_nothing(watched: Watched) -> None:
    """What the watch said of a name since a transaction of ours is not undone by its answer."""
    desk = watched.desk

    async def work() -> None:
        claim = await desk.active()
        await desk.make(desk.claims.lose(claim, now="t"))
        await pass_time(1)
        watched.informer.learn(NAME, claim.revision, claim)
        assert list(watched.informer.names()) == []

    watched.while_running(work())


def test_what_is_deleted_is_told_and_gone(watched: Watched) -> None:
    """A claim that the watch tells the end of is none any more, without another list."""
    gone = asyncio.run(_active(watched.desk, NAME))

    async def work() -> None:
        await watched.desk.make(watched.desk.claims.lose(gone, now="t"))

    watched.while_running(work())
    assert list(watched.informer.names()) == []
    assert watched.states[-1] is None
    assert watched.desk.core.now < RESYNC


class Gap(FaultyStore):
    """A store in which something happens right after a list, the first one if not told else."""

    def __init__(self, desk: Desk, change: Change) -> None:
        super().__init__(desk.store, lambda _: Fate.DELIVER)
        self._desk, self._change = desk, change
        self.has_happened = False
        self.then: Callable[[Answer], None] = lambda _: None

    async def range(self, request: Range) -> RangeResult:
        """As the inner store."""
        result = await super().range(request)
        if not self.has_happened:
            self.has_happened = True
            done = self._desk.core.txn(transaction((), [self._change]))
            self.then(*answers((), [self._change], done))
        return result


def test_what_comes_between_the_list_and_the_watch_is_told() -> None:
    """The watch begins where the list ends, not where the store is by then."""
    desk = Desk()
    came = desk.claims.adopt_free(
        NAME, "r", host=HOST, parent=PARENT, type_=TYPE, boot_id="b", now="t"
    )
    desk.store = Gap(desk, came)
    watched = Watched(desk)

    async def nothing() -> None:
        """Nothing more happens."""

    watched.while_running(nothing())
    assert watched.state() is ClaimState.ACTIVE


def test_after_a_compaction_it_lists_again_and_misses_nothing(watched: Watched) -> None:
    """A claim that came and one that went in the gap are both known."""
    desk = watched.desk
    gone = asyncio.run(_active(desk, name(1)))

    async def work() -> None:
        # All in one turn of the loop, so the watch is told of none of it before the compaction.
        came = desk.claims.adopt_free(
            name(2), "r", host=HOST, parent=PARENT, type_=TYPE, boot_id="b", now="t"
        )
        for change in (desk.claims.lose(gone, now="t"), came):
            desk.core.txn(transaction((), [change]))
        desk.core.compact(desk.core.revision)

    watched.while_running(work())
    assert [watched.state(name(n)) for n in (1, 2)] == [None, "active"]
    assert desk.core.now < RESYNC


def test_what_we_do_while_a_list_is_under_way_sets_no_store_back() -> None:
    """The list is older than our own word then, and what it lacks was freed and not lost."""
    desk = Desk()
    ours, freed = (asyncio.run(_active(desk, name(n))) for n in (1, 2))
    desk.store = store = Gap(desk, desk.claims.retire(ours, Removal(), now="t"))
    store.has_happened = True
    notes = Notes(MemoryJournal(Disk()))  # type: ignore[arg-type]  # held to the real one's contract
    watched = Watched(desk, notes)

    async def work() -> None:
        # All in one turn of the loop, so the watch is told of none of it before the compaction.
        desk.core.txn(transaction((), [desk.claims.lose(freed, now="t")]))
        desk.core.compact(desk.core.revision)
        store.has_happened = False
        store.then = lambda done: watched.informer.learn(ours.name, done.revision, done.made())

    with capture_logs() as said:
        watched.while_running(work())
    assert watched.state(ours.name) is ClaimState.REMOVING
    assert (list(notes.lost), list(notes.claims), said) == ([], [ours.name], [])


def test_it_is_listed_again_now_and_then_whatever_the_watch_said(watched: Watched) -> None:
    """A name that the informer wrongly believes in is corrected by the next list."""

    async def work() -> None:
        claim = await watched.desk.active()
        wrong = watched.desk.core.txn(Txn(success=(Put("/elsewhere", b""),))).revision
        watched.informer.learn(name(9), wrong, claim)
        watched.desk.core.txn(Txn(success=(Put("/elsewhere", b""),)))
        assert name(9) in set(watched.informer.names())
        await pass_time(2 * RESYNC)

    watched.while_running(work())
    assert list(watched.informer.names()) == [NAME]


@pytest.mark.parametrize("what", ["a newer epoch", "a lost session"])
def test_it_ends_when_the_enrolment_does(watched: Watched, what: str) -> None:
    """A newer enrolment, an evict, or a session that is gone is ESTALE at once."""
    keys = watched.desk.keys
    newer = Put(keys.epoch(HOST), b"somebody else")
    op = newer if what == "a newer epoch" else Delete(keys.session(HOST))

    async def fenced() -> None:
        running = asyncio.create_task(watched.informer.run())
        await watched.informer.listed.wait()
        watched.desk.core.txn(Txn(success=(op,)))
        with pytest.raises(Fenced):
            await running

    run_virtual(fenced(), watched.desk.core)
    assert watched.desk.core.now < RESYNC


def test_a_record_that_cannot_be_read_stops_nothing_else(watched: Watched) -> None:
    """A damaged claim is known as unreadable, and the others as they are."""
    desk = watched.desk
    damaged = Put(desk.keys.claim(HOST, name(1)), b"{")
    desk.core.txn(Txn(success=(damaged,)))

    async def work() -> None:
        await desk.active(name(2))

    watched.while_running(work())
    assert isinstance(watched.informer.get(name(1)), Unreadable)
    assert watched.state(name(2)) is ClaimState.ACTIVE
