"""Persistent names, reboots, moves and evicts, with real agents on simulated hosts."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from tests.cli.driver import TYPE, Cli, Host, one_line
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 128
LAPSES = 20  # seconds until a host that went without a word is known to be gone
GONE = 90.0  # seconds for that, on a busy machine


@pytest.fixture
def hosts(cli: Cli, host_in: Callable[[Cli, str], Host]) -> tuple[Host, Host]:
    """Two hosts that a test may stop, reboot and evict."""
    one, two = (host_in(cli, name).init(parents=8) for name in ("gpu01", "gpu02"))
    for host in (one, two):
        host.session = LAPSES
        host.boot()
    return one, two


def parents_of(host: Host) -> dict[str, str]:
    """The parent of each device, as the kernel has them."""
    bus = host.directory / "sys/bus/mdev/devices"
    return {link.name: link.resolve().parent.name for link in bus.iterdir()}


def power_off(host: Host) -> None:
    """The agent is killed, the machine goes down and comes up, without its agent."""
    host.stop(signal.SIGKILL)
    simulated.reboot(host.directory)


def test_a_persistent_name_from_define_to_undefine(hosts: tuple[Host, Host], name: str) -> None:
    """Defined without a device, started, stopped, and free when it is undefined."""
    cli, parent = hosts[0].cli, hosts[0].parents[0]
    cli.ok("define", name, "--type", TYPE, "--host", "gpu01", "--parent", parent)
    assert cli.state(name) == "defined"
    assert hosts[0].devices() == set()
    cli.ok("start", name)
    assert parents_of(hosts[0]) == {name: parent}
    refused = cli.run("undefine", name)
    assert (refused.code, "mdevns stop" in one_line(refused, "EBUSY")) == (5, True)
    cli.ok("stop", name)
    assert (cli.state(name), hosts[0].devices()) == ("defined", set())
    cli.ok("undefine", name)
    assert cli.state(name) is None


def test_a_definition_is_taken_once_in_the_cluster(hosts: tuple[Host, Host], name: str) -> None:
    """What mdevctl would define twice is refused on another host, exit 4, by whom."""
    cli, parent = hosts[0].cli, hosts[0].parents[0]
    cli.ok("define", name, "--type", TYPE, "--host", "gpu01", "--parent", parent)
    refused = cli.run("define", name, "--type", TYPE, "--host", "gpu02", "--parent", parent)
    assert refused.code == 4
    assert "gpu01" in one_line(refused, "EEXIST")


def test_a_stopped_name_moves_and_starts_elsewhere(hosts: tuple[Host, Host], name: str) -> None:
    """With a device it does not move; without one it does, attributes and all."""
    one, two = hosts
    cli = one.cli
    cli.ok("create", name, "--type", TYPE, "--host", "gpu01", "--persistent")
    refused = cli.run("move", name, "--to", "gpu02")
    assert refused.code == 5
    cli.ok("stop", name)
    cli.ok("move", name, "--to", f"gpu02/{two.parents[3]}")
    cli.ok("start", name)
    assert (parents_of(one), parents_of(two)) == ({}, {name: two.parents[3]})


def test_a_reboot_brings_autostart_devices_back_where_they_were(hosts: tuple[Host, Host]) -> None:
    """128 devices have the same names on the same parents; what did not persist is free."""
    host, cli = hosts[0], hosts[0].cli
    where = ("--type", TYPE, "--host", "gpu01")
    cli.ok("create", *where, "--count", str(MANY - 8), "--autostart", "-o", "name")
    before = parents_of(host)
    (transient,) = cli.ok("create", *where, "-o", "name").names
    (persistent,) = cli.ok("create", *where, "--persistent", "-o", "name").names
    power_off(host)
    assert host.devices() == set()
    # Half of the parents appear late, in another order.
    late = host.parents[::-2]
    for parent in late:
        simulated.unplug(host.directory, parent)
    host.boot()
    for parent in late:
        simulated.plug(host.directory, parent)
    wait_until(lambda: parents_of(host) == before, 60)
    wait_until(lambda: (cli.state(transient), cli.state(persistent)) == (None, "defined"), 60)
    wait_until(lambda: set(map(cli.state, before)) == {"active"}, 60)
    assert cli.ok("check").code == 0


def test_an_evicted_host_gives_its_names_back(hosts: tuple[Host, Host], name: str) -> None:
    """Refused while it is alive and without a confirmation; on record afterwards."""
    one, two = hosts
    cli = one.cli
    cli.ok("create", name, "--type", TYPE, "--host", "gpu01")
    (kept,) = cli.ok(
        "create", "--type", TYPE, "--host", "gpu01", "--persistent", "-o", "name"
    ).names
    assert cli.run("evict", "gpu01", "--reason", "it burnt").code == 2
    alive = cli.run("evict", "gpu01", "--confirm-fenced", "--reason", "it burnt")
    assert (alive.code, "alive" in one_line(alive, "EBUSY")) == (5, True)
    power_off(one)
    wait_until(lambda: cli.read(cli.keys.session("gpu01")) is None, GONE)
    cli.ok("evict", "gpu01", "--confirm-fenced", "--reason", "it burnt")
    assert (cli.state(name), cli.state(kept)) == (None, "defined")
    cli.ok("create", name, "--type", TYPE, "--host", "gpu02")
    cli.ok("move", kept, "--to", "gpu02")
    cli.ok("start", kept)
    assert two.devices() == {name, kept}
    (act,) = cli.ok("audit", "-o", "json").json
    assert (act["what"], act["host"], act["why"]) == ("evict", "gpu01", "it burnt")


def test_an_evicted_host_that_returns_takes_back_what_is_free_and_reports_the_rest(
    hosts: tuple[Host, Host], name: str
) -> None:
    """It was not fenced after all: its devices live, and one of their names does elsewhere."""
    one, cli = hosts[0], hosts[0].cli
    free = str(uuid.uuid4())
    for each in (name, free):
        cli.ok("create", each, "--type", TYPE, "--host", "gpu01")
    one.stop(signal.SIGKILL)
    wait_until(lambda: cli.read(cli.keys.session("gpu01")) is None, GONE)
    cli.ok("evict", "gpu01", "--confirm-fenced", "--reason", "a false word")
    cli.ok("create", name, "--type", TYPE, "--host", "gpu02")
    one.boot()
    wait_until(lambda: cli.state(free) == "active", 60)
    wait_until(lambda: cli.run("check").code == 20, 60)
    report = cli.run("check", "-o", "json").json
    assert {(each["kind"], each["name"]) for each in report["findings"]} == {
        ("adopted", free),
        ("conflict", name),
    }
    assert one.devices() == {name, free}


def test_an_empty_host_is_forgotten(hosts: tuple[Host, Host]) -> None:
    """Refused while its agent lives; afterwards nobody knows it."""
    one, cli = hosts[0], hosts[0].cli
    assert cli.run("hosts", "forget", "gpu01").code == 5
    one.stop()
    cli.ok("hosts", "forget", "gpu01", "--reason", "sold")
    assert [host["host"] for host in cli.ok("hosts", "-o", "json").json] == ["gpu02"]
    assert cli.run("hosts", "forget", "gpu01").code == 3
    assert cli.run("hosts", "sell", "gpu01").code == 2
