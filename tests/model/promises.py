"""What is promised, held against the kernels, which are the truth."""

from __future__ import annotations

from coordinator.states import ClaimState
from tests.model.commits import hold_of, record
from tests.model.parts import HOSTS, Cluster, Part, Place, Violation

__all__ = ["check", "check_settled", "is_ready"]

_MAY_HAVE_A_DEVICE = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)


def check(cluster: Cluster, part: Part) -> None:
    """No device of ours without its claim, and never two of them."""
    ours = [p.device == "ours" or p.kernel == "creating" for p in part.places]
    if all(ours):
        raise Violation("two devices of one name")
    if cluster.hold or not any(ours):
        return  # what a restored store has forgotten is taken note of first
    index = ours.index(True)
    claim = record(part.cell, index)
    if claim is None:
        raise Violation(f"a device on {HOSTS[index]} and nobody holds its name there")
    if claim.state not in _MAY_HAVE_A_DEVICE:
        raise Violation(f"a device on {HOSTS[index]} behind a claim that is {claim.state}")


def check_settled(cluster: Cluster, part: Part) -> None:
    """When nothing more happens by itself, nothing is left half done."""
    if cluster.hold:
        raise Violation("the hold is never lifted")
    if hold_of(part.cell) is not None or part.late:
        raise Violation("something is on its way for ever")
    for index, place in enumerate(part.places):
        _check_settled_at(part, index, place)


def _check_settled_at(part: Part, index: int, place: Place) -> None:
    claim, host = record(part.cell, index), HOSTS[index]
    if place.kernel or any(mind and (mind.sent or mind.waits) for mind in place.minds):
        raise Violation(f"something is under way on {host} for ever")
    if claim is None:
        if place.device == "ours":
            raise Violation(f"a device leaked on {host}")
        if place.device and part.cell.name is None:
            raise Violation(f"{host} does not adopt what it could")
    elif claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
        raise Violation(f"a claim on {host} sticks: {claim.state}")
    elif (claim.state is ClaimState.ACTIVE) != bool(place.device):
        there = place.device or "no"
        raise Violation(f"a claim on {host} is {claim.state} with {there} device")


def is_ready(part: Part) -> bool:
    """Whether the hold may be lifted, as far as a name is concerned.

    No write is in flight, and each device has its claim, or its name is that of a device of the
    other host.
    """
    return all(_is_ready_at(part, index, place) for index, place in enumerate(part.places))


def _is_ready_at(part: Part, index: int, place: Place) -> bool:
    if place.kernel or any(mind and (mind.sent or mind.waits) for mind in place.minds):
        return False
    claim = record(part.cell, index)
    if not place.device:
        return True
    if claim is not None:
        return claim.state in _MAY_HAVE_A_DEVICE
    return part.cell.name is not None and bool(part.places[1 - index].device)
