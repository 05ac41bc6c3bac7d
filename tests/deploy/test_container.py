"""deploy/container/Containerfile, as far as it can be held to the tree without a registry."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "deploy/container/Containerfile"


def instructions(keyword: str) -> list[str]:
    """What stands after each instruction of that kind."""
    return re.findall(rf"^{keyword} (.+)$", CONTAINERFILE.read_text(), re.MULTILINE)


def copied() -> set[str]:
    """What is copied from the checkout."""
    copies = [shlex.split(each) for each in instructions("COPY")]
    return {source for each in copies if not each[0].startswith("--from") for source in each[:-1]}


def test_what_is_copied_is_there_and_not_ignored() -> None:
    """Everything that the image is made of is in the tree, and the build is given it."""
    given = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert copied()
    assert copied() <= given
    assert all((ROOT / source).exists() for source in copied())


def test_all_packages_and_what_the_build_reads_are_copied() -> None:
    """A package that is added, or a file that the build names, is not forgotten."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    read = {project["project"]["readme"], *project["project"]["license-files"]}
    assert copied() == {*packages, *read, "pyproject.toml", "constraints.txt"}


def test_it_is_installed_as_by_the_script() -> None:
    """The image has the versions that were tested, as `deploy/install` has, and runs mdevns."""
    (pip,) = [each for each in instructions("RUN") if "pip install" in each]
    assert "-c constraints.txt ." in pip
    assert '-c "$source/constraints.txt" "$source"' in (ROOT / "deploy/install").read_text()
    assert [json.loads(each) for each in instructions("ENTRYPOINT")] == [["mdevns"]]


def test_an_agent_is_given_what_the_unit_gives_it() -> None:
    """The capabilities of the systemd unit, and its time to stop."""
    unit = (ROOT / "deploy/systemd/mdevns-agent.service").read_text()
    said = CONTAINERFILE.read_text()
    (capabilities,) = re.findall(r"^CapabilityBoundingSet=(.+)$", unit, re.MULTILINE)
    added = {f"CAP_{each}" for each in re.findall(r"--cap-add=(\w+)", said)}
    assert added == set(capabilities.split())
    assert re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE) == re.findall(
        r"--stop-timeout=(\d+)", said
    )
