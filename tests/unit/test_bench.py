"""The bench's arithmetic, and what is told of its figures; what it measures is its own business."""

from __future__ import annotations

import io
import json
from statistics import median
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from tests.bench.chart import chart, of_bound
from tests.bench.figures import Figure, Stage
from tests.bench.lines import LINES, Line, chosen, measured
from tests.bench.raw import end_of, nested, taking
from tests.bench.report import as_json, print_table, save
from tests.bench.turns import (
    Turn,
    figure,
    in_turns,
    of_ratios,
    one_by_one,
    p50,
    p99,
    percentile,
    sync_turns,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TURNS = [Turn([2.0, 4.0, 3.0], [1.0]), Turn([4.0], [2.0]), Turn([9.0], [1.0])]


def made(ratio: float, must: float | None, *, at_least: bool = False) -> Figure:
    """A figure of a line that there is."""
    return of_ratios("claim", "p50", [ratio], must=must, at_least=at_least)


def stage(directory: Path, *, quick: bool = False) -> Stage:
    """A stage without a server."""
    return Stage(line="claim", endpoint="", server=0, directory=directory, quick=quick, seconds=1.0)


# Figures.


def test_a_figure_is_the_middle_of_the_rounds_ratios_with_the_least_and_the_greatest() -> None:
    """Each round gives one ratio, of what stands for ours to what stands for theirs."""
    one = figure("claim", "p50", TURNS, must=3.5, notes=["why"])
    assert (one.ratio, one.low, one.high, one.rounds) == (3.0, 2.0, 9.0, 3)
    assert (one.must, one.reached, one.notes) == (3.5, True, ("why",))


def test_what_stands_for_a_round_can_be_chosen() -> None:
    """The greatest of three stands for the first round here."""
    assert figure("claim", "most", TURNS, by=max).ratio == 4.0


@pytest.mark.parametrize(
    ("ratio", "must", "at_least", "reached"),
    [
        (1.15, 1.15, False, True),
        (1.16, 1.15, False, False),
        (2.0, 2.0, True, True),
        (1.9, 2.0, True, False),
        (9.0, None, False, None),
    ],
)
def test_a_bound_is_reached_from_its_own_side(
    ratio: float, must: float | None, *, at_least: bool, reached: bool | None
) -> None:
    """At most so much, or at least so much; where there is no bound nothing is reached."""
    assert made(ratio, must, at_least=at_least).reached is reached


def test_percentiles_lie_between_the_samples() -> None:
    """Of 0 to 100 the n-th is n; of one sample it is that."""
    samples = [float(number) for number in range(100, -1, -1)]
    assert (p50(samples), p99(samples), percentile(samples, 25)) == (50.0, 99.0, 25.0)
    assert (p50([7.0]), p99([7.0])) == (7.0, 7.0)


# Turns.


class Took:
    """Measures that say who was asked, and take what they are told."""

    def __init__(self) -> None:
        self.order = ""

    def sync(self, who: str) -> Callable[[], Sequence[float]]:
        """One that awaits nothing."""

        def measure() -> Sequence[float]:
            self.order += who
            return [2.0 if who == "o" else 1.0]

        return measure

    async def ours(self) -> Sequence[float]:
        """One of ours."""
        return self.sync("o")()

    async def theirs(self) -> Sequence[float]:
        """One of theirs."""
        return self.sync("t")()

    async def once(self) -> float:
        """One of ours, of which not all counts."""
        self.order += "o"
        return 0.25

    async def whole(self) -> None:
        """One of theirs, which counts as it is."""
        self.order += "t"


async def test_who_is_measured_first_changes_from_round_to_round() -> None:
    """Ours and theirs come once each in every round, and stay apart."""
    took = Took()
    turns = await in_turns(took.ours, took.theirs, rounds=3)
    assert took.order == "ottoot"
    assert turns == [Turn([2.0], [1.0])] * 3
    assert sync_turns(took.sync("o"), took.sync("t"), rounds=3) == turns
    assert took.order == "ottoot" * 2


async def test_rounds_end_with_the_time_but_are_three_at_least() -> None:
    """One round alone would have no spread."""
    took = Took()
    assert len(await in_turns(took.ours, took.theirs, rounds=9, seconds=-1.0)) == 3
    assert len(await in_turns(took.ours, took.theirs, rounds=2, seconds=-1.0)) == 2


async def test_what_is_done_one_by_one_changes_places_within_a_round() -> None:
    """A number that is returned counts instead of the time that it took."""
    took = Took()
    turns = await one_by_one(took.once, took.whole, rounds=2, each=2)
    assert took.order == "ottototo"[:4] + "toot"
    assert [turn.ours for turn in turns] == [[0.25, 0.25]] * 2
    assert all(seconds >= 0.0 for turn in turns for seconds in turn.theirs)


# Lines.


def test_lines_are_run_in_the_order_of_the_table() -> None:
    """In whatever order they are named; without a name all of them are."""
    assert [line.key for line in chosen(["bulk", "claim"])] == ["claim", "bulk"]
    assert chosen([]) == list(LINES)
    with pytest.raises(ValueError, match="no such line: nothing; there are: claim"):
        chosen(["nothing", "claim"])


def test_all_lines_together_stay_within_the_time_that_is_promised() -> None:
    """Five minutes for a full run, forty seconds for a quick one."""
    assert sum(line.seconds for line in LINES) < 300
    assert sum(line.quick for line in LINES) < 40
    assert len({line.key for line in LINES}) == len(LINES)


def test_a_line_whose_module_is_missing_breaks_only_when_it_is_run(tmp_path: Path) -> None:
    """The table can be read without importing anything of it."""
    line = Line("none", "", "", "", "nowhere:measure", 1, 1)
    with pytest.raises(ModuleNotFoundError):
        measured(line, stage(tmp_path))


def test_a_quick_run_is_smaller(tmp_path: Path) -> None:
    """And a line has a cluster of its own."""
    assert stage(tmp_path).size(8, 2) == 8
    assert stage(tmp_path, quick=True).size(8, 2) == 2
    assert stage(tmp_path).cluster == "bench-claim"


# What is sent to etcd.


def test_raw_transactions_have_the_compares_and_puts_of_their_keys() -> None:
    """Absent is a revision of 0, and nested ones keep an answer each."""
    request = taking([(b"a", b"1"), (b"b", b"2")], lease=7, revision=3)
    assert [(one.key, one.mod_revision) for one in request.compare] == [(b"a", 3), (b"b", 3)]
    puts = [op.request_put for op in request.success]
    assert [(put.key, put.value, put.lease) for put in puts] == [(b"a", b"1", 7), (b"b", b"2", 7)]
    assert [op.request_range.key for op in request.failure] == [b"a", b"b"]
    both = nested([request, taking([(b"c", b"")])])
    assert [op.request_txn.compare[0].mod_revision for op in both.success] == [3, 0]
    assert end_of(b"/a/") == b"/a0"


# What is told.

TOLD = [
    of_ratios("claim", "p50", [1.1, 1.2, 1.3], must=1.15, notes=["the journal: 4 ms"]),
    of_ratios("callers", "names a second", [2.5], must=2.0, at_least=True),
    of_ratios("locks", "across <check>", [1.5]),
]


def test_the_table_says_what_is_reached_and_what_is_missed() -> None:
    """With the spread, the bound, and what explains it."""
    said = io.StringIO()
    print_table(TOLD, Console(file=said))
    rows = [line for line in said.getvalue().splitlines() if " 1.20 " in line or " 2.50 " in line]
    assert "1.10 to 1.30" in rows[0]
    assert "MISSED" in rows[0]
    assert "2x or more" in rows[1]
    assert "reached" in rows[1]
    assert "claim (p50): the journal: 4 ms" in said.getvalue()
    assert said.getvalue().endswith("1 of 2 bounds reached\n")


def test_the_figures_are_written_line_by_line(tmp_path: Path) -> None:
    """As JSON, each with whether its bound is reached, and a chart beside."""
    save(TOLD, "3.5.99", tmp_path / "made")
    read = json.loads((tmp_path / "made/results.json").read_text())
    assert read == json.loads(json.dumps(as_json(TOLD, "3.5.99")))
    assert read["etcd"] == "3.5.99"
    assert [line["line"] for line in read["lines"]] == ["claim", "callers", "locks"]
    figures = [one for line in read["lines"] for one in line["figures"]]
    assert [one["reached"] for one in figures] == [False, True, None]
    assert [one["ratio"] for one in figures] == [median([1.1, 1.2, 1.3]), 2.5, 1.5]
    assert figures[0]["notes"] == ["the journal: 4 ms"]
    assert (tmp_path / "made/results.svg").read_text() == chart(TOLD)


def test_the_chart_has_a_bar_for_each_figure_that_has_a_bound() -> None:
    """What is missed lies right of the bound, what is reached left of it, in another colour."""
    root = ET.fromstring(chart(TOLD))  # noqa: S314 - our own
    svg = "{http://www.w3.org/2000/svg}"
    missed, reached = root.findall(f"{svg}rect")
    (line,) = [one for one in root.findall(f"{svg}line") if one.get("class") == "bound"]
    at = float(line.attrib["x1"])
    assert float(missed.attrib["x"]) == pytest.approx(at, abs=0.1)
    right = float(reached.attrib["x"]) + float(reached.attrib["width"])
    assert right == pytest.approx(at, abs=0.2)
    assert missed.attrib["fill"] != reached.attrib["fill"]
    said = [text.text for text in root.findall(f"{svg}text")]
    assert "1.20 (≤ 1.15)" in said
    assert "2.50 (≥ 2)" in said


def test_a_chart_without_figures_is_one_all_the_same() -> None:
    """No figure, or none with a bound, makes no bar."""
    for told in ([], [made(1.0, None)]):
        assert "<rect" not in chart(told)
        ET.fromstring(chart(told))  # noqa: S314 - our own


def test_a_multiple_of_a_bound_is_more_than_one_when_it_is_missed() -> None:
    """Whichever side it has to be reached from, and also for what is nothing at all."""
    assert of_bound(made(3.0, 2.0), 3.0) == 1.5
    assert of_bound(made(1.0, 2.0, at_least=True), 1.0) == 2.0
    assert of_bound(made(0.0, 2.0), 0.0) > 0.0
    with pytest.raises(ValueError, match="no bound"):
        of_bound(made(1.0, None), 1.0)
