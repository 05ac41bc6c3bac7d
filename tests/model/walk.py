"""One way through the states of a world, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.model.parts import NAMES, Cluster, Part, Violation
from tests.model.promises import check, check_settled, is_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.parts import Moved
    from tests.model.world import World

__all__ = ["Choice", "Walk"]

_LONGEST = 1000  # steps in which everything settles when faults stop


class Choice(NamedTuple):
    """A step that can be made now, of one name or (-1) of the cluster."""

    which: int
    moved: Moved

    @property
    def label(self) -> str:
        return self.moved.label.format(name=f"{NAMES[self.which][:8]}…")


class Walk:
    """A cluster and its names, which begin empty."""

    def __init__(self, world: World, names: int) -> None:
        self.world = world
        self.cluster, self.parts = Cluster(), [Part()] * names

    def choices(self) -> Iterator[Choice]:
        """Everything that can happen next."""
        for moved in self.world.cluster_steps(self.cluster):
            if not moved.when_ready or all(map(is_ready, self.parts)):
                yield Choice(-1, moved)
        for index, part in enumerate(self.parts):
            for moved in self.world.part_steps(self.cluster, part):
                yield Choice(index, moved)

    def take(self, choice: Choice) -> None:
        """Make a step; every name reacts to what concerns all."""
        moved = choice.moved
        if moved.part is not None:
            self.parts[choice.which] = moved.part
        self.cluster = moved.cluster
        for event in moved.events:
            self.parts = [self.world.react(part, event) for part in self.parts]

    def follow(self, *labels: str) -> Walk:
        """Make the steps that are so called, one after the other."""
        for label in labels:
            self.take(next(one for one in self.choices() if one.label == label))
        return self

    def check(self) -> None:
        """What must hold in every state."""
        for part in self.parts:
            check(self.cluster, part)

    def settle(self) -> None:
        """Make what happens when faults stop, to its end, at which nothing is half done."""
        for _ in range(_LONGEST):
            due = [choice for choice in self.choices() if choice.moved.rank]
            if not due:
                break
            self.take(min(due, key=lambda choice: choice.moved.rank))
            self.check()
        else:
            raise Violation("it never settles, though faults have stopped")
        for part in self.parts:
            check_settled(self.cluster, part)
