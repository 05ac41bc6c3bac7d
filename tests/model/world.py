"""Two hosts, their kernels, one etcd, and everything that can go wrong between any two steps.

The transitions, the store and `decide` are the real ones; kernels, agents and workers are as
small as they can be: each step is atomic, so a crash between any two of them is a crash anywhere.
The kernels are the truth that is checked against.

A name meets others only in what concerns all of a host: so a step of the world is one of the
cluster, to which each name reacts, or one of a single name. (A parent that is full is not
modelled by its other devices: the kernel may say so at any time.)
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from coordinator.states import ClaimState
from tests.model.agents import (
    ARRIVE,
    ENROL,
    EXPIRE,
    LAPSE,
    LEARN,
    LIFT,
    START,
    YIELD,
    Here,
    Step,
    age_place,
    steps_at,
)
from tests.model.commits import aged, commit, hold_of, rebooted, record
from tests.model.parts import (
    BEFORE,
    GONE,
    HOSTS,
    NOW,
    Budget,
    Cell,
    Cluster,
    Host,
    Late,
    Mind,
    Part,
    Place,
    Recipe,
    Rules,
    Slot,
    Violation,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.model import Claim

__all__ = ["Event", "Moved", "World"]

_MAY_HAVE_A_DEVICE = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
_OF_HOLDS = ("bind", "define", "renew", "cancel")


class Event(NamedTuple):
    """What each name reacts to: what happened, to which host, to which of its agents."""

    what: str
    host: int = 0
    slot: int = 0


class Moved(NamedTuple):
    """A step: its place in the order in which things are done when faults stop (0: it need not
    happen), what it is in the words of the protocol, and what has become of the cluster.
    """

    rank: int
    label: str
    cluster: Cluster
    part: Part | None = None  # of the name whose step it is
    events: tuple[Event, ...] = ()
    when_ready: bool = False  # it waits until every name is ready for it


class World:
    """The steps of a model with these rules and faults. It holds no state."""

    def __init__(self, budget: Budget | None = None, rules: Rules | None = None) -> None:
        self.budget, self.rules = budget or Budget(), rules or Rules()

    # --- what concerns all names

    def cluster_steps(self, cluster: Cluster) -> Iterator[Moved]:
        """Everything that can happen next to hosts, sessions and the store as a whole."""
        for index in range(len(HOSTS)):
            yield from self._host_steps(cluster, index)
        yield from self._restoring(cluster)

    def _host_steps(self, cluster: Cluster, index: int) -> Iterator[Moved]:
        host, name = cluster.hosts[index], HOSTS[index]
        for which, slot in enumerate(host.slots):
            if slot is None:
                yield from self._start(cluster, index, which)
            else:
                yield from self._slot_steps(cluster, index, which, slot)
        if host.late:
            yield self._late_enrolment(cluster, index)
        if host.session:
            yield self._lapse(cluster, index)
        off = host._replace(slots=(None, None), session=host.session and "before")
        off = off._replace(late=host.late and "before")
        yield Moved(
            0, f"{name}: loses power", _with(cluster, index, off), events=(Event("power", index),)
        )
        yield from self._take_epoch(cluster, index)

    def _start(self, cluster: Cluster, index: int, which: int) -> Iterator[Moved]:
        """A new generation of orders, and then the epoch is read."""
        host = cluster.hosts[index]
        if which and not self._may_be_second(cluster, index):
            return
        if host.session == "before":
            return  # it may be a clone that is alive
        others = tuple(slot and slot._replace(gen=False) for slot in host.slots)
        slots = list(others)
        slots[which] = Slot("asking", read=True, force=False, gen=True, fresh=True)
        after = _with(cluster, index, host._replace(slots=(slots[0], slots[1])))
        what = "a second agent starts" if which else "an agent starts"
        rank = 0 if any(host.slots) else START
        yield Moved(rank, f"{HOSTS[index]}: {what}", after, events=(Event("generation", index),))

    def _may_be_second(self, cluster: Cluster, index: int) -> bool:
        """A second agent beside the first, on one host at a time."""
        first, _ = cluster.hosts[index].slots
        alone = all(host.slots[1] is None for host in cluster.hosts)
        return self.budget.zombies and first is not None and alone

    def _slot_steps(self, cluster: Cluster, index: int, which: int, slot: Slot) -> Iterator[Moved]:
        name = f"{HOSTS[index]}{' (second agent)' if which else ''}"
        host = cluster.hosts[index]
        over = slot.phase == "live" and not (slot.force and slot.fresh)
        died = self._died(host, which)
        what = "learns that its enrolment is over" if over else "is killed"
        yield Moved(
            LEARN if over else 0,
            f"{name}: {what}",
            _with(cluster, index, died),
            events=(Event("die", index, which),),
        )
        if slot.phase != "live":
            yield from self._enrol(cluster, index, which, slot, name)
        elif slot.fresh and host.session != str(which):
            stale = _slot(host, which, slot._replace(fresh=False))
            yield Moved(0, f"{name}: its session's lease ends", _with(cluster, index, stale))

    def _died(self, host: Host, which: int) -> Host:
        own = str(which)
        return _slot(host, which, None)._replace(
            session="gone" if host.session == own else host.session,
            late="gone" if host.late == own else host.late,
        )

    def _enrol(
        self, cluster: Cluster, index: int, which: int, slot: Slot, name: str
    ) -> Iterator[Moved]:
        """One transaction, which compares the epoch as it was read; or that is read again."""
        host = cluster.hosts[index]
        if slot.phase == "sent" and slot.force:
            yield self._enrolled(cluster, index, which, f"{name}: hears that it has enrolled")
            return
        if not slot.read and self.rules.enrolment_compares:
            if host.session != "before":
                again = _slot(host, which, slot._replace(phase="asking", read=True))
                what = f"{name}: another enrolment was faster; reads the epoch again"
                yield Moved(ENROL, what, _with(cluster, index, again))
            return
        done = self._applied(cluster, index, which)
        yield self._enrolled(done, index, which, f"{name}: enrols", Event("epoch", index))
        sent = _slot(done.hosts[index], which, _sent(done.hosts[index], which))
        yield Moved(
            0,
            f"{name}: enrols (answer lost)",
            _with(done, index, sent),
            events=(Event("epoch", index),),
        )
        if slot.phase == "asking":
            yield Moved(
                0,
                f"{name}: enrols (lost on its way)",
                _with(cluster, index, _slot(host, which, slot._replace(phase="sent"))),
            )
        if self.budget.late_enrolments and not host.late:
            late = _slot(host, which, slot._replace(phase="sent"))._replace(late=str(which))
            yield Moved(0, f"{name}: enrols (on its way for long)", _with(cluster, index, late))

    def _applied(self, cluster: Cluster, index: int, which: int | None) -> Cluster:
        """An enrolment's transaction has been applied; None: of an agent that is gone."""
        host = cluster.hosts[index]
        slots = [
            slot and slot._replace(force=one == which, read=False)
            for one, slot in enumerate(host.slots)
        ]
        session = "gone" if which is None else str(which)
        host = host._replace(slots=(slots[0], slots[1]), session=session)
        late = host.late if not self.rules.enrolment_compares else ""
        evicting = host.evicting and not self.rules.evict_compares
        return _with(cluster, index, host._replace(late=late, evicting=evicting))

    def _enrolled(
        self, cluster: Cluster, index: int, which: int, label: str, *events: Event
    ) -> Moved:
        """An agent knows that it has enrolled: it lists its claims, and serves."""
        host = cluster.hosts[index]
        slot = host.slots[which]
        assert slot is not None
        # Since the restore only counts an enrolment that is in force, and fenced none since.
        fresh = host.session == str(which)
        live = slot._replace(phase="live", read=False, fresh=fresh)
        noted = self.budget.restores and cluster.snapshot != "restored"
        how = "listed back" if host.setback else "noted" if noted else "listed"
        listed = Event(how, index, which)
        host = _slot(host, which, live)._replace(setback=False, since=cluster.hold)
        return Moved(ENROL, label, _with(cluster, index, host), events=(*events, listed))

    def _late_enrolment(self, cluster: Cluster, index: int) -> Moved:
        host = cluster.hosts[index]
        which = int(host.late) if host.late.isdigit() else None
        done = self._applied(cluster, index, which)
        after = done.hosts[index]
        session = after.session if which is not None else host.late
        done = _with(done, index, after._replace(late="", session=session))
        what = f"{HOSTS[index]}: an enrolment arrives late"
        return Moved(ARRIVE, what, done, events=(Event("epoch", index),))

    def _lapse(self, cluster: Cluster, index: int) -> Moved:
        host = cluster.hosts[index]
        after = host._replace(session="")
        if host.session in ("0", "1"):
            which = int(host.session)
            slot = host.slots[which]
            after = _slot(after, which, slot and slot._replace(fresh=False))
        rank = LAPSE if host.session == "before" else 0
        return Moved(rank, f"{HOSTS[index]}: its session lapses", _with(cluster, index, after))

    def _take_epoch(self, cluster: Cluster, index: int) -> Iterator[Moved]:
        """The first transaction of an evict, which only a host without a session suffers."""
        host = cluster.hosts[index]
        seen = host.session and self.rules.evict_sees_no_session
        if not self.budget.evicts or cluster.hold or seen or host.evicting:
            return
        slots = tuple(slot and slot._replace(force=False, read=False) for slot in host.slots)
        late = host.late if not self.rules.enrolment_compares else ""
        after = host._replace(slots=(slots[0], slots[1]), evicting=True, late=late)
        yield Moved(
            0,
            f"operator: evicts {HOSTS[index]}, takes its epoch",
            _with(cluster, index, after),
            events=(Event("epoch", index),),
        )

    # A restore.

    def _restoring(self, cluster: Cluster) -> Iterator[Moved]:
        if self.budget.restores and cluster.snapshot == "none" and not cluster.hold:
            first, second = (host.session for host in cluster.hosts)
            taken = cluster._replace(snapshot="taken", sessions=(first, second))
            yield Moved(0, "store: a snapshot is taken", taken, events=(Event("snapshot"),))
        if cluster.snapshot == "taken":
            yield self._restore(cluster)
        if cluster.hold:
            enrolled = all(host.since for host in cluster.hosts)
            if enrolled or not self.rules.all_enrolled:
                yield self._lift(cluster)

    def _restore(self, cluster: Cluster) -> Moved:
        """The store is what it was; `hold` is written before anybody may connect."""
        hosts = tuple(
            Host(session=session and (session if session == "before" else "gone"), setback=True)
            for session in cluster.sessions
        )
        after = Cluster((hosts[0], hosts[1]), hold=True, snapshot="restored")
        if not self.rules.hold:
            after = after._replace(hold=False)
        events = tuple(
            Event("die", index, which)
            for index, host in enumerate(cluster.hosts)
            for which, slot in enumerate(host.slots)
            if slot is not None
        )
        label = "store: is restored from the snapshot, with the hold"
        return Moved(0, label, after, events=(*events, Event("restore")))

    def _lift(self, cluster: Cluster) -> Moved:
        hosts = tuple(host._replace(since=False) for host in cluster.hosts)
        after = cluster._replace(hosts=(hosts[0], hosts[1]), hold=False)
        label = "operator: finishes the restore, the hold is lifted"
        return Moved(LIFT, label, after, events=(Event("lift"),), when_ready=True)

    # --- a name

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
        died = self._died(cluster.hosts[index], dies)
        return Moved(rank, label, _with(cluster, index, died), part, (Event("die", index, dies),))

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
                late = part._replace(late=_sorted((*part.late, Late(agent=False, recipe=recipe))))
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

    # --- how a name reacts

    def react(self, part: Part, event: Event) -> Part:
        """What a name is after something that concerns all."""
        index = event.host
        match event.what:
            case "die":
                return _at(part, index, _without(part.places[index], event.slot))
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
            return place._replace(journal=(claim, not part.same) if claim else None)
        if event.what == "listed":
            return place._replace(lost=None if claim else place.lost, reverted=False)
        before, newer = place.journal or (None, False)
        lost = reverted = None
        if before is not None and claim is None and before.state is not ClaimState.RESERVED:
            lost = before
        if before is not None and claim is not None:
            reverted = newer and (before.state, claim.state) == (
                ClaimState.ACTIVE,
                ClaimState.REMOVING,
            )
        return place._replace(journal=None, lost=lost, reverted=bool(reverted))

    # --- what must hold

    def check(self, cluster: Cluster, part: Part) -> None:
        """No device of ours without its claim, and never two of them."""
        ours = [p.device == "ours" or p.kernel == "creating" for p in part.places]
        if all(ours):
            raise Violation("two devices of one name")
        if cluster.hold or not any(ours):
            return  # what a restored store has forgotten is taken note of first
        index = ours.index(True)
        claim = record(part.cell, index)
        if claim is None:
            raise Violation(f"a device on {HOSTS[index]} and nobody holds its name there")
        if claim.state not in _MAY_HAVE_A_DEVICE:
            raise Violation(f"a device on {HOSTS[index]} behind a claim that is {claim.state}")

    def check_settled(self, cluster: Cluster, part: Part) -> None:
        """When nothing more happens by itself, nothing is left half done."""
        if cluster.hold:
            raise Violation("the hold is never lifted")
        if hold_of(part.cell) is not None or part.late:
            raise Violation("something is on its way for ever")
        for index, place in enumerate(part.places):
            self._check_settled_at(part, index, place)

    def _check_settled_at(self, part: Part, index: int, place: Place) -> None:
        claim, host = record(part.cell, index), HOSTS[index]
        if place.kernel or any(mind and (mind.sent or mind.waits) for mind in place.minds):
            raise Violation(f"something is under way on {host} for ever")
        if claim is None:
            if place.device == "ours":
                raise Violation(f"a device leaked on {host}")
            if place.device and part.cell.name is None:
                raise Violation(f"{host} does not adopt what it could")
        elif claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
            raise Violation(f"a claim on {host} sticks: {claim.state}")
        elif (claim.state is ClaimState.ACTIVE) != bool(place.device):
            there = place.device or "no"
            raise Violation(f"a claim on {host} is {claim.state} with {there} device")

    def is_ready(self, part: Part) -> bool:
        """Whether the hold may be lifted: no write in flight, each device has its claim or is a
        conflict, and no claim without a device keeps a device from having it.
        """
        for index, place in enumerate(part.places):
            if place.kernel or any(m and (m.sent or m.waits) for m in place.minds):
                return False
            claim = record(part.cell, index)
            if place.device and claim is not None and claim.state not in _MAY_HAVE_A_DEVICE:
                return False
            if place.device and claim is None:
                if part.cell.name is None or not part.places[1 - index].device:
                    return False
        return True


# --- small things


def _with(cluster: Cluster, index: int, host: Host) -> Cluster:
    hosts = list(cluster.hosts)
    hosts[index] = host
    return cluster._replace(hosts=(hosts[0], hosts[1]))


def _slot(host: Host, which: int, slot: Slot | None) -> Host:
    slots = list(host.slots)
    slots[which] = slot
    return host._replace(slots=(slots[0], slots[1]))


def _sent(host: Host, which: int) -> Slot:
    slot = host.slots[which]
    assert slot is not None
    return slot._replace(phase="sent")


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
        cell=rebooted(part.cell, index), late=_sorted(late), then=then
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
    return Part(cell, (places[0], places[1]), _sorted(lates), part.then, part.same and not wrote)


def _is_void(recipe: Recipe) -> bool:
    if recipe.claim is not None:
        return recipe.claim.revision != 30
    return recipe.what in _OF_HOLDS


@cache
def _sorted(lates: tuple[Late, ...]) -> tuple[Late, ...]:
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
