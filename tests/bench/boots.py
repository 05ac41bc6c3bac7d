"""How fast hosts get their devices back that boot at once: the namespace's part of it."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.keys import Keys
from coordinator.sequences import batched
from tests.bench.filling import fill, puts
from tests.bench.fleet import fleets, start
from tests.bench.raw import connect
from tests.bench.served import cpu_seconds
from tests.bench.turns import Turn, figure, in_turns, p50

if TYPE_CHECKING:
    from tests.bench.figures import Figure, Stage
    from tests.bench.raw import Raw

__all__ = ["measure"]

_DEVICES = 128
_PROCESSES = 2
_TOGETHER = 126  # names in one transaction
_IN_FLIGHT = 4
_PROFILED = range(100_000, 100_004)  # hosts
_SHOWN = 6  # parts of the profile


@dataclass
class _Bench:
    """What is measured: names a second, and etcd's processor time for each."""

    stage: Stage
    raw: Raw
    booted: int = 0
    put: int = 0
    of_cpu: list[float] = field(default_factory=list)
    of_cpu_raw: list[float] = field(default_factory=list)

    @property
    def hosts(self) -> int:
        """How many boot at once."""
        return self.stage.size(48, 8)

    async def boot(self) -> list[float]:
        """So many new hosts boot; names a second until all their devices are active."""
        numbers = range(self.booted, self.booted + self.hosts)
        self.booted += self.hosts
        keys = Keys(self.stage.cluster)
        await fill(self.raw, keys, numbers, _DEVICES, persistent=True)
        async with fleets(
            self.stage,
            self.stage.endpoint,
            numbers,
            _DEVICES,
            booted=False,
            processes=_PROCESSES,
        ) as parts:
            before, began = cpu_seconds(self.stage.server), time.perf_counter()
            await start(parts)
            seconds = time.perf_counter() - began
            used = cpu_seconds(self.stage.server) - before
        names = len(numbers) * _DEVICES
        self.of_cpu.append(names / used)
        return [names / seconds]

    async def put_raw(self) -> list[float]:
        """Names a second that nested transactions take, one process sending them."""
        hosts = self.stage.size(160, 60)
        keys = Keys(f"{self.stage.cluster}-raw")
        numbers = range(self.put, self.put + hosts)
        self.put += hosts
        pairs = [pair for number in numbers for pair in puts(keys, number, _DEVICES)]
        batches = iter(list(batched(pairs, _TOGETHER)))

        async def send() -> None:
            for some in batches:
                await self.raw.take_all(some)

        before, began = cpu_seconds(self.stage.server), time.perf_counter()
        await asyncio.gather(*(send() for _ in range(_IN_FLIGHT)))
        seconds = time.perf_counter() - began
        self.of_cpu_raw.append(len(pairs) / (cpu_seconds(self.stage.server) - before))
        return [len(pairs) / seconds]

    async def profile(self) -> dict[str, float]:
        """Where a process of hosts that boot spends its time, by parts of the code."""
        await fill(self.raw, Keys(self.stage.cluster), _PROFILED, _DEVICES, persistent=True)
        async with fleets(
            self.stage, self.stage.endpoint, _PROFILED, _DEVICES, booted=False
        ) as parts:
            parts[0].say("profile")
            await start(parts)
            costs: dict[str, float] = json.loads(await parts[0].ask("costs"))
        return costs


async def measure(stage: Stage) -> list[Figure]:
    """Boot hosts and put names raw, in turns."""
    async with connect(stage.endpoint) as raw:
        bench = _Bench(stage, raw)
        turns = await in_turns(bench.boot, bench.put_raw, rounds=stage.size(3, 1))
        costs = {} if stage.quick else await bench.profile()
    ours = p50([turn.ours[0] for turn in turns])
    theirs = p50([turn.theirs[0] for turn in turns])
    notes = (
        (
            f"{bench.hosts} hosts at once, {_DEVICES} devices each, in {_PROCESSES} processes on "
            f"the processors that etcd runs on too: {ours:,.0f} names a second; raw {theirs:,.0f}"
        ),
        "each name is begun and activated, two nested transactions; raw it is put in one",
        f"where a process of hosts spends its time: {_shares(costs) or 'see a full run'}",
    )
    cpu = [Turn([a], [b]) for a, b in zip(bench.of_cpu, bench.of_cpu_raw, strict=True)]
    of_etcd = (
        (
            "names for a second of etcd's processor time: what it could do with hosts that have "
            "processors of their own"
        ),
    )
    return [
        figure(stage.line, "names a second", turns, must=0.6, at_least=True, notes=notes),
        figure(stage.line, "names by etcd's time", cpu, notes=of_etcd),
    ]


def _shares(costs: dict[str, float]) -> str:
    most = list(costs.items())[:_SHOWN]
    return ", ".join(f"{part} {share:.0%}" for part, share in most)
