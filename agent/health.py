"""Whether an agent is well: facts, and a pure verdict that health, readiness and systemd share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.clock import Clock
    from coordinator.model import RestoreValue
    from coordinator.session import Session

__all__ = ["Facts", "Verdict", "Vitals", "verdict"]

BEAT = 1.0
"""Seconds between two beats of the event loop."""

_STILL = 15.0  # seconds without a beat after which the loop is taken to hang
_STALE = 30.0  # seconds without a look at the bus after which what is known of it is old


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of an agent. Times in seconds; None: never, or there is none."""

    since_beat: float
    session_left: float | None
    listed: bool
    since_look: float | None
    bus_trouble: str | None = None
    restoring: str | None = None
    degraded: tuple[str, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`live`: its process works. `reasons` say why it is not ready; ready has none.

    `degraded` says what is wrong with single parents, which keeps no other from being served.
    """

    live: bool
    reasons: tuple[str, ...]
    degraded: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it serves its host."""
        return self.live and not self.reasons


def verdict(facts: Facts) -> Verdict:
    """How an agent is.

    One that waits for the store, or whose bus cannot be looked at, lives: a restart would not
    mend that, and devices do not need it. One whose event loop stands still does not.
    """
    reasons = []
    live = facts.since_beat < _STILL
    if not live:
        reasons.append(f"its event loop has stood still for {facts.since_beat:.0f} s")
    if facts.session_left is None:
        reasons.append("it is not enrolled")
        if facts.trouble is not None:
            reasons.append(facts.trouble)
    elif facts.session_left <= 0:
        reasons.append("the store has not answered for a session's time")
    if not facts.listed:
        reasons.append("its claims are not listed yet")
    if facts.bus_trouble is not None:
        reasons.append(f"the bus {facts.bus_trouble}")
    elif facts.since_look is None or facts.since_look > _STALE:
        ago = "" if facts.since_look is None else f" for {facts.since_look:.0f} s"
        reasons.append(f"the bus was not looked at{ago}")
    if facts.restoring is not None:
        reasons.append(facts.restoring)
    return Verdict(live, tuple(reasons), facts.degraded)


class Vitals:
    """What an agent notes of itself while it runs. Read by other threads: each field is whole."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._beat = clock.boottime()
        self._look: float | None = None
        self.session: Session | None = None
        self.listed = False
        self.bus_trouble: str | None = None
        self.degraded: Mapping[str, tuple[str, ...]] = {}
        """What is wrong with single parents, while the others are served."""
        self.restore: RestoreValue | None = None
        self.frozen = False
        self.trouble: str | None = None
        """What keeps it from enrolling, where that is known."""

    def beat(self) -> None:
        """The event loop goes round."""
        self._beat = self._clock.boottime()

    def looked(self, trouble: str | None) -> None:
        """The bus was looked at, or could not be."""
        self.bus_trouble = trouble
        if trouble is None:
            self._look = self._clock.boottime()

    def enrolled(self, session: Session | None) -> None:
        """An enrolment begins; None: it has ended."""
        self.session, self.listed, self._look = session, False, None
        self.restore, self.frozen = None, False

    def facts(self) -> Facts:
        """The facts of this moment."""
        now, session, look = self._clock.boottime(), self.session, self._look
        return Facts(
            since_beat=now - self._beat,
            session_left=None if session is None else session.deadline - now,
            listed=self.listed,
            since_look=None if look is None else now - look,
            bus_trouble=self.bus_trouble,
            restoring=_restoring(self.restore),
            degraded=tuple(
                f"parent {parent}: {trouble}"
                for parent, troubles in self.degraded.items()
                for trouble in troubles
            ),
            trouble=self.trouble,
        )


def _restoring(restore: RestoreValue | None) -> str | None:
    if restore is None:
        return None
    return f"a restore is under way since {restore.at}; end it with: mdevns restore finish"
