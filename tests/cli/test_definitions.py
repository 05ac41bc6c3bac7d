"""`import mdevctl` and `export mdevctl`, with a host whose agent runs."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from tests.cli.driver import TYPE, Cli, Host, one_line
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.etcd

Pair = tuple[Cli, Host, Host]


def defined(root: Path, parent: str, name: str, start: str = "manual") -> Path:
    """A definition as mdevctl writes it."""
    path = root / "etc/mdevctl.d" / parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    attrs = [{"vgpu_params": "x=1"}]
    path.write_text(json.dumps({"mdev_type": TYPE, "start": start, "attrs": attrs}, indent=2))
    return path


def test_definitions_become_persistent_names(pair: Pair, tmp_path: Path, name: str) -> None:
    """What mdevctl had defined is defined, and made no sooner than mdevctl would; again is fine."""
    cli, host, _ = pair
    parent = host.parents[0]
    auto = str(uuid.uuid4())
    defined(tmp_path, parent, name)
    defined(tmp_path, parent, auto, "auto")
    done = cli.run("import", "mdevctl", "--host", "gpu01", "--root", str(tmp_path), "-o", "json")
    assert (done.code, done.err) == (0, "2 definitions on this host\n")
    by_name = {one["name"]: one for one in done.json}
    assert set(by_name) == {name, auto}
    for claim in by_name.values():
        assert (claim["host"], claim["parent"]) == ("gpu01", parent)
        assert (claim["persistent"], claim["attrs"]) == (True, [["vgpu_params", "x=1"]])
    assert (by_name[name]["autostart"], by_name[auto]["autostart"]) == (False, True)
    again = cli.run("import", "mdevctl", "--host", "gpu01", "--root", str(tmp_path), "-o", "json")
    assert again.code == 0
    assert [one["name"] for one in again.json] == [one["name"] for one in done.json]
    made = cli.ok("create", "--type", TYPE, "--host", "gpu01", "-o", "name").names
    assert ([cli.state(one) for one in (name, auto)], host.devices()) == (
        ["defined"] * 2,
        set(made),
    )
    cli.ok("remove", name, auto, *made)


def test_each_name_has_its_own_answer(pair: Pair, tmp_path: Path, name: str) -> None:
    """One that is held elsewhere and a torn file are told, and the others are taken over."""
    cli, host, other = pair
    first, second = host.parents
    held = cli.ok("create", "--type", TYPE, "--host", "gpu02", "-o", "name").out.strip()
    defined(tmp_path, first, held)
    defined(tmp_path, first, name)
    defined(tmp_path, second, name)
    torn = defined(tmp_path, second, str(uuid.uuid4()))
    torn.write_text(torn.read_text()[:20])
    done = cli.run("import", "mdevctl", "--host", "gpu01", "--root", str(tmp_path), "-o", "name")
    assert (done.code, done.names) == (4, [name])
    errors = done.err.splitlines()
    assert f"EEXIST: {held}: held by gpu02/" in done.err
    assert f"EEXIST: {name}: held by gpu01/{first} (defined)" in done.err
    assert f"EINVAL: {torn}: is no definition" in errors[-2]
    assert len(errors) == 4
    assert held in other.devices()
    cli.ok("undefine", name)
    cli.ok("remove", held)


def test_a_device_that_was_adopted_is_kept(pair: Pair, tmp_path: Path, name: str) -> None:
    """A device that mdevctl had started before is persistent from then on."""
    cli, host, _ = pair
    parent = host.parents[0]
    simulated.create(host.directory, parent, TYPE, name)
    wait_until(lambda: cli.state(name) == "active", 60)
    defined(tmp_path, parent, name, "auto")
    done = cli.run("import", "mdevctl", "--host", "gpu01", "--root", str(tmp_path), "-o", "json")
    (claim,) = done.json
    assert (claim["state"], claim["adopted"]) == ("active", True)
    assert (claim["persistent"], claim["autostart"]) == (True, True)
    cli.ok("remove", name)


def test_persistent_names_become_definitions(pair: Pair, tmp_path: Path, name: str) -> None:
    """Each is a file as mdevctl writes it; transient names and other hosts' are none."""
    cli, host, _ = pair
    parent = host.parents[0]
    where = (
        "--type",
        TYPE,
        "--parent",
        parent,
        "--attr",
        "vgpu_params=ä",
        "--attr",
        "vgpu_params=1",
    )
    cli.ok("define", name, "--host", "gpu01", "--autostart", *where)
    cli.ok("define", "--host", "gpu02", *where)
    cli.ok("create", "--host", "gpu01", "--type", TYPE)
    wait_until(lambda: cli.state(name) == "active", 60)
    to = ("export", "mdevctl", "--host", "gpu01", "--root", str(tmp_path), "-o", "json")
    path = tmp_path / "etc/mdevctl.d" / parent / name
    assert cli.ok(*to).json == [{"name": name, "file": str(path), "written": True}]
    assert json.loads(path.read_text()) == {
        "mdev_type": TYPE,
        "start": "auto",
        "attrs": [{"vgpu_params": "ä"}, {"vgpu_params": "1"}],
    }
    assert cli.ok(*to).json == [{"name": name, "file": str(path), "written": False}]
    path.write_text(path.read_text().replace("auto", "manual"))
    refused = cli.run(*to[:-2])
    assert (refused.code, refused.out.split()) == (4, ["NAME", "FILE", "WRITTEN"])
    assert "--force" in one_line(refused, "EEXIST")
    assert "manual" in path.read_text()
    assert cli.ok(*to, "--force").json[0]["written"]
    assert "auto" in path.read_text()
    back = cli.run("import", "mdevctl", "--host", "gpu01", "--root", str(tmp_path), "-o", "name")
    assert (back.code, back.names) == (0, [name])


def test_what_goes_with_mdevctl_alone_is_told(pair: Pair, tmp_path: Path) -> None:
    """Nobody's definitions are looked for by mistake, nor those of a host that is not there."""
    cli = pair[0]
    for args in (
        ("export", "--force"),
        ("export", "--host", "gpu01"),
        ("import", "-", "--root", str(tmp_path)),
    ):
        done = cli.run(*args)
        assert done.code == 2
        assert "goes with mdevctl alone" in one_line(done, "EINVAL")
    done = cli.run("import", "mdevctl", "--root", str(tmp_path))
    assert done.code == 3
    assert "mdevctl is not installed here" in one_line(done, "ENOENT")
    defined(tmp_path, "p0", str(uuid.uuid4()))
    done = cli.run("import", "mdevctl", "--host", "gpu99", "--root", str(tmp_path))
    assert done.code == 3
    assert "no such host" in one_line(done, "ENOENT")
