"""The judge of what users were told is itself judged: by histories that are so, or not."""

from __future__ import annotations

import pytest

from tests.support.ledger import Asked, Ledger, Told, Verb
from tests.support.truth import Claim, Name, Truth

NAME = "11111111-1111-4111-8111-111111111111"
HERE, THERE = "gpu01", "gpu02"

CREATE = Asked(Verb.CREATE, NAME, "r1", HERE)
AGAIN = Asked(Verb.CREATE, NAME, "r2", THERE)
REMOVE = Asked(Verb.REMOVE, NAME)
RESERVE = Asked(Verb.RESERVE, NAME, "r1")
RELEASE = Asked(Verb.RELEASE, NAME)

DONE = Told(0)
DEFECT = Told(1, "EIO: a defect")
NO_SUCH = Told(3, "ENOENT: no such name")
TAKEN = Told(4, "EEXIST: held by gpu01", HERE, "active")
BUSY = Told(6, "EAGAIN: a placeholder")
FULL = Told(7, "ENOSPC: no room")
NOTHING_DONE = Told(10, "EHOSTUNREACH: nothing was done")
UNKNOWN = Told(11, "ETIMEDOUT: not known")
DOWN = Told(16, "EHOSTDOWN: nobody can do it")
STAYS = Told(16, "EHOSTDOWN: the claim stays", HERE, "creating")
GOES = Told(16, "EHOSTDOWN: the claim stays", HERE, "removing")


def free() -> Truth:
    return Truth(devices={HERE: {}, THERE: {}})


def device(request: str = "r1", host: str = HERE) -> Truth:
    truth = free()
    truth.names[NAME] = Name(host, request, 9, 0)
    truth.claims[NAME] = [Claim(host, "active", "p0", request, 9, 0)]
    truth.devices[host][NAME] = "p0"
    return truth


def reserved(request: str = "r1") -> Truth:
    truth = free()
    truth.names[NAME] = Name(None, request, 9, 7)
    return truth


def leaked() -> Truth:
    truth = free()
    truth.devices[THERE][NAME] = "p0"
    return truth


def lost() -> Truth:
    truth = device()
    del truth.devices[HERE][NAME]
    return truth


def doubled() -> Truth:
    truth = device()
    truth.devices[THERE][NAME] = "p0"
    return truth


def creating() -> Truth:
    truth = free()
    truth.names[NAME] = Name(HERE, "r1", 9, 0)
    truth.claims[NAME] = [Claim(HERE, "creating", "p0", "r1", 9, 0)]
    return truth


def told(*history: tuple[Asked, Told]) -> Ledger:
    ledger = Ledger()
    for asked, answer in history:
        ledger.told(asked, answer)
    return ledger


ANYWHERE = Asked(Verb.CREATE, NAME, "r1")
DONE_HERE = Told(0, host=HERE)

GOOD = {
    "a create is there": ([(CREATE, DONE)], device()),
    "a create that was placed is there": ([(ANYWHERE, DONE)], device()),
    "one that was placed is taken": ([(ANYWHERE, DONE_HERE), (AGAIN, TAKEN)], device()),
    "wherever it is": ([(ANYWHERE, UNKNOWN), (AGAIN, TAKEN)], device()),
    "a removed one is free": ([(CREATE, DONE), (REMOVE, DONE)], free()),
    "a failure leaves nothing": ([(CREATE, FULL)], free()),
    "nothing was done": ([(CREATE, NOTHING_DONE)], free()),
    "unknown and there": ([(CREATE, UNKNOWN)], device()),
    "unknown and not there": ([(CREATE, UNKNOWN)], free()),
    "unknown, and the store away after": ([(CREATE, UNKNOWN), (CREATE, NOTHING_DONE)], device()),
    "settled by the same request": ([(CREATE, UNKNOWN), (CREATE, DONE)], device()),
    "taken, and so it is": ([(CREATE, DONE), (AGAIN, TAKEN)], device()),
    "made by the unknown one": ([(CREATE, UNKNOWN), (AGAIN, TAKEN)], device()),
    "free for another": (
        [(CREATE, DONE), (REMOVE, DONE), (AGAIN, DONE)],
        device("r2", THERE),
    ),
    "an unknown remove, gone": ([(CREATE, DONE), (REMOVE, UNKNOWN)], free()),
    "an unknown remove, there": ([(CREATE, DONE), (REMOVE, UNKNOWN)], device()),
    "an unknown remove, and then none": (
        [(CREATE, DONE), (REMOVE, UNKNOWN), (REMOVE, NO_SUCH)],
        free(),
    ),
    "a host that went away makes it later": ([(CREATE, STAYS)], device()),
    "a host that went away removes it later": ([(CREATE, DONE), (REMOVE, GOES)], free()),
    "nobody can remove it": ([(CREATE, DONE), (REMOVE, DOWN)], device()),
    "a placeholder is not removed": ([(CREATE, STAYS), (REMOVE, BUSY)], device()),
    "a reservation": ([(RESERVE, DONE)], reserved()),
    "a reservation that was given back": ([(RESERVE, DONE), (RELEASE, DONE)], free()),
    "a reservation that became a device": ([(RESERVE, DONE), (CREATE, DONE)], device()),
    "a reservation whose device failed": ([(RESERVE, DONE), (CREATE, FULL)], free()),
    "a reservation that was not used": ([(RESERVE, DONE), (CREATE, DOWN)], reserved()),
}

