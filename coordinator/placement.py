"""Which host and parent shall make a device that names only its type. Pure.

`available` is a hint: the types of a parent may share a pool, and others create meanwhile.
The kernel's own answer counts, and a refusal for want of room is placed again elsewhere.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Candidate", "Strategy", "place"]


class Strategy(StrEnum):
    """How devices are laid out over parents."""

    SPREAD = "spread"  # where most is free: load and failures are shared
    PACK = "pack"  # where least is free: whole parents stay free for larger types


@dataclass(frozen=True, slots=True)
class Candidate:
    """A parent that offers the type, and how many instances it has left.

    `failing`: it refused the last creates of different names, so it is taken last.
    """

    host: str
    parent: str
    available: int
    failing: bool = False


def place(
    candidates: Iterable[Candidate], count: int, strategy: Strategy
) -> Sequence[Candidate | None]:
    """A parent for each of `count` devices; None where nothing is left.

    Equal candidates are taken in the order of host and parent, so the same question gets
    the same answer. O((candidates + count) log candidates).
    """
    sign = -1 if strategy is Strategy.SPREAD else 1
    heap = [
        (c.failing, sign * c.available, c.host, c.parent, c) for c in candidates if c.available > 0
    ]
    heapq.heapify(heap)
    placed: list[Candidate | None] = []
    for _ in range(count):
        if not heap:
            placed.append(None)
            continue
        failing, left, host, parent, candidate = heap[0]
        placed.append(candidate)
        left -= sign
        if left == 0:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (failing, left, host, parent, candidate))
    return placed
