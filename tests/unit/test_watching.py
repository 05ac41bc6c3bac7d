"""The changes of names: one for each, whatever keys it took, and over a compaction too."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from coordinator.changes import Fold
from coordinator.claims import Hold
from coordinator.model import Claim, Name, Unreadable
from coordinator.store import Put, Range, Txn, prefix
from coordinator.transactions import transaction
from coordinator.watching import changes
from tests.support.desk import HOST, NAME, OTHER, Desk, name, wish
from tests.support.virtual_time import pass_time, run_virtual

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.changes import Change

Told = tuple[str, Name | None, str | None]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def told(change: Change) -> Told:
    """A change in short: what happened, to which name, and its host."""
    record = change.record
    if isinstance(record, Unreadable):
        return ("unreadable", None, None)
    host = record.host if isinstance(record, Claim) else None
    return ("delete" if change.deleted else "put", record.name, host)


def all_ranges(desk: Desk) -> list[Range]:
    return [prefix(desk.keys.names), prefix(desk.keys.hosts)]


def folded(desk: Desk, fold: Fold, since: int) -> list[Change]:
    """What a fold makes of all that happened after a revision."""
    batch = desk.core.changes(since, all_ranges(desk))
    return [] if batch is None else list(fold.told(batch.events))


async def _held(desk: Desk, which: Name) -> Hold:
    lease = desk.core.grant(60).id
    (answer,) = await desk.make(desk.claims.hold(which, "r", lease=lease))
    return Hold(which, "r", answer.revision, lease)


async def _defined(desk: Desk, host: str = HOST) -> Claim:
    hold = await _held(desk, NAME)
    return await desk.made(desk.claims.define(hold, wish(host), now="t", by=None))


async def test_each_step_of_a_claim_is_one_change(desk: Desk) -> None:
    """Name and claim are two keys of one revision, and of what is freed the last is told."""
    fold, start = Fold(desk.keys), desk.core.revision
    claim = await desk.active()
    found = folded(desk, fold, start)
    assert [told(each) for each in found] == [("put", NAME, HOST)] * 3
    assert [each.revision for each in found] == list(range(start + 1, start + 4))
    await desk.make(desk.claims.lose(claim, now="t"))
    (last,) = folded(desk, fold, start + 3)
    assert (last.revision, last.deleted, last.record) == (start + 4, True, claim)


async def test_a_name_without_a_host_is_told_too(desk: Desk) -> None:
    """A reservation is a name alone; that it lapses is a delete of it, all of one lease each."""
    fold, start = Fold(desk.keys), desk.core.revision
    first = await _held(desk, name(1))
    change = desk.claims.hold(name(2), "r", lease=first.lease)
    await desk.make(change)
    assert [told(each) for each in folded(desk, fold, start)] == [
        ("put", name(1), None),
        ("put", name(2), None),
    ]
    at = desk.core.revision
    desk.core.expire(first.lease)
    gone = folded(desk, fold, at)
    assert sorted(told(each) for each in gone) == [
        ("delete", name(1), None),
        ("delete", name(2), None),
    ]
    assert gone[0].record == first


async def test_a_move_is_a_put_and_for_the_old_host_a_delete(desk: Desk) -> None:
    """One name that goes from host to host is one change for each who looks."""
    claim = await _defined(desk)
    at = desk.core.revision
    folds = [Fold(desk.keys, host) for host in (None, HOST, OTHER)]
    kvs = [kv for each in all_ranges(desk) for kv in desk.core.range(each).kvs]
    for fold in folds:
        fold.listed(kvs, at)
    await desk.make(desk.claims.move(claim, wish(OTHER), now="t"))
    assert [[told(each) for each in folded(desk, fold, at)] for fold in folds] == [
        [("put", NAME, OTHER)],
        [("delete", NAME, HOST)],
        [("put", NAME, OTHER)],
    ]


async def test_the_difference_of_two_lists_is_told_once(desk: Desk) -> None:
    """A second list tells what came, what changed and what went, and nothing that did not."""
    fold = Fold(desk.keys)

    def listed() -> list[Told]:
        kvs = [kv for each in all_ranges(desk) for kv in desk.core.range(each).kvs]
        return [told(each) for each in fold.listed(kvs, desk.core.revision)]

    *_, gone = [await desk.active(name(n)) for n in (1, 2, 3)]
    assert listed() == [("put", name(n), HOST) for n in (1, 2, 3)]
    assert listed() == []
    await desk.make(desk.claims.lose(gone, now="t"))
    await desk.reserved(name(4))
    assert listed() == [("put", name(4), HOST), ("delete", name(3), HOST)]


async def test_a_record_that_cannot_be_read_stops_nothing(desk: Desk) -> None:
    """It is told as such, and so is what comes after it."""
    fold, start = Fold(desk.keys), desk.core.revision
    desk.core.txn(Txn(success=(Put(desk.keys.name(name(1)), b"{"),)))
    await desk.reserved(name(2))
    found = [told(each) for each in folded(desk, fold, start)]
    assert found == [("unreadable", None, None), ("put", name(2), HOST)]


def watched(
    desk: Desk, work: Callable[[], Awaitable[None]], *, host: str | None = None, all_: bool = False
) -> tuple[list[Told], list[bool]]:
    """What a watch tells while `work` is done, and of its lists."""
    found: list[Told] = []
    lists: list[bool] = []

    async def run() -> None:
        listed = asyncio.Event()

        def note(again: bool) -> None:  # noqa: FBT001 - what `changes` calls
            lists.append(again)
            listed.set()

        async def watch() -> None:
            told_of = changes(desk.store, desk.keys, host=host, begin_with_all=all_, listed=note)
            async with aclosing(told_of):
                async for change in told_of:
                    found.append(told(change))  # noqa: PERF401 - as they come, not when it ends

        watching = asyncio.create_task(watch())
        await listed.wait()
        await pass_time(1)
        await work()
        await pass_time(1)
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()

    run_virtual(run(), desk.core)
    return found, lists


@pytest.mark.parametrize("all_", [False, True])
def test_a_watch_begins_with_nothing_unless_it_is_asked_to(desk: Desk, all_: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Only what changes from now on is told, or first what stands."""
    asyncio.run(_active(desk, name(1)))

    async def work() -> None:
        await desk.reserved(name(2))

    found, lists = watched(desk, work, all_=all_)
    before: list[Told] = [("put", name(1), HOST)] if all_ else []
    assert found == [*before, ("put", name(2), HOST)]
    assert lists == [False]


async def _active(desk: Desk, which: Name) -> Claim:
    return await desk.active(which)


@pytest.mark.parametrize("host", [None, HOST])
def test_a_compaction_loses_nothing_and_doubles_nothing(desk: Desk, host: str | None) -> None:
    """What happened while the watch was behind is told as its result, and then it goes on."""
    kept = asyncio.run(_active(desk, name(1)))
    gone = asyncio.run(_active(desk, name(2)))

    async def work() -> None:
        # In one turn of the loop: the watch hears of none of it before it is compacted away.
        lost = desk.claims.lose(gone, now="t")
        desk.core.txn(transaction((), [lost]))
        lease = desk.core.grant(60).id
        new = desk.claims.reserve(name(3), "r", wish(), lease=lease, now="t", by=None)
        desk.core.txn(transaction((), [new]))
        desk.core.compact(desk.core.revision)
        await pass_time(1)
        assert desk.records(name(1))[1] == kept
        await desk.reserved(name(4))

    found, lists = watched(desk, work, host=host)
    assert found == [
        ("put", name(3), HOST),
        ("delete", name(2), HOST),
        ("put", name(4), HOST),
    ]
    assert lists == [False, True]
