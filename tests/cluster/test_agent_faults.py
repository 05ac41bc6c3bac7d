"""Agents are paused, evicted and cut off while people are at work: they do no harm, and return."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.locks import names_in_flight
from tests.cluster.stage import BRIEF
from tests.support.agents import TYPE
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.cluster.stage import Stage
    from tests.support.agents import SimulatedHost

# What is tested here is the agent and not etcd: the newest one does.
pytestmark = [
    pytest.mark.containers,
    pytest.mark.parametrize("any_image", ["image"], indirect=True, ids=["newest"]),
]

GONE = 60.0  # seconds, for a busy machine
MANY = 32
SLOW = 1.0  # seconds for which a driver makes a device, long enough to pause an agent


def test_an_evicted_agent_that_wakes_up_writes_nothing(stage: Stage) -> None:
    """What it had queued is never made, what it had made is adopted where the name is free."""
    host, agent = stage.hosts[BRIEF], stage.agents[BRIEF]
    _tune(host, SLOW)
    with stage.at_work("gpu01", "gpu02"):
        asked = stage.cli(
            "create", "--no-wait", "-o", "name", "--type", TYPE, "--host", BRIEF,
            "--count", str(MANY),
        )  # fmt: skip
        names = asked.names
        wait_until(lambda: stage.look().devices[BRIEF], GONE)
        agent.pause()
        wait_until(lambda: not stage.has_session(BRIEF), GONE)
        wait_until(lambda: not names_in_flight(host.directory / "run"), GONE)
        made = stage.look().devices[BRIEF]
        queued = [name for name in names if name not in made]
        assert queued, stage.look().states

        evicted = stage.cli("evict", BRIEF, "--confirm-fenced", "--reason", "a test")
        assert evicted.code == 0, evicted
        assert not stage.look().names.keys() & set(names)
        elsewhere = (min(made), queued[0])  # one with a device, which was not fenced after all
        for name in elsewhere:
            assert stage.cli("create", name, "--type", TYPE, "--host", "gpu01").code == 0

        agent.go_on()
        wait_until(lambda: len(agent.events("enrolled")) > 1, GONE)
        adopted = made.keys() - {elsewhere[0]}
        wait_until(lambda: stage.look().names.keys() & set(names) == adopted | set(elsewhere), GONE)
        seen = stage.look()
        assert seen.devices[BRIEF] == made
        assert {seen.names[name].host for name in adopted} == {BRIEF}
        assert {seen.names[name].host for name in elsewhere} == {"gpu01"}
        assert seen.hosts_with(queued[0]) == ["gpu01"]

        checked = stage.cli("check")
        assert (checked.code, elsewhere[0] in checked.out) == (20, True), checked
        _tune(host, host.latency)
        simulated.remove(host.directory, elsewhere[0])
        assert stage.cli("remove", *adopted, *elsewhere).code == 0


def test_an_agent_is_paused_beyond_its_session(stage: Stage) -> None:
    """Its host is unreachable, its devices live on, and it goes on where it stood."""
    agent = stage.agents[BRIEF]
    with stage.at_work() as work:
        name = _made_on(stage, BRIEF)
        agent.pause()
        wait_until(lambda: not stage.has_session(BRIEF), GONE)
        _nobody_can_do_anything_on(stage, BRIEF, name)
        work.succeeds(20)
        agent.go_on()
        wait_until(lambda: stage.has_session(BRIEF), GONE)
        assert stage.cli("remove", name).code == 0


def test_an_agent_is_cut_off_from_all_members(stage: Stage) -> None:
    """Its host is unreachable, its devices live on, and what was held up does no harm."""
    with stage.at_work() as work:
        name = _made_on(stage, BRIEF)
        stage.ways[BRIEF].hold()
        wait_until(lambda: not stage.has_session(BRIEF), GONE)
        _nobody_can_do_anything_on(stage, BRIEF, name)
        work.succeeds(20)
        stage.ways[BRIEF].let_go()
        wait_until(lambda: stage.has_session(BRIEF), GONE)
        assert stage.cli("remove", name).code == 0


def _tune(host: SimulatedHost, latency: float) -> None:
    """Let its drivers take so many seconds for a device."""
    for parent in (host.directory / "sys/class/mdev_bus").iterdir():
        simulated.tune(host.directory, parent.name, latency=latency)


def _made_on(stage: Stage, host: str) -> str:
    made = stage.cli("create", "-o", "name", "--type", TYPE, "--host", host)
    assert made.code == 0, made
    return made.names[0]


def _nobody_can_do_anything_on(stage: Stage, host: str, name: str) -> None:
    """Both requests are refused as EHOSTDOWN, and the device is left alone."""
    for refused in (
        stage.cli("create", "--type", TYPE, "--host", host),
        stage.cli("remove", name),
    ):
        assert (refused.code, host in refused.err) == (16, True), refused
    seen = stage.look()
    assert (seen.hosts_with(name), seen.names[name].host) == ([host], host)
