"""What can happen next to a name on a host: to its agents and its workers.

Each step is one that a crash cannot cut. `decide` is the real one; what drives it is as small as
it can be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent.reconcile import Action, Decision, Facts, Refusal, Sight, Write, decide
from coordinator.errors import Fenced, Moved, NameTaken, StoreReadOnly
from coordinator.model import AfterRemoval
from coordinator.states import ClaimState
from tests.model.commits import Committed, age, aged, begun, commit, record, value_of
from tests.model.kernels import BUSY, EXISTS, kernel_steps, write
from tests.model.parts import (
    HOSTS,
    NOW,
    Budget,
    Late,
    Mind,
    Place,
    Recipe,
    Rules,
    Slot,
    Violation,
)
from tests.model.steps import DECIDE, HEAR, RESEND, WORK, Here, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.model import Claim

__all__ = ["age_place", "steps_at"]

_REVERTED = Refusal(Write.REMOVE, "ESTALE", "")


def age_place(place: Place, touched: int) -> Place:
    """A place whose host's claim was moved on or freed: what was read of it is old."""
    if not touched:
        return place
    first, second = (mind and _aged(mind, touched) for mind in place.minds)
    return place._replace(minds=(first, second), reverted=place.reverted and "moved")


def _aged(mind: Mind, touched: int) -> Mind:
    known = mind.known and age(mind.known, touched)
    sent = mind.sent and aged(mind.sent, (touched, touched))
    return mind._replace(known=known, sent=sent)


def steps_at(here: Here, budget: Budget, rules: Rules) -> Iterator[Step]:
    """Everything that can happen next."""
    for which, slot in enumerate(here.host.slots):
        mind = here.place.minds[which]
        if slot is not None and mind is not None:
            yield from _Agent(here, which, slot, mind, budget, rules).steps()
    yield from kernel_steps(here, budget, rules)


