"""mdevctl's starts with the callout and without; this process is mdevctl, which does the same.

What mdevctl itself takes is in neither: between the questions it writes to the kernel.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING

from agent import simulated
from agent.local.serving import SOCKET
from agent.simulated import SimulatedBus
from agent.threads import in_thread
from cli.scripts import Scripts
from tests.bench.agents import PARENTS, TYPE, Spent, serving, simulated_host
from tests.bench.asking import new_names
from tests.bench.turns import in_turns, of_ratios
from tests.support.mdevctl_root import Root

if TYPE_CHECKING:
    from pathlib import Path

    from coordinator.model import Name
    from tests.bench.figures import Figure, Stage
    from tests.support.agents import SimulatedHost

__all__ = ["measure"]

_LATENCY = 0.1  # seconds that a driver takes for a create
_MORE = 0.06  # seconds, the bound
_DEFINITION = json.dumps({"mdev_type": TYPE, "start": "manual", "attrs": []}).encode()


async def measure(stage: Stage) -> list[Figure]:
    """What a device takes more with the callout: one alone, and all parents at once."""
    without = simulated_host(stage, "gpu02", _LATENCY)
    with serving(stage, "gpu01", latency=_LATENCY) as host:
        tool = _Mdevctl(stage.directory / "root", host)
        figures = []
        for what, starts, count in (
            ("one after the other", tool.serial, 4),
            (f"{PARENTS} parents at once", tool.parallel, stage.size(32, 8)),
        ):
            tool.spent = Spent()
            turns = await in_turns(
                partial(starts, host, count, asks=True),
                partial(starts, without, count, asks=False),
                rounds=stage.size(3, 1),
            )
            ratios = [(turn.ours[0] - turn.theirs[0]) / count / _MORE for turn in turns]
            more = f"more a device, of {1000 * _MORE:.0f} ms, {what}"
            notes = [f"{count} devices a round", *tool.spent.mean()]
            figures.append(of_ratios(stage.line, more, ratios, must=1.0, notes=notes))
    return figures


class _Mdevctl:
    """mdevctl with our scripts in place for the agent of `host`."""

    def __init__(self, root: Path, host: SimulatedHost) -> None:
        self._root, self.spent = Root(root, "1.4.0"), Spent()
        list(Scripts(root, host.directory / "run" / SOCKET).install())

    async def serial(self, host: SimulatedHost, count: int, *, asks: bool) -> list[float]:
        """So many starts, one after the other; the seconds for all."""
        await self.run("a Python that does nothing", "/usr/bin/python3", "-IS", "-c", "")
        began = time.perf_counter()
        for parent, name in zip(cycle(_parents(host)), islice(new_names(), count), strict=False):
            await self._start(host, parent, name, asks=asks)
        return [time.perf_counter() - began]

    async def parallel(self, host: SimulatedHost, count: int, *, asks: bool) -> list[float]:
        """So many starts, on each parent one after the other; the seconds for all."""
        fresh, parents = new_names(), _parents(host)

        async def some(parent: str) -> None:
            for name in islice(fresh, count // len(parents)):
                await self._start(host, parent, name, asks=asks)

        began = time.perf_counter()
        await asyncio.gather(*map(some, parents))
        return [time.perf_counter() - began]

    async def _start(self, host: SimulatedHost, parent: str, name: Name, *, asks: bool) -> None:
        callout, notifier = str(self._root.callout), str(self._root.notifier)
        about = ("-t", TYPE, "-a", "start", "-u", name, "-p", parent)
        if asks:
            await self.run("asked before", callout, *about, "-e", "pre", "-s", "none")
        with self.spent.on("the write, with the agent" if asks else "the write, without"):
            await in_thread(simulated.create, host.directory, parent, TYPE, name)
        if asks:
            await self.run("told after", callout, *about, "-e", "post", "-s", "success")
            await self.run("notified", notifier, *about, "-e", "notify", "-s", "success")

    async def run(self, what: str, *command: str) -> None:
        """Run a program as mdevctl does."""
        with self.spent.on(what):
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            _, said = await process.communicate(_DEFINITION)
        assert process.returncode == 0, f"{what}: {said.decode()}"


def _parents(host: SimulatedHost) -> list[str]:
    return sorted(SimulatedBus(host.directory).parents())
