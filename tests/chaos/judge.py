"""What is judged when all is over: histories, how long healthy hosts were refused, and the end."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.chaos.history import Entry, Verb, operations
from tests.support import truth
from tests.support.linearizable import ANY, Holder, Kind, Operation, violations
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.cluster import Cluster
    from tests.chaos.schedule import Injected
    from tests.support.truth import Truth

__all__ = ["Refusal", "final", "longest_refusal", "untold"]

_RECONCILED = 15.0  # seconds in which a host that booted has given up what it lost
_SETTLED = 120.0  # seconds, for a busy machine


def untold(entries: Sequence[Entry], injected: Sequence[Injected]) -> list[str]:
    """For each name whose history no order explains, where that shows first.

    A host that lost power or was evicted may have lost its names. What was asked before the
    store was set back and told after it is not known, and nothing that was asked later of a
    name that was known before counts: what stood was undone.
    """
    entries = list(_of_one_store(entries, injected))
    history = list(operations(entries))
    names = {entry.asked.name for entry in entries}
    history += [lapse for one in injected for lapse in _lapses(one, names)]
    return [str(violation) for violation in violations(history)]


def _of_one_store(entries: Sequence[Entry], injected: Sequence[Injected]) -> Iterator[Entry]:
    set_backs = [one.begun for one in injected if one.sets_back]
    first: dict[str, float] = {}
    for entry in entries:
        begun = first.setdefault(entry.asked.name, entry.asked.at)
        undone = next((when for when in set_backs if when > begun), None)
        if undone is None or (entry.told is not None and entry.told.at < undone):
            yield entry
        elif entry.asked.at < undone:
            yield replace(entry, told=None)


def _lapses(one: Injected, names: set[str]) -> Iterator[Operation]:
    for host in one.off:
        for name in names:
            yield Operation(
                name=name,
                process=one.kind,
                kind=Kind.LAPSE,
                invoked=one.begun,
                returned=None if one.back is None else one.back + _RECONCILED,
                done=None,
                holder=Holder(host, ANY),
            )


class Refusal(tuple[float, str, float]):
    """For how many seconds a healthy host was not granted a claim, which, and since when."""

    __slots__ = ()


def longest_refusal(
    entries: Sequence[Entry], injected: Sequence[Injected], hosts: Sequence[str]
) -> Refusal:
    """The longest time in which a healthy host was asked for new names and granted none.

    It begins when somebody asks and ends when somebody is granted, and what of it lies in a
    time in which the host was not healthy does not count.
    """
    found = [
        Refusal((length, host, begun))
        for host in hosts
        for begun, ended in _waits(entries, host)
        for begun, length in _healthy(begun, ended, host, injected)
    ]
    return max(found, default=Refusal((0.0, "", 0.0)))


def _waits(entries: Sequence[Entry], host: str) -> Iterator[tuple[float, float]]:
    """From when to when a host owed those who probe it a claim."""
    since: float | None = None
    for entry in entries:
        asked, told = entry.asked, entry.told
        if asked.verb is Verb.CREATE and asked.host == host and "prober" in asked.process:
            since = asked.at if since is None else since
            if told is not None:
                yield since, told.at
                since = None if told.code == 0 else since


def _healthy(
    begun: float, ended: float, host: str, injected: Sequence[Injected]
) -> Iterator[tuple[float, float]]:
    """The parts of a time in which a host was healthy: beginning and length of each."""
    for one in injected:
        if host in one.sick and begun < ended:
            lifted = ended if one.lifted is None else one.lifted
            if one.begun > ended or lifted < begun:
                continue
            if one.begun > begun:
                yield begun, one.begun - begun
            begun = max(begun, lifted)
    if ended > begun:
        yield begun, ended - begun


def final(cluster: Cluster) -> list[str]:
    """What is not well now that nothing is wrong any more and nobody asks for anything."""
    with suppress(AssertionError):  # what is not well is told below
        wait_until(lambda: _is_settled(_look(cluster), cluster), _SETTLED)
    seen = _look(cluster)
    wrong = [f"at the end: {line}" for line in seen.wrong()]
    if seen.under_way:
        wrong.append(f"at the end: still under way: {dict(seen.states)}")
    if missing := cluster.hosts.keys() - seen.sessions.keys():
        wrong.append(f"at the end: not seen: {sorted(missing)}")
    checked = cluster.cli("check")
    if checked.code:
        wrong.append(f"at the end: mdevns check: {checked}")
    for host in cluster.all_hosts():
        wrong += [f"{host.name} logged: {line}" for line in host.defects()[:5]]
    return wrong


def _look(cluster: Cluster) -> Truth:
    directories = {name: host.directory for name, host in cluster.hosts.items()}
    return truth.look(cluster.members.answering()[0], cluster.namespace, directories)


def _is_settled(seen: Truth, cluster: Cluster) -> bool:
    return not seen.under_way and not seen.wrong() and seen.sessions.keys() == cluster.hosts.keys()
