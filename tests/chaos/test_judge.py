"""The judges of chaos are judged: by what is so, and by what is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from tests.chaos.checker import Checker, in_directories
from tests.chaos.history import Asked, Diary, Entry, Told, Verb, read
from tests.chaos.judge import longest_refusal, untold
from tests.chaos.report import Report
from tests.chaos.schedule import FAULTS, Injected, kinds
from tests.support.truth import Claim, Name, Truth

if TYPE_CHECKING:
    from pathlib import Path

NAME = "11111111-1111-4111-8111-111111111111"
PARENT, TYPE = "0000:3b:00.0", "nvidia-35"
HOSTS = ("gpu01", "gpu02")


def entry(
    verb: Verb, at: float, code: int | None = 0, *, host: str = "gpu01", holder: str | None = None
) -> Entry:
    number = f"{verb}{at}"
    asked = Asked(id=number, process="p", verb=verb, name=NAME, request=number, host=host, at=at)
    if code is None:
        return Entry(asked, None)
    return Entry(asked, Told(id=number, code=code, at=at + 1, held=holder is not None, host=holder))


def fault(begun: float, ended: float, host: str = "gpu01", *, sets_back: bool = False) -> Injected:
    there = frozenset({host})
    return Injected("a fault", host, there, there, sets_back, begun, ended, ended)


CREATE = entry(Verb.CREATE, 0, holder="gpu01")
GONE = entry(Verb.REMOVE, 5, None)
TWICE = entry(Verb.CREATE, 10, host="gpu02", holder="gpu02")


@pytest.mark.parametrize(
    "between",
    [
        entry(Verb.REMOVE, 5),
        entry(Verb.REMOVE, 5, None),
        entry(Verb.REMOVE, 5, 11),
        entry(Verb.REMOVE, 9.5),
    ],
)
def test_a_name_that_was_or_may_have_been_given_back_is_taken_anew(between: Entry) -> None:
    """A remove that went, may have gone or overlaps explains that another one has the name."""
    assert untold([CREATE, between, TWICE], []) == []


@pytest.mark.parametrize(
    "between",
    [entry(Verb.REMOVE, 5, 10), entry(Verb.STOP, 5), entry(Verb.CREATE, 5, 4, holder="gpu01")],
)
def test_a_name_that_is_granted_twice_is_told(between: Entry) -> None:
    """What does not give a name back explains nothing."""
    (violation,) = untold([CREATE, between, TWICE], [])
    assert NAME in violation


def test_a_name_that_is_not_there_any_more_is_told() -> None:
    """Nobody gave it back, and it is gone."""
    assert untold([CREATE, entry(Verb.SHOW, 5, 3)], [])
    assert untold([CREATE, entry(Verb.SHOW, 5, holder="gpu01")], []) == []


def test_what_is_defined_is_held_without_a_host_on_the_way() -> None:
    """Whoever looks meanwhile sees a reservation of that request, and afterwards none."""
    defining = Entry(
        replace(TWICE.asked, verb=Verb.DEFINE), replace(TWICE.told, at=14.0) if TWICE.told else None
    )
    amid, after = (entry(Verb.CREATE, at, 4, holder="") for at in (12, 16))
    assert untold([defining, amid], []) == []
    assert untold([defining, after], [])


def test_only_the_host_that_lost_power_may_have_lost_a_name() -> None:
    """A power loss of the holder explains it, another host's does not, nor one that comes later."""
    gone = entry(Verb.SHOW, 5, 3)
    assert untold([CREATE, gone], [fault(2, 4)]) == []
    assert untold([CREATE, gone], [fault(2, 4, "gpu02")])
    assert untold([CREATE, gone], [fault(7, 8)])


def test_what_is_told_after_the_store_was_set_back_counts_no_more() -> None:
    """A name that was known before a restore is not judged by what is told after it."""
    later = [fault(7, 8, sets_back=True)]
    assert untold([CREATE, TWICE], later) == []
    assert untold([CREATE, entry(Verb.SHOW, 3, 3), TWICE], later)


