"""The whole line on two real kernels: two guests are two hosts of one cluster, etcd is outside.

The command runs on this machine or in a guest, an agent in each guest. What is asserted is read
from etcd's keys, from the guests' sysfs, and from the events that their kernels sent.
"""

from __future__ import annotations

import json
import signal
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from deploy.lab.guest import wait_for
from deploy.lab.kernel import SAMPLES
from tests.cli.driver import Cli, ended, one_line
from tests.lab.conftest import has_failed
from tests.lab.hosts import DEADLINE, Host, Records

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.conftest import Guests

pytestmark = pytest.mark.lab

Pair = tuple[Host, Host]

HELD_MS = 600_000
MADE = ["add", "bind"]
GONE = ["unbind", "remove"]


@pytest.fixture(scope="module")
def pair(guests: Guests, records: Records) -> Iterator[Pair]:
    """The two guests as hosts, with their agents running; none of these may log an error.

    That of gpu02 has the kernel's events alone to learn by what happens behind its back.
    """
    pair = Host(guests[0], records), Host(guests[1], records, "--rescan", "3600")
    for host in pair:
        host.listen()
    _begin(pair)
    yield pair
    assert [host.complaints() for host in pair] == [[], []]


def _begin(pair: Pair) -> None:
    for host in pair:
        host.start()
    for host in pair:
        host.wait_enrolled()


