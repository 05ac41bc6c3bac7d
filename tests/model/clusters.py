"""What can happen next to all names at once: to hosts, their agents and sessions, and the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.parts import HOSTS, Budget, Cluster, Event, Host, Moved, Rules, Slot
from tests.model.steps import ARRIVE, ENROL, LAPSE, LEARN, LIFT, START

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ClusterSteps", "died", "ended", "with_host"]


class ClusterSteps:
    """The steps that concern all names."""

    def __init__(self, budget: Budget, rules: Rules) -> None:
        self.budget, self.rules = budget, rules

    def cluster_steps(self, cluster: Cluster) -> Iterator[Moved]:
        """Everything that can happen next to hosts, sessions and the store as a whole."""
        for index in range(len(HOSTS)):
            yield from self._host_steps(cluster, index)
        yield from self._restoring(cluster)

    def _host_steps(self, cluster: Cluster, index: int) -> Iterator[Moved]:
        host = cluster.hosts[index]
        for which, slot in enumerate(host.slots):
            if slot is None:
                yield from self._start(cluster, index, which)
            else:
                yield from self._slot_steps(cluster, index, which, slot)
        if host.late:
            yield self._late_enrolment(cluster, index)
        if host.session:
            yield self._lapse(cluster, index)
        if self.budget.power:
            yield self._power(cluster, index)
        yield from self._take_epoch(cluster, index)

    def _power(self, cluster: Cluster, index: int) -> Moved:
        host = cluster.hosts[index]
        off = host._replace(slots=(None, None), session=host.session and "before")
        after = with_host(cluster, index, off._replace(late=host.late and "before"))
        return Moved(0, f"{HOSTS[index]}: loses power", after, events=(Event("power", index),))

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
        after = with_host(cluster, index, host._replace(slots=(slots[0], slots[1])))
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
        what = "learns that its enrolment is over" if over else "is killed"
        yield Moved(
            LEARN if over else 0,
            f"{name}: {what}",
            with_host(cluster, index, died(host, which)),
            events=(ended(host, index, which),),
        )
        if slot.phase != "live":
            yield from self._enrol(cluster, index, which, slot, name)
        elif slot.fresh and host.session != str(which):
            stale = _with_slot(host, which, slot._replace(fresh=False))
            yield Moved(0, f"{name}: its session's lease ends", with_host(cluster, index, stale))

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
                again = _with_slot(host, which, slot._replace(phase="asking", read=True))
                what = f"{name}: another enrolment was faster; reads the epoch again"
                yield Moved(ENROL, what, with_host(cluster, index, again))
            return
        done = self._applied(cluster, index, which)
        yield self._enrolled(done, index, which, f"{name}: enrols", Event("epoch", index))
        sent = _with_slot(host, which, slot._replace(phase="sent"))
        if self.budget.unanswered:
            answered = _with_slot(done.hosts[index], which, _sent(done.hosts[index], which))
            yield Moved(
                0,
                f"{name}: enrols (answer lost)",
                with_host(done, index, answered),
                events=(Event("epoch", index),),
            )
            if slot.phase == "asking":
                lost = with_host(cluster, index, sent)
                yield Moved(0, f"{name}: enrols (lost on its way)", lost)
        if self.budget.late_enrolments and not host.late:
            late = with_host(cluster, index, sent._replace(late=str(which)))
            yield Moved(0, f"{name}: enrols (on its way for long)", late)

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
        return with_host(cluster, index, host._replace(late=late, evicting=evicting))

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
        host = _with_slot(host, which, live)._replace(setback=False, since=cluster.hold)
        return Moved(ENROL, label, with_host(cluster, index, host), events=(*events, listed))

    def _late_enrolment(self, cluster: Cluster, index: int) -> Moved:
        host = cluster.hosts[index]
        which = int(host.late) if host.late.isdigit() else None
        done = self._applied(cluster, index, which)
        after = done.hosts[index]
        session = after.session if which is not None else host.late
        done = with_host(done, index, after._replace(late="", session=session))
        what = f"{HOSTS[index]}: an enrolment arrives late"
        return Moved(ARRIVE, what, done, events=(Event("epoch", index),))

    def _lapse(self, cluster: Cluster, index: int) -> Moved:
        host = cluster.hosts[index]
        after = host._replace(session="")
        if host.session in ("0", "1"):
            which = int(host.session)
            slot = host.slots[which]
            after = _with_slot(after, which, slot and slot._replace(fresh=False))
        rank = LAPSE if host.session == "before" else 0
        return Moved(rank, f"{HOSTS[index]}: its session lapses", with_host(cluster, index, after))

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
            with_host(cluster, index, after),
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
            ended(host, index, which)
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


def died(host: Host, which: int) -> Host:
    """A host whose agent has ended; its session and what it sent stay for a while."""
    own = str(which)
    return _with_slot(host, which, None)._replace(
        session="gone" if host.session == own else host.session,
        late="gone" if host.late == own else host.late,
    )


def ended(host: Host, index: int, which: int) -> Event:
    """What names hear of the end of an agent: nothing that was ordered in vain is left of it."""
    slot = host.slots[which]
    return Event("die" if slot is None or slot.gen else "die in vain", index, which)


def with_host(cluster: Cluster, index: int, host: Host) -> Cluster:
    hosts = list(cluster.hosts)
    hosts[index] = host
    return cluster._replace(hosts=(hosts[0], hosts[1]))


def _with_slot(host: Host, which: int, slot: Slot | None) -> Host:
    slots = list(host.slots)
    slots[which] = slot
    return host._replace(slots=(slots[0], slots[1]))


def _sent(host: Host, which: int) -> Slot:
    slot = host.slots[which]
    assert slot is not None
    return slot._replace(phase="sent")
