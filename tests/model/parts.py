"""What a state of the model is made of: small values that never change.

A state is one `Cluster` and for each name its `Cell` in the store, a `Place` on each host and
what is on its way to the store. No counter is in it, so that there are finitely many:

- A revision is 30 where it is the newest of its claim, 25 where the claim has moved on since and
  10 where it has been freed since; keys were created at 20. No transition asks for more than
  whether a revision is the newest, and which side of the creation it lies on.
- An instance is in force or it is not; a boot is this one or an earlier one.
- Times, request ids and leases are constants: a lease is 7 when a key hangs on it, and 8 when
  it is only named by what is on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from coordinator.keys import Keys
from coordinator.model import Name

if TYPE_CHECKING:
    from agent.reconcile import Decision, Refusal
    from coordinator.model import Claim, ClaimValue
    from coordinator.store import KeyValue

__all__ = [
    "BEFORE",
    "CREATED",
    "CURRENT",
    "GONE",
    "HOSTS",
    "KEYS",
    "LEASE",
    "MOVED",
    "NAME",
    "NAMES",
    "NOW",
    "OTHER_LEASE",
    "PARENT",
    "TIME",
    "TYPE",
    "Budget",
    "Cell",
    "Cluster",
    "Event",
    "Host",
    "Late",
    "Mind",
    "Moved",
    "Part",
    "Place",
    "Recipe",
    "Rules",
    "Slot",
    "Violation",
]

HOSTS = ("gpu01", "gpu02")
NAMES = (
    Name("aaaaaaaa-0000-4000-8000-000000000001"),
    Name("bbbbbbbb-0000-4000-8000-000000000002"),
)
NAME = NAMES[0]  # every cell spells its name so: which one it is, its place in the state tells
KEYS = Keys("model")
PARENT, TYPE = "0000:3b:00.0", "mtty-2"
TIME = "t"
NOW, BEFORE = "now", "before"  # boot ids
CREATED, CURRENT, MOVED, GONE = 20, 30, 25, 10  # revisions
LEASE, OTHER_LEASE = 7, 8


class Violation(AssertionError):
    """Something that is promised does not hold."""


@dataclass(frozen=True)
class Rules:
    """The rules of the protocol that the world's agents and operators keep.

    To leave one out shows that the search can fail. What is not kept here is kept, or broken,
    in the code under test itself.
    """

    both_keys: bool = True  # every transition puts, or deletes, the name and the claim
    begins: bool = True  # a create follows a begin of the same enrolment
    fresh_scan: bool = True  # a decision rests on a scan that began after the claim was read
    exists_waits: bool = True  # EEXIST of our own write never aborts
    unknown_waits: bool = True  # a scan that failed is no evidence
    in_flight_waits: bool = True  # nothing is concluded with a write in flight
    going_waits: bool = True  # a device that is going is not absent
    enrolment_compares: bool = True  # an enrolment compares the epoch that it read
    epoch_compares: bool = True  # each transaction of an agent compares its epoch
    evict_sees_no_session: bool = True  # an evict compares that the host has no session
    evict_compares: bool = True  # each batch of an evict compares the evict's epoch
    stale_ends: bool = True  # an agent whose generation is over enrols again
    generations: bool = True  # an order of a generation that is over never begins
    deadlines: bool = True  # no write begins after the session may have lapsed
    hold: bool = True  # after a restore only what exists is noted
    all_enrolled: bool = True  # the hold is lifted when every host has enrolled since
    reverted: bool = True  # what had failed before a restore is in the journal after a crash
    detached: bool = True  # a begin takes the claim off the reservation's lease


@dataclass(frozen=True)
class Budget:
    """Which faults there are, and how many at once, so that the space is finite.

    What is not counted happens at any time, any number of times; crashes, lapses and failed
    scans do so in every space.
    """

    late: int = 1  # copies of transactions of a name that are on their way at one time
    late_enrolments: bool = True
    zombies: bool = False  # a second agent on a host, of which the first does not know
    by_hand: bool = True  # devices that somebody makes and removes around us
    refusals: bool = True  # the kernel has no room, an attribute is refused
    persistent: bool = True  # names that outlive their devices, with and without autostart
    holds: bool = False  # reservations without a host, bound or defined later
    callers: bool = False  # callers on the host, who claim without a reservation
    evicts: bool = True
    restores: bool = False  # one snapshot at any time, restored at any later time
    unanswered: bool = True  # transactions, and answers to them, are lost
    power: bool = True  # a host loses power


class Slot(NamedTuple):
    """An agent of a host: where its enrolment stands.

    `read`: the epoch that it read still stands. `force`: the epoch is its own. `gen`: so is the
    host's local generation. `fresh`: its session's deadline has not passed.
    """

    phase: str  # asking, sent (and not answered), live
    read: bool
    force: bool
    gen: bool
    fresh: bool


class Host(NamedTuple):
    """What concerns all names of a host.

    `session` is the slot whose it is, `gone` (its agent has died), `before` (of an earlier boot)
    or empty. `late` is the slot whose enrolment is still on its way to the store, or `gone`.
    `setback`: its agent has not noticed yet that the store was restored. `since`: it has
    enrolled since then.
    """

    slots: tuple[Slot | None, Slot | None] = (None, None)
    session: str = ""
    late: str = ""
    evicting: bool = False
    setback: bool = False
    since: bool = False


class Cluster(NamedTuple):
    """What concerns all names. `snapshot`: none, taken, restored. `sessions` are of then."""

    hosts: tuple[Host, Host] = (Host(), Host())
    hold: bool = False
    snapshot: str = "none"
    sessions: tuple[str, str] = ("", "")


class Cell(NamedTuple):
    """What the store has of a name: its key, and its claim on each host."""

    name: KeyValue | None = None
    claims: tuple[KeyValue | None, KeyValue | None] = (None, None)


class Recipe(NamedTuple):
    """A transaction, as it is made anew from the claim that it rests on."""

    what: str
    claim: Claim | None = None
    decision: Decision | None = None
    host: int = 0  # for whom; an agent's own
    value: ClaimValue | None = None
    wish: str = "transient"
    boot: str = NOW  # in which an agent made it


class Late(NamedTuple):
    """A copy that may arrive at any time. `agent`: it compares the epoch of its host."""

    agent: bool
    recipe: Recipe


class Mind(NamedTuple):
    """What a living agent has in memory of a name. All of it is gone in a crash.

    `waits`: for an order that no worker has begun (`create`, `remove`), or for the kernel.
    `begun`: it has begun (or claimed) the name in this enrolment. `sight` is only kept where
    the rule of the fresh scan is not.
    """

    known: Claim | None = None
    sent: Recipe | None = None
    refusal: Refusal | None = None
    waits: str = ""
    sight: str = ""


class Place(NamedTuple):
    """A name on a host: its device, what the kernel is at, and what each agent thinks.

    `device`: ours or foreign. `kernel`: creating, removing, going (by hand), or given (a create
    of a host whose names were given away meanwhile). `orphans`: orders whose agent is gone.
    `journal` is what was learnt last, and whether that is newer than the snapshot. `reverted`: a
    removal of the snapshot had failed since; that `stands`, or the claim has `moved` on since, or
    it is `forgotten`, without the rule.
    """

    device: str = ""
    kernel: str = ""
    minds: tuple[Mind | None, Mind | None] = (None, None)
    orphans: tuple[str, ...] = ()
    journal: tuple[Claim, bool] | None = None
    lost: Claim | None = None
    reverted: str = ""


class Part(NamedTuple):
    """All there is of one name.

    `then` is its cell in the snapshot, `same` whether no transition has been made since.
    """

    cell: Cell = Cell()
    places: tuple[Place, Place] = (Place(), Place())
    late: tuple[Late, ...] = ()
    then: Cell | None = None
    same: bool = False


class Event(NamedTuple):
    """What each name reacts to: what happened, to which host, to which of its agents."""

    what: str
    host: int = 0
    slot: int = 0


class Moved(NamedTuple):
    """A step.

    Its place in the order in which things are done when faults stop (0: it need not happen), what
    it is in the words of the protocol, and what has become of the cluster and the name.
    """

    rank: int
    label: str
    cluster: Cluster
    part: Part | None = None  # of the name whose step it is
    events: tuple[Event, ...] = ()
    when_ready: bool = False  # it waits until every name is ready for it