@pytest.fixture
def hosts(pair: Pair, records: Records, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The two hosts, with nothing on them; each test has to leave them so."""
    if not all(host.alive() for host in pair):
        _start_over(pair, records)
    yield pair
    left = {host.name: host.left() for host in pair if any(host.left().values())}
    if left or records.names() or has_failed(request.node):
        _start_over(pair, records)
    assert not left


def _start_over(pair: Pair, records: Records) -> None:
    for host in pair:
        if host.alive():
            host.kill()
        host.mdev.reload()
        host.listen()
    records.erase()
    _begin(pair)


@pytest.fixture
def name() -> str:
    """A name nobody has used."""
    return str(uuid.uuid4())


@contextmanager
def creating(host: Host, cli: Cli, name: str) -> Iterator[subprocess.Popen[str]]:
    """Inside, a command waits while the host's driver makes the device; then it is let finish."""
    host.mdev.delay_creates(HELD_MS)
    args = ("create", name, "--type", "mtty-1", "--host", host.name, "--parent", "mtty")
    with cli.start(*args) as asked:
        try:
            wait_for(
                lambda: name in host.mdev.devices() or asked.poll() is not None,
                what="the driver to create",
                timeout=DEADLINE,
            )
            yield asked
        finally:
            host.mdev.delay_creates(0)
            asked.kill()


@contextmanager
def paused(host: Host) -> Iterator[None]:
    """Inside, the host's agent does nothing."""
    host.agent.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        host.agent.kill(signal.SIGCONT)


def wait_for_state(records: Records, host: Host, name: str, state: str | None) -> None:
    """Wait until the host's claim of this name is in a state; None: until it is gone."""
    wait_for(
        lambda: records.state(host.name, name) == state,
        what=f"the claim to be {state or 'gone'}",
        timeout=DEADLINE,
    )


def wait_for_check(cli: Cli, code: int) -> list[dict[str, object]]:
    """Wait until `check` ends with this code; its findings."""
    wait_for(lambda: cli.run("check").code == code, what=f"check to end with {code}")
    findings: list[dict[str, object]] = cli.run("check", "-o", "json").json["findings"]
    return findings


def test_create_and_remove(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A create makes the device on the parent asked for and an active claim; a remove frees all."""
    gpu01, gpu02 = hosts
    cli.ok("create", name, "--type", "mtty-2", "--host", "gpu01", "--parent", "mtty")
    assert gpu01.mdev.devices() == [name]
    assert (gpu01.mdev.parent_of(name), gpu01.mdev.type_of(name)) == ("mtty", "mtty-2")
    assert gpu02.mdev.devices() == []
    (taken,), (claim,) = records.names().values(), records.claims("gpu01").values()
    assert (taken.value["host"], taken.value["request"]) == ("gpu01", claim.value["request"])
    assert (taken.revision, taken.lease, claim.lease) == (claim.revision, 0, 0)
    wanted = {"state": "active", "parent": "mtty", "type": "mtty-2"}
    assert claim.value | wanted | {"boot_id": gpu01.guest.boot_id} == claim.value
    cli.ok("remove", name)
    assert gpu01.mdev.devices() == []
    assert (records.names(), records.claims("gpu01")) == ({}, {})
    assert gpu01.events(name) == MADE + GONE


def test_command_in_a_guest(
    hosts: Pair, cli: Cli, records: Records, name: str, cluster: str
) -> None:
    """The command in one guest makes a device in the other."""
    gpu01, gpu02 = hosts
    args = ("--type", "mdpy-hd", "--host", "gpu02", "--cluster", cluster)
    done = gpu01.guest.mdevns("create", name, *args)
    assert (done.rc, done.stderr) == (0, "")
    assert (gpu01.mdev.devices(), gpu02.mdev.devices()) == ([], [name])
    assert (gpu02.mdev.parent_of(name), gpu02.mdev.type_of(name)) == ("mdpy", "mdpy-hd")
    assert records.state("gpu02", name) == "active"
    cli.ok("remove", name)


@pytest.mark.parametrize(
    ("host", "parent", "kind"),
    [("gpu02", "mtty", "mtty-1"), ("gpu01", "mdpy", "mdpy-hd"), ("gpu01", "mtty", "mtty-1")],
    ids=["on another host", "on another parent", "the very same"],
)
def test_taken(
    hosts: Pair, cli: Cli, records: Records, name: str, *, host: str, parent: str, kind: str
) -> None:
    """A name that lives is EEXIST everywhere, told by whom, and nothing is asked of a kernel."""
    gpu01, gpu02 = hosts
    cli.ok("create", name, "--type", "mtty-1", "--host", "gpu01", "--parent", "mtty")
    before = records.names()
    args = ("create", name, "--type", kind, "--host", host, "--parent", parent)
    refused = cli.run(*args)
    assert refused.code == 4
    assert "gpu01/mtty (active)" in one_line(refused, "EEXIST")
    holder = json.loads(cli.run(*args, "-o", "json").err)["holder"]
    assert holder == {"host": "gpu01", "parent": "mtty", "state": "active"}
    assert records.names() == before
    assert list(records.claims("gpu01")) == [name]
    assert records.claims("gpu02") == {}
    assert (gpu01.mdev.devices(), gpu02.mdev.devices()) == ([name], [])
    assert (gpu01.events(name), gpu02.events(name)) == (MADE, [])
    assert gpu01.mdev.type_of(name) == "mtty-1"
    cli.ok("remove", name)


def test_race(hosts: Pair, cli: Cli, records: Records, tmp_path: Path) -> None:
    """Of two hosts that are asked for the same names at once each name is made on one."""
    names = sorted(str(uuid.uuid4()) for _ in range(10))
    asks = tmp_path / "asks"
    asks.write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    args = ("create", "--type", "mtty-1", "--from", str(asks), "--host")
    with cli.start(*args, "gpu01") as one, cli.start(*args, "gpu02") as two:
        ends = [ended(one), ended(two)]
    devices = [host.mdev.devices() for host in hosts]
    assert sorted(devices[0] + devices[1]) == names
    assert [sorted(records.claims(host.name)) for host in hosts] == devices
    assert {records.state(host.name, n) for host in hosts for n in host.mdev.devices()} == {
        "active"
    }
    refusals = [line for end in ends for line in end.err.splitlines()]
    assert len(refusals) == len(names)
    assert all(line.startswith("EEXIST: ") and "held by gpu0" in line for line in refusals)
    cli.ok("remove", *names)


@pytest.mark.parametrize(
    ("workers", "early"),
    [(False, False), (True, True)],
    ids=["back after", "killed with its workers and back before"],
)
def test_killed_while_the_driver_creates(
    hosts: Pair, cli: Cli, records: Records, name: str, *, workers: bool, early: bool
) -> None:
    """An agent is killed while the driver creates: its restart, before or after, makes it once."""
    gpu01 = hosts[0]
    elsewhere = ("create", name, "--type", "mtty-1", "--host", "gpu02")
    with creating(gpu01, cli, name) as asked:
        gpu01.kill(workers=workers)
        one_line(cli.run("remove", name), "EAGAIN")
        refused = cli.run(*elsewhere)
        assert refused.code == 4
        assert "gpu01/mtty (creating)" in one_line(refused, "EEXIST")
        assert gpu01.in_flight() == [name]
        if early:
            gpu01.begin()
            assert cli.run("remove", name).code == 6
            assert gpu01.in_flight() == [name]
        assert records.state("gpu01", name) == "creating"
        gpu01.mdev.delay_creates(0)
        if not early:
            wait_for(lambda: not gpu01.in_flight(), what="the write to return")
            assert gpu01.mdev.type_of(name) == "mtty-1"
            assert records.state("gpu01", name) == "creating"
            gpu01.begin()
        done = ended(asked)
    assert (done.code, done.err) == (0, "")
    assert records.state("gpu01", name) == "active"
    assert gpu01.in_flight() == []
    cli.ok("remove", name)
    assert gpu01.events(name) == MADE + GONE


def test_stopped_while_the_driver_creates(
    hosts: Pair, cli: Cli, records: Records, name: str
) -> None:
    """SIGTERM lets the driver's create finish, begins nothing more, and the agent ends with 0."""
    gpu01 = hosts[0]
    later = str(uuid.uuid4())
    with creating(gpu01, cli, name) as asked:
        gpu01.agent.kill(signal.SIGTERM)
        cli.ok("create", later, "--type", "mdpy-hd", "--host", "gpu01", "--no-wait")
        assert gpu01.agent.alive()
        gpu01.mdev.delay_creates(0)
        done = ended(asked)
        assert (done.code, done.err) == (0, "")
    assert gpu01.agent.wait() == 0
    assert gpu01.workers() == []
    assert gpu01.mdev.devices() == [name]
    assert records.state("gpu01", name) == "active"
    assert records.state("gpu01", later) == "reserved"
    assert records.session("gpu01") is None
    gpu01.begin()
    wait_for_state(records, gpu01, later, "active")
    assert gpu01.mdev.parent_of(later) == "mdpy"
    cli.ok("remove", name, later)


def test_remove_while_held(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A device that a VM has is EBUSY at once and stays as it was; let go, it is removed."""
    gpu01 = hosts[0]
    cli.ok("create", name, "--type", "mtty-1", "--host", "gpu01", "--parent", "mtty")
    with gpu01.held(name) as holder:
        refused = cli.run("remove", name)
        assert refused.code == 5
        one_line(refused, "EBUSY")
        assert holder.alive()
        claim = records.claims("gpu01")[name].value
        assert (claim["state"], claim["removal"]) == ("active", None)
        assert claim["error"]["errno"] == "EBUSY"
        assert gpu01.mdev.devices() == [name]
    cli.ok("remove", name)
    assert records.names() == {}
    assert gpu01.events(name) == MADE + GONE


def test_forced_remove_waits(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A forced remove of a device that a VM has waits in the kernel, over a kill of the agent."""
    gpu01 = hosts[0]
    cli.ok("create", name, "--type", "mtty-1", "--host", "gpu01", "--parent", "mtty")
    with gpu01.held(name) as holder, cli.start("remove", name, "--force") as asked:
        wait_for(lambda: name not in gpu01.mdev.devices(), what="the kernel's remove to begin")
        one_line(cli.run("remove", name), "EAGAIN")
        gpu01.kill()
        gpu01.begin()
        assert gpu01.in_flight() == [name]
        assert records.state("gpu01", name) == "removing"
        assert cli.run("create", name, "--type", "mtty-1", "--host", "gpu02").code == 4
        holder.kill()
        done = ended(asked)
        assert (done.code, done.err) == (0, "")
    assert records.names() == {}
    assert gpu01.events(name) == MADE + GONE


@pytest.mark.parametrize(
    ("parent", "kind", "room", "errno_name", "events"),
    [
        ("mtty", "mtty-2", 12, "ENOSPC", ["add", "remove"]),
        ("mdpy", "mdpy-vga", 4, "EUSERS", []),
    ],
    ids=["the driver counts", "the mdev core counts"],
)
def test_exhausted(
    hosts: Pair,
    cli: Cli,
    records: Records,
    name: str,
    *,
    parent: str,
    kind: str,
    room: int,
    errno_name: str,
    events: list[str],
) -> None:
    """A parent without room is the kernel's errno and exit 7, and nothing is left; another has."""
    gpu01, gpu02 = hosts
    here = ("--type", kind, "--host", "gpu01", "--parent", parent)
    made = cli.ok("create", *here, "--count", str(room), "-o", "name").names
    assert gpu01.mdev.devices() == sorted(made)
    refused = cli.run("create", name, *here)
    assert refused.code == 7
    one_line(refused, errno_name)
    assert gpu01.events(name) == events
    assert sorted(records.names()) == sorted(records.claims("gpu01")) == sorted(made)
    assert gpu01.mdev.devices() == sorted(made)
    assert cli.run("create", name, "--type", kind, "--host", "gpu01").code == 7
    cli.ok("create", name, "--type", kind)
    assert gpu02.mdev.devices() == [name]
    cli.ok("remove", name, *made)


def test_placed_elsewhere(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A parent that turns out to have no room is left for another when none was named."""
    gpu01, gpu02 = hosts
    first = cli.ok("create", "--type", "mtty-2", "--host", "gpu01", "-o", "name").names
    others = [str(uuid.uuid4()) for _ in range(11)]
    with paused(gpu01):  # so it does not tell that the room there is gone
        for other in others:
            gpu01.mdev.create("mtty", "mtty-2", other)
        asked = cli.start("create", name, "--type", "mtty-2", "--place", "pack")
        wait_for_state(records, gpu01, name, "reserved")
    with asked:
        done = ended(asked)
    assert (done.code, done.err) == (0, "")
    assert gpu02.mdev.devices() == [name]
    assert gpu01.events(name) == ["add", "remove"]
    assert records.names()[name].value["host"] == "gpu02"
    wait_for(
        lambda: sorted(records.claims("gpu01")) == sorted(first + others),
        what="the others to be adopted",
        timeout=DEADLINE,
    )
    cli.ok("remove", name, *first, *others)


def test_adopted(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A device that was made by hand is claimed for its host, which is told and is no fault."""
    gpu01 = hosts[0]
    gpu01.mdev.create("mtty", "mtty-2", name)
    wait_for_state(records, gpu01, name, "active")
    claim = records.claims("gpu01")[name].value
    assert (claim["adopted"], claim["parent"], claim["type"]) == (True, "mtty", "mtty-2")
    assert [one["kind"] for one in wait_for_check(cli, 0)] == ["adopted"]
    assert cli.run("create", name, "--type", "mtty-1", "--host", "gpu02").code == 4
    cli.ok("remove", name)
    assert gpu01.events(name) == MADE + GONE


def test_conflict(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A device made by hand whose name another host holds is told, not touched, and ends alone."""
    gpu02 = hosts[1]
    cli.ok("create", name, "--type", "mtty-1", "--host", "gpu01", "--parent", "mtty")
    before = records.names(), records.claims("gpu01")
    gpu02.mdev.create("mtty", "mtty-1", name)
    (finding,) = wait_for_check(cli, 20)
    assert (finding["kind"], finding["name"], finding["host"]) == ("conflict", name, "gpu02")
    assert "held by gpu01" in str(finding["detail"])
    assert (records.names(), records.claims("gpu01")) == before
    assert records.claims("gpu02") == {}
    assert gpu02.events(name) == MADE
    gpu02.mdev.remove(name)
    assert wait_for_check(cli, 0) == []
    cli.ok("remove", name)


def test_removed_by_hand(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """The name of a device that was removed behind our back is free again."""
    gpu02 = hosts[1]
    cli.ok("create", name, "--type", "mtty-1", "--host", "gpu02", "--parent", "mtty")
    gpu02.mdev.remove(name)
    wait_for_state(records, gpu02, name, None)
    assert records.names() == {}


def test_driver_reloaded(hosts: Pair, cli: Cli, records: Records, name: str) -> None:
    """A driver that is unloaded takes its devices' names along; loaded again, it is used again."""
    gpu01 = hosts[0]
    here = ("create", name, "--type", "mtty-1", "--host", "gpu01", "--parent", "mtty")
    cli.ok(*here)
    gpu01.guest.run("modprobe", "--remove", "mtty", check=True)
    wait_for_state(records, gpu01, name, None)
    wait_for(lambda: "mtty" not in records.parents("gpu01"), what="the parent to go")
    refused = cli.run(*here)
    assert refused.code == 3
    one_line(refused, "ENODEV")
    gpu01.guest.run("modprobe", "mtty", check=True)
    wait_for(lambda: sorted(records.parents("gpu01")) == sorted(SAMPLES), what="the parent")
    cli.ok(*here)
    assert gpu01.mdev.devices() == [name]
    cli.ok("remove", name)


def test_second_agent(hosts: Pair, cluster: str) -> None:
    """A second agent on a machine is refused, also under another host name."""
    gpu01 = hosts[0]
    refused = gpu01.guest.mdevns("agent", "--host", "gpu09", "--cluster", cluster)
    assert refused.rc == 5
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"EBUSY: /run/mdevns: another agent (pid {gpu01.agent.pid}) runs here")
    assert gpu01.agent.alive()


def test_agent_of_an_ordinary_user(hosts: Pair) -> None:
    """An agent that may not write to the kernel's files says so and ends."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    refused = hosts[0].guest.run(*nobody, "python3", "-m", "cli", "agent", "--host", "gpu01")
    assert refused.rc == 12
    (line,) = refused.stderr.splitlines()
    assert line.startswith("EACCES: bus sysfs: not allowed to write /sys/class/mdev_bus/")
    assert line.endswith("run as root")
