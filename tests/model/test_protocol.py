"""The protocol as a state machine: anything may happen between any two steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.model.world import HOSTS, NAMES, Delivery, World

if TYPE_CHECKING:
    from coordinator.model import Name

Step = Callable[[], None]

hosts = st.sampled_from(HOSTS)
# Answers arrive more often than not, or nothing would ever get far.
deliveries = st.sampled_from([*[Delivery.ANSWERED] * 4, *Delivery])


class Protocol(RuleBasedStateMachine):
    """Operators, agents, workers, kernels, time and faults, in any order.

    Each rule draws from what is possible now, so that most steps lead somewhere and a run
    of them gets deep enough to meet a fault at every point of a claim's life.
    """

    NAMES: tuple[Name, ...] = NAMES

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.NAMES)

    @rule(data=st.data(), delivery=deliveries)
    def progress(self, data: st.DataObject, delivery: Delivery) -> None:
        """Agents, workers and kernels do the next thing."""
        self._one_of(data, self._agents(delivery) + self._kernels())

    @rule(data=st.data())
    def more_progress(self, data: st.DataObject) -> None:
        """The same, with answers that arrive: without it too few creates come to an end."""
        self._one_of(data, self._agents(Delivery.ANSWERED) + self._kernels())

    @rule(data=st.data())
    def kernel(self, data: st.DataObject) -> None:
        """Workers and drivers go on, whoever ordered it and is gone by now."""
        self._one_of(data, self._kernels())

    @rule(host=hosts, which=st.integers(0, 1), delivery=deliveries)
    def wish(self, host: str, which: int, delivery: Delivery) -> None:
        """An operator asks for what makes sense of a name: a device, or its end."""
        name = self._name(which)
        claim = self.world.record(host, name)
        if claim is None:
            self.world.reserve(host, name, delivery)
        else:
            self.world.retire(host, name, delivery)

    @rule(data=st.data(), host=hosts, which=st.integers(0, 1))
    def fault(self, data: st.DataObject, host: str, which: int) -> None:
        """A crash, a power loss, a lease that lapses, a late transaction, a hand in sysfs."""
        world, name = self.world, self._name(which)
        faults: list[Step] = [
            partial(world.power_loss, host),
            partial(world.by_hand, host, name),
            partial(world.cancel, host, name, Delivery.ANSWERED),
        ]
        faults += [partial(world.crash, one) for one in world.agents]
        faults += [partial(world.start, one) for one in world.agents]
        faults += [partial(world.arrive, late) for late in range(len(world.late))]
        faults += [partial(world.etcd.expire, lease) for lease in world.etcd.leases()]
        self._one_of(data, faults)

    @invariant()
    def every_device_of_ours_has_its_claim(self) -> None:
        """No device of ours without a claim, no claim without its name."""
        self.world.check()

    def teardown(self) -> None:
        """When faults stop, everything settles."""
        self.world.drain()
        self.world.check()

    def _name(self, which: int) -> Name:
        return self.world.names[which % len(self.world.names)]

    def _agents(self, delivery: Delivery) -> list[Step]:
        world = self.world
        steps: list[Step] = [partial(world.start, h) for h in HOSTS if h not in world.agents]
        for host in world.agents:
            steps += [partial(world.hear, host, n) for n in world.unheard(host)]
            steps += [partial(world.step, host, n, delivery) for n in world.concerned(host)]
        return steps

    def _kernels(self) -> list[Step]:
        world = self.world
        steps: list[Step] = [partial(world.work, which) for which in range(len(world.orders))]
        for host, kernel in world.kernels.items():
            under_way = sorted(kernel.creating | kernel.removing)
            steps += [partial(world.finish, host, n) for n in under_way]
        return steps

    def _one_of(self, data: st.DataObject, steps: list[Step]) -> None:
        if steps:
            data.draw(st.sampled_from(steps))()


class OneName(Protocol):
    """The same with all that happens happening to one name, so that it lives many lives."""

    NAMES = NAMES[:1]


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)
TestOneName = OneName.TestCase
TestOneName.settings = settings(max_examples=200, stateful_step_count=120, deadline=None)
