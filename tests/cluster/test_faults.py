"""Members of etcd fail while people are at work: nothing is lost, leaked, doubled or mistold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.stage import QUOTA
from tests.support import rawetcd
from tests.support.agents import TYPE
from tests.support.ledger import Exit
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.cluster.stage import Stage

pytestmark = pytest.mark.containers


def test_a_leader_is_killed(stage: Stage) -> None:
    """Two members go on without it, and with it when it is back."""
    with stage.at_work() as work:
        stage.cluster.kill(stage.cluster.leader())
        work.succeeds(40)


def test_a_leader_is_cut_off_from_the_others(stage: Stage) -> None:
    """Whoever is connected to a member that has lost the others is served by those."""
    with stage.at_work() as work:
        leader = stage.cluster.leader()
        stage.cluster.cut_peers(leader)
        wait_until(lambda: stage.cluster.leader() != leader, 60)
        work.succeeds(40)


def test_a_leader_is_cut_off_from_its_clients(stage: Stage) -> None:
    """A member that leads on and hears no client is gone round, and its answers are not lost."""
    with stage.at_work() as work:
        stage.cluster.cut_clients(stage.cluster.leader())
        work.succeeds(40)


def test_all_members_are_restarted(stage: Stage) -> None:
    """Without a majority nothing is done and users are told so; with one all goes on."""
    with stage.at_work() as work:
        for member in range(3):
            stage.cluster.kill(member)
        work.is_told(Exit.UNREACHABLE, Exit.UNKNOWN)
        refused = stage.cli("create", "--type", TYPE)
        assert (refused.code, "nothing was done" in refused.err) == (10, True), refused


def test_a_member_is_replaced_by_an_empty_one(stage: Stage) -> None:
    """A member that is lost with its data is taken out, and a new one learns all from others."""
    with stage.at_work() as work:
        stage.cluster.replace((stage.cluster.leader() + 1) % 3)
        work.succeeds(40)


def test_history_is_compacted_while_a_host_is_away(stage: Stage) -> None:
    """An agent that has missed what is no longer told finds out by itself what there is to do."""
    with stage.at_work() as work:
        stage.ways["gpu02"].hold()
        asked = stage.cli("create", "--no-wait", "-o", "name", "--type", TYPE, "--host", "gpu02")
        assert asked.code == 0, asked
        work.succeeds(5)
        newest = stage.cluster.endpoints[0]
        rawetcd.compact(newest, rawetcd.revision(newest))
        for member in stage.cluster.endpoints:
            rawetcd.defragment(member)
        stage.ways["gpu02"].break_off()
        made = asked.out.strip()
        wait_until(lambda: stage.look().hosts_with(made), 60)
        assert stage.cli("remove", made).code == 0


def test_the_space_is_used_up(stage: Stage) -> None:
    """Nothing is lost while etcd is full, users are told, and the three steps help."""
    with stage.at_work() as work:
        one, *_ = stage.cluster.endpoints
        rawetcd.fill(one, b"filler", QUOTA)
        work.is_told(Exit.READ_ONLY)
        refused = stage.cli("create", "--type", TYPE)
        assert (refused.code, "disarm" in refused.err) == (14, True), refused
        rawetcd.compact(one, rawetcd.revision(one))
        for member in stage.cluster.endpoints:
            rawetcd.defragment(member)
        rawetcd.disarm(one)
        assert not rawetcd.alarms(one)
