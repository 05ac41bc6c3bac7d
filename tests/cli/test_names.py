"""What the commands for names do, and in which shape they answer (cli.md, JSON)."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cli.driver import TYPE, Cli, Host, ended, one_line

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.etcd

Pair = tuple[Cli, Host, Host]

CLAIM = [
    *("name", "host", "parent", "type", "state", "persistent", "autostart", "adopted", "attrs"),
    *("request", "since", "revision", "error"),
]


def claim(cli: Cli, name: str) -> dict[str, Any]:
    """A claim as `show` has it."""
    shown: dict[str, Any] = cli.ok("show", name, "-o", "json").json
    return shown


def test_a_claim_has_every_field(pair: Pair, name: str) -> None:
    """One create answers with one object, in which what is absent is null."""
    cli, gpu01, _ = pair
    args = ("--type", TYPE, "--host", "gpu01", "--parent", gpu01.parents[1], "--request", "r-1")
    made = cli.ok("create", name, *args, "--attr", "vgpu_params=a=b", "-o", "json").json
    assert list(made) == CLAIM
    assert made["name"] == name
    assert (made["host"], made["parent"], made["type"]) == ("gpu01", gpu01.parents[1], TYPE)
    assert (made["state"], made["request"], made["error"]) == ("active", "r-1", None)
    assert (made["persistent"], made["autostart"], made["adopted"]) == (False, False, False)
    assert made["attrs"] == [["vgpu_params", "a=b"]]
    assert made["since"].endswith("Z")
    assert claim(cli, name) == made
    assert cli.ok("list", "--host", "gpu01", "-o", "json").json == [made]
    was = {key: made[key] for key in ("host", "parent", "request", "revision")}
    assert cli.ok("remove", name, "-o", "json").json == [{"name": name, "state": None, **was}]


def test_a_stale_remove_leaves_the_next_owners_device(pair: Pair, name: str) -> None:
    """The first owner repeats its remove by its request: exit 4, and the second's device stays."""
    cli, gpu01, _ = pair
    for request in ("first", "second"):
        cli.ok("create", name, "--type", TYPE, "--host", "gpu01", "--request", request)
        if request == "first":
            cli.ok("remove", name, "--request", "first")
    refused = cli.run("remove", name, "--request", "first")
    assert refused.code == 4
    assert "request second, revision" in one_line(refused, "EEXIST")
    assert cli.run("remove", name, "--revision", "1").code == 4
    assert gpu01.devices() == {name}
    assert cli.run("remove", name, str(uuid.uuid4()), "--revision", "1").code == 2
    cli.ok("remove", name, "--request", "second")


def test_random_names_are_uuids_of_version_4(pair: Pair) -> None:
    """Without a name each device gets a random one, and they are told one a line."""
    cli, gpu01, gpu02 = pair
    names = cli.ok("create", "--type", TYPE, "--count", "4", "-o", "name").names
    assert {uuid.UUID(name).version for name in names} == {4}
    assert set(names) == gpu01.devices() | gpu02.devices()
    assert len(gpu01.devices()) == len(gpu02.devices()) == 2  # spread
    assert cli.ok("remove", *names).names == names


def test_a_request_chooses_the_same_names_again(pair: Pair, tmp_path: Path) -> None:
    """A repeat under one id creates and holds nothing more; another count is exit 4."""
    cli, gpu01, gpu02 = pair
    path = tmp_path / "requests"
    path.write_text("{}\n{}\n")
    create = ("create", "--type", TYPE, "--request", "again")
    names = cli.ok(*create, "--count", "2", "-o", "name").names
    assert cli.ok(*create, "--from", str(path), "-o", "name").names == names
    assert set(names) == gpu01.devices() | gpu02.devices()
    refused = cli.run(*create)
    assert refused.code == 4
    assert "asked for 2 names, not 1" in one_line(refused, "EEXIST")
    cli.ok("remove", *names)
    reserve = ("reserve", "--count", "2", "--request", "held", "-o", "name")
    assert cli.ok(*reserve).names == cli.ok(*reserve).names
    assert len(cli.ok("list", "-o", "name").names) == 2
    for name in cli.ok(*reserve).names:
        cli.ok("release", name)


def test_what_fails_alike_is_one_line_with_the_count(pair: Pair) -> None:
    """Twenty names that cannot be placed have one reason; as JSON each has its own."""
    cli = pair[0]
    failed = ("create", "--type", "no-such-type", "--count", "20")
    done = cli.run(*failed)
    assert done.code == 3
    assert one_line(done, "ENOENT").startswith("ENOENT: 20 names: type no-such-type: ")
    assert len(cli.run(*failed, "-o", "json").err.splitlines()) == 20


