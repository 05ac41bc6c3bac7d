"""What a seed decides before the world begins: who asks for what, and what goes wrong when.

A schedule is a list of single decisions. Any of them can be left out, and what is left is the
same schedule otherwise: so it can be made shorter, written down, and played again.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.sim.cluster import FATES

__all__ = ["FAULTS", "Event", "Schedule", "Setting", "generate"]

# Weights are how often a kind is chosen where a seed has it at all.
FAULTS: dict[str, tuple[float, float]] = {
    # kind: (probability that a seed has the kind, mean number in a schedule)
    "fate": (0.7, 12.0),  # a store request of a process: lost, late, doubled, slow
    "kill": (0.7, 4.0),  # an agent, some steps after its n-th request or kernel write
    "term": (0.15, 1.5),  # an agent, with SIGTERM
    "pause": (0.4, 2.0),  # an agent is stopped for a while
    "freeze": (0.3, 1.5),  # a whole host is, its workers too
    "stall": (0.4, 4.0),  # a worker before it looks at its order, or right before its write
    "power": (0.4, 1.5),  # power loss and, later, a boot
    "expel": (0.35, 2.0),  # an operator evicts the host as soon as it is seen as unreachable
    "partition": (0.4, 2.0),  # a host, or an operator, reaches the store no more
    "cut": (0.5, 4.0),  # a watch stream of a host
    "compact": (0.4, 3.0),
    "leader": (0.3, 2.0),  # leader change: every lease is refreshed
    "revoke": (0.3, 2.0),  # a lease is revoked early
    "deaf": (0.2, 1.5),  # a session's lease is gone and renewed with success
    "made": (0.5, 3.0),  # a device is made by hand
    "gone": (0.4, 2.0),  # a device is removed by hand
    "held": (0.4, 3.0),  # a VM opens a device
    "caught": (0.4, 3.0),  # the same, and an operator removes it by force; nobody sees well
    "slow": (0.4, 3.0),  # a parent's driver takes long
    "refuse": (0.4, 3.0),  # a parent's driver refuses the next create
    "attribute": (0.3, 2.0),  # writes of the attribute fail for a while
    "unplug": (0.3, 2.0),  # a parent's driver is unbound, and bound again
    "blind": (0.3, 2.0),  # a host's scans fail, or see no parent's directory
    "jump": (0.2, 2.0),  # a host's wall clock jumps
    "hints": (0.3, 1.0),  # a host's events are lost for a while
    "disk": (0.2, 1.0),  # a host's journal cannot be written for a while
    "full": (0.15, 1.0),  # the store's space quota is used up for a while
    "restore": (0.25, 1.0),  # the store is set back to an older snapshot
    "scrap": (0.15, 1.0),  # a host loses its power for good, and is evicted
    "quit": (0.3, 3.0),  # an operator's process is killed
}
# What an operator asks for, one step after the other; the weight is how often.
_REQUESTS = {
    "create": 5,
    "create+remove": 10,
    "create+remove+create": 4,
    "create+stop+start": 3,
    "create+stop+start+remove": 3,
    "create+stop+move+start": 4,
    "create+create+remove": 1,
    "create+stop+undefine": 2,
    "define+start+remove": 3,
    "define+move+start+stop": 2,
    "reserve+create+remove": 3,
    "reserve+renew+release": 2,
    "reserve+release": 1,
    "remove": 5,
    "remove+create": 3,
    "stop+move": 2,
    "start": 2,
    "forget": 0.2,
}
_BULK = {"create", "remove"}


@dataclass(frozen=True)
class Event:
    """One decision: a request or a fault, when, and what is chosen about it."""

    kind: str
    at: float
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:8.3f}  {self.kind:9} {' '.join(map(str, self.args))}".rstrip()


@dataclass(frozen=True)
class Setting:
    """The stage, which stays when events are left out. Times in seconds."""

    hosts: int = 2
    parents: int = 2
    names: int = 4
    capacity: int = 4
    ttl: int = 4
    rescan: float = 2.0
    resync: float = 20.0
    timeout: float = 2.0
    patience: float = 4.0
    latency: float = 0.05
    linger: float = 0.0
    network: float = 0.002
    horizon: float = 12.0
    per_parent: int = 2


@dataclass(frozen=True)
class Schedule:
    """A seed, its setting, and its events in the order of time."""

    seed: int
    setting: Setting
    events: tuple[Event, ...] = field(default=())

    def dumps(self) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "seed": self.seed,
                "setting": asdict(self.setting),
                "events": [[e.kind, e.at, *e.args] for e in self.events],
            }
        )

    @classmethod
    def loads(cls, text: str) -> Schedule:
        """Read what `dumps` wrote."""
        read = json.loads(text)
        events = tuple(Event(kind, at, tuple(args)) for kind, at, *args in read["events"])
        return cls(read["seed"], Setting(**read["setting"]), events)


def generate(seed: int, without: frozenset[str] = frozenset()) -> Schedule:
    """The schedule of a seed: a random subset of all kinds of faults, with random intensity.

    What is of a kind in `without` is left out, and the rest is the same.
    """
    rng = random.Random(f"schedule/{seed}")
    setting = Setting(
        hosts=rng.choice((2, 2, 3, 3, 4)),
        parents=rng.choice((1, 2, 2)),
        names=rng.choice((2, 3, 5, 8, 12)),
        capacity=rng.choice((1, 2, 4, 8)),
        ttl=rng.choice((3, 4, 5)),
        rescan=rng.choice((1.0, 2.0, 4.0)),
        resync=rng.choice((5.0, 20.0, 60.0)),
        timeout=rng.choice((1.0, 2.0, 3.0)),
        patience=rng.choice((1.0, 4.0, 8.0)),
        latency=rng.choice((0.0, 0.02, 0.2, 1.0)),
        linger=rng.choice((0.0, 0.0, 0.1)),
        network=rng.choice((0.001, 0.005, 0.05)),
        horizon=rng.choice((5.0, 7.0, 10.0)),
        per_parent=rng.choice((1, 2, 4)),
    )
    drawn = (*_requests(rng, setting), *_faults(rng, setting))
    events = [event for event in drawn if event.kind not in without]
    return Schedule(
        seed, setting, tuple(sorted(events, key=lambda e: (e.at, e.kind, repr(e.args))))
    )


def _requests(rng: random.Random, setting: Setting) -> list[Event]:
    """What operators ask, in bursts on few names, so that they meet."""
    events = []
    for _ in range(rng.randint(8, 18)):
        (kind,) = rng.choices(list(_REQUESTS), list(_REQUESTS.values()))
        at = round(0.5 + rng.random() ** 1.5 * (setting.horizon - 1.0), 3)
        many = rng.choice((1, 1, 1, 2, 4)) if set(kind.split("+")) <= _BULK else 1
        names = sorted({rng.randrange(setting.names) for _ in range(many)})
        host = rng.randrange(setting.hosts) if rng.random() < 0.6 else -1
        parent = rng.randrange(setting.parents) if host >= 0 and rng.random() < 0.5 else -1
        kept = ("p", "pa") if "stop" in kind or "start" in kind else ("", "", "p", "pa")
        style = rng.choice(kept) + ("x" if rng.random() < 0.3 else "")
        events.append(Event(kind, at, (names, host, parent, style)))
        if rng.random() < 0.25:  # somebody else asks for the same at the same time
            other = rng.randrange(-1, setting.hosts)
            again = round(at + rng.random() * 0.05, 3)
            events.append(Event(kind, again, (names, other, -1, style)))
    return events


def _faults(rng: random.Random, setting: Setting) -> list[Event]:
    events = []
    heavy = rng.choice((0.25, 0.5, 1.0))
    for kind, (share, mean) in FAULTS.items():
        if rng.random() >= share * heavy:
            continue
        for _ in range(1 + int(rng.expovariate(1 / mean))):
            at = round(rng.uniform(0.2, setting.horizon), 3)
            host = rng.randrange(setting.hosts)
            events.append(Event(kind, at, _arguments(rng, setting, kind, host)))
    return events


def _arguments(  # noqa: C901, PLR0911, PLR0912 - one line a kind
    rng: random.Random, setting: Setting, kind: str, host: int
) -> tuple[Any, ...]:
    name, parent = rng.randrange(setting.names), rng.randrange(setting.parents)
    some = round(rng.random() ** 2 * 6.0, 3)  # seconds
    match kind:
        case "fate":
            who = host if rng.random() < 0.6 else -1 - rng.randrange(14)
            most = 80 if who >= 0 else 25
            return (who, int(rng.random() ** 1.5 * most), rng.choice(FATES), some)
        case "kill":
            what = rng.choice(("store", "store", "write"))
            most = 60 if what == "store" else 12
            count, steps = int(rng.random() * most), int(rng.random() ** 2 * 60)
            return (host, what, count, steps, round(rng.random() ** 3 * 5.0, 3))
        case "stall":
            return (host, rng.randrange(12), some, rng.random() < 0.5)
        case "pause" | "freeze" | "partition" | "cut" | "blind" | "disk" | "hints":
            return (host, some, rng.random() < 0.5)
        case "power":
            return (host, some, rng.random() < 0.3)
        case "expel":
            return (host, rng.random() < 0.3, rng.random() < 0.5, rng.random() < 0.5)
        case "compact":
            return (int(rng.random() ** 2 * 40),)
        case "revoke" | "deaf":
            return (rng.randrange(8),)
        case "made":
            return (host, parent, name)
        case "gone" | "held":
            return (host, name, some)
        case "caught":
            return (host, some, rng.random() < 0.6)
        case "slow":
            return (host, parent, some)
        case "refuse":
            return (host, parent, rng.choice(("ENOSPC", "EINVAL", "EIO", "EEXIST", "ENODEV")))
        case "attribute" | "unplug":
            return (host, parent, some)
        case "jump":
            return (host, round(rng.uniform(-1e6, 1e6)))
        case "restore":  # how old the snapshot is, and whether an operator begins it
            return (some, rng.random() < 0.6)
        case "quit":
            return (rng.randrange(14), rng.randrange(60))
        case _:
            return (some,) if kind == "full" else (host,)
