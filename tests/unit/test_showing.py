"""What `show` says of a claim."""

from __future__ import annotations

from cli.showing import SHOWN, Shown
from coordinator.model import Claim, Maker
from coordinator.states import ClaimState
from tests.support.desk import HOST, NAME, PARENT, TYPE


def test_who_else_makes_a_device_is_told() -> None:
    """A process that writes to the kernel itself is named, since the agent waits for it."""
    claim = Claim(
        name=NAME,
        host=HOST,
        revision=5,
        state=ClaimState.CREATING,
        parent=PARENT,
        type=TYPE,
        request="r",
        since="t",
        created="t",
        maker=Maker(pid=4711, started=9),
    )
    said = "process 4711 of its host; the agent waits for it to end"
    assert ("maker", said) in list(SHOWN.rows(Shown(claim, alive=True)))


def test_what_is_wrong_with_its_parent_is_told() -> None:
    """Why nothing goes on with a name may be its parent's trouble."""
    claim = Claim(
        name=NAME,
        host=HOST,
        revision=5,
        state=ClaimState.DEFINED,
        parent=PARENT,
        type=TYPE,
        request="r",
        since="t",
        created="t",
    )
    shown = Shown(claim, alive=True, troubles=("the bus cannot be read",))
    assert ("parent", "in trouble: the bus cannot be read") in list(SHOWN.rows(shown))
