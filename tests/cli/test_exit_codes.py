"""Every exit code that the commands can reach: one clear line, and nothing left behind.

9 (ESTALE) is an agent's, which enrols again instead of ending; no command ends with it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from agent import simulated
from coordinator.embedded import EmbeddedEtcd
from tests.cli.driver import TYPE, Cli, Host, ended, in_process, losing_proxy, one_line
from tests.support import etcd_kv
from tests.support.rawetcd import switch_auth_on
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.etcd

Pair = tuple[Cli, Host, Host]


def nothing_is_left(cli: Cli) -> bool:
    """No name is held by anybody."""
    return bool(cli.ok("list", "-o", "json").json == [])


# 0


def test_create_and_remove_end_with_0(pair: Pair, name: str) -> None:
    """A device that is made and removed is there in between, and both say so with 0."""
    cli, gpu01, _ = pair
    assert name in cli.ok("create", name, "--type", TYPE, "--host", "gpu01").out
    assert name in gpu01.devices()
    assert cli.ok("remove", name).names == [name]
    assert name not in gpu01.devices()
    assert cli.state(name) is None


# 1


def test_a_full_disk_is_one_line(cli: Cli) -> None:
    """An answer that cannot be written is an error, and not a stack trace."""
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            (sys.executable, "-m", "cli", "list"),
            env=cli.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 1
    assert process.stderr == "ENOSPC: mdevns: No space left on device\n"


# 2


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["creat"], "Did you mean 'create'?"),
        (["create"], "no type is given"),
        (["create", "--bogus"], "No such option: --bogus"),
        (["create", "--type"], "requires an argument"),
        (["create", str(uuid.UUID(int=1)), "--type", TYPE, "--count", "2"], "give one of the two"),
        (["create", "--count", "2", "--from", "-"], "names come from the file"),
        (["reserve", str(uuid.UUID(int=1)), "--count", "2"], "give one of the two"),
        (["remove"], "Missing argument"),
        (["list", "--state", "bogus"], "is not one of"),
        (["list", "-o", "xml"], "is not one of"),
        (["sim"], "Missing command"),
        (["sim", "init"], "Missing argument"),
    ],
)
def test_wrong_usage_ends_with_2(args: list[str], says: str) -> None:
    """What is not written as the help says is one line, and no store is asked."""
    done = in_process(*args)
    assert (done.code, done.out) == (2, "")
    assert says in one_line(done, "EINVAL")


# 3


@pytest.mark.parametrize(
    ("args", "errno_name", "says"),
    [
        (["show", "NAME"], "ENOENT", "nobody holds this name"),
        (["remove", "NAME"], "ENOENT", "nobody holds this name"),
        (["renew", "NAME"], "ENOENT", "nobody holds this name"),
        (["release", "NAME"], "ENOENT", "nobody holds this name"),
        (["list", "--host", "nowhere"], "ENOENT", "no such host"),
        (["parents", "--host", "nowhere"], "ENOENT", "no such host"),
        (["create", "NAME", "--type", TYPE, "--host", "nowhere"], "ENOENT", "no such host"),
        (
            ["create", "NAME", "--type", TYPE, "--host", "gpu01", "--parent", "none"],
            "ENODEV",
            "no such parent",
        ),
        (["create", "NAME", "--type", "none"], "ENOENT", "no parent of the cluster offers it"),
        (["create", "--type", TYPE, "--from", "/nowhere"], "ENOENT", "no such file"),
    ],
)
def test_what_is_not_there_ends_with_3(
    pair: Pair, name: str, args: list[str], errno_name: str, says: str
) -> None:
    """No such name, host, parent, type or file."""
    cli = pair[0]
    done = cli.run(*(name if arg == "NAME" else arg for arg in args))
    assert (done.code, done.out) == (3, "")
    assert says in one_line(done, errno_name)
    assert cli.state(name) is None


# 4


def test_a_name_that_is_taken_ends_with_4(pair: Pair, name: str) -> None:
    """A second create of a name is refused on any host, and told by whom it is held."""
    cli, gpu01, gpu02 = pair
    cli.ok("create", name, "--type", TYPE, "--host", "gpu01")
    done = cli.run("create", name.upper(), "--type", TYPE, "--host", "gpu02")
    assert (done.code, done.out) == (4, "")
    assert f"{name}: held by gpu01/{gpu01.parents[0]} (active); see:" in one_line(done, "EEXIST")
    assert name not in gpu02.devices()
    assert cli.run("reserve", name).code == 4
    cli.ok("remove", name)


def test_a_reservation_of_another_request_ends_with_4(cli: Cli, name: str) -> None:
    """A name that is reserved is held from every other request, and stays as it is."""
    cli.ok("reserve", name, "--request", "mine")
    done = cli.run("reserve", name, "--request", "theirs")
    assert done.code == 4
    assert "held by a reservation" in one_line(done, "EEXIST")
    assert cli.ok("show", name, "-o", "json").json["request"] == "mine"


# 5


def test_a_device_in_use_ends_with_5(pair: Pair, name: str) -> None:
    """A remove of a device that a VM holds is refused, and the device stays usable."""
    cli, gpu01, _ = pair
    cli.ok("create", name, "--type", TYPE, "--host", "gpu01")
    cli.ok("sim", "hold", str(gpu01.directory), name)
    done = cli.run("remove", name)
    assert (done.code, done.out) == (5, "")
    assert "open" in one_line(done, "EBUSY")
    assert cli.state(name) == "active"
    assert "EBUSY" in cli.ok("show", name).out
    cli.ok("sim", "let-go", str(gpu01.directory), name)
    cli.ok("remove", name)


def test_renewing_what_is_no_reservation_ends_with_5(pair: Pair, name: str) -> None:
    """A device's name is neither renewed nor released."""
    cli = pair[0]
    cli.ok("create", name, "--type", TYPE)
    for verb in ("renew", "release"):
        done = cli.run(verb, name)
        assert done.code == 5
        assert f"mdevns remove {name}" in one_line(done, "EBUSY")
    cli.ok("remove", name)


