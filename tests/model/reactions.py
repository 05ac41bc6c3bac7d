"""How a name reacts to what concerns all: the end of an agent, an enrolment, a power loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from coordinator.states import ClaimState
from tests.model.commits import begun, rebooted, record
from tests.model.names import by_repr
from tests.model.parts import BEFORE, HOSTS, NOW, Event, Late, Mind, Part, Place, Recipe, Rules

if TYPE_CHECKING:
    from coordinator.model import Claim

__all__ = ["Reactions"]


class Reactions:
    """What a name is after something that concerns all."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def react(self, part: Part, event: Event) -> Part:  # noqa: PLR0911 - one event each
        """What a name is after something that concerns all."""
        index = event.host
        match event.what:
            case "die" | "die in vain":
                place = _without(part.places[index], event.slot)
                if event.what == "die in vain" and self.rules.generations:
                    place = place._replace(orphans=part.places[index].orphans)
                return _at(part, index, place)
            case "generation":
                return self._new_generation(part, index)
            case "epoch" if self.rules.epoch_compares:
                late = tuple(x for x in part.late if not x.agent or x.recipe.host != index)
                return part._replace(late=late)
            case "listed" | "noted" | "listed back":
                place = self._listed(part, event)
                return _at(part, index, place)
            case "power":
                return _powered(part, index)
            case "snapshot":
                places = tuple(map(_noted, part.places))
                return part._replace(then=part.cell, same=True, places=(places[0], places[1]))
            case "restore":
                assert part.then is not None
                return Part(part.then, part.places)
            case "lift":
                return _reported(part)
        return part

    def _new_generation(self, part: Part, index: int) -> Part:
        """What was ordered before and is not begun never will be."""
        if not self.rules.generations:
            return part
        return _at(part, index, part.places[index]._replace(orphans=()))

    def _listed(self, part: Part, event: Event) -> Place:
        """An agent has listed its claims; the journal tells what a restored store has lost."""
        place, claim = part.places[event.host], record(part.cell, event.host)
        minds = list(place.minds)
        minds[event.slot] = Mind(known=claim)
        place = place._replace(minds=(minds[0], minds[1]))
        if event.what == "noted":
            kept = begun(claim)
            return place._replace(journal=(kept, not part.same) if kept else None)
        if event.what == "listed":
            reverted = "" if place.reverted == "moved" else place.reverted
            if reverted and not self.rules.reverted:
                reverted = "forgotten"
            return place._replace(lost=None if begun(claim) else place.lost, reverted=reverted)
        return self._listed_back(place, claim)

    def _listed_back(self, place: Place, claim: Claim | None) -> Place:
        """The first list of a restored store."""
        before, newer = place.journal or (None, False)
        lost, reverted = None, False
        if before is not None and not begun(claim):
            lost = before
        if before is not None and claim is not None:
            reverted = newer and (before.state, claim.state) == (
                ClaimState.ACTIVE,
                ClaimState.REMOVING,
            )
        return place._replace(journal=None, lost=lost, reverted="stands" if reverted else "")


def _at(part: Part, index: int, place: Place) -> Part:
    places = list(part.places)
    places[index] = place
    return part._replace(places=(places[0], places[1]))


def _without(place: Place, which: int) -> Place:
    """An agent is gone; what it ordered may still be begun, until the next generation."""
    mind = place.minds[which]
    orphans = place.orphans
    if mind is not None and mind.waits in ("create", "remove"):
        orphans = tuple(sorted({*orphans, mind.waits}))
    minds = list(place.minds)
    minds[which] = None
    return place._replace(minds=(minds[0], minds[1]), orphans=orphans)


def _powered(part: Part, index: int) -> Part:
    """Another boot: no device, no agent, and what is of this boot is of an earlier one."""
    old = part.places[index]
    journal = old.journal and (_before(old.journal[0]), old.journal[1])
    place = Place(journal=journal, lost=old.lost and _before(old.lost), reverted=old.reverted)
    minds = tuple(mind for mind in place.minds)
    place = place._replace(minds=(minds[0], minds[1]))
    late = tuple(_before_in(x) if _is_of(x.recipe, index) else x for x in part.late)
    then = part.then and rebooted(part.then, index)
    return _at(part, index, place)._replace(
        cell=rebooted(part.cell, index), late=by_repr(late), then=then
    )


def _is_of(recipe: Recipe, index: int) -> bool:
    claim = recipe.claim
    return recipe.host == index if claim is None else claim.host == HOSTS[index]


def _before_in(late: Late) -> Late:
    recipe = late.recipe
    boot = BEFORE if late.agent else recipe.boot
    return late._replace(
        recipe=recipe._replace(claim=recipe.claim and _before(recipe.claim), boot=boot)
    )


def _before(claim: Claim) -> Claim:
    if claim.boot_id != NOW:
        return claim
    return msgspec.structs.replace(claim, boot_id=BEFORE)


def _noted(place: Place) -> Place:
    """What the journal has is not newer than a snapshot that is taken now."""
    return place._replace(journal=place.journal and (place.journal[0], False))


def _reported(part: Part) -> Part:
    """The hold is lifted: a device whose name is another's is a conflict from here on."""
    first, second = (
        place._replace(device="foreign")
        if place.device == "ours" and record(part.cell, index) is None
        else place
        for index, place in enumerate(part.places)
    )
    return part._replace(places=(first, second))
