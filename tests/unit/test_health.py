"""What an agent's health is, from its facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.health import Facts, verdict

WELL = Facts(since_beat=0.5, session_left=9.0, listed=True, since_look=1.0)


def test_an_agent_that_serves_its_host_is_ready() -> None:
    """With a session, its claims listed and the bus looked at, nothing is wanting."""
    assert verdict(WELL).ready


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (replace(WELL, session_left=None), "not enrolled"),
        (replace(WELL, session_left=-0.1), "has not answered"),
        (replace(WELL, listed=False), "not listed"),
        (replace(WELL, since_look=None), "not looked at"),
        (replace(WELL, since_look=31.0), "not looked at for 31 s"),
        (replace(WELL, bus_trouble="cannot be scanned: EIO"), "cannot be scanned: EIO"),
    ],
)
def test_an_agent_that_waits_lives_and_is_not_ready(facts: Facts, says: str) -> None:
    """What a restart would not mend makes an agent unready, for one reason, and not dead."""
    found = verdict(facts)
    assert (found.live, found.ready) == (True, False)
    assert len(found.reasons) == 1
    assert says in found.reasons[0]


def test_what_keeps_an_agent_from_enrolling_is_a_reason() -> None:
    """It follows the fact itself, and says nothing of one that is enrolled."""
    trouble = "EMFILE: no descriptor left"
    found = verdict(replace(WELL, session_left=None, trouble=trouble))
    assert found.reasons == ("it is not enrolled", trouble)
    assert verdict(replace(WELL, trouble=trouble)).ready


def test_an_agent_whose_loop_stands_still_is_dead() -> None:
    """Without a beat nothing else that is known counts."""
    found = verdict(replace(WELL, since_beat=16.0))
    assert (found.live, found.ready) == (False, False)
