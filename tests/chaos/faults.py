"""What can befall a cluster: one class a fault, each with what it does and how it is mended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import random

    from tests.chaos.cluster import Cluster
    from tests.chaos.hosts import Host
    from tests.chaos.members import Members

__all__ = ["Fault", "HostFault", "MemberFault"]


class Fault(ABC):
    """One fault at one place, chosen when it is made.

    `sick` are the hosts that cannot be asked to serve while it lasts, `off` those that lose
    what they have. `sets_back`: what the store had said before is not so afterwards. `lasts`
    is for how many seconds it stays.
    """

    kind: ClassVar[str]
    lasts: ClassVar[float] = 4.0
    slow: ClassVar[bool] = False
    """Whether it takes long, so that a short run leaves it out unless it is asked for."""
    sets_back: ClassVar[bool] = False
    everybody: ClassVar[bool] = False
    """Whether no host can be served while it lasts."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.members: Members = cluster.members
        self.sick: frozenset[str] = frozenset(cluster.hosts if self.everybody else ())
        self.off: frozenset[str] = frozenset()

    @abstractmethod
    def inject(self) -> None:
        """Let it befall the cluster; returns when it has."""

    def heal(self) -> None:  # noqa: B027 - some faults are over when they have happened
        """Take away what is wrong; the cluster has to come back by itself after that."""

    @property
    def where(self) -> str:
        """The place, for people."""
        return "the cluster"


class HostFault(Fault):
    """A fault of one host."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        super().__init__(cluster, rng)
        self.host: Host = rng.choice(cluster.all_hosts())
        self.sick = frozenset({self.host.name})

    @property
    def where(self) -> str:
        """The host."""
        return self.host.name


class MemberFault(Fault):
    """A fault of one member: the leader as often as another one."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        super().__init__(cluster, rng)
        leader = self.members.leader()
        self.index = leader if rng.random() < 0.5 else rng.randrange(self.members.count)
        self.is_leader = self.index == leader

    @property
    def where(self) -> str:
        """The member."""
        return f"etcd{self.index}" + (", the leader" if self.is_leader else "")

    def heal(self) -> None:
        """Start it if it does not run, let all packets through, and wait until all answer."""
        self.members.mend()