# 6 and 130: while the driver is at work


@pytest.fixture
def slow(cli: Cli, host_in: Callable[[Cli, str], Host]) -> Host:
    """A host whose driver does not come to an end until its device is let go."""
    host = host_in(cli, "gpu01").init(parents=1, latency=600)
    host.boot()
    return host


def test_removing_a_placeholder_ends_with_6(slow: Host, name: str) -> None:
    """What is being created is not removed, and its create goes on undisturbed."""
    cli = slow.cli
    creating = cli.start("create", name, "--type", TYPE)
    wait_until(lambda: cli.state(name) == "creating", 30)
    done = cli.run("remove", name)
    assert (done.code, done.out) == (6, "")
    assert "placeholder" in one_line(done, "EAGAIN")
    assert cli.run("renew", name).code == 6
    slow.finish(name)
    assert ended(creating).code == 0
    assert slow.devices() == {name}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_create_ends_with_130(slow: Host, name: str, number: int) -> None:
    """Ctrl-C during a wait says what was left and how to look at it; the host goes on."""
    cli = slow.cli
    creating = cli.start("create", name, "--type", TYPE)
    wait_until(lambda: cli.state(name) == "creating", 30)
    creating.send_signal(number)
    done = ended(creating)
    assert (done.code, done.out) == (130, "")
    line = one_line(done, "EINTR")
    assert f"left behind: {name} (1 creating)" in line
    assert f"mdevns show {name}" in line
    slow.finish(name)
    wait_until(lambda: cli.state(name) == "active", 30)


def test_an_interrupted_bulk_tells_what_was_made(
    cli: Cli, host_in: Callable[[Cli, str], Host]
) -> None:
    """Of many, those that are made by then are told on stdout, the others are counted."""
    host = host_in(cli, "gpu01").init(parents=2)
    simulated.tune(host.directory, host.parents[1], latency=600)
    host.boot()
    creating = cli.start("create", "--type", TYPE, "--count", "4", "-o", "name")
    wait_until(lambda: cli.ok("list", "--state", "active", "-o", "json").json[1:], 30)
    creating.send_signal(signal.SIGINT)
    done = ended(creating)
    made = set(cli.ok("list", "--state", "active", "-o", "name").names)
    going = set(cli.ok("list", "--state", "creating", "-o", "name").names)
    assert done.code == 130
    assert set(done.names) == made
    assert all(name in one_line(done, "EINTR") for name in going)
    for name in going:
        host.finish(name)


def test_ctrl_c_before_anything_leaves_nothing(cli: Cli) -> None:
    """Ctrl-C while requests are read from stdin says so, and nothing was done."""
    reading = cli.start("create", "--type", TYPE, "--from", "-")
    stdin = reading.stdin
    assert stdin is not None
    stdin.write("{}\n" * 100_000)  # more than a pipe holds: it reads when this returns
    reading.send_signal(signal.SIGINT)
    done = ended(reading)
    assert done.code == 130
    one_line(done, "EINTR")
    assert nothing_is_left(cli)


