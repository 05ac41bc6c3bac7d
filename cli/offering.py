"""What stands in the namespace and may be typed next: names, hosts, types, parents.

Reads alone, each of a bounded number however large the cluster is.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from coordinator.claims import Hold
from coordinator.keys import last_part
from coordinator.model import Claim, Name
from coordinator.states import ClaimState
from coordinator.store import Range, Txn, prefix_end
from coordinator.views import Views

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.keys import Keys
    from coordinator.store import KeyValue, Store
    from coordinator.views import ParentView

__all__ = ["hosts", "names", "parents", "places", "types", "unreachable_hosts"]

_MOST_NAMES = 1024  # that are looked at; eight transactions tell their states
_MOST_HOSTS = 128  # whose parents are looked at, where none is named
_NEXT = "0123456789abcdef"  # what a name may go on with
_FEW = 8  # names for each of them


async def names(
    store: Store, keys: Keys, start: str, states: frozenset[ClaimState] | None = None
) -> list[str]:
    """Names that begin with `start`, in one of `states`.

    A shell types for its user what all that it is offered have in common. Where there are too
    many to look at, some are offered that have no more in common than `start`, or none.
    """
    page = await store.range(_beginning(keys, start, _MOST_NAMES))
    found = await _in_states(store, keys, page.kvs, states)
    if not page.more or _is_open(found, start):
        return found
    each = await store.txn(
        Txn(success=tuple(_beginning(keys, start + digit, _FEW) for digit in _NEXT))
    )
    some = chain.from_iterable(answer.kvs for answer in each.ranges())
    found = await _in_states(store, keys, some, states)
    return found if _is_open(found, start) else []


def _beginning(keys: Keys, start: str, limit: int) -> Range:
    first = keys.names + start
    return Range(first, prefix_end(first), limit=limit, keys_only=True)


def _is_open(found: list[str], start: str) -> bool:
    """Whether what was found leaves open how `start` goes on."""
    return len({name[len(start) :][:1] for name in found}) > 1


async def _in_states(
    store: Store, keys: Keys, kvs: Iterable[KeyValue], states: frozenset[ClaimState] | None
) -> list[str]:
    found = [Name(last_part(kv.key)) for kv in kvs]
    if states is None:
        return list(found)
    records = await Views(store, keys).find_all(found)
    return [name for name, record in records.items() if _state(record) in states]


def _state(record: object) -> ClaimState | None:
    """The state of what holds a name; None when it cannot be read, or is free by now."""
    if isinstance(record, Hold):
        return ClaimState.RESERVED
    return record.state if isinstance(record, Claim) else None


async def hosts(store: Store, keys: Keys, start: str) -> list[str]:
    """Hosts whose names begin with `start`."""
    return _starting(start, await Views(store, keys).hosts())


async def unreachable_hosts(store: Store, keys: Keys, start: str) -> list[str]:
    """Hosts without a living agent: no other is evicted, forgotten or renamed."""
    views = Views(store, keys)
    return await views.unreachable(_starting(start, await views.known_hosts()))


async def parents(store: Store, keys: Keys, start: str, host: str | None) -> list[str]:
    """Parents of a host, or of any, that begin with `start`."""
    return _starting(start, (view.parent for view in await _parents(store, keys, host)))


async def types(store: Store, keys: Keys, start: str, host: str | None) -> list[str]:
    """Types that a host, or any, offers and that begin with `start`."""
    views = await _parents(store, keys, host)
    return _starting(start, (type_.type for view in views for type_ in view.value.types))


async def places(store: Store, keys: Keys, start: str) -> list[str]:
    """Where a name can go: hosts, and after a slash the parents of one."""
    host, slash, parent = start.partition("/")
    if not slash:
        return await hosts(store, keys, start)
    return [f"{host}/{one}" for one in await parents(store, keys, parent, host)]


async def _parents(store: Store, keys: Keys, host: str | None) -> list[ParentView]:
    views = Views(store, keys)
    return await views.parents([host] if host else (await views.hosts())[:_MOST_HOSTS])


def _starting(start: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(start)})
