"""The changes of names, as they happen, with none missed and none told twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.changes import Fold
from coordinator.errors import Compacted
from coordinator.store import Range, pages, prefix

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from coordinator.changes import Change
    from coordinator.keys import Keys
    from coordinator.store import KeyValue, Store

__all__ = ["changes"]


async def changes(
    store: Store,
    keys: Keys,
    *,
    host: str | None = None,
    begin_with_all: bool = False,
    listed: Callable[[bool], None] = lambda _: None,
) -> AsyncGenerator[Change, None]:
    """The changes of names from now on (of `host` alone), in the order of revisions.

    With `begin_with_all` what stands now is told first, as puts. When the store has forgotten
    what happened since the last change that was told, all is listed again and the difference
    is told: the result, not each step to it. `listed` is called after each list, with whether
    it was such a one.

    Raises:
        SetBack: the store is another one than before.
        StoreError: it could not be listed.
    """
    fold, again = Fold(keys, host), False
    while True:
        try:
            revision, kvs = await _list(store, keys, host)
        except Compacted:
            continue  # the list took longer than history is kept
        found = fold.listed(kvs, revision)
        del kvs
        listed(again)
        if again or begin_with_all:
            for change in found:
                yield change
        again = True
        try:
            async with store.watch(_ranges(keys, host), revision + 1) as batches:
                async for batch in batches:
                    for change in fold.told(batch.events):
                        yield change
        except Compacted:
            continue


def _ranges(keys: Keys, host: str | None) -> list[Range]:
    """Where claims and names are; a host's claims tell all of it, the rest needs both."""
    if host is not None:
        return [prefix(keys.claims(host))]
    return [prefix(keys.names), prefix(keys.hosts)]


async def _list(store: Store, keys: Keys, host: str | None) -> tuple[int, list[KeyValue]]:
    """All keys, at one revision."""
    revision = 0
    found: list[KeyValue] = []
    for whole in _ranges(keys, host):
        async for page in pages(store, Range(whole.key, whole.end, revision=revision)):
            revision = page.revision
            found += page.kvs
    return revision, found
