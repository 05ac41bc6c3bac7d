"""The search finds nothing where all rules are kept, and each rule that is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.parts import Budget, Rules
from tests.model.search import Search
from tests.model.spaces import PLAIN, WIDEST
from tests.model.world import World

ENOUGH = 20_000  # states within which each rule that is left out must be missed

LEFT_OUT: dict[str, tuple[Rules, Budget, str]] = {
    "both keys are put": (Rules(both_keys=False), PLAIN, "without a name"),
    "a begin detaches the lease": (Rules(detached=False), PLAIN, "creating with lease"),
    "unknown is not absent": (
        Rules(unknown_waits=False),
        replace(PLAIN, refusals=True),
        "nobody holds its name",
    ),
    "going is not absent": (
        Rules(going_waits=False),
        replace(PLAIN, by_hand=True),
        "nobody holds its name",
    ),
    "a write in flight is waited for": (
        Rules(in_flight_waits=False),
        replace(PLAIN, refusals=True),
        "nobody holds its name",
    ),
    "a scan is begun after the claim was read": (
        Rules(fresh_scan=False),
        replace(PLAIN, refusals=True),
        "nobody holds its name",
    ),
    "stale orders never run": (Rules(generations=False), PLAIN, "nobody holds its name"),
    "no write begins past the deadline": (
        Rules(deadlines=False),
        replace(PLAIN, evicts=True),
        "nobody holds its name",
    ),
    "an evict sees no session": (
        Rules(evict_sees_no_session=False),
        replace(PLAIN, evicts=True),
        "nobody holds its name",
    ),
    "an evict's batches compare its epoch": (
        Rules(evict_compares=False),
        replace(PLAIN, evicts=True),
        "nobody holds its name",
    ),
    "a restore is held": (Rules(hold=False), replace(PLAIN, restores=True), "on gpu0"),
    "the hold waits for every host": (
        Rules(all_enrolled=False),
        replace(PLAIN, restores=True),
        "on gpu0",
    ),
}


@pytest.mark.parametrize("rule", LEFT_OUT)
def test_a_rule_that_is_left_out_is_missed(rule: str) -> None:
    """Without one of the rules the search finds what the rule is there against."""
    rules, budget, violation = LEFT_OUT[rule]
    found = Search(World(budget, rules), 1).run(states=ENOUGH)
    assert violation in found.violation
    assert found.trace[-1] == f"then: {found.violation}"


def test_one_name_is_searched_to_its_end() -> None:
    """With crashes, lost answers, reboots and lapses, nothing is found in all that one name can."""
    found = Search(World(PLAIN), 1).run(states=20_000)
    assert found.whole, found.trace
    assert found.settled == found.states > 7_000


@pytest.mark.parametrize("names", [1, 2])
def test_nothing_is_found_near_the_beginning_of_the_widest_space(names: int) -> None:
    """With every fault at once, nothing is found in the first states from an empty cluster."""
    found = Search(World(WIDEST), names).run(states=10_000, every=16)
    assert not found.violation, "\n".join(found.trace)
    assert found.states == 10_000


def test_two_names_are_searched_some_way() -> None:
    """With a restore between any two steps of two names, nothing is found in the first states."""
    found = Search(World(replace(PLAIN, restores=True)), 2).run(states=15_000, every=16)
    assert not found.violation, "\n".join(found.trace)
    assert found.states == 15_000
