"""`mdevctl install`, `status`, `uninstall`: what is printed, and how they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli import driver
from tests.cli.driver import Cli, Done, one_line
from tests.support.local_http import served
from tests.support.mdevctl_root import Root

if TYPE_CHECKING:
    from pathlib import Path

CLI = Cli(driver.NOWHERE, "x")


@pytest.fixture(params=["1.2.0", "1.4.0"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Root:
    """A host's root with mdevctl of a version."""
    return Root(tmp_path, request.param)


def mdevctl(root: Root, *args: str) -> Done:
    """The command, for this root and an agent with its socket there."""
    return CLI.run("mdevctl", *args, "--root", str(root.path), MDEVNS_AGENT_RUN_DIR=str(root.path))


def test_what_it_did_is_told_and_what_stands(root: Root) -> None:
    """Installing, looking and taking away, the store being nowhere, end with 0."""
    assert mdevctl(root, "status").code == 20
    done = mdevctl(root, "install")
    assert (done.code, done.out) == (0, "")
    assert f"put in place: {root.callout}\n" in done.err
    status = mdevctl(root, "status", "-o", "json")
    assert (status.code, status.err) == (0, "")
    assert {**status.json, "findings": []} == {
        "ok": True,
        "mdevctl": str(root.path / "usr/bin/mdevctl"),
        "version": root.version,
        "callout": str(root.callout),
        "notifier": str(root.notifier),
        "first": True,
        "socket": str(root.path / "agent.sock"),
        "findings": [],
    }
    assert [one["level"] for one in status.json["findings"]] == ["note"]  # Debian's udev rule
    table = mdevctl(root, "status")
    assert (table.code, table.out.splitlines()[-1]) == (0, "in place")
    assert "autostart never runs here" in table.out
    done = mdevctl(root, "uninstall")
    assert (done.code, done.out) == (0, "")
    assert f"taken away: {root.notifier}\n" in done.err
    status = mdevctl(root, "status")
    assert (status.code, status.out.splitlines()[-1]) == (20, "NOT in place")


def test_what_was_installed_asks_the_agent(root: Root) -> None:
    """What the command has put in place is what mdevctl runs."""
    mdevctl(root, "install")
    with served(root.path / "agent.sock") as agent:
        assert root.call("pre", "start").returncode == 0
    assert agent.heard == [("pre", "start", "none")]


def test_a_rival_is_told_at_once(root: Root) -> None:
    """An install that cannot make ours the first says so, exit 20."""
    rival = root.vendor("usr/lib/mdevctl/scripts.d/callouts/00-first", "exit 0")
    done = mdevctl(root, "install")
    assert done.code == (20 if root.in_order else 0)
    assert (str(rival) in done.out) == root.in_order


def test_without_mdevctl_it_is_one_line(tmp_path: Path) -> None:
    """There is nothing to install for; exit 3."""
    for act in ("install", "status"):
        done = CLI.run("mdevctl", act, "--root", str(tmp_path))
        assert (done.code, done.out) == (3, "")
        assert "name its root with --root" in one_line(done, "ENOENT")
