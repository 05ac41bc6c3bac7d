"""The documents say what is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from cli.main import COMMANDS, load
from tests.mutants.defects import defects

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_protocols_picture_is_printed_from_the_table() -> None:
    """docs/protocol.md shows every transition that the code has, and no other."""
    printed = subprocess.run(
        [sys.executable, "-m", "coordinator.states"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert f"```mermaid\n{printed}```" in read("docs/protocol.md")


def test_the_tests_that_the_protocol_names_exist() -> None:
    """An argument that rests on a test rests on one that is there."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)", read("docs/protocol.md")):
        assert f"def {name}" in tests or list((ROOT / "tests").rglob(f"{name}.py")), name


def test_the_defects_that_the_protocol_names_exist() -> None:
    """What is shown by a deliberate defect is shown by one that is tried."""
    table = read("docs/protocol.md").partition("## What stands in etcd")[0]
    shown = [line.split("|")[3] for line in table.splitlines() if line.startswith("| ")][1:]
    named = re.findall(r"`([a-z]+(?:-[a-z]+)+)`", " ".join(shown))
    assert len(named) > 50
    assert set(named) <= {defect.id for defect in defects()}


def test_every_dependency_has_a_reason() -> None:
    """What pyproject.toml asks for is explained in docs/dependencies.md."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    reasons = read("docs/dependencies.md")
    for requirement in [*project["dependencies"], *extras["embedded"], *extras["dev"]]:
        package = re.split(r"[<>=;\[ ]", requirement)[0]
        named = {"protobuf": "protobuf", "grpc-stubs": "grpc", "types-protobuf": "protobuf"}
        assert named.get(package, f"`{package}`") in reasons, package


def test_links_lead_somewhere() -> None:
    """Every relative link of the documents is to a file that exists."""
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_make_targets_of_the_readme_exist() -> None:
    """A reader can call what the README names."""
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"make ([a-z]+)", read("README.md")))
    assert named - {"it"} <= targets


@pytest.mark.parametrize("name", ["demo", "hosts"])
def test_a_picture_is_whole_and_needs_nothing_else(name: str) -> None:
    """A picture is SVG that is in the README, fetches nothing, and knows nobody's machine."""
    text = (ROOT / f"docs/pictures/{name}.svg").read_text()
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - ours
    assert f"docs/pictures/{name}.svg" in (ROOT / "README.md").read_text()
    for elsewhere in ("@font-face", "url(http", "href="):
        assert elsewhere not in text
    assert not re.search(r"mdevns-demo-|\broot@", text)


FOR_OPERATORS = ("README.md", "docs/operations.md", "docs/security.md")


@pytest.mark.parametrize("document", FOR_OPERATORS)
def test_what_is_to_be_typed_exists(document: str) -> None:
    """Every command that a document names is there, with the options that are typed after it."""
    typed = re.findall(r"(?:^ {4,}|`|sudo )mdevns ([a-z]+)([^`\n#]*)", read(document), re.MULTILINE)
    assert typed
    for name, rest in typed:
        assert name in COMMANDS, name
        known = {option for param in _params(load(name)) for option in param.opts}
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in known, f"mdevns {name} {option}"


def _params(command: Any) -> list[Any]:
    """The parameters of a command, and of all commands of a group."""
    inner = getattr(command, "commands", {}).values()
    return [*command.params, *(param for each in inner for param in each.params)]


@pytest.mark.parametrize(
    "document", [*FOR_OPERATORS, "docs/kernel.md", "docs/metrics.md", "deploy/compose/README.md"]
)
def test_files_that_are_named_exist(document: str) -> None:
    """Every file of the tree that a document names is there."""
    for path in re.findall(r"(?<![\w/])((?:deploy|docs|tests)/[\w./-]*\w)", read(document)):
        assert (ROOT / path).exists() or "compose/pki" in path, path