def test_pack_fills_one_parent(pair: Pair) -> None:
    """With --place pack the devices go to one parent as long as it has room."""
    cli = pair[0]
    args = ("--type", TYPE, "--count", "4", "--place", "pack", "-o", "json")
    made = cli.ok("create", *args).json
    assert len({(each["host"], each["parent"]) for each in made}) == 1
    cli.ok("remove", *(each["name"] for each in made))


def test_requests_come_from_a_file(pair: Pair, name: str, tmp_path: Path) -> None:
    """A line is a request; what it leaves out is as the options say."""
    cli, _, gpu02 = pair
    lines = [
        {"name": name.upper(), "type": TYPE, "host": "gpu02", "request": "r-2"},
        {"parent": gpu02.parents[0], "host": "gpu02", "attrs": [["vgpu_params", "1"]]},
        {"autostart": True},
    ]
    path = tmp_path / "requests"
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    made = cli.ok("create", "--type", TYPE, "--from", str(path), "-o", "json").json
    assert [each["state"] for each in made] == ["active"] * 3
    assert (made[0]["name"], made[0]["host"], made[0]["request"]) == (name, "gpu02", "r-2")
    assert (made[1]["parent"], made[1]["attrs"]) == (gpu02.parents[0], [["vgpu_params", "1"]])
    assert (made[2]["persistent"], made[2]["autostart"]) == (True, True)
    cli.ok("remove", *(each["name"] for each in made))


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("{", 8, "stdin line 2: Input data was truncated"),
        ('{"tpye": "x"}', 8, "stdin line 2: Object contains unknown field `tpye`"),
        ('{"name": "x", "type": "t"}', 8, "stdin line 2: x: not a name"),
        ('{"type": "t", "attrs": [["a=b", "c"]]}', 8, "stdin line 2: a=b: not an attribute"),
        ('{"host": "gpu01"}', 2, "stdin line 2: create: no type is given"),
        ('{"name": "NAME", "type": "t"}', 8, "asked for before, in stdin line 1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_done(
    pair: Pair, name: str, line: str, code: int, says: str
) -> None:
    """The first line that is wrong is named by its number, before any is asked for."""
    cli = pair[0]
    lines = [json.dumps({"name": name, "type": TYPE}), line.replace("NAME", name)]
    done = cli.run("create", "--from", "-", stdin="\n".join(lines))
    assert (done.code, done.out) == (code, "")
    assert says in one_line(done, "EINVAL")
    assert cli.state(name) is None


def test_autostart_is_persistent(pair: Pair, name: str) -> None:
    """Whoever asks for autostart gets a persistent name."""
    cli = pair[0]
    cli.ok("create", name, "--type", TYPE, "--autostart")
    assert "(persistent, autostart)" in cli.ok("show", name).out
    cli.ok("remove", name)


def test_no_wait_answers_with_the_reservation(pair: Pair, name: str) -> None:
    """Without waiting the answer is the claim as it was reserved; its host goes on with it."""
    cli = pair[0]
    made = cli.ok("create", name, "--type", TYPE, "--no-wait", "-o", "json").json
    assert made["state"] == "reserved"
    same = cli.ok("create", name, "--type", TYPE, "--request", made["request"], "-o", "json").json
    assert (same["state"], same["host"]) == ("active", made["host"])
    cli.ok("remove", name)


def test_a_reservation_becomes_a_claim(pair: Pair, name: str) -> None:
    """A reserved name is renewed, shown, and turned into a device by the same request."""
    cli = pair[0]
    held = cli.ok("reserve", name, "--request", "r-3", "-o", "json").json
    assert list(held) == CLAIM
    assert (held["state"], held["host"], held["since"]) == ("reserved", None, None)
    renewed = cli.ok("renew", name, "--ttl", "90", "-o", "json").json
    assert renewed["revision"] > held["revision"]
    assert {**renewed, "revision": held["revision"]} == held
    assert f"mdevns release {name}" in cli.ok("show", name).out
    assert cli.run("create", name, "--type", TYPE).code == 4
    made = cli.ok("create", name, "--type", TYPE, "--request", "r-3", "-o", "json").json
    assert made["state"] == "active"
    cli.ok("remove", name)


