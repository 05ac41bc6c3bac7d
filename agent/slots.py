"""How many writes to the kernel go on at once: what the host can bear, and fair to all parents.

Each write has a worker process for as long as it lasts, and a driver can let a write hang for
ever. So writes are counted by parent:

- A parent has up to `per_parent` writes at a time, besides those that hang.
- The first write of a parent needs no more than that the host bears a process more (`total`).
  All writes beyond the first of each parent share `extra`. So no parent waits for another's
  driver, and no number of parents starts `per_parent` processes each.
- A write that hangs keeps its process. A parent with `hung` of them is stuck: it gets no more,
  and whoever asks is refused at once, until some of them return.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["STOPPING", "STUCK", "Bounds", "Slots", "raise_descriptor_limit"]

STUCK, STOPPING = "parent stuck", "stopping"

_MOST_DESCRIPTORS = 1 << 20  # a limit without end is none that anything was tried with
_KEPT_DESCRIPTORS = 256  # for etcd, the journal, the socket's callers and looks at the bus
_DESCRIPTORS = 4  # of the agent's for a worker: two pipes and a pidfd, and one while it starts
_WORKER_BYTES = 8 << 20  # of memory that a worker has to itself
_MEMORY_SHARE = 4  # a quarter of what is available is for workers
_PER_CPU = 32  # writes sleep in the kernel for most of their time
_FEWEST = 4
_HUNG_FEWEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many writes there may be; see above."""

    per_parent: int
    hung: int
    extra: int
    total: int

    @classmethod
    def of_host(cls, per_parent: int) -> Bounds:
        """What this host bears now, by its descriptors, memory and processors."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
        total = max(_FEWEST, (descriptors - _KEPT_DESCRIPTORS) // _DESCRIPTORS)
        by_memory = _available_memory() // _MEMORY_SHARE // _WORKER_BYTES
        by_cpu = _PER_CPU * len(os.sched_getaffinity(0))
        return cls(
            per_parent=per_parent,
            hung=max(_HUNG_FEWEST, 2 * per_parent),
            extra=max(_FEWEST, min(total // 2, by_memory, by_cpu)),
            total=total,
        )


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as its hard limit does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _available_memory() -> int:
    """Bytes; without an answer as much as the smallest host has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    kib = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kib[0]) << 10 if kib else 1 << 30


@dataclass(slots=True)
class _Parent:
    """The writes of a parent: those that go on, those that hang, and who waits for a turn."""

    running: int = 0
    hung: int = 0
    waiting: deque[asyncio.Future[str]] = field(default_factory=deque)


class Slots:
    """Turns for writes; first come, first served within a parent, in turns between parents."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._parents: dict[str, _Parent] = {}
        self._turns: list[str] = []
        """The parents for which somebody waits, each once."""
        self._total = self._extra = 0

    async def take(self, parent: str) -> str:
        """Wait for a turn; empty when there is one, else why there is none."""
        of = self._parents.setdefault(parent, _Parent())
        if of.hung >= self.bounds.hung:
            return STUCK
        if not of.waiting and self._has_room(of):
            self._start(of)
            return ""
        turn: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if not of.waiting:
            self._turns.append(parent)
        of.waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.result():
                self.give_back(parent, hung=False)  # it came in the same moment
            raise

    def hang(self, parent: str) -> None:
        """A write of the parent hangs: it keeps its process, and the next one has its turn."""
        of = self._parents[parent]
        of.running -= 1
        of.hung += 1
        if of.hung >= self.bounds.hung:
            self._answer(of, STUCK)
        self._wake()

    def give_back(self, parent: str, *, hung: bool) -> None:
        """A write of the parent has returned, which was `hung` or not."""
        of = self._parents[parent]
        if hung:
            of.hung -= 1
        else:
            of.running -= 1
        self._total -= 1
        if of.running + of.hung > 0:
            self._extra -= 1
        self._wake()

    def stuck(self) -> Mapping[str, int]:
        """The parents that get no more writes, and how many of theirs hang."""
        return {name: of.hung for name, of in self._parents.items() if of.hung >= self.bounds.hung}

    def close(self) -> None:
        """Answer all who wait that there will be no turn for them."""
        for of in self._parents.values():
            self._answer(of, STOPPING)
        self._turns.clear()

    def _has_room(self, of: _Parent) -> bool:
        own = of.running + of.hung
        return (
            of.running < self.bounds.per_parent
            and of.hung < self.bounds.hung
            and self._total < self.bounds.total
            and (own == 0 or self._extra < self.bounds.extra)
        )

    def _start(self, of: _Parent) -> None:
        self._total += 1
        if of.running + of.hung > 0:
            self._extra += 1
        of.running += 1

    def _wake(self) -> None:
        """Give turns for as long as there is room; a parent that had its turn goes to the end."""
        found = True
        while found:
            found = False
            left: list[str] = []
            served: list[str] = []
            for name in self._turns:
                of = self._parents[name]
                while of.waiting and of.waiting[0].done():
                    of.waiting.popleft()  # cancelled
                goes = bool(of.waiting) and self._has_room(of)
                if goes:
                    self._start(of)
                    of.waiting.popleft().set_result("")
                    found = True
                if of.waiting:
                    (served if goes else left).append(name)
            self._turns = [*left, *served]

    @staticmethod
    def _answer(of: _Parent, why: str) -> None:
        for turn in of.waiting:
            if not turn.done():
                turn.set_result(why)
        of.waiting.clear()
