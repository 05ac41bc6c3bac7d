"""The table of transitions, and the picture that is made from it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from coordinator.states import TRANSITIONS, Actor, ClaimEvent, ClaimState, transition


def test_only_the_hosts_agent_moves_a_claim_behind_which_a_device_may_stand() -> None:
    """From creating and removing an operator has no way out but by force; time has none."""
    # A claim gives way after a restore when its host's agent has seen the device absent.
    forced = (ClaimEvent.EVICT, ClaimEvent.YIELD)
    for (source, event), row in TRANSITIONS.items():
        if source in (ClaimState.CREATING, ClaimState.REMOVING) and event not in forced:
            assert row.by == {Actor.AGENT}


def test_time_frees_reservations_and_nothing_else() -> None:
    """No lease decides about anything but a placeholder that was not begun."""
    timed = {
        (source, event) for (source, event), row in TRANSITIONS.items() if Actor.TIME in row.by
    }
    assert timed == {(ClaimState.RESERVED, ClaimEvent.EXPIRE)}


def test_while_a_restored_store_is_reconciled_only_what_exists_is_noted() -> None:
    """During a hold nothing is taken, begun or freed, but to make way for a device."""
    during = {event for (_, event), row in TRANSITIONS.items() if row.during_hold}
    noted = {ClaimEvent.ADOPT, ClaimEvent.RECALL, ClaimEvent.ACTIVATE, ClaimEvent.RESTORE}
    assert during == {*noted, ClaimEvent.YIELD}


def test_from_every_state_there_is_a_way_to_free() -> None:
    """No claim can be stuck: free is reached from every state without an evict."""
    reached: set[ClaimState | None] = {None}
    edges = [
        (source, target)
        for (source, event), row in TRANSITIONS.items()
        if event not in (ClaimEvent.EVICT, ClaimEvent.YIELD)
        for target in row.to
    ]
    for _ in ClaimState:
        reached |= {source for source, target in edges if target in reached}
    assert reached == {None, *ClaimState}


def test_a_transition_that_is_not_in_the_table_is_a_defect() -> None:
    """Asking for what does not exist is an error that names it."""
    with pytest.raises(LookupError, match="activate from free"):
        transition(None, ClaimEvent.ACTIVATE)


def test_the_picture_has_every_transition() -> None:
    """`python -m coordinator.states` prints one arrow for each way a transition can go."""
    command = [sys.executable, "-m", "coordinator.states"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    arrows = [line for line in printed.splitlines() if "-->" in line]
    assert len(arrows) == sum(len(row.to) for row in TRANSITIONS.values())
