"""The demo's steps. Each says what it does, does it, and looks whether it is so."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING

from agent import simulated
from cli.stage import HOSTS, TYPE, Deviation

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.stage import Stage

__all__ = ["STEPS"]

_MANY = 128
_SLOW = 3.0  # seconds; long enough to kill an agent in the middle


def taken_once(stage: Stage) -> None:
    """A name that one host has is refused on another, by whoever asks."""
    name = str(uuid.uuid4())
    stage.run("create", name, "--type", TYPE, "--host", "gpu01")
    stage.must(name in stage.hosts["gpu01"].devices(), "the device is on gpu01", "none there")
    refusal = stage.run("create", name, "--type", TYPE, "--host", "gpu02", expect=4)
    stage.must("held by gpu01/" in refusal, "it is refused, and told by whom", refusal)
    stage.must(name not in stage.hosts["gpu02"].devices(), "nothing is on gpu02", "a device there")


def in_bulk(stage: Stage) -> None:
    """Many devices are placed over all hosts and made side by side."""
    before, began = _devices(stage), stage.seconds
    answer = stage.run(
        "create", "--type", TYPE, "--count", str(_MANY), "-o", "name", only_count=True
    )
    took = stage.seconds - began
    made = _devices(stage) - before
    stage.must(
        made == set(answer.split()) and len(made) == _MANY,
        f"{_MANY} new devices on three hosts in {took:.1f} s, under the names that were told",
        f"{len(made)} devices, {len(answer.split())} names",
    )
    stage.run("hosts")


def killed_mid_create(stage: Stage) -> None:
    """An agent is killed while its driver works; the next one goes on where it stopped."""
    host, name = stage.hosts["gpu01"], str(uuid.uuid4())
    parent = stage.ask("parents", "--host", host.name)[0]["parent"]
    stage.say(f"# the driver of {host.name}/{parent} is made slow: {_SLOW:g} s a device")
    simulated.tune(host.directory, parent, latency=_SLOW)
    create = stage.start("create", name, "--type", TYPE, "--host", host.name, "--parent", parent)
    try:
        stage.wait_for(lambda: stage.state(name) == "creating", f"{name} is being created")
        stage.say(f"# kill -9: the agent of {host.name}, in the middle of it")
        stage.end_agent(host, signal.SIGKILL)
        stage.must(name not in host.devices(), "there is no device yet", "a device")
        refusal = stage.run("remove", name, expect=6)
        stage.must(
            refusal.startswith("EAGAIN"),
            "a placeholder is not a device, and is not removed",
            refusal,
        )
        stage.say("# the agent is started again; the create that waits since then says:")
        stage.boot_agent(host)
        answer, _ = create.communicate(timeout=60)
        stage.say(answer.rstrip())
        stage.exited(create.returncode, 0)
    finally:
        create.kill()
        create.wait()
        simulated.tune(host.directory, parent, latency=0.1)
    stage.must(name in host.devices(), "the device is there", "none")
    stage.must(stage.state(name) == "active", "its claim is active", stage.state(name))


def rebooted(stage: Stage) -> None:
    """A reboot takes a host's devices: autostart brings its own back, other names are free."""
    host, name = stage.hosts["gpu02"], str(uuid.uuid4())
    others = sorted(host.devices())
    stage.run("create", name, "--type", TYPE, "--host", host.name, "--autostart")
    parent = host.parent_of(name)
    stage.say(f"# {host.name} has {len(host.devices())} devices, and reboots")
    stage.end_agent(host, signal.SIGTERM)
    stage.run("sim", "reboot", str(host.directory))
    stage.must(not host.devices(), "no device is left on it", host.devices())
    stage.boot_agent(host)
    stage.wait_for(lambda: stage.held_by(host) == [name], "its transient names are free")
    stage.wait_for(lambda: stage.state(name) == "active", "what is to start by itself started")
    stage.run("list", "--host", host.name)
    stage.must(
        host.parent_of(name) == parent, "it is back on the parent it had", host.parent_of(name)
    )
    stage.run("create", others[0], "--type", TYPE, "--host", "gpu01")
    stage.must(others[0] in stage.hosts["gpu01"].devices(), "a name of it lives elsewhere", "none")


def evicted(stage: Stage) -> None:
    """A host that is gone for good gives its names back, by an operator's word."""
    host = stage.hosts["gpu03"]
    name = min(host.devices())
    stage.say(f"# {host.name} loses power, with {len(host.devices())} devices")
    stage.end_agent(host, signal.SIGKILL)
    stage.run("sim", "reboot", str(host.directory))
    refusal = stage.run("create", name, "--type", TYPE, "--host", "gpu01", expect=4)
    stage.must("gpu03" in refusal, "its names are still taken: it may only be unseen", refusal)
    stage.wait_for(lambda: not stage.is_alive(host), "its session lapses")
    stage.run("evict", host.name, "--confirm-fenced", "--reason", "its power supply burnt")
    stage.run("create", name, "--type", TYPE, "--host", "gpu01")
    stage.must(name in stage.hosts["gpu01"].devices(), "the name lives elsewhere", "no device")
    stage.run("audit")


def consistent(stage: Stage) -> None:
    """Names, claims and devices agree."""
    stage.run("check")
    claims = {(claim["host"], claim["name"]) for claim in stage.ask("list")}
    devices = {(host, name) for host in HOSTS for name in stage.hosts[host].devices()}
    if claims != devices:
        raise Deviation("a device for each claim", f"{sorted(claims ^ devices)} differ")
    stage.say(f"# {len(claims)} claims, and in the hosts' directories just these devices: yes")


def _devices(stage: Stage) -> set[str]:
    return {name for host in stage.hosts.values() for name in host.devices()}


STEPS: tuple[tuple[str, Callable[[Stage], None]], ...] = (
    ("A name is taken once in the whole cluster", taken_once),
    (f"{_MANY} devices at once, placed over three hosts", in_bulk),
    ("An agent is killed while the driver makes a device", killed_mid_create),
    ("A host reboots: what is to start by itself is back, other names are free", rebooted),
    ("A host is gone for good, and is evicted", evicted),
    ("Names, claims and devices agree", consistent),
)
