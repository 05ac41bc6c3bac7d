"""The search finds nothing where all rules are kept, and each rule that is left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.model.parts import Budget, Rules
from tests.model.search import Search
from tests.model.spaces import PLAIN, WIDEST
from tests.model.world import World

ENOUGH = 20_000  # states within which each rule that is left out must be missed

ENROLLED = ("gpu01: an agent starts", "gpu01: enrols")
RESERVED = (*ENROLLED, "operator: reserve aaaaaaaa… for gpu01, transient")
BEGUN = (*RESERVED, "gpu01: hears of aaaaaaaa…: reserved", "gpu01: begin aaaaaaaa…")
OVERTAKEN = (*ENROLLED, "gpu01: a second agent starts", "gpu01 (second agent): enrols")
SECOND_BEGUN = (
    *OVERTAKEN,
    RESERVED[-1],
    *(step.replace("gpu01:", "gpu01 (second agent):") for step in BEGUN[-2:]),
)
REFUSED = (
    *BEGUN,
    "gpu01: the kernel begins to create aaaaaaaa…",
    "gpu01: aaaaaaaa… is there",
    "gpu01: configure aaaaaaaa…",
    "operator: remove aaaaaaaa…",
    "gpu01: hears of aaaaaaaa…: removing",
    "store: a snapshot is taken",
    "gpu01: finds aaaaaaaa… busy",
    "gpu01: restore aaaaaaaa…",
    "store: is restored from the snapshot, with the hold",
)
UNCLAIMED = "nobody holds its name"


@dataclass(frozen=True)
class LeftOut:
    """A rule that is left out, the faults without which it would not be missed, what is found.

    The search begins after some steps where the shortest way to it is long.
    """

    rules: Rules
    found: str
    budget: Budget = PLAIN
    after: tuple[str, ...] = ()


EVICTS, REFUSALS = replace(PLAIN, evicts=True), replace(PLAIN, refusals=True)
BY_HAND, RESTORES = replace(PLAIN, by_hand=True), replace(PLAIN, restores=True)
ZOMBIES = replace(PLAIN, zombies=True)

LEFT_OUT = {
    "both keys are put": LeftOut(Rules(both_keys=False), "without a name"),
    "a begin detaches the lease": LeftOut(Rules(detached=False), "creating with lease"),
    "a create follows a begin of its enrolment": LeftOut(
        Rules(begins=False), "creates a device while", RESTORES
    ),
    "a scan is begun after the claim was read": LeftOut(
        Rules(fresh_scan=False), UNCLAIMED, REFUSALS
    ),
    "EEXIST never aborts": LeftOut(
        Rules(exists_waits=False), "because the name is there", BY_HAND, BEGUN
    ),
    "unknown is not absent": LeftOut(Rules(unknown_waits=False), UNCLAIMED, REFUSALS),
    "going is not absent": LeftOut(Rules(going_waits=False), UNCLAIMED, BY_HAND, BEGUN),
    "a write in flight is waited for": LeftOut(Rules(in_flight_waits=False), UNCLAIMED, REFUSALS),
    "stale orders never run": LeftOut(Rules(generations=False), UNCLAIMED),
    "who is of a stale generation enrols again": LeftOut(
        Rules(stale_ends=False), "never settles", ZOMBIES
    ),
    "no write begins past the deadline": LeftOut(Rules(deadlines=False), UNCLAIMED, EVICTS),
    "an agent's transactions compare its epoch": LeftOut(
        Rules(epoch_compares=False), UNCLAIMED, replace(ZOMBIES, refusals=True), SECOND_BEGUN
    ),
    "an evict sees no session": LeftOut(Rules(evict_sees_no_session=False), UNCLAIMED, EVICTS),
    "an evict's batches compare its epoch": LeftOut(Rules(evict_compares=False), UNCLAIMED, EVICTS),
    "a restore is held": LeftOut(Rules(hold=False), "on gpu0", RESTORES),
    "what had failed is in the journal": LeftOut(
        Rules(reverted=False), "whose removal had failed", replace(RESTORES, refusals=True), REFUSED
    ),
    "the hold waits for every host": LeftOut(Rules(all_enrolled=False), "on gpu0", RESTORES),
}


@pytest.mark.long
@pytest.mark.parametrize("rule", LEFT_OUT)
def test_a_rule_that_is_left_out_is_missed(rule: str) -> None:
    """Without one of the rules the search finds what the rule is there against."""
    left = LEFT_OUT[rule]
    found = Search(World(left.budget, left.rules), 1).run(states=ENOUGH, after=left.after)
    assert left.found in found.violation
    assert found.trace[-1] == f"then: {found.violation}"


@pytest.mark.long
def test_one_name_is_searched_to_its_end() -> None:
    """With crashes, lost answers, reboots and lapses, nothing is found in all that one name can."""
    found = Search(World(PLAIN), 1).run(states=20_000)
    assert found.whole, found.trace
    assert found.settled == found.states > 7_000


@pytest.mark.long
@pytest.mark.parametrize("names", [1, 2])
def test_nothing_is_found_near_the_beginning_of_the_widest_space(names: int) -> None:
    """With every fault at once, nothing is found in the first states from an empty cluster."""
    found = Search(World(WIDEST), names).run(states=10_000, every=16)
    assert not found.violation, "\n".join(found.trace)
    assert found.states == 10_000


@pytest.mark.long
def test_two_names_are_searched_some_way() -> None:
    """With a restore between any two steps of two names, nothing is found in the first states."""
    found = Search(World(replace(PLAIN, restores=True)), 2).run(states=15_000, every=16)
    assert not found.violation, "\n".join(found.trace)
    assert found.states == 15_000
