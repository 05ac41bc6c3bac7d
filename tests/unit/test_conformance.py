"""The simulated kernel answers as Linux's own does, row by row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.lab.conformance import document
from deploy.lab.conformance.rows import ROWS
from deploy.lab.conformance.simulated import SimulatedSubject
from deploy.lab.conformance.vocabulary import SIMULATED, play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.lab.conformance.vocabulary import Row


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[SimulatedSubject]:
    """A simulated host; whatever waits in its kernel at the end is let go."""
    subject = SimulatedSubject(tmp_path / "host")
    yield subject
    subject.reset()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(subject: SimulatedSubject, row: Row) -> None:
    """The simulated kernel answers each step of the row as it is written."""
    answers = zip(map(str, row.steps), play(row, subject), strict=True)
    assert list(answers) == list(zip(map(str, row.steps), row.expected(SIMULATED), strict=True))


def test_ids_are_unique() -> None:
    """No row hides another behind its id."""
    assert max(Counter(row.id for row in ROWS).values()) == 1


def test_the_document_is_what_the_rows_say() -> None:
    """docs/kernel.md is made from the rows as they are."""
    made = Path(__file__).parents[2] / "docs/kernel.md"
    assert made.read_text() == document.text(), "make kernel"
