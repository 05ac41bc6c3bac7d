"""Where callout and notifier are put, for an mdevctl that asks in order and for one before."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from cli.scripts import Scripts
from coordinator import __version__
from coordinator.errors import NotFound
from coordinator.fitness import Level
from tests.support.local_http import served
from tests.support.mdevctl_root import Root

if TYPE_CHECKING:
    from pathlib import Path

USR, ETC = "usr/lib/mdevctl/scripts.d", "etc/mdevctl.d/scripts.d"
VENDOR = f"{ETC}/callouts/10-vendor"


@pytest.fixture(params=["1.2.0", "1.3.0", "1.4.0"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Root:
    """A host's root with mdevctl of a version."""
    return Root(tmp_path, request.param)


@pytest.fixture
def old(tmp_path: Path) -> Root:
    """One whose mdevctl asks in no order."""
    return Root(tmp_path, "1.2.0")


@pytest.fixture
def new(tmp_path: Path) -> Root:
    """One whose mdevctl asks in order, /usr/lib first."""
    return Root(tmp_path, "1.4.0")


def tree(root: Root) -> dict[str, str]:
    """All scripts, by their place."""
    files = [path for base in (USR, ETC) for path in (root.path / base).rglob("*")]
    return {str(path.relative_to(root.path)): path.read_text() for path in files if path.is_file()}


def faults(root: Root) -> list[tuple[str, str]]:
    """What is not as it should be: kind and detail."""
    found = root.scripts.findings()
    return [(one.kind, one.detail) for one in found if one.level is not Level.NOTE]


def test_both_are_put_where_mdevctl_looks_first(root: Root) -> None:
    """Each whole, root's own, mode 755, for this agent's socket, and with nothing beside it."""
    base = ETC if root.version == "1.2.0" else USR
    told = list(root.scripts.install())
    assert list(tree(root)) == [f"{base}/{kind}/00-mdevns" for kind in ("callouts", "notifiers")]
    assert told == [f"put in place: {root.path / place}" for place in tree(root)]
    for path, runs_in in ((root.callout, "/usr/bin/python3 -IS"), (root.notifier, "/bin/sh")):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o755, os.geteuid())
        first, said, *_ = path.read_text().splitlines()
        assert (first, said.startswith(f"# mdevns {__version__} ")) == (f"#!{runs_in}", True)
    assert f'SOCKET = "{root.path}/agent.sock"' in root.callout.read_text().splitlines()
    assert faults(root) == []
    scripts = root.scripts
    assert (scripts.version, scripts.is_first) == (root.version, True)
    assert (scripts.callout, scripts.notifier) == (root.callout, root.notifier)


def test_again_changes_nothing(root: Root) -> None:
    """What stands as it should is left as it is."""
    root.vendor(VENDOR, "exit 0")
    list(root.scripts.install())
    before = {path: path.stat().st_mtime_ns for path in (root.callout, root.notifier)}
    assert list(root.scripts.install()) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_was_there_is_there_again_afterwards(root: Root) -> None:
    """Uninstalling leaves every script as it was before installing, and nothing else."""
    root.vendor(VENDOR, "exit 0")
    root.vendor(f"{ETC}/notifiers/10-vendor", "exit 0")
    root.vendor(f"{USR}/callouts/10-vendor", "exit 1")
    before = tree(root)
    list(root.scripts.install())
    assert tree(root) != before
    list(root.scripts.uninstall())
    assert tree(root) == before
    assert not list((root.path / ETC).glob("*mdevns*"))
    assert list(root.scripts.uninstall()) == []


def test_where_no_order_is_kept_the_others_are_put_aside(old: Root) -> None:
    """Ours is the only callout then, and asks them; notifiers, which are all called, stay."""
    old.vendor(VENDOR, "exit 7")
    old.vendor(f"{ETC}/notifiers/10-vendor", "exit 0")
    told = list(old.scripts.install())
    aside = old.path / ETC / "callouts-of-mdevns/10-vendor"
    assert told[-1] == f"put aside, ours asks it: {old.path / VENDOR} -> {aside}"
    assert [path.name for path in old.callout.parent.iterdir()] == ["00-mdevns"]
    assert len(list(old.notifier.parent.iterdir())) == 2
    assert old.call("get", "attributes").returncode == 7
    assert [(one.kind, one.subject) for one in old.scripts.findings() if one.kind == "aside"] == [
        ("aside", str(aside))
    ]
    assert faults(old) == []


def test_where_an_order_is_kept_nothing_is_moved(new: Root) -> None:
    """Ours sorts first, so the others stay where they are."""
    new.vendor(VENDOR, "exit 7")
    new.vendor(f"{USR}/callouts/10-vendor", "exit 2")
    before = tree(new)
    list(new.scripts.install())
    assert tree(new).items() >= before.items()
    assert new.call("get", "attributes").returncode == 7
    assert faults(new) == []


