"""A step of the model on a host: what it depends on, what comes of it, and when it must happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.model.parts import Cell, Host, Late, Place

__all__ = [
    "ARRIVE",
    "DECIDE",
    "ENROL",
    "EXPIRE",
    "FINISH",
    "HEAR",
    "LAPSE",
    "LEARN",
    "LIFT",
    "RESEND",
    "START",
    "WORK",
    "YIELD",
    "Here",
    "Step",
]

# In which order things are done when faults stop; 0 is what need not happen.
ARRIVE, FINISH, LEARN, LAPSE, START, ENROL, WORK, HEAR, RESEND, DECIDE, YIELD, LIFT, EXPIRE = range(
    1, 14
)


class Here(NamedTuple):
    """What a step on a host depends on.

    `at` is the host's place in `HOSTS`. `room`: for one more late copy; `noted`: the journal is
    needed still; `same`: nothing was written of the name since the snapshot.
    """

    at: int
    host: Host
    hold: bool
    cell: Cell
    place: Place
    room: bool
    noted: bool
    same: bool


class Step(NamedTuple):
    """What happens to a name on a host.

    `touched` as in `Committed`; `dies` is the slot whose agent ends by it (-1: none).
    """

    rank: int
    label: str
    cell: Cell
    touched: tuple[int, int]
    place: Place
    late: Late | None = None
    dies: int = -1
