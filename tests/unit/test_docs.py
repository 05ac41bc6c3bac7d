"""The documents say what is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

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
