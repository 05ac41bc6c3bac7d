"""What befalls hosts: agents killed, stopped and cut off, machines paused, off, and evicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.faults import Fault, HostFault

if TYPE_CHECKING:
    import random

    from tests.chaos.cluster import Cluster

__all__ = ["HOST_FAULTS"]


class AgentKilled(HostFault):
    """SIGKILL of an agent, three times; its workers go on, and it is started again."""

    kind = "agent killed"
    lasts = 1.0

    def inject(self) -> None:
        """Kill it as often as it comes back."""
        for _ in range(3):
            self.host.kill_agent()
            self.cluster.hold(self.rng.uniform(0.3, 2.0))


class AgentStopped(HostFault):
    """SIGSTOP of an agent for longer than its session lasts; its workers go on."""

    kind = "agent stopped past its session"

    def inject(self) -> None:
        """Stop it, and wait until it is not seen."""
        self.host.stop_agent()
        self.cluster.await_session(self.host.name, there=False)

    def heal(self) -> None:
        """Let it go on."""
        self.host.let_agent_go_on()


class HostPaused(HostFault):
    """A whole machine stands still for longer than its session lasts."""

    kind = "host paused past its session"

    def inject(self) -> None:
        """Pause it, and wait until it is not seen."""
        self.host.pause()
        self.cluster.await_session(self.host.name, there=False)

    def heal(self) -> None:
        """Let it go on."""
        self.host.unpause()


class HostLosesPower(HostFault):
    """A machine loses power and boots: its devices are gone."""

    kind = "host loses power"
    lasts = 0.5

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        super().__init__(cluster, rng)
        self.off = self.sick

    def inject(self) -> None:
        """Everything ends at once."""
        self.host.power_off()

    def heal(self) -> None:
        """Boot it."""
        self.host.power_on()


class HostEvicted(HostLosesPower):
    """A machine is off, and an operator gives its names away; later it boots after all."""

    kind = "host evicted while it is off"
    lasts = 4.0

    def inject(self) -> None:
        """Fence it truly, and evict it as soon as it is not seen."""
        self.host.power_off()
        self.cluster.await_session(self.host.name, there=False)
        self.cluster.ok("evict", self.host.name, "--confirm-fenced", "--reason", "chaos")


class CutOff(HostFault):
    """An agent loses all members, both ways."""

    kind = "agent cut off from all members"

    def inject(self) -> None:
        """Cut, and wait until it is not seen."""
        self.host.cut("in", "out")
        self.cluster.await_session(self.host.name, there=False)

    def heal(self) -> None:
        """Let all packets through."""
        self.host.connect()


class CutOffFromLeader(CutOff):
    """An agent loses the leader, and goes on with the others."""

    kind = "agent cut off from the leader"
    lasts = 8.0

    def inject(self) -> None:
        """Cut."""
        self.host.cut("in", "out", member=self.members.address(self.members.leader()))


class CutOneWay(CutOff):
    """What an agent says arrives and it hears nothing, or the other way round."""

    kind = "agent cut off one way"

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        super().__init__(cluster, rng)
        self.way = rng.choice(["in", "out"])

    def inject(self) -> None:
        """Cut, and wait until it is not seen."""
        self.host.cut(self.way)
        self.cluster.await_session(self.host.name, there=False)

    @property
    def where(self) -> str:
        """The host, and what is lost."""
        return f"{self.host.name}, {self.way}"


class OperatorKilled(Fault):
    """SIGKILL of people's programs, in the midst of what they ask."""

    kind = "operators killed"
    lasts = 1.0

    def inject(self) -> None:
        """Kill one after the other; each is followed by another one."""
        for process in self.cluster.processes:
            process.kill()
            process.start()


HOST_FAULTS: tuple[type[Fault], ...] = (
    AgentKilled,
    AgentStopped,
    HostPaused,
    HostLosesPower,
    HostEvicted,
    CutOff,
    CutOffFromLeader,
    CutOneWay,
    OperatorKilled,
)
