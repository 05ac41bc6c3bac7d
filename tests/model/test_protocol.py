"""The protocol as a state machine: anything may happen between any two steps.

A search looks at every way through small spaces; this goes some way into the widest one, where
every fault meets every other.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.model.spaces import WIDEST
from tests.model.walk import Choice, Walk
from tests.model.world import World

WORLD = World(WIDEST)


class Protocol(RuleBasedStateMachine):
    """Operators, agents, workers, kernels, time and faults, in any order.

    What moves things on is drawn more often than the rest, or no run would get deep enough to
    meet a fault at every point of a claim's life.
    """

    NAMES = 2

    def __init__(self) -> None:
        super().__init__()
        self.walk = Walk(WORLD, self.NAMES)

    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        """Agents, workers and kernels do the next thing."""
        self._one_of(data, [one for one in self.walk.choices() if one.moved.rank])

    @rule(data=st.data())
    def more_progress(self, data: st.DataObject) -> None:
        """The same."""
        self.progress(data)

    @rule(data=st.data())
    def of_a_name(self, data: st.DataObject) -> None:
        """Anything that happens to a name: an operator's wish, a lost answer, a hand in sysfs."""
        self._one_of(data, [one for one in self.walk.choices() if one.which >= 0])

    @rule(data=st.data())
    def of_a_host(self, data: st.DataObject) -> None:
        """Anything that happens to all names: a crash, a power loss, a lapse, a restore."""
        self._one_of(data, [one for one in self.walk.choices() if one.which < 0])

    @invariant()
    def every_device_of_ours_has_its_claim(self) -> None:
        """No device of ours without a claim, and never two of one name."""
        self.walk.check()

    def teardown(self) -> None:
        """When faults stop, everything settles."""
        self.walk.settle()

    def _one_of(self, data: st.DataObject, choices: list[Choice]) -> None:
        if choices:
            choice = data.draw(st.sampled_from(range(len(choices))))
            self.walk.take(choices[choice])


class OneName(Protocol):
    """The same with all that happens happening to one name, so that it lives many lives."""

    NAMES = 1


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
TestOneName = OneName.TestCase
TestOneName.settings = settings(max_examples=40, stateful_step_count=80, deadline=None)
