"""Every interleaving: a breadth-first search over the states of a `World`.

Clusters and names are numbered as they are met, a state is those numbers in one integer, and
what can happen next to a name in a cluster is found once, whatever the other name is at. Of the
states that differ only in which name or which host is called what, one is searched: no step asks
which it is.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from tests.model.mirror import mirrored, mirrored_cluster
from tests.model.parts import NAMES, Violation
from tests.model.promises import check, check_settled, is_ready
from tests.model.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.model.parts import Cluster, Event, Moved, Part
    from tests.model.world import World

__all__ = ["Found", "Search"]

T = TypeVar("T")

_BITS = 24  # of a number of a cluster or a name: sixteen million of each
_MASK = (1 << _BITS) - 1
_LONGEST = 400  # steps in which everything settles when faults stop


class Pool(Generic[T]):
    """Values, each with a number."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            assert number <= _MASK, "more values than fit a state"
            self.values.append(value)
        return number


@dataclass
class Found:
    """What a search has found, and how far it came."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    whole: bool = False  # nothing is left to look at
    seconds: float = 0.0
    settled: int = 0  # from how many states it was shown that everything settles
    violation: str = ""
    trace: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        how = "the whole space" if self.whole else "not all"
        rate = self.states / max(self.seconds, 1e-9)
        return (
            f"{self.states} states, {self.transitions} transitions, depth {self.depth}, "
            f"{self.settled} settle, {rate:.0f} states/s, {self.seconds:.0f} s: {how}"
        )


class _Next(NamedTuple):
    """What can follow: for each step its rank, the cluster, the name and what others react to.

    `part` is -1 where no name steps. A violation stands instead of what would come after it.
    """

    rank: int
    label: str
    cluster: int
    part: int
    events: tuple[Event, ...]
    when_ready: bool


class Search:
    """A search from the empty cluster, with one name or two."""

    def __init__(self, world: World, names: int) -> None:
        self._world, self._names = world, names
        self._clusters: Pool[Cluster] = Pool()
        self._parts: Pool[Part] = Pool()
        self._of_cluster: dict[int, list[_Next]] = {}
        self._of_part: dict[int, list[_Next]] = {}
        self._reactions: dict[tuple[int, Event], int] = {}
        self._checked: dict[int, str] = {}
        self._ready: dict[int, bool] = {}
        self._settling: set[int] = set()
        self._mirror: list[int] = []  # of each name that was numbered, its mirror image
        self._cluster_mirror: list[int] = []

    def run(
        self,
        *,
        states: int,
        after: Sequence[str] = (),
        every: int = 1,
        tell_every: int = 100_000,
        told: Callable[[Found], None] = lambda _: None,
    ) -> Found:
        """Search up to so many states; every n-th is followed until it settles.

        It begins where the steps in `after` lead from the empty cluster.
        """
        found, began = Found(), time.monotonic()
        walk = Walk(self._world, self._names).follow(*after)
        first = self._pack(
            self._clusters.number(walk.cluster), [self._parts.number(part) for part in walk.parts]
        )
        known = {first}
        queue, parents = [first], array("l", [-1])
        at, level_end = 0, 1
        while at < len(queue) and found.states < states:
            state = queue[at]
            try:
                for succ in self._successors(state):
                    found.transitions += 1
                    if succ not in known:
                        known.add(succ)
                        queue.append(succ)
                        parents.append(at)
                self._check(state)
                if at % every == 0:
                    self._settle(state)
                    found.settled += 1
            except Violation as violation:
                found.violation = str(violation)
                found.trace = self._trace(queue, parents, at, found.violation)
                break
            at += 1
            found.states = at
            if at == level_end:
                found.depth, level_end = found.depth + 1, len(queue)
            if not at % tell_every:
                found.seconds = time.monotonic() - began
                told(found)
        found.seconds = time.monotonic() - began
        found.whole = at == len(queue)
        return found

    # --- states as numbers

    def _pack(self, cluster: int, parts: list[int]) -> int:
        """The number of a state, the same for all that differ only in what is called what."""
        mirror = [self._mirror_of(part) for part in parts]
        if len(parts) == 1:
            straight = cluster << _BITS | parts[0]
            return min(straight, self._mirror_of_cluster(cluster) << _BITS | mirror[0])
        mirrored_ = self._joined(self._mirror_of_cluster(cluster), mirror)
        return min(self._joined(cluster, parts), mirrored_)

    def _joined(self, cluster: int, parts: list[int]) -> int:
        first, second = parts
        if second < first:
            first, second = second, first
        return cluster << 2 * _BITS | first << _BITS | second

    def _mirror_of(self, part: int) -> int:
        while part >= len(self._mirror):
            self._mirror.append(-1)
        other = self._mirror[part]
        if other < 0:
            other = self._parts.number(mirrored(self._parts.values[part]))
            self._mirror[part] = other
        return other

    def _mirror_of_cluster(self, cluster: int) -> int:
        while cluster >= len(self._cluster_mirror):
            self._cluster_mirror.append(-1)
        other = self._cluster_mirror[cluster]
        if other < 0:
            other = self._clusters.number(mirrored_cluster(self._clusters.values[cluster]))
            self._cluster_mirror[cluster] = other
        return other

    def _unpack(self, state: int) -> tuple[int, list[int]]:
        parts = []
        for _ in range(self._names):
            parts.append(state & _MASK)
            state >>= _BITS
        return state, parts[::-1]

    # --- what follows

    def _successors(self, state: int) -> Iterator[int]:
        cluster, parts = self._unpack(state)
        for step in self._cluster_steps(cluster):
            if not step.when_ready or all(map(self._is_ready, parts)):
                after = [self._reacted(part, step.events) for part in parts]
                yield self._pack(step.cluster, after)
        for index, part in enumerate(parts):
            for step in self._part_steps(cluster, part):
                yield self._stepped(step, parts, index)

    def _stepped(self, step: _Next, parts: list[int], index: int) -> int:
        if not step.events:
            after = parts.copy()
            after[index] = step.part
            return self._pack(step.cluster, after)
        after = [
            self._reacted(step.part if one == index else part, step.events)
            for one, part in enumerate(parts)
        ]
        return self._pack(step.cluster, after)

    def _cluster_steps(self, cluster: int) -> list[_Next]:
        steps = self._of_cluster.get(cluster)
        if steps is None:
            moved = self._world.cluster_steps(self._clusters.values[cluster])
            steps = self._of_cluster[cluster] = [self._numbered(step) for step in moved]
        return steps

    def _part_steps(self, cluster: int, part: int) -> list[_Next]:
        key = cluster << _BITS | part
        steps = self._of_part.get(key)
        if steps is None:
            moved = self._world.part_steps(self._clusters.values[cluster], self._parts.values[part])
            steps = self._of_part[key] = [self._numbered(step) for step in moved]
        return steps

    def _numbered(self, step: Moved) -> _Next:
        part = -1 if step.part is None else self._parts.number(step.part)
        cluster = self._clusters.number(step.cluster)
        return _Next(step.rank, step.label, cluster, part, step.events, step.when_ready)

    def _reacted(self, part: int, events: tuple[Event, ...]) -> int:
        for event in events:
            after = self._reactions.get((part, event))
            if after is None:
                value = self._world.react(self._parts.values[part], event)
                after = self._reactions[part, event] = self._parts.number(value)
            part = after
        return part

    def _is_ready(self, part: int) -> bool:
        ready = self._ready.get(part)
        if ready is None:
            ready = self._ready[part] = is_ready(self._parts.values[part])
        return ready

    # --- what must hold

    def _check(self, state: int) -> None:
        cluster, parts = self._unpack(state)
        for part in parts:
            key = cluster << _BITS | part
            wrong = self._checked.get(key)
            if wrong is None:
                wrong = self._checked[key] = self._wrong(cluster, part)
            if wrong:
                raise Violation(wrong)

    def _wrong(self, cluster: int, part: int) -> str:
        try:
            check(self._clusters.values[cluster], self._parts.values[part])
        except Violation as violation:
            return str(violation)
        return ""

    def _settle(self, state: int) -> None:
        """Follow a state, without faults, to one from which it is known that all settles."""
        path: list[int] = []
        walked: set[int] = set()
        while state not in self._settling:
            path.append(state)
            if state in walked or len(path) > _LONGEST:
                raise Violation("it never settles, though faults have stopped")
            walked.add(state)
            after = self._fair(state)
            if after is None:
                cluster, parts = self._unpack(state)
                for part in parts:
                    check_settled(self._clusters.values[cluster], self._parts.values[part])
                break
            state = after
        self._settling.update(path)

    def _fair(self, state: int) -> int | None:
        """The next step of those that must happen, in their order."""
        cluster, parts = self._unpack(state)
        best, after = 0, None
        for step in self._cluster_steps(cluster):
            ready = not step.when_ready or all(map(self._is_ready, parts))
            if ready and step.rank and (not best or step.rank < best):
                reacted = [self._reacted(part, step.events) for part in parts]
                best, after = step.rank, self._pack(step.cluster, reacted)
        for index, part in enumerate(parts):
            for step in self._part_steps(cluster, part):
                if step.rank and (not best or step.rank < best):
                    best, after = step.rank, self._stepped(step, parts, index)
        return after

    # --- how it came to that

    def _trace(self, queue: list[int], parents: array[int], at: int, violation: str) -> list[str]:
        """The steps from the beginning, each name called the same from first to last."""
        path = []
        while at >= 0:
            path.append(queue[at])
            at = parents[at]
        path.reverse()
        cluster, parts = self._unpack(path[0])
        lines = []
        for state in path[1:]:
            line, cluster, parts = self._line(cluster, parts, state)
            lines.append(line)
        return [*lines, f"then: {violation}"]

    def _labelled(self, cluster: int, parts: list[int]) -> Iterator[tuple[str, _Next, list[int]]]:
        for step in self._cluster_steps(cluster):
            if not step.when_ready or all(map(self._is_ready, parts)):
                yield step.label, step, [self._reacted(part, step.events) for part in parts]
        for index, part in enumerate(parts):
            for step in self._part_steps(cluster, part):
                after = [
                    self._reacted(step.part if one == index else other, step.events)
                    for one, other in enumerate(parts)
                ]
                yield step.label.format(name=f"{NAMES[index][:8]}…"), step, after

    def _line(self, cluster: int, parts: list[int], state: int) -> tuple[str, int, list[int]]:
        for label, step, after in self._labelled(cluster, parts):
            if self._pack(step.cluster, after) == state:
                return label, step.cluster, after
        raise AssertionError("a step that was made cannot be made again")