class _Agent:
    """The steps of one agent on a name."""

    def __init__(
        self, here: Here, which: int, slot: Slot, mind: Mind, budget: Budget, rules: Rules
    ) -> None:
        self.here, self.which, self.slot, self.mind = here, which, slot, mind
        self.budget, self.rules = budget, rules
        self.name = f"{HOSTS[here.at]}{' (second agent)' if which else ''}"

    def steps(self) -> Iterator[Step]:
        yield from self._hear()
        if self.mind.sent is not None:
            yield from self._send(self.mind.sent, again=True)
        elif self.mind.waits in ("create", "remove"):
            yield from self._work(self.mind.waits)
        elif not self.mind.waits:
            yield from self._look()

    def _step(
        self,
        rank: int,
        what: str,
        mind: Mind | None = None,
        *,
        done: Committed | None = None,
        late: Late | None = None,
        place: Place | None = None,
        dies: bool = False,
    ) -> Step:
        here = self.here
        cell, touched = (done.cell, done.touched) if done else (here.cell, (0, 0))
        place = place or here.place
        if mind is not None:
            minds = list(place.minds)
            minds[self.which] = mind
            place = place._replace(minds=(minds[0], minds[1]))
        dead = self.which if dies else -1
        return Step(rank, f"{self.name}: {what}", cell, touched, place, late, dead)

    # What it hears.

    def _hear(self) -> Iterator[Step]:
        claim = record(self.here.cell, self.here.at)
        if claim != self.mind.known:
            refusal = self.mind.refusal if claim else None
            mind = self.mind._replace(known=claim, refusal=refusal)
            place = self._learnt(self.here.place, claim, newer=not self.here.same)
            told = f"hears of {{name}}: {claim.state if claim else 'no claim'}"
            yield self._step(HEAR, told, mind, place=place)
        if not self.rules.fresh_scan:
            sight = self._sight(self.mind.known)[0].value
            if sight != self.mind.sight:
                seen = self.mind._replace(sight=sight)
                yield self._step(HEAR, f"looks at {{name}}: {sight}", seen)

    def _learnt(self, place: Place, claim: Claim | None, *, newer: bool) -> Place:
        """What the journal takes down."""
        lost = None if begun(claim) else place.lost
        place = place._replace(lost=lost, reverted="")
        if not self.here.noted:
            return place
        kept = begun(claim)
        return place._replace(journal=(kept, newer) if kept else None)

    # What it makes of what it sees.

    def _sight(self, claim: Claim | None) -> tuple[Sight, bool]:
        """What a scan shows, and whether a write is in flight."""
        place, rules = self.here.place, self.rules
        in_flight = place.kernel in ("creating", "removing", "given") and rules.in_flight_waits
        if place.kernel == "going":
            return (Sight.GOING if rules.going_waits else Sight.ABSENT), in_flight
        if not place.device:
            return Sight.ABSENT, in_flight
        return (Sight.OTHER if claim is None else Sight.AS_ASKED), in_flight

    def _look(self) -> Iterator[Step]:
        claim = self.mind.known
        sight, in_flight = self._sight(claim)
        if not self.rules.fresh_scan and self.mind.sight:
            sight, in_flight = Sight(self.mind.sight), False
        rank = DECIDE
        for offers in (True, False) if self.budget.refusals and claim else (True,):
            facts = self._facts(sight, in_flight=in_flight, offers=offers)
            for step in self._do(claim, facts, decide(claim, facts)):
                yield step._replace(rank=step.rank and rank)
            rank = 0
        if not self.rules.unknown_waits:
            facts = self._facts(Sight.ABSENT, in_flight=in_flight, offers=True)
            for step in self._do(claim, facts, decide(claim, facts)):
                yield step._replace(rank=0)
        if self.budget.callers and claim is None and not self.here.hold:
            yield from self._send(Recipe("claim", host=self.here.at), again=False)

    def _facts(self, sight: Sight, *, in_flight: bool, offers: bool) -> Facts:
        refusal = self.mind.refusal
        if refusal is None and self.here.place.reverted in ("stands", "moved"):
            refusal = _REVERTED
        if not self.rules.exists_waits and refusal == EXISTS:
            refusal = replace(EXISTS, errno="eexist")
        return Facts(
            boot_id=NOW,
            sight=sight,
            settled=True,
            in_flight=in_flight,
            offers=offers,
            refusal=refusal,
        )

    def _do(self, claim: Claim | None, facts: Facts, decision: Decision) -> Iterator[Step]:
        action = decision.action
        if claim is None:
            yield from self._unclaimed(facts, action)
        elif action is Action.REMOVE and self.here.hold and self.rules.hold:
            return
        elif action is Action.REMOVE:
            if self.here.hold:
                raise Violation(f"{self.name} removes a device while the store is reconciled")
            order = self.mind._replace(waits="remove")
            yield self._step(DECIDE, "orders the removal of {name}", order)
            if self.budget.refusals:
                busy = self.mind._replace(refusal=BUSY)
                yield self._step(0, "finds {name} busy", busy)
        elif action is Action.BEGIN and self._skips_begin(claim):
            order = self.mind._replace(waits="create")
            yield self._step(DECIDE, "orders the creation of {name}", order)
        elif action not in (Action.NOTHING, Action.WAIT):
            told = decision if decision.errno else None
            told = told and Decision(action, decision.errno)
            recipe = Recipe(action.value, claim, told, self.here.at)
            if action is Action.FAIL_AND_ADOPT and claim.state is ClaimState.RESERVED:
                recipe = self._recalled(recipe, claim)
            yield from self._send(recipe, again=False)

    def _recalled(self, recipe: Recipe, claim: Claim) -> Recipe:
        """The device under a reservation is one whose claim a restore has lost, or a stranger's."""
        lost = self.here.place.lost
        if lost is None:
            return recipe
        told = None if lost.request == claim.request else recipe.decision
        return Recipe("recall over", claim, told, self.here.at, value_of(lost, NOW))

    def _skips_begin(self, claim: Claim) -> bool:
        return not self.rules.begins and claim.state is ClaimState.CREATING

    def _unclaimed(self, facts: Facts, action: Action) -> Iterator[Step]:
        """A device without a claim, or a lost claim without a device."""
        index, lost = self.here.at, self.here.place.lost
        if action is Action.ADOPT:
            recipe = Recipe("adopt", host=index)
            if lost is not None:
                recipe = Recipe("recall", host=index, value=value_of(lost, NOW))
            yield from self._send(recipe, again=False)
        elif lost is not None and facts.sight is Sight.ABSENT and action is Action.NOTHING:
            removed = lost.removal is not None and lost.removal.then is AfterRemoval.FREE
            if lost.outlives_its_device and not removed:
                recipe = Recipe("recall", host=index, value=value_of(lost, None))
                yield from self._send(recipe, again=False)
            else:
                place = self.here.place._replace(lost=None)
                yield self._step(DECIDE, "forgets the lost claim of {name}", place=place)

    # Transactions.

    def _send(self, recipe: Recipe, *, again: bool) -> Iterator[Step]:
        done = commit(
            self.here.cell,
            recipe,
            self.rules,
            agent=True,
            force=self.slot.force,
            hold=self.here.hold,
        )
        yield from self._answered(recipe, done, again=again)
        if self.budget.unanswered:
            yield from self._unanswered(recipe, done, again=again)
        if self.here.room:
            sent = self.mind._replace(sent=recipe)
            told = f"{recipe.what} {{name}} (on its way for long)"
            yield self._step(0, told, sent, late=Late(agent=True, recipe=recipe))

    def _unanswered(self, recipe: Recipe, done: Committed, *, again: bool) -> Iterator[Step]:
        """It was applied, or not, and nobody is told."""
        if done.cell != self.here.cell or done.touched != (0, 0):
            place = age_place(self.here.place, done.touched[self.here.at])
            sent = self._mind(place)._replace(sent=aged(recipe, done.touched))
            lost = f"{recipe.what} {{name}} (answer lost)"
            yield self._step(0, lost, sent, done=done, place=place)
        if not again:
            sent = self.mind._replace(sent=recipe)
            yield self._step(0, f"{recipe.what} {{name}} (lost on its way)", sent)

    def _mind(self, place: Place) -> Mind:
        mind = place.minds[self.which]
        assert mind is not None
        return mind

    def _answered(self, recipe: Recipe, done: Committed, *, again: bool) -> Iterator[Step]:
        rank, what = RESEND if again else DECIDE, f"{recipe.what} {{name}}"
        what += " again" if again else ""
        idle = self.mind._replace(sent=None)
        if isinstance(done.refused, Fenced):
            yield self._step(rank, f"{what}: fenced", dies=True)
        elif isinstance(done.refused, StoreReadOnly):
            if again:
                yield self._step(rank, f"{what}: refused during the hold", idle)
        elif done.answer is None:
            raise Violation(f"{what}: {done.refused}")
        elif isinstance(done.answer.error, NameTaken):
            yield from self._taken(what, rank, again=again)
        elif isinstance(done.answer.error, Moved):
            yield self._step(rank, f"{what}: it has moved", idle)
        else:
            yield self._made(what, rank, recipe, done)

    def _taken(self, what: str, rank: int, *, again: bool) -> Iterator[Step]:
        """Held elsewhere: a conflict. A copy of what was in doubt could still take the name."""
        mind = self.mind._replace(sent=None)
        if again:
            yield self._step(rank, f"{what}: taken, and it was in doubt", dies=True)
        elif self.here.hold or self._is_ours():
            return  # who holds it may make way, or the watch will tell
        elif self.here.place.lost is not None:
            place = self.here.place._replace(lost=None)
            yield self._step(rank, f"{what}: taken, a conflict", mind, place=place)

    def _is_ours(self) -> bool:
        """Claimed for this host a moment ago: the watch will tell."""
        return record(self.here.cell, self.here.at) is not None

    def _made(self, what: str, rank: int, recipe: Recipe, done: Committed) -> Step:
        assert done.answer is not None
        claim = done.answer.claim
        place = age_place(self.here.place, done.touched[self.here.at])
        newer = done.cell != self.here.cell or done.touched != (0, 0) or not self.here.same
        place = self._learnt(place, claim, newer=newer)
        orders = recipe.what in ("begin", "claim") and claim is not None
        mind = Mind(known=claim, waits="create" if orders else "", sight=self.mind.sight)
        return self._step(rank, what, mind, done=done, place=place)

    # Its orders.

    def _work(self, kind: str) -> Iterator[Step]:
        idle = self.mind._replace(waits="")
        if self.rules.generations and not self.slot.gen:
            what = "an order of {name} is of an older generation"
            ends = self.rules.stale_ends
            yield self._step(WORK, what, None if ends else idle, dies=ends)
        elif self.rules.deadlines and not self.slot.fresh:
            yield self._step(WORK, "an order of {name} is past the session's deadline", idle)
        elif self.here.place.kernel in ("creating", "removing", "given"):
            yield self._step(WORK, "an order of {name} finds another in flight", idle)
        elif kind == "create" and self.here.hold and self.rules.hold:
            raise Violation(f"{self.name} creates a device while the store is reconciled")
        else:
            for rank, what, place, refusal in write(self.here, kind, self.budget):
                waits = "" if refusal else "kernel"
                mind = self.mind._replace(waits=waits, refusal=refusal or self.mind.refusal)
                yield self._step(rank, what, mind, place=place)