def test_a_reservation_is_given_back(cli: Cli) -> None:
    """Several names are reserved in one go, and each can be released."""
    held = cli.ok("reserve", "--count", "3", "-o", "json").json
    assert len(held) == 3
    first, *rest = [each["name"] for each in held]
    gone = cli.ok("release", first, "-o", "json").json
    assert (gone["name"], gone["state"], gone["host"]) == (first, None, None)
    assert gone["request"]
    assert cli.ok("list", "-o", "name").names == sorted(rest)


def test_list_filters(pair: Pair, name: str) -> None:
    """Names are listed in order, by host, state and type."""
    cli = pair[0]
    held = cli.ok("reserve", "-o", "name").out.strip()
    cli.ok("create", name, "--type", TYPE, "--host", "gpu02")
    assert cli.ok("list", "-o", "name").names == sorted([held, name])
    assert cli.ok("list", "--host", "gpu01", "-o", "json").json == []
    assert cli.ok("list", "--host", "gpu02", "-o", "name").names == [name]
    assert cli.ok("list", "--state", "reserved", "-o", "name").names == [held]
    assert cli.ok("list", "--type", TYPE, "-o", "name").names == [name]
    assert cli.ok("list", "--type", "none", "-o", "name").names == []
    header, *rows = cli.ok("list").out.splitlines()
    assert header.split() == ["NAME", "HOST", "PARENT", "TYPE", "STATE"]
    assert [row.split()[0] for row in rows] == sorted([held, name])
    cli.ok("remove", name)
    cli.ok("release", held)


def test_an_error_is_an_object_with_json(pair: Pair, name: str) -> None:
    """With -o json, before or after the command, an error is an object with the holder."""
    cli, gpu01, _ = pair
    cli.ok("create", name, "--type", TYPE, "--host", "gpu01")
    args = ("create", name, "--type", TYPE)
    for done in (cli.run("-o", "json", *args), cli.run(*args, "--output=json")):
        error = json.loads(done.err)
        assert (done.code, done.out) == (4, "")
        assert list(error) == ["error", "errno", "name", "holder", "message"]
        assert (error["error"], error["errno"], error["name"]) == ("EEXIST", 17, name)
        holder = {"host": "gpu01", "parent": gpu01.parents[0], "state": "active"}
        assert error["holder"] == holder
    cli.ok("remove", name)


def test_every_failure_names_its_name(cli: Cli) -> None:
    """Of many that fail for one reason, each object says which name it is about."""
    names = [str(uuid.uuid4()) for _ in range(2)]
    stdin = "\n".join(json.dumps({"name": name, "type": "none"}) for name in names)
    done = cli.run("create", "--from", "-", "-o", "json", stdin=stdin)
    assert (done.code, done.json) == (3, [])
    assert [json.loads(line)["name"] for line in done.err.splitlines()] == names
    text = cli.run("create", "--from", "-", stdin=stdin)
    assert all(name in one_line(text, "ENOENT") for name in names)


def test_hosts_parents_and_types(pair: Pair, name: str) -> None:
    """What the cluster has is told host by host, parent by parent, type by type."""
    cli, gpu01, gpu02 = pair
    cli.ok("create", name, "--type", TYPE, "--host", "gpu02")
    hosts = cli.ok("hosts", "-o", "json").json
    assert [list(host) for host in hosts] == [
        ["host", "session", "boot_id", "version", "claims", "troubles"]
    ] * 2
    assert [host["claims"]["active"] for host in hosts] == [0, 1]
    assert cli.ok("hosts", "-o", "name").names == ["gpu01", "gpu02"]
    parents = cli.ok("parents", "--host", "gpu02", "-o", "json").json
    assert [(each["host"], each["parent"]) for each in parents] == [
        ("gpu02", parent) for parent in gpu02.parents
    ]
    (offer,) = parents[1]["types"]
    assert list(offer) == ["type", "available", "device_api", "name", "description"]
    assert (offer["type"], offer["available"]) == (TYPE, 16)
    assert cli.ok("parents", "-o", "name").names == [
        f"{host.name}/{parent}" for host in (gpu01, gpu02) for parent in host.parents
    ]
    (of_type,) = cli.ok("types", "-o", "json").json
    assert list(of_type) == ["type", "available", "parents", "device_api", "name"]
    assert (of_type["type"], of_type["parents"]) == (TYPE, 4)
    for command in ("hosts", "parents", "types"):
        assert TYPE in cli.ok(command).out or command == "hosts"
    cli.ok("remove", name)


