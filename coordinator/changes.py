"""What the store's events say of names: one change of a name, whatever keys it took. Pure.

A name and its claim are two keys that share a revision, and a claim that moves to another
host is three. Whoever looks at names wants one change of it, and of a name that is free now
what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.claims import Hold
from coordinator.keys import last_part
from coordinator.model import Name, NameValue, Unreadable, decode, read_claim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coordinator.keys import Keys
    from coordinator.store import Event, KeyValue
    from coordinator.views import Record

__all__ = ["Change", "Fold"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one name: what stands after it, or (`deleted`) what stood before it."""

    revision: int
    record: Record
    deleted: bool = False


class Fold:
    """Turns keys as they are listed, and events as they come, into changes of names.

    With `host` only that host's claims count: one that moves away is deleted, one that comes
    is put. Holds the record of each name in memory, for what it was when it is deleted.
    """

    def __init__(self, keys: Keys, host: str | None = None) -> None:
        self._keys, self._host = keys, host
        self._known: dict[Name, Record] = {}

    def listed(self, kvs: Iterable[KeyValue], revision: int) -> list[Change]:
        """What is different in a list of all keys at a revision, in the order of revisions.

        What went and came again since is one put; of what went, the revision of the list is
        told, for nobody knows when it was.
        """
        names = self._by_name(_Seen(kv) for kv in kvs)
        found = {name: after for name, seen in names.items() if (after := self._after(seen))}
        gone = [
            Change(revision, record, deleted=True)
            for name, record in self._known.items()
            if name not in found
        ]
        new = [
            Change(record.revision, record)
            for name, record in found.items()
            if name not in self._known or self._known[name].revision != record.revision
        ]
        self._known = found
        return sorted([*new, *gone], key=lambda change: change.revision)

    def told(self, events: Iterable[Event]) -> Iterator[Change]:
        """What changed by the events of a watch, whole revisions in their order."""
        at: dict[int, list[_Seen]] = {}
        for event in events:
            at.setdefault(event.kv.mod_revision, []).append(_Seen(event.kv, event.deleted))
        for revision, seen in at.items():
            for name, its in self._by_name(seen).items():
                change = self._changed(revision, name, its)
                if change is not None:
                    yield change

    def _changed(self, revision: int, name: Name, seen: list[_Seen]) -> Change | None:
        before, after = self._known.pop(name, None), self._after(seen)
        if after is not None:
            self._known[name] = after
            return Change(revision, after)
        return None if before is None else Change(revision, before, deleted=True)

    def _by_name(self, all_seen: Iterable[_Seen]) -> dict[Name, list[_Seen]]:
        """What was seen, name by name; the keys of anything else are left out."""
        names: dict[Name, list[_Seen]] = {}
        for seen in all_seen:
            key = seen.kv.key
            if self._is_claim(key) or (self._host is None and key.startswith(self._keys.names)):
                names.setdefault(Name(last_part(key)), []).append(seen)
        return names

    def _is_claim(self, key: str) -> bool:
        whose = None if self._host is None else self._keys.claims(self._host)
        return self._keys.is_claim(key) if whose is None else key.startswith(whose)

    def _after(self, seen: list[_Seen]) -> Record | None:
        """What stands once all keys are as seen: the claim that was put, else the hold."""
        puts = [each.kv for each in seen if not each.deleted]
        claims = [kv for kv in puts if self._is_claim(kv.key)]
        if claims:
            return read_claim(claims[0])
        return self._hold(puts[0]) if puts else None

    def _hold(self, kv: KeyValue) -> Record:
        value = decode(kv, NameValue)
        if isinstance(value, Unreadable):
            return value
        if value.host is not None:
            return Unreadable(kv.key, "the name is taken and has no claim", kv.mod_revision)
        return Hold(Name(last_part(kv.key)), value.request, kv.mod_revision, kv.lease)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A key as it was put, or as it was deleted."""

    kv: KeyValue
    deleted: bool = False