# 7


@pytest.mark.parametrize("core_counts", [False, True])
def test_no_room_ends_with_7(
    cli: Cli, host_in: Callable[[Cli, str], Host], *, core_counts: bool
) -> None:
    """A create for which no parent has room is refused, whoever counts; nothing stays of it."""
    host = host_in(cli, "gpu01")
    simulated.init(host.directory, 2, {TYPE: 1}, core_counts=core_counts)
    host.boot()
    made = cli.ok("create", "--type", TYPE, "--count", "2", "-o", "name").names
    done = cli.run("create", "--type", TYPE)
    assert (done.code, done.out) == (7, "")
    assert one_line(done, "ENOSPC")
    named = cli.run("create", "--type", TYPE, "--host", "gpu01", "--parent", host.parents[0])
    assert named.code == 7
    assert one_line(named, "EUSERS" if core_counts else "ENOSPC")
    assert set(cli.ok("list", "-o", "name").names) == set(made) == host.devices()


def test_of_many_the_first_that_failed_gives_the_code(
    cli: Cli, host_in: Callable[[Cli, str], Host]
) -> None:
    """What fits is created; what is refused for one reason is one line with all its names."""
    host = host_in(cli, "gpu01").init(parents=1, capacity=3)
    host.boot()
    done = cli.run("create", "--type", TYPE, "--count", "5", "-o", "name")
    assert done.code == 7
    assert set(done.names) == host.devices()
    assert len(done.names) == 3
    refused = re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", one_line(done, "ENOSPC"))
    assert len({*refused, *done.names}) == 5
    missing = str(uuid.uuid4())
    done = cli.run("remove", done.names[0], missing, done.names[1])
    assert done.code == 3
    assert len(done.names) == 2
    assert missing in one_line(done, "ENOENT")


# 8


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "gpu"], "not a name"),
        (["create", str(uuid.UUID(int=0)), "--type", TYPE], "nil"),
        (["remove", "{" + str(uuid.UUID(int=1)) + "}"], "not a name"),
        (["show", "a\nb\x1b[2J"], r"a\nb\x1b[2J: not a name"),
        (["create", "--type", "a/b"], "not a type"),
        (["create", "--type", TYPE, "--host", "../x"], "not a host name"),
        (["create", "--type", TYPE, "--host", ""], "not a host name"),
        (["create", "--type", TYPE, "--parent", "a b"], "not a parent"),
        (["create", "--type", TYPE, "--attr", "k"], "not an attribute"),
        (["create", "--type", TYPE, "--attr", "../k=v"], "not an attribute"),
        (["create", "--type", TYPE, "--count", "0"], "give 1 to"),
        (["create", "--type", TYPE, "--ttl", "0"], "give 1 to"),
        (["create", "--type", TYPE, "--request", "a b"], "not a request id"),
        (["reserve", "--ttl", "-1"], "give 1 to"),
        (["reserve", "--ttl", "99999999999"], "give 1 to"),
        (["etcd", "run", "--port", "70000"], "give 0 to"),
    ],
)
def test_a_value_that_cannot_be_ends_with_8(args: list[str], says: str) -> None:
    """What can't be a name or a value is one line whatever it contains; no store is asked."""
    done = in_process(*args)
    assert (done.code, done.out) == (8, "")
    assert says in one_line(done, "EINVAL")


# 10, 11, 12, 13, 14


@pytest.mark.parametrize("command", [["list"], ["hosts"], ["check"], ["reserve"]])
def test_no_store_ends_with_10(command: list[str]) -> None:
    """A store that cannot be reached is said within the timeout."""
    done = Cli("http://127.0.0.1:1", "x").run(*command, "--timeout", "0.5")
    assert (done.code, done.out) == (10, "")
    assert "127.0.0.1:1" in one_line(done, "EHOSTUNREACH")


def test_an_unknown_outcome_ends_with_11(cli: Cli, name: str) -> None:
    """When the answer is lost it is said that it is not known, and how to find out."""
    with losing_proxy(cli.endpoint, f"/names/{name}".encode()) as endpoint:
        done = Cli(endpoint, cli.cluster).run("reserve", name, "--timeout", "5", "--ttl", "60")
    assert (done.code, done.out) == (11, "")
    line = one_line(done, "ETIMEDOUT")
    assert "it is not known whether it was done" in line
    assert f"find out with: mdevns show {name}" in line
    assert cli.state(name) == "reserved"  # and here it was


