"""The cluster that other tests break is sound itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.embedded import healthy
from tests.support.etcd_kv import get, put

if TYPE_CHECKING:
    from tests.cluster.etcd_containers import Cluster


def _port(endpoint: str) -> int:
    return int(endpoint.rsplit(":", 1)[1])


def test_three_members_elect_a_leader(cluster: Cluster) -> None:
    """Three members with three endpoints agree on one of them as their leader."""
    assert len(set(cluster.endpoints)) == 3
    assert cluster.leader() in range(3)


def test_killed_leader_is_replaced_and_nothing_is_lost(cluster: Cluster) -> None:
    """When the leader is killed another one takes over and has what was written before."""
    old = cluster.leader()
    put(cluster.endpoints[old], "killed", "kept")
    cluster.kill(old)
    new = cluster.leader()
    assert new != old
    assert get(cluster.endpoints[new], "killed") == "kept"
    cluster.start(old)
    assert get(cluster.endpoints[old], "killed") == "kept"


def test_paused_leader_is_replaced(cluster: Cluster) -> None:
    """A leader whose time stands still loses its office, and follows when it wakes up."""
    old = cluster.leader()
    cluster.pause(old)
    new = cluster.leader()
    assert new != old
    put(cluster.endpoints[new], "paused", "written meanwhile")
    cluster.unpause(old)
    assert get(cluster.endpoints[old], "paused") == "written meanwhile"


def test_member_that_was_cut_off_rejoins(cluster: Cluster) -> None:
    """A leader that was cut off is replaced, answers nobody, and catches up when it is back."""
    old = cluster.leader()
    cluster.disconnect(old)
    new = cluster.leader()
    assert new != old
    put(cluster.endpoints[new], "cut", "written meanwhile")
    assert not healthy(_port(cluster.endpoints[old]))
    cluster.connect(old)
    assert get(cluster.endpoints[old], "cut") == "written meanwhile"
