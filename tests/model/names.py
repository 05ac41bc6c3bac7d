"""What can happen next to a name: on its hosts, on its way to the store, at an operator's hand."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from coordinator.states import ClaimState
from tests.model.agents import age_place, steps_at
from tests.model.clusters import died, ended, with_host
from tests.model.commits import aged, commit, hold_of, record
from tests.model.parts import (
    CURRENT,
    GONE,
    HOSTS,
    Budget,
    Cell,
    Cluster,
    Late,
    Moved,
    Part,
    Place,
    Recipe,
    Rules,
)
from tests.model.steps import ARRIVE, EXPIRE, YIELD, Here, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.model import Claim

__all__ = ["NameSteps", "by_repr"]

_OF_HOLDS = ("bind", "define", "renew", "cancel")


class NameSteps:
    """The steps of a single name."""

    def __init__(self, budget: Budget, rules: Rules) -> None:
        self.budget, self.rules = budget, rules

    def part_steps(self, cluster: Cluster, part: Part) -> Iterator[Moved]:
        """Everything that can happen next to a name."""
        yield from self._late_steps(cluster, part)
        for index in range(len(HOSTS)):
            yield from self._place_steps(cluster, part, index)
        yield from self._operator_steps(cluster, part)
        if cluster.hold:
            yield from self._yielded(cluster, part)

    def _place_steps(self, cluster: Cluster, part: Part, index: int) -> Iterator[Moved]:
        for step in self.steps_at(self.here(cluster, part, index)):
            touched = step.touched
            places = [age_place(place, touched[one]) for one, place in enumerate(part.places)]
            places[index] = step.place
            after = _changed(part, step.cell, touched, places, step.late)
            yield self._stepped(cluster, index, step.rank, step.label, after, step.dies)

    def here(self, cluster: Cluster, part: Part, index: int) -> Here:
        """What the steps on a host depend on, no more: so they are found once."""
        return Here(
            index,
            cluster.hosts[index],
            cluster.hold,
            part.cell,
            part.places[index],
            len(part.late) < self.budget.late,
            self.budget.restores and cluster.snapshot != "restored",
            part.same,
        )

    @cache  # noqa: B019 - a world lives as long as its search
    def steps_at(self, here: Here) -> tuple[Step, ...]:
        return tuple(steps_at(here, self.budget, self.rules))

    def _stepped(
        self, cluster: Cluster, index: int, rank: int, label: str, part: Part, dies: int
    ) -> Moved:
        if dies < 0:
            return Moved(rank, label, cluster, part)
        after = died(cluster.hosts[index], dies)
        return Moved(
            rank,
            label,
            with_host(cluster, index, after),
            part,
            (ended(cluster.hosts[index], index, dies),),
        )

    def _late_steps(self, cluster: Cluster, part: Part) -> Iterator[Moved]:
        for late in dict.fromkeys(part.late):
            left = list(part.late)
            left.remove(late)
            part_left = part._replace(late=tuple(left))
            host = cluster.hosts[late.recipe.host]
            done = commit(
                part.cell,
                late.recipe,
                self.rules,
                agent=late.agent,
                force=True,  # or it would be here no more
                session=bool(host.session),
                hold=cluster.hold,
            )
            by = HOSTS[late.recipe.host] if late.agent else "operator"
            places = [age_place(p, done.touched[i]) for i, p in enumerate(part.places)]
            after = _changed(part_left, done.cell, done.touched, places)
            label = f"{by}: {late.recipe.what} {{name}} arrives late"
            yield Moved(ARRIVE, label, cluster, after)

    # An operator.

    def _operator_steps(self, cluster: Cluster, part: Part) -> Iterator[Moved]:
        room = len(part.late) < self.budget.late
        for recipe in () if cluster.hold else _requests(part.cell, self.budget):
            session = bool(cluster.hosts[recipe.host].session)
            done = commit(part.cell, recipe, self.rules, agent=False, session=session)
            if done.answer is None or done.answer.error is not None:
                continue
            places = [age_place(p, done.touched[i]) for i, p in enumerate(part.places)]
            what = f"operator: {recipe.what} {{name}}{_whither(recipe)}"
            yield Moved(0, what, cluster, _changed(part, done.cell, done.touched, places))
            if room:
                late = part._replace(late=by_repr((*part.late, Late(agent=False, recipe=recipe))))
                yield Moved(0, f"{what} (on its way for long)", cluster, late)
        yield from self._expire(cluster, part)
        for index in range(len(HOSTS)):
            yield from self._evict(cluster, part, index)

    def _expire(self, cluster: Cluster, part: Part) -> Iterator[Moved]:
        """The reservation's lease ends: etcd deletes what hangs on it, in one revision."""
        if part.cell.name is None or not part.cell.name.lease:
            return
        claims = part.cell.claims
        # What does not hang on it stays, which must be nothing.
        cell = Cell(None, tuple(kv and (None if kv.lease else kv) for kv in claims))  # type: ignore[arg-type]  # two
        touched = tuple(GONE if kv else 0 for kv in claims)
        places = [age_place(p, touched[i]) for i, p in enumerate(part.places)]
        rank = EXPIRE if hold_of(part.cell) else 0
        after = _changed(part, cell, (touched[0], touched[1]), places)
        yield Moved(rank, "store: the reservation of {name} expires", cluster, after)

    def _evict(self, cluster: Cluster, part: Part, index: int) -> Iterator[Moved]:
        """One batch. What the host has of the name is given away: it is said to be fenced."""
        host, claim = cluster.hosts[index], record(part.cell, index)
        if not host.evicting or cluster.hold or claim is None or _is_evicted(claim):
            return
        recipe = Recipe("evict", claim, host=index)
        done = commit(part.cell, recipe, self.rules, agent=False, force=True)
        places = [age_place(p, done.touched[i]) for i, p in enumerate(part.places)]
        places[index] = _given(places[index])
        after = _changed(part, done.cell, done.touched, places)
        yield Moved(0, f"operator: evicts {{name}} of {HOSTS[index]}", cluster, after)

    def _yielded(self, cluster: Cluster, part: Part) -> Iterator[Moved]:
        """A claim without a device, of a name that has one on the other host, is freed."""
        for index, claim in enumerate(map(record, (part.cell, part.cell), (0, 1))):
            here, there = part.places[index], part.places[1 - index]
            known = all(host.since for host in cluster.hosts)
            if claim is None or not known or not there.device or there.kernel:
                continue
            if here.device or here.kernel:
                continue
            done = commit(
                part.cell, Recipe("yield", claim, host=index), self.rules, agent=False, hold=True
            )
            places = [age_place(p, done.touched[i]) for i, p in enumerate(part.places)]
            after = _changed(part, done.cell, done.touched, places)
            label = f"operator: {HOSTS[index]}'s claim of {{name}} yields"
            yield Moved(YIELD, label, cluster, after)


