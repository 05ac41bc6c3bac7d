"""What `doctor` makes of what etcd's servers say of themselves, and of certificates."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.fitness import (
    Level,
    ServerReport,
    Survey,
    certificate_findings,
    store_findings,
)

GOOD = ServerReport(
    "http://a:1", version="3.5.30", cluster=7, member=1, leader=1, size=1000, revision=20_000
)
FIT = Survey((GOOD,), alarms=(), members=1, compacted=True, nested_roles=True)
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def findings(survey: Survey) -> list[tuple[Level, str]]:
    """Level and kind of all that is found."""
    return [(finding.level, finding.kind) for finding in store_findings(survey)]


def test_a_fit_store_has_no_findings() -> None:
    """Nothing is said of one server that is new, small, compacted and leads."""
    assert findings(FIT) == []


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("3.3.27", Level.FAULT),
        ("3.4.23", Level.WARNING),
        ("3.4.38", None),
        ("3.5.1", Level.WARNING),
        ("3.5.22", Level.WARNING),
        ("3.5.23", None),
        ("3.6.4", Level.WARNING),
        ("3.6.5", None),
        ("3.7.0-rc.1", None),
        ("4.0.0", None),
    ],
)
def test_a_version_with_a_known_fault_is_told(version: str, level: Level | None) -> None:
    """What is too old is a fault, what has a bug that matters a warning, and a newer line none."""
    survey = replace(FIT, servers=(replace(GOOD, version=version),))
    assert findings(survey) == ([] if level is None else [(level, "version")])


@pytest.mark.parametrize(
    ("survey", "found"),
    [
        (replace(FIT, servers=(replace(GOOD, why="refused"),)), (Level.FAULT, "unreachable")),
        (replace(FIT, servers=(replace(GOOD, leader=0),)), (Level.FAULT, "leader")),
        (replace(FIT, servers=(replace(GOOD, size=1_900_000_000),)), (Level.WARNING, "space")),
        (
            replace(
                FIT, servers=(GOOD, replace(GOOD, endpoint="http://b:1", cluster=8)), members=2
            ),
            (Level.FAULT, "cluster"),
        ),
        (replace(FIT, alarms=("NOSPACE",)), (Level.FAULT, "alarm")),
        (replace(FIT, members=3), (Level.WARNING, "endpoints")),
        (replace(FIT, compacted=False), (Level.WARNING, "compaction")),
        (replace(FIT, nested_roles=False), (Level.FAULT, "roles")),
    ],
)
def test_what_is_not_fit_is_told(survey: Survey, found: tuple[Level, str]) -> None:
    """Each trouble alone is found, and nothing else with it."""
    assert findings(survey) == [found]


def test_what_could_not_be_asked_is_no_finding() -> None:
    """What etcd did not tell us is not held against it, nor a short history that is whole."""
    assert findings(Survey((GOOD,))) == []
    young = replace(FIT, servers=(replace(GOOD, revision=500),), compacted=False)
    assert findings(young) == []


@pytest.mark.parametrize(
    ("days", "level"), [(-1, Level.FAULT), (0, Level.FAULT), (13, Level.WARNING), (15, None)]
)
def test_a_certificate_is_told_before_it_expires(days: int, level: Level | None) -> None:
    """Two weeks before its end it is a warning, and from its end on a fault."""
    found = list(certificate_findings("cert", NOW + timedelta(days=days), NOW))
    assert [finding.level for finding in found] == ([] if level is None else [level])
