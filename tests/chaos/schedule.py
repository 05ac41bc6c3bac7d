"""Which fault comes when, decided by a seed; and what came of each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.certificate_faults import CERTIFICATE_FAULTS
from tests.chaos.etcd_faults import ETCD_FAULTS
from tests.chaos.host_faults import HOST_FAULTS
from tests.chaos.restore_fault import RestoredFromSnapshot

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from tests.chaos.cluster import Cluster
    from tests.chaos.faults import Fault

__all__ = ["FAULTS", "Injected", "Schedule", "kinds"]

FAULTS: tuple[type[Fault], ...] = (
    *HOST_FAULTS,
    *ETCD_FAULTS,
    *CERTIFICATE_FAULTS,
    RestoredFromSnapshot,
)

_SAVED_EVERY = 4  # faults: so old is what a restore brings back, and twice that


def kinds(names: Sequence[str]) -> tuple[type[Fault], ...]:
    """The faults whose kinds contain one of these words, all where there is none."""
    found = tuple(each for each in FAULTS if any(name in each.kind for name in names or ("",)))
    if not found:
        raise ValueError(f"no kind of fault is called {names}: {[each.kind for each in FAULTS]}")
    return found


@dataclass
class Injected:
    """One fault that was injected: from when to when it lasted, and when all was well again."""

    kind: str
    where: str
    sick: frozenset[str]
    off: frozenset[str]
    sets_back: bool
    begun: float
    lifted: float | None = None
    back: float | None = None


@dataclass
class Schedule:
    """Faults one after the other, each followed by a return of everything.

    Every kind of `faults` comes once before one comes again. With `all_once` the first round is
    gone through to its end, however long that takes.
    """

    cluster: Cluster
    rng: random.Random
    faults: Sequence[type[Fault]]
    say: Callable[[str], None]
    injected: list[Injected] = field(default_factory=list)
    now: str = "at the beginning"

    def run(self, seconds: float, *, all_once: bool) -> None:
        """Inject until so many seconds are over.

        Raises:
            AssertionError: something did not happen or did not come back in time.
        """
        end = time.monotonic() + seconds
        for number, fault in enumerate(self._endless()):
            is_owed = all_once and number < len(self.faults)
            if self.cluster.over.is_set() or (time.monotonic() > end and not is_owed):
                return
            if number % _SAVED_EVERY == 0:
                self.cluster.save()
            self._step(fault(self.cluster, self.rng))

    def _endless(self) -> Iterator[type[Fault]]:
        while True:
            yield from self.rng.sample(self.faults, len(self.faults))

    def _step(self, fault: Fault) -> None:
        one = Injected(
            fault.kind, fault.where, fault.sick, fault.off, fault.sets_back, time.monotonic()
        )
        self.injected.append(one)
        self.now = f"{one.kind} ({one.where})"
        fault.inject()
        took = time.monotonic() - one.begun
        self.cluster.hold(fault.lasts)
        fault.heal()
        one.lifted = time.monotonic()
        self.now = f"after {one.kind} ({one.where})"
        self.cluster.await_well()
        self.cluster.await_work(one.lifted)
        one.back = time.monotonic()
        self.say(
            f"{one.kind} ({one.where}): injected in {took:.1f} s, "
            f"lasted {one.lifted - one.begun:.1f} s, back after {one.back - one.lifted:.1f} s"
        )
        self.cluster.turn_pool(4 if fault.sets_back else 1)