BAD = {
    "a create was lost": ([(CREATE, DONE)], free()),
    "its device was lost": ([(CREATE, DONE)], lost()),
    "it never became active": ([(CREATE, DONE)], creating()),
    "it is on another host": ([(CREATE, DONE)], device(host=THERE)),
    "it is not where it was said to be": ([(ANYWHERE, DONE_HERE)], device(host=THERE)),
    "it is somebody else's": ([(CREATE, DONE)], device("r2")),
    "a device is there twice": ([(CREATE, DONE)], doubled()),
    "a removed one is there": ([(CREATE, DONE), (REMOVE, DONE)], device()),
    "a removed one's device leaked": ([(CREATE, DONE), (REMOVE, DONE)], leaked()),
    "a failure arrived late": ([(CREATE, FULL)], device()),
    "nothing was done, it said": ([(CREATE, NOTHING_DONE)], device()),
    "an unknown one left half": ([(CREATE, UNKNOWN)], creating()),
    "two were told that they have it": ([(CREATE, DONE), (AGAIN, DONE)], device()),
    "taken, and nobody had it": ([(CREATE, TAKEN)], free()),
    "taken, by the wrong host": ([(AGAIN, DONE), (CREATE, TAKEN)], device("r2", THERE)),
    "gone, and nobody removed it": ([(CREATE, DONE), (REMOVE, NO_SUCH)], free()),
    "removed what never was": ([(REMOVE, DONE)], free()),
    "a host that went away lost it": ([(CREATE, STAYS)], free()),
    "a reservation was lost": ([(RESERVE, DONE)], free()),
    "a reservation made a device": ([(RESERVE, DONE)], device()),
    "a defect of ours": ([(CREATE, DEFECT)], free()),
    "nobody asked for it": ([], device()),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_so_is_not_objected_to(case: str) -> None:
    """A history that agrees with what stands has nothing wrong in it."""
    history, truth = GOOD[case]
    assert told(*history).wrong(truth) == []


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_so_is_found(case: str) -> None:
    """Of a history that does not agree the name is told."""
    history, truth = BAD[case]
    assert any(NAME in line for line in told(*history).wrong(truth))


def test_what_is_unknown_is_to_be_settled() -> None:
    """Only exit 11 leaves open what stands, until the same request is answered otherwise."""
    assert told((CREATE, DONE)).is_settled(NAME)
    assert told((CREATE, FULL)).is_settled(NAME)
    assert not told((CREATE, UNKNOWN)).is_settled(NAME)
    assert not told((CREATE, UNKNOWN), (CREATE, NOTHING_DONE)).is_settled(NAME)
    assert told((CREATE, UNKNOWN), (CREATE, DONE)).is_settled(NAME)


def test_an_evict_gives_up_the_names_of_its_host() -> None:
    """What was told of an evicted host's devices no longer holds, and of others it does."""
    ledger = told((CREATE, DONE))
    ledger.gave_up(THERE)
    assert ledger.wrong(free())
    ledger.gave_up(HERE)
    assert ledger.wrong(free()) == []


def test_answers_are_counted_by_exit_code() -> None:
    """A test can see that users were told what it is about."""
    ledger = told((CREATE, UNKNOWN), (CREATE, DONE), (REMOVE, DONE))
    assert (ledger.count(0), ledger.count(0, Verb.CREATE), ledger.count(11)) == (2, 1, 1)
