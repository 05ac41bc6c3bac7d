"""What a target of the Makefile installs before it runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree without an environment, with what the Makefile's stamps depend on."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(TOP / name, tmp_path)
    return tmp_path


def planned(tree: Path, target: str) -> list[str]:
    """The installations that make would run for a target."""
    command = ["make", "--dry-run", target]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "pip install" in line]


def stamp(tree: Path, *names: str) -> None:
    """Finish installations, in their order."""
    (tree / ".venv").mkdir(exist_ok=True)
    for name in names:
        (tree / ".venv" / name).touch()


def test_the_demo_installs_only_what_it_runs(tree: Path) -> None:
    """From nothing, the demo installs the package with etcd, and no tool of development."""
    (only,) = planned(tree, "demo")
    assert "'.[embedded]'" in only


@pytest.mark.parametrize("target", ["test", "check", ".venv"])
def test_the_tools_of_development_come_on_top(tree: Path, target: str) -> None:
    """What needs the tools of development installs them after what the demo runs."""
    first, second = planned(tree, target)
    assert "'.[embedded]'" in first
    assert "'.[embedded,dev]'" in second


def test_after_the_demo_only_the_tools_are_missing(tree: Path) -> None:
    """A test after a demo keeps the environment and adds to it."""
    stamp(tree, "run")
    (only,) = planned(tree, "test")
    assert "'.[embedded,dev]'" in only


def test_nothing_is_installed_twice(tree: Path) -> None:
    """A demo and a test after both have run install nothing."""
    stamp(tree, "run", "made")
    assert planned(tree, "demo") == []
    assert planned(tree, "test") == []
