"""A defect in a copy of the tree, and the tests that are to fail of it.

The tree itself is never written to. A copy has what git knows of or would, so that a test
that is being written counts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.mutants.defects import Defect

__all__ = ["ROOT", "Fate", "Trees", "Verdict", "end_all_of", "failing", "judge", "try_to_kill"]

ROOT = Path(__file__).parents[2]
SELECTION_SECONDS = 180.0  # for one selection of tests
EVERYTHING_SECONDS = 900.0  # for the widest one
_TEST_SECONDS = 60  # after which a test counts as hung: its own deadlines are shorter
_END_SECONDS = 20.0  # for pytest to end what its tests have started, once it is interrupted

# What is run where nothing that a defect names has killed it.
WIDEST = ("tests/unit tests/model", "tests/agent")

_FAILED = re.compile(r"^(?:FAILED|ERROR) (?P<test>\S+::.+?)(?: - (?P<why>.*))?$", re.MULTILINE)


class Fate(StrEnum):
    """What became of a defect."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    HUNG = "HUNG"  # no test of its own failed in time: that is no evidence
    BROKEN = "BROKEN"  # the tests could not be run


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a defect: the first test that failed of it, and after how many seconds.

    `waited`: what failed was the test's own deadline for something that never came.
    """

    fate: Fate
    seconds: float
    test: str = ""
    waited: bool = False
    output: str = ""


@dataclass(frozen=True, slots=True)
class Trees:
    """Where copies of the tree are made: `clean` is one without any defect."""

    directory: Path

    @property
    def clean(self) -> Path:
        """The copy without a defect."""
        return self.directory / "clean"

    @classmethod
    @contextmanager
    def of(cls, root: Path = ROOT) -> Iterator[Trees]:
        """Copies of the tree under `root`, gone afterwards."""
        with TemporaryDirectory(prefix="mutants-") as directory:
            trees = cls(Path(directory))
            for path in _known_to_git(root):
                (trees.clean / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / path, trees.clean / path)
            # Compiled once, and found by what is in the file: two that are written within a
            # second and are of one length look the same otherwise.
            compileall = ("-m", "compileall", "-q", "--invalidation-mode", "checked-hash")
            subprocess.run([sys.executable, *compileall, trees.clean], check=True)
            yield trees

    @contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """A copy of the clean one."""
        tree = self.directory / name
        shutil.copytree(self.clean, tree)
        try:
            yield tree
        finally:
            shutil.rmtree(tree, ignore_errors=True)


def _known_to_git(root: Path) -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return [path for path in listed.stdout.split("\0") if path and (root / path).is_file()]


def try_to_kill(defect: Defect, trees: Trees, selections: Sequence[str]) -> Verdict:
    """Run selections of tests against a defect, one after the other, until one fails.

    Raises:
        Stale: the defect does not apply.
    """
    began = time.monotonic()
    verdict = Verdict(Fate.SURVIVED, 0.0)
    with trees.copy(defect.id) as tree:
        defect.apply(tree)
        for selection in selections:
            wide = SELECTION_SECONDS if selection in defect.by else EVERYTHING_SECONDS
            verdict = _run(tree, selection, wide, began)
            if verdict.fate in (Fate.KILLED, Fate.BROKEN):
                break
    return verdict


def failing(trees: Trees, tests: Sequence[str]) -> list[str]:
    """Which of these tests fail without any defect: what they have killed is no evidence."""
    command = _command([*tests], stop=False)
    run = subprocess.run(
        command, cwd=trees.clean, env=_environment(trees.clean), capture_output=True, check=False
    )
    output = run.stdout.decode(errors="replace")
    failed = [match["test"] for match in _FAILED.finditer(output)]
    if run.returncode and not failed:
        raise AssertionError(f"the tests could not be run:\n{output[-4000:]}")
    return failed


def _run(tree: Path, selection: str, seconds: float, began: float) -> Verdict:
    process = subprocess.Popen(
        _command(_arguments(selection), stop=True),
        cwd=tree,
        env=_environment(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Verdict(Fate.HUNG, time.monotonic() - began, output=_interrupt(process))
    finally:
        process.kill()
        end_all_of(tree)
    return judge(process.returncode, output.decode(errors="replace"), time.monotonic() - began)


def end_all_of(tree: Path) -> None:
    """End every process that names a tree on its command line.

    Workers outlive their agent, and a pytest that was killed swept nothing.
    """
    named = re.compile(re.escape(os.fsencode(tree)) + rb"['/\0]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if named.search((process / "cmdline").read_bytes()):
                os.kill(int(process.name), signal.SIGKILL)


def judge(returncode: int, output: str, seconds: float) -> Verdict:
    """What a run of pytest says of a defect, from its exit code and its short summary."""
    if returncode == 0:
        return Verdict(Fate.SURVIVED, seconds)
    failed = _FAILED.search(output)
    if returncode != 1 or failed is None:  # nothing collected, or a file that does not import
        return Verdict(Fate.BROKEN, seconds, output=output)
    why = failed["why"] or ""
    if "Timeout (>" in why:  # pytest-timeout's, which is nobody's expectation
        return Verdict(Fate.HUNG, seconds, failed["test"], output=output)
    waited = "not within" in why or "TimeoutError" in why
    return Verdict(Fate.KILLED, seconds, failed["test"], waited, output)


def _interrupt(process: subprocess.Popen[bytes]) -> str:
    """End pytest so that it ends what its tests have started."""
    process.send_signal(signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return output.decode(errors="replace")


def _arguments(selection: str) -> list[str]:
    """`PATH… -k 'EXPRESSION'`, as a shell would have it."""
    paths, _, expression = selection.partition(" -k ")
    return [*paths.split(), *(["-k", expression.strip("'")] if expression else [])]


def _command(arguments: list[str], *, stop: bool) -> list[str]:
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=first", "--tb=short"]
    limit = f"--timeout={_TEST_SECONDS}"
    stopping = ["-x"] if stop else []
    return [sys.executable, "-m", "pytest", *options, limit, *stopping, *arguments]


def _environment(tree: Path) -> dict[str, str]:
    """Ours, with the tree's code first; what only CI asks for (no skips) is not asked here."""
    kept = {key: text for key, text in os.environ.items() if key != "CI"}
    return kept | {"PYTHONPATH": str(tree), "COLUMNS": "1000"}
