"""Each kernel of the lab answers every row of the conformance suite as docs/kernel.md says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from deploy.lab.conformance.rows import ROWS
from deploy.lab.conformance.vocabulary import KERNELS, SIMULATED
from deploy.lab.errors import GuestTimeout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.conformance.vocabulary import Answer, Row
    from deploy.lab.guest import Background, Guest

pytestmark = pytest.mark.lab

REAL = [kernel for kernel in KERNELS if kernel != SIMULATED]
DEADLINE = 240.0  # seconds for all rows; a row that hangs costs up to 20


@dataclass
class Played:
    """What one guest made of the rows, and how far it came."""

    guest: Guest
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    end: str = ""


@pytest.fixture(scope="module")
def played(guests: Sequence[Guest]) -> dict[str, Played]:
    """All rows, played once on one guest of each kernel, at the same time."""
    running: dict[str, tuple[Guest, Background]] = {}
    for guest in guests:
        kernel = ".".join(guest.run("uname", "-r", check=True).stdout.split(".")[:2])
        if kernel not in running:
            player = guest.spawn("python3", "-m", "deploy.lab.conformance", "sysfs")
            running[kernel] = guest, player
    return {kernel: _result(*each) for kernel, each in running.items()}


def _result(guest: Guest, player: Background) -> Played:
    result = Played(guest)
    try:
        result.end = f"ended with {player.wait(DEADLINE)}"
    except GuestTimeout as error:
        result.end = str(error)
    output = player.output()
    for line in output.splitlines():
        said = json.loads(line) if line.startswith("{") else {}
        if "answers" in said:
            result.answers[said["row"]] = said["answers"]
        elif "error" in said:
            result.errors[said["row"]] = said["error"]
    result.end += "" if len(result.answers) == len(ROWS) else f"\n{output[-2000:]}"
    return result


@pytest.mark.parametrize("kernel", REAL)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(played: dict[str, Played], kernel: str, row: Row) -> None:
    """The kernel answers each step of the row as it is written."""
    assert kernel in played, f"no guest has this kernel, only {sorted(played)}"
    result = played[kernel]
    assert row.id not in result.errors, result.errors[row.id]
    assert row.id in result.answers, f"not played: {result.end}"
    answers = zip(map(str, row.steps), result.answers[row.id], strict=True)
    assert list(answers) == list(zip(map(str, row.steps), row.expected(kernel), strict=True))
