"""The table of defects: which promise each breaks, what killed it, after how long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.mutants.killing import Fate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.mutants.killing import Verdict
    from tests.mutants.run import Trial

__all__ = ["line", "print_table"]

_WIDTH = 400  # the table is for files and reports; a terminal may wrap it
_TAIL = 40  # so many last lines of the output go with a defect that was not killed


def line(trial: Trial) -> str:
    """What became of a defect, on one line."""
    if trial.stale:
        return f"STALE     {trial.stale}"
    told = (f"{kind}: {_told(verdict)}" for kind, verdict in trial.verdicts.items())
    return f"{trial.defect.id:32} {'; '.join(told)}"


def print_table(trials: Sequence[Trial], unsound: Sequence[str]) -> None:
    """Print the table and what is wrong, if anything is."""
    console = Console(width=_WIDTH, highlight=False)
    kinds = list(dict.fromkeys(kind for trial in trials for kind in trial.verdicts))
    table = Table(box=MARKDOWN, pad_edge=False)
    for column in ("defect", "breaks (design)", *(f"killed by ({k})" for k in kinds)):
        table.add_column(column, no_wrap=True)
    for trial in trials:
        told = (_told(trial.verdicts[k]) if k in trial.verdicts else "" for k in kinds)
        cells = (trial.defect.what, trial.defect.breaks, *told)
        table.add_row(*map(Text, cells))
    console.print(table)
    for problem in [*_problems(trials), *(f"fails without a defect, too: {t}" for t in unsound)]:
        console.print(Text(problem))
    killed = sum(trial.is_killed for trial in trials)
    console.print(f"{killed} of {len(trials)} defects killed")


def _problems(trials: Sequence[Trial]) -> list[str]:
    problems = []
    for trial in (each for each in trials if not each.is_killed):
        problems.append(trial.stale or f"{trial.defect.id} was not killed")
        outputs = [verdict.output for verdict in trial.verdicts.values() if verdict.output]
        problems += ["\n".join(output.splitlines()[-_TAIL:]) for output in outputs]
    return problems


def _told(verdict: Verdict) -> str:
    if verdict.fate is not Fate.KILLED:
        return f"{verdict.fate} ({verdict.seconds:.1f} s)"
    deadline = ", its own deadline" if verdict.waited else ""
    return f"{verdict.test} ({verdict.seconds:.1f} s{deadline})"
