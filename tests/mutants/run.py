"""Put each deliberate defect into a copy of the tree and have the tests kill it.

    python -m tests.mutants.run [--jobs N] [--all] [ID…]

Prints what killed each, after how many seconds. Exit code 1 when one survives, no longer
applies, or was killed by a test that fails without it too.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mutants.defects import Defect, Stale, defects
from tests.mutants.killing import ROOT, WIDEST, Fate, Trees, Verdict, failing, try_to_kill
from tests.mutants.table import line, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Trial", "failed", "main", "suites"]

# Kinds of tests, by where they are; what is in none of the others is in the first.
_KINDS = {"tests": "", "model": "tests/model", "sim": "tests/sim"}


@dataclass(frozen=True, slots=True)
class Trial:
    """A defect, and what each kind of test made of it (or the first that killed it)."""

    defect: Defect
    verdicts: dict[str, Verdict]
    stale: str = ""

    @property
    def is_killed(self) -> bool:
        """Whether some test failed of it."""
        return any(verdict.fate is Fate.KILLED for verdict in self.verdicts.values())


def suites(defect: Defect, *, every: bool, root: Path = ROOT) -> dict[str, list[str]]:
    """What is run against a defect, by kind of test; `every` kind for itself, or until a kill."""
    if not every:
        return {"tests": [*defect.by, *WIDEST]}
    by: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for selection in defect.by:
        kinds = [kind for kind, place in _KINDS.items() if place and selection.startswith(place)]
        by[kinds[0] if kinds else "tests"].append(selection)
    for kind, place in _KINDS.items():
        if place and (root / place).is_dir():
            by[kind].append(place)
    return {kind: selections for kind, selections in by.items() if selections}


def _tried(trees: Trees, defect: Defect, *, every: bool) -> Trial:
    verdicts: dict[str, Verdict] = {}
    try:
        for kind, selections in suites(defect, every=every).items():
            verdicts[kind] = try_to_kill(defect, trees, selections)
    except Stale as error:
        return Trial(defect, verdicts, str(error))
    return Trial(defect, verdicts)


def _trials(trees: Trees, chosen: Sequence[Defect], *, jobs: int, every: bool) -> list[Trial]:
    trials = []
    pool = ThreadPoolExecutor(jobs)
    try:
        for trial in pool.map(partial(_tried, trees, every=every), chosen):
            print(line(trial), flush=True)  # noqa: T201 - a program of its own
            trials.append(trial)
    finally:
        pool.shutdown(cancel_futures=True)  # once interrupted, what is under way and no more
    return trials


def _chosen(ids: Sequence[str], directory: Path | None) -> list[Defect]:
    known = {defect.id: defect for defect in (defects(directory) if directory else defects())}
    unknown = [each for each in ids if each not in known]
    if unknown:
        raise SystemExit(f"no such defect: {', '.join(unknown)}")
    return [known[each] for each in ids] if ids else list(known.values())


def failed(trials: Sequence[Trial], unsound: Sequence[str]) -> bool:
    """Whether something survived, or the killing of something proves nothing."""
    return bool(unsound) or any(trial.stale or not trial.is_killed for trial in trials)


def main(arguments: Sequence[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="tests.mutants.run", description="deliberate defects")
    parser.add_argument("--jobs", type=int, default=2, help="how many side by side")
    parser.add_argument("--all", action="store_true", help="what each kind of test makes of it")
    parser.add_argument("--data", type=Path, help="a directory of defects, instead of ours")
    parser.add_argument("ids", nargs="*", help="these alone")
    asked = parser.parse_args(arguments)
    with Trees.of() as trees:
        chosen = _chosen(asked.ids, asked.data)
        trials = _trials(trees, chosen, jobs=asked.jobs, every=asked.all)
        killers = {v.test for t in trials for v in t.verdicts.values() if v.fate is Fate.KILLED}
        unsound = failing(trees, sorted(killers)) if killers else []
    print_table(trials, unsound)
    return 1 if failed(trials, unsound) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