def test_a_store_that_wants_a_password_ends_with_12() -> None:
    """What etcd does not permit is said."""
    with EmbeddedEtcd() as server:
        switch_auth_on(server.endpoint)
        done = Cli(server.endpoint, "x").run("list")
    assert (done.code, done.out) == (12, "")
    one_line(done, "EPERM")


def test_a_second_machine_under_one_host_name_ends_with_12(
    pair: Pair, host_in: Callable[[Cli, str], Host]
) -> None:
    """An agent of another machine is not let in under a name that is taken."""
    cli = pair[0]
    clone = host_in(cli, "gpu01").init()
    done = cli.run("agent", "--host", "gpu01", "--bus", clone.bus)
    assert (done.code, done.out) == (12, "")
    assert "another machine is enrolled under this name" in one_line(done, "EPERM")


def test_a_second_agent_of_a_machine_is_refused(pair: Pair) -> None:
    """One agent a machine: the second says so, and the first goes on."""
    cli, gpu01, _ = pair
    done = cli.run("agent", "--host", "gpu01", "--bus", gpu01.bus)
    assert done.code != 0
    assert "another agent" in done.err
    assert len(done.err.splitlines()) == 1
    assert gpu01.agent is not None
    assert gpu01.agent.poll() is None


def test_a_bus_that_is_not_there_is_said_at_start(cli: Cli, tmp_path: Path) -> None:
    """A directory that is no host's is refused before anything is written."""
    done = cli.run("agent", "--host", "gpu09", "--bus", f"sim:{tmp_path}/none")
    assert done.code == 3
    assert "there is no host" in one_line(done, "ENOENT")
    assert cli.ok("hosts", "-o", "json").json == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["list", "--endpoints", "127.0.0.1:2379"], "not a URL"),
        (["list", "--endpoints", "https://a:2379,http://b:2379"], "use one kind"),
        (["list", "--endpoints", ","], "none is given"),
        (["list", "--timeout", "0"], "timeout"),
        (["list", "--timeout", "nan"], "timeout"),
        (["list", "--config", "/nowhere.toml"], "/nowhere.toml: no such file"),
        (["agent", "--session-ttl", "1"], "session_ttl"),
        (["agent", "--bus", "usb"], "neither sysfs nor sim:DIR"),
    ],
)
def test_a_configuration_that_cannot_be_ends_with_13(cli: Cli, args: list[str], says: str) -> None:
    """What is configured wrongly is named, and where."""
    done = cli.run(*args)
    assert (done.code, done.out) == (13, "")
    assert says in one_line(done, "EINVAL")


def test_a_misspelt_key_ends_with_13(cli: Cli, tmp_path: Path) -> None:
    """A key that nobody knows is named with its file, or as the variable it is."""
    path = tmp_path / "mdevns.toml"
    path.write_text('endpionts = "http://127.0.0.1:1"\n')
    done = cli.run("list", "--config", str(path))
    assert done.code == 13
    assert str(path) in one_line(done, "EINVAL")
    assert "endpionts" in done.err
    done = cli.run("list", MDEVNS_ENDPIONTS="http://127.0.0.1:1")
    assert done.code == 13
    assert "MDEVNS_ENDPIONTS" in one_line(done, "EINVAL")


def test_a_full_store_ends_with_14(name: str) -> None:
    """A store without space reads on, and says that it cannot write."""
    with EmbeddedEtcd(extra=["--quota-backend-bytes=1000000"]) as server:
        cli = Cli(server.endpoint, "x")
        with pytest.raises(grpc.RpcError):
            _fill(server.endpoint)
        done = cli.run("reserve", name)
        assert (done.code, done.out) == (14, "")
        one_line(done, "EROFS")
        assert nothing_is_left(cli)


def _fill(endpoint: str) -> None:
    for number in range(100):
        etcd_kv.put(endpoint, f"/fill/{number}", "x" * 100_000)


def test_a_store_that_is_being_restored_ends_with_14(cli: Cli, name: str) -> None:
    """While a restored store is being reconciled nothing new is taken."""
    etcd_kv.put(cli.endpoint, cli.keys.hold, "{}")
    done = cli.run("reserve", name)
    assert done.code == 14
    assert "reconciled" in one_line(done, "EROFS")
    assert nothing_is_left(cli)


# 15, 16