def test_a_script_that_comes_later_is_told(root: Root) -> None:
    """One that may be asked before ours is a fault, which another install mends where it can."""
    list(root.scripts.install())
    root.vendor(VENDOR, "exit 0")
    if root.in_order:
        assert faults(root) == []
        root.vendor(f"{USR}/callouts/00-first", "exit 0")
    assert [kind for kind, _ in faults(root)] == ["order"]
    assert not root.scripts.is_first
    list(root.scripts.install())
    assert root.scripts.is_first != root.in_order


def test_a_name_that_is_aside_already_is_not_overwritten(old: Root) -> None:
    """Neither when it is put aside nor when it is put back; both are told."""
    old.vendor(VENDOR, "exit 1")
    list(old.scripts.install())
    later = old.vendor(VENDOR, "exit 2")
    texts = set(tree(old).values())
    (told,) = old.scripts.install()
    assert told.startswith("left where it is")
    assert told.endswith(str(later))
    told, *_ = list(old.scripts.uninstall())
    assert told.startswith("left aside")
    assert {text for text in texts if "put this here" not in text} == set(tree(old).values())


def test_an_upgrade_of_mdevctl_moves_ours(old: Root) -> None:
    """After an upgrade another install puts ours where the new mdevctl looks, and only there."""
    old.vendor(VENDOR, "exit 0")
    list(old.scripts.install())
    old.write("usr/bin/mdevctl", "#!/bin/sh\necho mdevctl 1.4.0\n")
    new = old.scripts
    old.vendor(f"{USR}/callouts/50-vendor", "exit 0")
    assert ("order" in dict(faults(old)), new.is_first) == (True, False)
    list(new.install())
    assert sorted(tree(old)) == sorted(
        [
            VENDOR,
            *(f"{USR}/callouts/{name}" for name in ("00-mdevns", "50-vendor")),
            f"{USR}/notifiers/00-mdevns",
        ]
    )
    assert faults(old) == []


def test_what_is_stale_or_edited_is_told_and_mended(root: Root) -> None:
    """A script of another version or socket, an edited one or one not to be run is a fault."""
    list(root.scripts.install())
    ours = root.callout.read_text()
    for text, says in (
        (
            ours.replace(f"mdevns {__version__} ", "mdevns 0.0.9 "),
            "is of mdevns 0.0.9, and this is",
        ),
        (ours.replace("/agent.sock", "/other.sock"), "edited or for another socket"),
        ("#!/bin/sh\n", "nothing that mdevns wrote"),
    ):
        root.callout.write_text(text)
        ((kind, detail),) = faults(root)
        assert kind == "callout"
        assert says in detail
        list(root.scripts.install())
        assert root.callout.read_text() == ours
    notifier = root.notifier.read_text()
    # It was the same script as the callout once.
    root.notifier.write_text(ours.replace(f"mdevns {__version__} ", "mdevns 0.0.9 "))
    ((kind, detail),) = faults(root)
    assert (kind, "is of mdevns 0.0.9, and this is" in detail) == ("notifier", True)
    list(root.scripts.install())
    assert root.notifier.read_text() == notifier
    root.notifier.chmod(0o644)
    assert [kind for kind, _ in faults(root)] == ["notifier"]
    list(root.scripts.install())
    assert faults(root) == []
    root.notifier.unlink()
    assert [kind for kind, _ in faults(root)] == ["notifier"]


def test_an_edited_notifier_is_told_for_what_it_is(new: Root) -> None:
    """It knows of no socket, so it is of none but this one."""
    list(new.scripts.install())
    new.notifier.write_text(new.notifier.read_text() + "exit 1\n")
    ((kind, detail),) = faults(new)
    assert (kind, "edited, and this is" in detail) == ("notifier", True)


@pytest.mark.parametrize("folder", ["ä", 'a"b', "a\\1", "a\\n"])
def test_the_agents_socket_may_lie_anywhere(new: Root, folder: str) -> None:
    """The callout has its path as it is, whatever is in it."""
    (new.path / folder).mkdir()
    scripts = Scripts(new.path, new.path / folder / "agent.sock")
    list(scripts.install())
    with served(scripts.socket) as agent:
        assert new.call("pre", "start").returncode == 0
    assert agent.heard == [("pre", "start", "none")]


def test_a_host_without_python_is_told(root: Root) -> None:
    """What cannot be run is skipped by mdevctl, which goes on."""
    list(root.scripts.install())
    (root.path / "usr/bin/python3").unlink()
    assert [kind for kind, _ in faults(root)] == ["python"]


def test_an_mdevctl_that_cannot_be_run_is_told_by_its_directories(root: Root) -> None:
    """A root of another machine is served all the same."""
    root.write("usr/bin/mdevctl", "no program of this machine", 0o644)
    scripts = root.scripts
    assert (scripts.version, scripts.asks_in_order) == (None, root.in_order)
    list(scripts.install())
    assert scripts.callout == root.callout


def test_without_mdevctl_there_is_nothing_to_do(tmp_path: Path) -> None:
    """It is told, and nothing was written."""
    scripts = Scripts(tmp_path, tmp_path / "agent.sock")
    for act in (scripts.install, scripts.findings):
        with pytest.raises(NotFound, match="mdevctl is not installed here"):
            list(act())
    assert list(tmp_path.iterdir()) == []
