"""What many idle agents cost etcd, and what each of them hears of the others: nothing.

The crowd and the few are there at the same time, each on an etcd of its own, so that what else
the machine does is the same for both.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING

from coordinator.keys import Keys
from coordinator.sequences import batched
from tests.bench.filling import boot_id, fill, host_name, puts
from tests.bench.fleet import fleets, start
from tests.bench.raw import connect
from tests.bench.served import cpu_seconds, metrics, own_etcd
from tests.bench.turns import Turn, figure
from tests.bench.windows import window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.figures import Figure, Stage
    from tests.bench.fleet import Fleet

__all__ = ["measure"]

_NAMES = 100
_FEW = 10
_BUSY = 1_000_000  # the number of a host that has no agent
_BUSY_NAMES = 2520
_TOGETHER = 126  # names in one transaction
_A_PROCESS = 250  # hosts
# So many in one process at a time: they share its loop, which would not come round to keep the
# first ones' sessions alive.
_STARTING = 20
_KEPT_ALIVE = 10 / 3  # seconds: each agent keeps its session alive once in them
_SETTLE = 0.5  # seconds in which an event comes, if it does
_EVENTS = "etcd_debugging_mvcc_events_total"  # what it has sent to its watchers


@dataclass
class _Agents:
    """So many agents on an etcd, `server` its process."""

    stage: Stage
    endpoint: str
    server: int
    count: int
    fleets: list[Fleet] = field(default_factory=list)
    seconds: float = 0.0
    memory: float = 0.0
    """Kilobytes that one takes, its host's simulated kernel not counted."""

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[None]:
        """Names in etcd, devices in kernels, and agents that have nothing to do."""
        async with connect(self.endpoint) as raw:
            await fill(raw, Keys(self.stage.cluster), range(self.count), _NAMES, boot=boot_id)
        async with fleets(
            self.stage,
            self.endpoint,
            range(self.count),
            _NAMES,
            booted=True,
            processes=-(-self.count // _A_PROCESS),
        ) as self.fleets:
            empty, began = await self._kilobytes(), time.monotonic()
            await start(self.fleets, _STARTING)
            self.seconds = time.monotonic() - began
            self.memory = (await self._kilobytes() - empty) / self.count
            yield

    async def _kilobytes(self) -> int:
        return sum([int(await fleet.ask("memory")) for fleet in self.fleets])

    @property
    def used(self) -> float:
        """Seconds of etcd's time for each, so far."""
        return cpu_seconds(self.server) / self.count


async def measure(stage: Stage) -> list[Figure]:
    """Let agents idle, many and few, and let a host be busy among the many."""
    with own_etcd() as other:
        alone = await _share(other.pid, stage.size(3, 1))
        few = _Agents(stage, other.endpoint, other.pid, _FEW)
        crowd = _Agents(stage, stage.endpoint, stage.server, stage.size(1000, 30))
        async with few.idle(), crowd.idle():
            return [
                await _idle(stage, crowd, few, alone),
                _memory(stage, crowd, few),
                await _heard(stage, crowd),
            ]


async def _share(server: int, seconds: float) -> float:
    """The share of a processor that an etcd uses."""
    before = cpu_seconds(server)
    await window(seconds)
    return (cpu_seconds(server) - before) / seconds


async def _idle(stage: Stage, crowd: _Agents, few: _Agents, alone: float) -> Figure:
    seconds = _KEPT_ALIVE / stage.size(1, 2)
    turns = []
    for _ in range(stage.size(3, 1)):
        before = crowd.used, few.used
        await window(seconds)
        turns.append(Turn([crowd.used - before[0]], [few.used - before[1]]))
    ours = crowd.count * mean(turn.ours[0] for turn in turns) / seconds
    theirs = few.count * mean(turn.theirs[0] for turn in turns) / seconds
    notes = (
        (
            f"etcd uses {ours:.1%} of a processor for {crowd.count:,} agents, {theirs:.1%} for "
            f"{few.count}, and {alone:.1%} for none"
        ),
        (
            f"{crowd.count:,} agents with {_NAMES} names each, in {len(crowd.fleets)} processes; "
            f"each agent started in {crowd.seconds / crowd.count * 1e3:.0f} ms, all of them in "
            f"{crowd.seconds:.0f} s"
        ),
    )
    return figure(stage.line, "etcd's time an agent", turns, must=1.0, notes=notes)


def _memory(stage: Stage, crowd: _Agents, few: _Agents) -> Figure:
    turn = Turn([crowd.memory], [few.memory])
    notes = (
        (
            f"{crowd.memory:,.0f} kB an agent among {crowd.count:,}, {few.memory:,.0f} kB among "
            f"{few.count}; an interpreter with all that is loaded is shared, and not in it"
        ),
    )
    return figure(stage.line, "memory an agent", [turn], must=1.1, notes=notes)


async def _heard(stage: Stage, crowd: _Agents) -> Figure:
    """What the crowd's watches are sent of a host that is busy, and of their own."""
    keys = Keys(stage.cluster)
    names = list(puts(keys, _BUSY, _BUSY_NAMES))
    async with connect(crowd.endpoint) as raw:
        before = metrics(crowd.endpoint)[_EVENTS]
        for some in batched(names, _TOGETHER):
            await raw.take_all(some)
        await window(_SETTLE)
        heard = metrics(crowd.endpoint)[_EVENTS] - before
        for number in range(_FEW):
            await raw.take([(f"{keys.of_host(host_name(number))}bench".encode(), b"{}")])
        await window(_SETTLE)
        own = metrics(crowd.endpoint)[_EVENTS] - before - heard
    assert own == _FEW, f"{own} events for {_FEW} changes below agents' own hosts"
    changes = 2 * len(names)
    notes = (
        (
            f"{heard:.0f} events to {crowd.count:,} watches for {changes:,} changes of another "
            f"host, and one for each of {_FEW} changes of their own hosts, counted by etcd"
        ),
    )
    # Every event that came, for each that is about a host of theirs.
    turn = Turn([heard + own], [own])
    return figure(stage.line, "events an own change", [turn], must=1.0, notes=notes)