def test_a_refusal_counts_for_as_long_as_the_host_was_healthy() -> None:
    """From the first that asks to the one that is granted, but for the time of a fault."""

    def probe(at: float, code: int) -> Entry:
        number = str(at)
        asked = Asked(
            id=number, process="prober", verb=Verb.CREATE, name=number, request="", host="gpu01",
            at=at,
        )  # fmt: skip
        return Entry(asked, Told(id=number, code=code, at=at + 0.5))

    probes = [probe(0, 0), probe(10, 16), probe(12, 16), probe(19.5, 0), probe(30, 0)]
    assert longest_refusal(probes, [], HOSTS) == (10.0, "gpu01", 10)
    assert longest_refusal(probes, [fault(11, 17)], HOSTS) == (3.0, "gpu01", 17)
    assert longest_refusal(probes, [fault(9, 25)], HOSTS)[0] == 0.5
    assert longest_refusal(probes, [fault(11, 17, "gpu02")], HOSTS) == (10.0, "gpu01", 10)


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Also one whose process was killed while it wrote its last line."""
    file = tmp_path / "p.history"
    with Diary(file, "p") as diary:
        first = diary.asks(Verb.CREATE, NAME, "r", "gpu01")
        told = Told(id=first.id, code=0, at=9.0, held=True, host="gpu01", request="r")
        diary.told(told)
        second = diary.asks(Verb.REMOVE, NAME, "s", None)
    with file.open("a") as torn:
        torn.write(json.dumps({"told": {"id": second.id}})[:-3])
    assert read([file]) == [Entry(first, told), Entry(second, None)]


def test_the_report_counts_what_was_told_and_what_never_came(tmp_path: Path) -> None:
    """Each request is done, refused or unknown, and a kind of fault that did not come is zero."""
    report = Report(seed=7, server="etcd", lasted=60.0)
    report.count([CREATE, entry(Verb.CREATE, 2, 4), entry(Verb.REMOVE, 3, 11), GONE])
    report.count_faults(["a fault", "another"], [fault(2, 4), fault(7, 8)])
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["faults"] == {"a fault": 2, "another": 0}
    assert saved["tried"] == {"create": 2, "remove": 2}
    assert (saved["done"], saved["refused"]) == ({"create": 1}, {"create": 1})
    assert (saved["unknown"], saved["codes"]["no answer"]) == ({"remove": 2}, 1)
    assert re.search(r"another +0\n", str(report))


def test_every_fault_has_a_kind_of_its_own() -> None:
    """Reports count by kind, and one can be asked for by a word of it."""
    every = [each.kind for each in FAULTS]
    assert len(set(every)) == len(every)
    assert [each.kind for each in kinds(["one way"])] == [
        "agent cut off one way",
        "member cut off one way",
    ]
    with pytest.raises(ValueError, match="no kind of fault"):
        kinds(["earthquake"])


# What is looked at from outside.


@pytest.fixture
def hosts(tmp_path: Path) -> dict[str, Path]:
    for host in HOSTS:
        simulated.init(tmp_path / host, 1, {TYPE: 4})
    return {host: tmp_path / host for host in HOSTS}


def claimed(state: str = "active") -> Truth:
    truth = Truth()
    truth.names[NAME] = Name("gpu01", "r", 9, 0)
    truth.claims[NAME] = [Claim("gpu01", state, PARENT, "r", 9, 0)]
    return truth


def looked(hosts: dict[str, Path], truth: Truth | None, *, set_back: bool = False) -> list[str]:
    checker = Checker(in_directories(hosts), lambda: truth, lambda: set_back, lambda: "now")
    checker.check_once()
    return checker.seen.violations


@pytest.mark.parametrize("state", ["creating", "active", "removing"])
def test_a_device_that_is_claimed_is_well(hosts: dict[str, Path], state: str) -> None:
    """In each state in which its host may have it."""
    simulated.create(hosts["gpu01"], PARENT, TYPE, NAME)
    assert looked(hosts, claimed(state)) == []


def test_a_device_whose_claim_is_not_there_is_told(hosts: dict[str, Path]) -> None:
    """Freed, defined, or another host's; not while the store is set back."""
    simulated.create(hosts["gpu02"], PARENT, TYPE, NAME)
    assert "a device on gpu02" in looked(hosts, claimed())[0]
    assert "a device on gpu02" in looked(hosts, Truth())[0]
    assert looked(hosts, Truth(), set_back=True) == []
    assert looked(hosts, None) == []


def test_a_device_that_goes_while_etcd_is_read_is_no_finding(hosts: dict[str, Path]) -> None:
    """Its claim may have been freed after it had gone."""
    simulated.create(hosts["gpu01"], PARENT, TYPE, NAME)

    def look() -> Truth:
        simulated.remove(hosts["gpu01"], NAME)
        return Truth()

    checker = Checker(in_directories(hosts), look, lambda: False, lambda: "")
    checker.check_once()
    assert checker.seen.violations == []


def test_two_devices_of_one_name_are_told(hosts: dict[str, Path]) -> None:
    """Even while the store is set back or cannot be read."""
    for directory in hosts.values():
        simulated.create(directory, PARENT, TYPE, NAME)
    (twin,) = looked(hosts, None, set_back=True)
    assert "on gpu01 and on gpu02 at once" in twin


def test_a_claim_without_its_name_is_told(hosts: dict[str, Path]) -> None:
    """Name and claim of one revision have to agree at any moment."""
    truth = claimed("defined")
    truth.names.clear()
    assert "without its name" in looked(hosts, truth)[0]