def _given(place: Place) -> Place:
    """The host is said to be fenced: what it has is not ours any more, if it runs all the same."""
    device = place.device and "foreign"
    kernel = {"creating": "given", "removing": "going"}.get(place.kernel, place.kernel)
    minds = tuple(
        mind._replace(waits="") if mind and mind.waits == "kernel" else mind for mind in place.minds
    )
    return place._replace(device=device, kernel=kernel, minds=(minds[0], minds[1]))


def _is_evicted(claim: Claim) -> bool:
    return claim.state is ClaimState.DEFINED and claim.boot_id is None


def _changed(
    part: Part,
    cell: Cell,
    touched: tuple[int, int],
    places: list[Place],
    late: Late | None = None,
) -> Part:
    """A name after a transaction. What can never be applied any more is forgotten."""
    lates = part.late
    wrote = cell != part.cell or touched != (0, 0)
    if wrote and lates:
        kept = (x._replace(recipe=aged(x.recipe, touched)) for x in lates)
        lates = tuple(x for x in kept if not _is_void(x.recipe))
    if late is not None:
        lates = (*lates, late)
    return Part(cell, (places[0], places[1]), by_repr(lates), part.then, part.same and not wrote)


def _is_void(recipe: Recipe) -> bool:
    if recipe.claim is not None:
        return recipe.claim.revision != CURRENT
    return recipe.what in _OF_HOLDS


@cache
def by_repr(lates: tuple[Late, ...]) -> tuple[Late, ...]:
    return tuple(sorted(lates, key=repr))


def _whither(recipe: Recipe) -> str:
    if recipe.what in ("reserve", "bind", "define", "move"):
        return f" for {HOSTS[recipe.host]}, {recipe.wish}" if recipe.wish != "hold" else ""
    return ""


@cache
def _requests(cell: Cell, budget: Budget) -> tuple[Recipe, ...]:
    """What an operator may ask of a name as it stands."""
    wishes = ("transient", "persistent", "autostart") if budget.persistent else ("transient",)
    hold = hold_of(cell)
    if cell.name is None:
        asked = [Recipe("reserve", host=h, wish=wish) for h in (0, 1) for wish in wishes]
        return (*asked, *([Recipe("reserve", wish="hold")] if budget.holds else []))
    if hold is not None:
        bound = [
            Recipe(what, host=h, wish=wish)
            for h in (0, 1)
            for wish in wishes
            for what in ("bind", "define")
            if what == "bind" or wish != "transient"
        ]
        return (*bound, Recipe("cancel", wish="hold"))
    (claim,) = (one for one in (record(cell, 0), record(cell, 1)) if one is not None)
    return tuple(_of_claim(claim, HOSTS.index(claim.host)))


def _of_claim(claim: Claim, index: int) -> Iterator[Recipe]:
    match claim.state:
        case ClaimState.RESERVED:
            yield Recipe("cancel", claim, host=index)
        case ClaimState.ACTIVE:
            yield Recipe("remove", claim, host=index)
            if claim.persistent:
                yield Recipe("stop", claim, host=index)
        case ClaimState.DEFINED:
            yield Recipe("remove", claim, host=index)
            yield Recipe("start", claim, host=index)
            yield Recipe("move", claim, host=1 - index)
