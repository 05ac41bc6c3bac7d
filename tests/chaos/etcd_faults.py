"""What befalls etcd: members killed, paused, cut off, lost and full; all of them restarted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import grpc

from tests.chaos.faults import Fault, MemberFault
from tests.chaos.members import QUOTA
from tests.support import rawetcd
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    import random

    from tests.chaos.cluster import Cluster

__all__ = ["ETCD_FAULTS"]

_SOON = 60.0  # seconds
_FILLER = b"filler"
_PIECE = 1 << 19  # bytes that are written at a time to fill a disk or the database


class MemberKilled(MemberFault):
    """SIGKILL of a member."""

    kind = "member killed"

    def inject(self) -> None:
        """Kill it."""
        self.members.kill(self.index)


class MajorityKilled(Fault):
    """SIGKILL of two members: nothing can be asked of the third."""

    kind = "majority killed"
    everybody = True

    def inject(self) -> None:
        """Kill two."""
        for index in self.rng.sample(range(self.members.count), 2):
            self.members.kill(index)

    def heal(self) -> None:
        """Start them."""
        self.members.mend()


class AllRestarted(Fault):
    """All members are killed, and started again."""

    kind = "etcd restarted"
    lasts = 1.0
    everybody = True

    def inject(self) -> None:
        """Kill all."""
        for index in range(self.members.count):
            self.members.kill(index)

    def heal(self) -> None:
        """Start them."""
        self.members.mend()


class MemberPaused(MemberFault):
    """A member stands still; its connections stay open."""

    kind = "member paused"
    lasts = 6.0

    def inject(self) -> None:
        """Pause it."""
        self.members.pause(self.index)

    def heal(self) -> None:
        """Let it go on."""
        self.members.unpause(self.index)
        super().heal()


class MemberCutFromPeers(MemberFault):
    """A member and its peers lose one another; its clients reach it as before."""

    kind = "member cut off from the others"
    lasts = 6.0

    def inject(self) -> None:
        """Cut."""
        self.members.cut_peers(self.index)


class MemberDeaf(MemberFault):
    """A member is heard by its peers, and does not hear them."""

    kind = "member cut off one way"
    lasts = 6.0

    def inject(self) -> None:
        """Cut what it hears."""
        self.members.deaf(self.index)


class MemberReplaced(MemberFault):
    """A member is lost with its data, and another one takes its place."""

    kind = "member lost and replaced"
    slow = True

    def inject(self) -> None:
        """Lose it, and put an empty one in its place."""
        self.members.replace(self.index)


class DiskFull(MemberFault):
    """A member's disk is full: etcd stops itself."""

    kind = "disk full"
    slow = True
    lasts = 2.0

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        super().__init__(cluster, rng)
        self._file = self.members.homes[self.index] / "somebody-elses"

    def inject(self) -> None:
        """Fill it, and write until the member notices."""
        with self._file.open("wb") as file:
            while _fits(file.fileno()):
                pass
        wait_until(lambda: self._write() or not self.members.running(self.index), _SOON)

    def _write(self) -> bool:
        """Let the database grow; whether there is no more of it to grow."""
        others = [each for each in self.members.answering() if each != self._endpoint]
        try:
            if others:
                rawetcd.put(others[0], _FILLER, bytes(_PIECE))
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return False

    @property
    def _endpoint(self) -> str:
        return self.members.endpoints[self.index]

    def heal(self) -> None:
        """Make room on the disk, start the member, and make room in the database."""
        self._file.unlink()
        super().heal()
        make_room(self.cluster)


def _fits(descriptor: int) -> bool:
    try:
        return os.write(descriptor, bytes(1 << 20)) > 0
    except OSError:  # ENOSPC
        return False


class SpaceUsedUp(Fault):
    """The database has used up its quota: etcd raises the alarm, and refuses what writes."""

    kind = "space used up (NOSPACE)"
    slow = True
    everybody = True

    def inject(self) -> None:
        """Fill it."""
        rawetcd.fill(self.members.answering()[0], _FILLER, QUOTA)

    def heal(self) -> None:
        """The three steps of docs/operations.md."""
        make_room(self.cluster)


class Compacted(Fault):
    """All history is forgotten, again and again, while people are at work."""

    kind = "compaction under load"
    lasts = 1.0

    def inject(self) -> None:
        """Compact to the newest revision."""
        for _ in range(5):
            one = self.members.answering()[0]
            rawetcd.compact(one, rawetcd.revision(one))
            self.cluster.hold(0.5)


class Defragmented(Fault):
    """Each member is defragmented while people are at work."""

    kind = "defragmentation under load"
    lasts = 1.0

    def inject(self) -> None:
        """One after the other."""
        for endpoint in self.members.answering():
            rawetcd.defragment(endpoint)


def make_room(cluster: Cluster) -> None:
    """Compact, defragment every member, disarm."""
    one, *_ = cluster.members.answering()
    rawetcd.compact(one, rawetcd.revision(one))
    for member in cluster.members.endpoints:
        rawetcd.defragment(member)
    rawetcd.disarm(one)
    assert not rawetcd.alarms(one)


ETCD_FAULTS: tuple[type[Fault], ...] = (
    MemberKilled,
    MajorityKilled,
    AllRestarted,
    MemberPaused,
    MemberCutFromPeers,
    MemberDeaf,
    MemberReplaced,
    DiskFull,
    SpaceUsedUp,
    Compacted,
    Defragmented,
)
