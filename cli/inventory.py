"""What the cluster offers, type by type. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.views import ParentView

__all__ = ["Offer", "offers"]


@dataclass(slots=True)
class Offer:
    """A type, and what hosts that are reachable have of it.

    `available` is the sum of hints: types that share a parent's pool are each counted as if
    they had it alone.
    """

    type: str
    available: int
    parents: int
    device_api: str | None
    name: str | None


def offers(parents: Iterable[ParentView]) -> list[Offer]:
    """The types of all parents, in the order of their names."""
    found: dict[str, Offer] = {}
    for view in parents:
        for each in view.value.types:
            offer = found.setdefault(each.type, Offer(each.type, 0, 0, None, None))
            offer.device_api = offer.device_api or each.device_api
            offer.name = offer.name or each.name
            if view.usable:
                offer.available += each.room
                offer.parents += 1
    return [found[type_] for type_ in sorted(found)]
