"""The deliberate defects: each applies still, some are killed here, and what survives is told."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.mutants.defects import Defect, Stale, defects
from tests.mutants.killing import ROOT, Fate, Trees, end_all_of, judge, try_to_kill
from tests.mutants.run import Trial, failed, suites

if TYPE_CHECKING:
    from pathlib import Path

DEFECTS = defects()
# One of each kind: a compare, what a decision waits for, and a lock.
SAMPLE = ("take-without-the-name", "in-flight-not-waited-for", "dead-agents-order")


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.id for defect in DEFECTS])
def test_each_defect_applies_to_the_code_as_it_is(defect: Defect) -> None:
    """Its text stands at one place, and what comes out is another program that parses."""
    assert defect.applied((ROOT / defect.file).read_text())


def test_each_defect_has_an_id_of_its_own_and_tests_that_exist() -> None:
    """So that the table can be read, and a test that moved away is noticed."""
    assert len({defect.id for defect in DEFECTS}) == len(DEFECTS) >= 25
    paths = {selection.split()[0] for defect in DEFECTS for selection in defect.by}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.long
def test_a_sample_is_killed() -> None:
    """The tests that are said to kill them do, and pass where there is no defect."""
    with Trees.of() as trees:
        for defect in (each for each in DEFECTS if each.id in SAMPLE):
            verdict = try_to_kill(defect, trees, defect.by)
            assert verdict.fate is Fate.KILLED, verdict.output
            assert verdict.test.split("::")[0] in defect.by


def made_up(old: str, new: str) -> Defect:
    return Defect(
        id="made-up",
        what="something",
        breaks="nothing",
        file="coordinator/sequences.py",
        old=old,
        new=new,
        by=("tests/unit/test_placement.py",),
    )


@pytest.mark.long
def test_what_no_test_minds_is_told_as_a_survivor() -> None:
    """What survives makes the whole fail."""
    other = made_up('__all__ = ["batched"]', '__all__ = ["batched"]\nHARMLESS = True')
    with Trees.of() as trees:
        verdict = try_to_kill(other, trees, other.by)
    assert verdict.fate is Fate.SURVIVED
    assert failed([Trial(other, {"tests": verdict})], unsound=[])


@pytest.mark.parametrize("old", ["no such text", "e"], ids=["gone", "at many places"])
def test_a_defect_whose_place_has_moved_is_stale(old: str, tmp_path: Path) -> None:
    """It is told, and nothing is written: a defect that is not there would survive unseen."""
    (tmp_path / "coordinator").mkdir()
    file = tmp_path / "coordinator/sequences.py"
    file.write_text("one = two\nthree = 3\n")
    with pytest.raises(Stale):
        made_up(old, "x").apply(tmp_path)
    assert file.read_text() == "one = two\nthree = 3\n"
    stale = Trial(made_up(old, "x"), {}, "it is stale")
    assert failed([stale], unsound=[])


@pytest.mark.long
def test_what_only_hangs_or_cannot_be_run_is_no_kill() -> None:
    """A test has to fail of it by what it expects; a deadline of its own counts, and is told."""
    line = "FAILED tests/unit/test_a.py::test_b - "
    assert judge(1, f"{line}assert 1 == 2\n", 1.0).fate is Fate.KILLED
    assert judge(1, f"{line}AssertionError: not within 5 s: x\n", 1.0).waited
    assert judge(1, f"{line}Failed: Timeout (>60.0s) from pytest-timeout.\n", 1.0).fate is Fate.HUNG
    assert judge(2, "ERROR tests/unit/test_a.py\n", 1.0).fate is Fate.BROKEN
    assert judge(5, "", 1.0).fate is Fate.BROKEN


@pytest.mark.long
def test_each_kind_of_test_is_asked_for_itself(tmp_path: Path) -> None:
    """With ALL=1 a kind that is there is run whole, after what the defect names of it."""
    (tmp_path / "tests/model").mkdir(parents=True)
    asked = suites(made_up("a", "b"), every=True, root=tmp_path)
    assert asked == {"tests": ["tests/unit/test_placement.py"], "model": ["tests/model"]}


def test_what_a_killed_pytest_has_left_is_ended(tmp_path: Path) -> None:
    """A worker that hangs goes with the copy that it was started from, and nobody else's."""
    tree, other = tmp_path / "one", tmp_path / "one-more"
    code = "import time; time.sleep(600)"
    left, stays = (
        subprocess.Popen(["python3", "-c", code, f"in {place!s}/run"]) for place in (tree, other)
    )
    try:
        end_all_of(tree)
        assert left.wait(60) == -signal.SIGKILL
        assert stays.poll() is None
    finally:
        stays.kill()
        stays.wait()
