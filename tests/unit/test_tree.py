"""The tree keeps its own rules: arrows go one way, tests say what they test and never wait."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "coordinator": {"coordinator"},
    "agent": {"agent", "coordinator"},
    "cli": {"cli", "agent", "coordinator"},
}
OURS = {*MAY_IMPORT, "deploy", "tests"}
FORBIDDEN_IN_TESTS = {
    "monkeypatch.setattr": "hand in a fake",
    "mock": "hand in a fake",
    "time.sleep": "wait for the thing itself",
    "asyncio.sleep": "wait for the thing itself",
}
# The one place that looks again and again, with a deadline, on behalf of all tests.
WAITS = ROOT / "tests/support/waiting.py"
# In brackets, so that this file does not match itself. /root/ alone is any machine's.
MACHINE_PATHS = re.compile(r"[/]work/|[/]home/\w|[/]root/\.|[/]tmp/v/")


def _python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imported(tree: ast.Module) -> set[str]:
    """The full names of all modules that are imported anywhere in it, and what from them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _used(tree: ast.Module) -> set[str]:
    """What is reached through one dot (`time.sleep`), and what is imported."""
    dotted = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return dotted | {part for name in _imported(tree) for part in (name, name.rpartition(".")[2])}


def _tests(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    ]


def _tracked_files() -> list[Path]:
    """What git tracks or would track."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"git cannot say what is tracked here: {answer.stderr.strip()}")
    return [ROOT / name for name in answer.stdout.split("\0") if name]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_arrows_go_one_way(package: str) -> None:
    """The cli knows the agent, the agent knows the coordinator, and nobody looks back."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _python_files(package)
        for name in sorted(_imported(_parse(path)))
        if name.partition(".")[0] in OURS - MAY_IMPORT[package]
    ]
    assert not wrong


def test_every_test_says_what_it_tests() -> None:
    """Every test has a docstring of one sentence."""
    wrong = [
        f"{path.relative_to(ROOT)}:{test.lineno} {test.name}"
        for path in _python_files("tests")
        for test in _tests(_parse(path))
        if not _is_sentence(ast.get_docstring(test) or "")
    ]
    assert not wrong


def _is_sentence(text: str) -> bool:
    """Whether it is one sentence, over one or more lines."""
    words = " ".join(text.split())
    return words.endswith((".", "?", "!")) and not re.search(r"[.?!] [A-Z]", words)


def test_no_test_patches_or_sleeps() -> None:
    """No file in tests patches an attribute, uses a mock or sleeps."""
    wrong = [
        f"{path.relative_to(ROOT)} uses {name}: {instead}"
        for path in _python_files("tests")
        if path != WAITS
        for used in [_used(_parse(path))]
        for name, instead in FORBIDDEN_IN_TESTS.items()
        if name in used
    ]
    assert not wrong


def test_no_file_knows_this_machine() -> None:
    """No tracked file holds a path of the machine it was written on."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in _tracked_files()
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert not wrong