def test_a_driver_that_refuses_ends_with_15(pair: Pair, name: str) -> None:
    """The kernel's own error is told by its name, and nothing stays of the create."""
    cli, gpu01, _ = pair
    parent = gpu01.parents[0]
    simulated.fail_creates(gpu01.directory, parent, "EIO")
    done = cli.run("create", name, "--type", TYPE, "--host", "gpu01", "--parent", parent)
    assert (done.code, done.out) == (15, "")
    assert f"gpu01/{parent}" in one_line(done, "EIO")
    assert cli.state(name) is None
    assert name not in gpu01.devices()


def test_an_attribute_that_is_refused_ends_with_15(pair: Pair, name: str) -> None:
    """A device whose attribute the driver refuses is taken back."""
    cli, gpu01, _ = pair
    simulated.fail_attribute(gpu01.directory, "vgpu_params", "EINVAL")
    done = cli.run(*("create", name, "--type", TYPE, "--host", "gpu01", "--attr", "vgpu_params=x"))
    simulated.fail_attribute(gpu01.directory, "vgpu_params", None)
    assert (done.code, done.out) == (15, "")
    assert "vgpu_params" in one_line(done, "EINVAL")
    assert cli.state(name) is None
    assert name not in gpu01.devices()


def test_a_host_that_is_down_ends_with_16(
    cli: Cli, host_in: Callable[[Cli, str], Host], name: str
) -> None:
    """Nobody can make or remove a device on a host without its agent; its claims stay."""
    host = host_in(cli, "gpu01").init()
    host.boot()
    cli.ok("create", name, "--type", TYPE)
    host.stop()
    other = str(uuid.uuid4())
    for args in (["create", other, "--type", TYPE, "--host", "gpu01"], ["remove", name]):
        done = cli.run(*args)
        assert (done.code, done.out) == (16, "")
        assert "host gpu01" in one_line(done, "EHOSTDOWN")
    assert cli.state(name) == "active"
    assert cli.state(other) is None
    assert "unreachable" in cli.ok("show", name).out
    assert cli.ok("hosts", "-o", "json").json[0]["session"] == "unreachable"


# 20

UNREADABLE = {
    "{": "Input data was truncated",
    "": "Input data was truncated",
    '{"v": 2, "state": "hovering"}': "schema 2 is newer than 1",
    '{"v": 1, "state": "active", "who": "?"}': "Object contains unknown field `who`",
}


def test_claims_that_cannot_be_read_end_check_with_20(
    cli: Cli, host_in: Callable[[Cli, str], Host]
) -> None:
    """Damaged and newer claims are reported by `check`, and stop nothing else."""
    host_in(cli, "gpu01").init().boot()
    damaged = {str(uuid.uuid4()): value for value in UNREADABLE}
    for name, value in damaged.items():
        _write(cli, name, value)
    done = cli.run("check", "-o", "json")
    assert (done.code, done.err) == (20, "")
    assert done.json["ok"] is False
    found = {one["name"]: one for one in done.json["findings"]}
    assert found.keys() == damaged.keys()
    for name, value in damaged.items():
        assert (found[name]["kind"], found[name]["host"]) == ("unreadable", "gpu01")
        assert UNREADABLE[value] in found[name]["detail"]
    table = cli.run("check")
    assert table.code == 20
    assert "NOT consistent" in table.out
    _others_go_on(cli, list(damaged))


def _write(cli: Cli, name: str, value: str) -> None:
    """A claim as no program of ours writes it."""
    keys = cli.keys
    taken = json.dumps({"v": 1, "host": "gpu01", "request": "r"})
    etcd_kv.put(cli.endpoint, keys.name(name), taken)
    etcd_kv.put(cli.endpoint, keys.claim("gpu01", name), value)


def _others_go_on(cli: Cli, damaged: list[str]) -> None:
    """Others are made, listed and removed; what is damaged is neither shown nor touched."""
    other = cli.ok("create", "--type", TYPE, "--host", "gpu01", "-o", "name").out.strip()
    listed = cli.run("list", "-o", "name")
    assert (listed.code, listed.names) == (0, [other])
    assert all(name in listed.err for name in damaged)
    for verb in ("show", "remove", "renew", "release"):
        done = cli.run(verb, damaged[0])
        assert done.code == 1
        assert "cannot be read" in one_line(done, "EIO")
    assert cli.run("create", damaged[0], "--type", TYPE).code == 4
    cli.ok("remove", other)
    assert cli.run("check", "-o", "json").json["names"] == len(damaged)


def test_a_consistent_namespace_ends_check_with_0(pair: Pair) -> None:
    """A namespace in which everything agrees is said to be consistent."""
    cli = pair[0]
    assert "consistent" in cli.ok("check").out
