"""What each parent offers, read so that no parent's files keep another's from being read.

A driver answers the reads of its files, and it may let one hang, refuse it or say what is no
answer. One thread reads parent after parent. When it does not come on, the parent that it is at
is left to it, and another thread reads the others; that parent is read again when its read has
returned. So no parent has more than one thread, however long its driver sleeps.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from agent.threads import in_thread
from coordinator.errors import InvalidValue
from coordinator.model import MOST_INSTANCES, parse_label

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.bus import Bus
    from coordinator.model import ParentType

__all__ = ["Offer", "Offers", "without_room"]

_PATIENCE = 2.0  # seconds for which a thread may be at one parent
_MOST_TYPES = 256  # of a parent, so that its record has a size
_MOST_TROUBLES = 8
_TEXT = 200  # characters


@dataclass(frozen=True, slots=True)
class Offer:
    """A parent's types, and what is wrong with what it says; not `usable`: nothing is known."""

    types: tuple[ParentType, ...]
    troubles: tuple[str, ...] = ()
    usable: bool = True

    @classmethod
    def unusable(cls, why: str) -> Offer:
        """A parent of which nothing is known, and why."""
        return cls((), (_clip(why),), usable=False)


class Offers:
    """Reads of one bus. Its coroutines belong to one event loop."""

    def __init__(self, bus: Bus, *, patience: float = _PATIENCE) -> None:
        """`patience` is how many seconds a read of one parent may take."""
        self._bus, self._patience = bus, patience
        self._hanging: dict[str, asyncio.Task[None]] = {}
        """The parents whose last read has not returned."""

    async def read(self) -> Mapping[str, Offer]:
        """What each registered parent offers.

        Raises:
            OSError: it cannot be read which parents there are.
        """
        parents = await in_thread(self._bus.registered)
        why = "a read of its types has not returned"
        found = {parent: Offer.unusable(why) for parent in parents if parent in self._hanging}
        left = [parent for parent in parents if parent not in self._hanging]
        while left:
            reading = _Reading(self._bus, left)
            task = asyncio.create_task(in_thread(reading.run))
            at = await self._until_it_hangs(reading, task)
            found |= dict(reading.found)
            if at is None:
                task.result()
                break
            hangs = left[at]
            found[hangs] = Offer.unusable(why)
            self._hanging[hangs] = task
            task.add_done_callback(lambda _, hangs=hangs: self._hanging.pop(hangs))  # type: ignore[misc]
            left = left[at + 1 :]
        return dict(sorted(found.items()))

    async def _until_it_hangs(self, reading: _Reading, task: asyncio.Task[None]) -> int | None:
        """The number of the parent at which it hangs; None: it has read all."""
        while True:
            at = reading.at
            await asyncio.wait({task}, timeout=self._patience)
            if task.done():
                return None
            if reading.at == at:
                reading.is_left = True
                return at


class _Reading:
    """One thread that reads parent after parent."""

    def __init__(self, bus: Bus, parents: Sequence[str]) -> None:
        self._bus, self._parents = bus, parents
        self.at = 0
        self.is_left = False
        self.found: dict[str, Offer] = {}

    def run(self) -> None:
        """Read, until nobody waits for it any more."""
        for at, parent in enumerate(self._parents):
            self.at = at
            offer = _offer(self._bus, parent)
            if self.is_left:
                return
            if offer is not None:
                self.found[parent] = offer


def _offer(bus: Bus, parent: str) -> Offer | None:
    """What a parent offers; None when it went meanwhile, or has a name that no key can have."""
    if not _is_label(parent):
        return None
    try:
        types, troubles = bus.offer(parent)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Offer.unusable(f"its types cannot be read: {error}")
    troubles += [f"{type_.type!r} is no name of a type" for type_ in types if not _is(type_)]
    kept = [_checked(type_, troubles) for type_ in types if _is(type_)]
    if len(kept) > _MOST_TYPES:
        troubles.append(f"it has {len(kept)} types; the first {_MOST_TYPES} are offered")
    cut = tuple(_clip(text) for text in troubles[:_MOST_TROUBLES])
    return Offer(tuple(kept[:_MOST_TYPES]), cut)


def _clip(text: str) -> str:
    """A driver's words as a record can have them: whole characters, and not many."""
    return text.encode(errors="replace").decode()[:_TEXT]


def _printed(text: str | None) -> str | None:
    return None if text is None else _clip(text)


def _is(type_: ParentType) -> bool:
    return _is_label(type_.type)


def _is_label(text: str) -> bool:
    try:
        parse_label(text, "name")
    except InvalidValue:
        return False
    return True


def _checked(type_: ParentType, troubles: list[str]) -> ParentType:
    """A type whose count and texts are what they can be."""
    available = type_.available
    if available > MOST_INSTANCES:
        troubles.append(f"{type_.type}: {available} instances are no count; taken as none")
        available = 0
    return replace(
        type_,
        available=available,
        device_api=_printed(type_.device_api),
        name=_printed(type_.name),
        description=_printed(type_.description),
    )


def without_room(offer: Offer, known: tuple[ParentType, ...]) -> tuple[ParentType, ...]:
    """The types of a parent of which nothing is known: those known last, with nothing left."""
    return tuple(replace(type_, available=0) for type_ in (offer.types or known))