def test_check_tells_what_it_counted(cli: Cli) -> None:
    """`check` answers with what it looked at and what it found."""
    cli.ok("reserve", "--count", "2")
    assert cli.ok("check", "-o", "json").json == {
        "ok": True,
        "names": 2,
        "claims": 0,
        "findings": [],
    }


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_progress_is_for_terminals(pair: Pair, quiet: tuple[str, ...]) -> None:
    """Many creates show their progress to somebody at a terminal, unless he wants it quiet."""
    cli = pair[0]
    near, far = pty.openpty()
    creating = subprocess.Popen(
        (
            sys.executable,
            "-m",
            "cli",
            "create",
            "--type",
            TYPE,
            "--count",
            "3",
            "-o",
            "name",
            *quiet,
        ),
        env=cli.environment(),
        stdout=subprocess.PIPE,
        stderr=far,
        text=True,
    )
    names = ended(creating).names
    os.write(far, b"\n")  # something to read, if it was silent
    shown = os.read(near, 65536).decode()
    for end in (near, far):
        os.close(end)
    assert ("mdevns create" in shown) == (not quiet)
    cli.ok("remove", *names)


def test_nobody_reads_to_the_end(cli: Cli) -> None:
    """`list | head` is quiet, and ends well."""
    cli.ok("reserve", "--count", "3000", "-q")
    shell = f"{sys.executable} -m cli list | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ("bash", "-c", shell), env=cli.environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()][::2] == ["NAME", "0"]
    assert len(cli.ok("list", "-o", "json").json) == 3000


def test_wide_shows_more_and_cuts_nothing(pair: Pair, name: str) -> None:
    """`-o wide` is the table with more columns, however long what stands in them is."""
    cli = pair[0]
    request = "r" * 64
    cli.ok("create", name, "--type", TYPE, "--persistent", "--request", request)
    for args, more in (
        (("list", "--host", "gpu01"), (request, "persistent", "ATTRIBUTES")),
        (("list",), (request, "SINCE")),
        (
            ("hosts",),
            ("BOOT ID", "EPOCH", pair[0].read(pair[0].keys.identity("gpu01"))["machine_id"]),
        ),
        (("parents",), ("DESCRIPTION", "alive")),
    ):
        table, wide = cli.ok(*args).out, cli.ok(*args, "-o", "wide").out
        assert all(word in wide for word in more), wide
        for short, long in zip(table.splitlines(), wide.splitlines(), strict=True):
            assert long.split()[: len(short.split())] == short.split()
    cli.ok("remove", name)


def test_yaml_is_the_same_object_as_json(pair: Pair, name: str) -> None:
    """`-o yaml` says what `-o json` says, also of what looks like a number or a truth."""
    cli = pair[0]
    cli.ok("create", name, "--type", TYPE, "--request", "1e5", "--attr", "vgpu_params=yes")
    for args in (["list"], ["show", name], ["hosts"], ["parents"], ["types"], ["check"], ["audit"]):
        out = cli.ok(*args, "-o", "yaml").out
        assert yaml.safe_load(out) == cli.ok(*args, "-o", "json").json
        assert out.startswith("---\n")
    assert "request: '1e5'" in cli.ok("show", name, "-o", "yaml").out
    assert yaml.safe_load(cli.ok("list", "--type", "none", "-o", "yaml").out) == []
    for args in (["show", str(uuid.uuid4())], ["create", name, "--type", TYPE], ["creat"]):
        told, same = (cli.run(*args, "-o", form) for form in ("yaml", "json"))
        assert (told.code, told.out) == (same.code, same.out)
        assert yaml.safe_load(told.err) == json.loads(same.err)
    cli.ok("remove", name)


@pytest.mark.parametrize("command", ["hosts", "parents"])
def test_a_terminal_shows_bars_of_what_is_full(pair: Pair, name: str, command: str) -> None:
    """Somebody at a terminal sees how full each is; what is no terminal gets plain numbers."""
    cli = pair[0]
    cli.ok("create", name, "--type", TYPE, "--host", "gpu01")
    assert not {"FULL", "%"}.intersection(cli.ok(command).out.split())
    near, far = pty.openpty()
    process = subprocess.run(
        (sys.executable, "-m", "cli", command),
        env=cli.environment(TERM="xterm-256color"),
        stdin=subprocess.DEVNULL,
        stdout=far,
        check=True,
    )
    shown = os.read(near, 65536).decode()
    for end in (near, far):
        os.close(end)
    assert process.returncode == 0
    rows = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown.splitlines()]
    column = rows[0].index("FULL")
    bars = [row[column:].split("%")[0].split() for row in rows[1:]]
    assert len(bars) == {"hosts": 2, "parents": 4}[command]
    assert max(share for _, share in bars) == {"hosts": "3", "parents": "6"}[command]
    cli.ok("remove", name)
