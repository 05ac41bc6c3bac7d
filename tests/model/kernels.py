"""What a host's kernel makes of writes, with and without an agent that waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.reconcile import Refusal, Write
from coordinator.states import ClaimState
from tests.model.commits import record
from tests.model.parts import HOSTS, Budget, Place, Rules, Violation
from tests.model.steps import FINISH, WORK, Here, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BUSY", "EXISTS", "kernel_steps", "write"]

_NO_ROOM = Refusal(Write.CREATE, "ENOSPC", "")
EXISTS = Refusal(Write.CREATE, "EEXIST", "")
_IO = Refusal(Write.CREATE, "EIO", "")
_ATTRIBUTE = Refusal(Write.ATTRIBUTE, "EINVAL", "", "a")
BUSY = Refusal(Write.REMOVE, "EBUSY", "")
_ABSENT = Refusal(Write.REMOVE, "ENOENT", "")


def write(
    here: Here, kind: str, budget: Budget
) -> Iterator[tuple[int, str, Place, Refusal | None]]:
    """What the kernel makes of a write that a worker begins: done at once, or under way."""
    place = here.place
    if kind == "create":
        if place.device:
            yield WORK, "the kernel has {name} (EEXIST)", place, EXISTS
            return
        yield WORK, "the kernel begins to create {name}", place._replace(kernel="creating"), None
        if budget.refusals:
            yield 0, "the kernel has no room for {name}", place, _NO_ROOM
        return
    if not place.device or place.kernel:
        yield WORK, "the kernel has no {name} to remove", place, _ABSENT
        return
    _check_removal(here)
    yield WORK, "the kernel begins to remove {name}", place._replace(kernel="removing"), None


def _check_removal(here: Here) -> None:
    claim = record(here.cell, here.at)
    if here.place.reverted in ("stands", "forgotten"):
        raise Violation(f"{HOSTS[here.at]} removes a device whose removal had failed")
    if here.hold:
        return  # ordered before the restore: what it was ordered for is forgotten
    if claim is None or claim.state is not ClaimState.REMOVING:
        raise Violation(f"{HOSTS[here.at]} removes a device that nobody wants removed")


def kernel_steps(here: Here, budget: Budget, rules: Rules) -> Iterator[Step]:
    yield from _orphans(here, budget, rules)
    yield from _finish(here, budget)
    if budget.by_hand:
        yield from _by_hand(here)


def _at(here: Here, rank: int, what: str, place: Place) -> Step:
    return Step(rank, f"{HOSTS[here.at]}: {what}", here.cell, (0, 0), place)


def _orphans(here: Here, budget: Budget, rules: Rules) -> Iterator[Step]:
    lives = here.host.session == "gone" or not (rules.deadlines and rules.generations)
    if here.place.kernel in ("creating", "removing", "given") or not lives:
        return
    for kind in here.place.orphans:
        left = tuple(each for each in here.place.orphans if each != kind)
        for _, what, place, _refusal in write(here, kind, budget):
            yield _at(
                here, 0, f"an order whose agent is gone: {what}", place._replace(orphans=left)
            )


def _finish(here: Here, budget: Budget) -> Iterator[Step]:
    place, kernel = here.place, here.place.kernel
    if not kernel:
        return
    idle = place._replace(kernel="")
    if kernel == "creating":
        made = idle._replace(device="ours")
        yield _at(here, FINISH, "{name} is there", _told(made, None))
        if budget.refusals:
            yield _at(here, 0, "the driver fails to create {name}", _told(idle, _IO))
            refused = _told(made, _ATTRIBUTE)
            yield _at(here, 0, "{name} is there, an attribute is refused", refused)
    elif kernel == "given":
        yield _at(here, FINISH, "{name} is there, and given away", idle._replace(device="foreign"))
    else:
        gone = idle._replace(device="")
        yield _at(here, FINISH, "{name} is gone", gone if kernel == "going" else _told(gone, None))
        if budget.refusals and kernel == "removing":
            yield _at(here, 0, "the driver does not remove {name}", _told(idle, BUSY))


def _told(place: Place, refusal: Refusal | None) -> Place:
    """The agent that waits hears how its write ended; after a crash nobody does."""
    minds = tuple(
        mind._replace(waits="", refusal=refusal or mind.refusal)
        if mind and mind.waits == "kernel"
        else mind
        for mind in place.minds
    )
    return place._replace(minds=(minds[0], minds[1]))


def _by_hand(here: Here) -> Iterator[Step]:
    place = here.place
    if place.kernel:
        return
    if place.device:
        yield _at(here, 0, "somebody removes {name} by hand", place._replace(kernel="going"))
    else:
        yield _at(here, 0, "somebody makes {name} by hand", place._replace(device="foreign"))
