"""A process that is so many hosts, and the bench's end of it.

    python -m tests.bench.fleet ENDPOINT CLUSTER FIRST COUNT DEVICES booted|empty

It says "made" when the hosts are there. At the line "start" it starts their agents ("start 20":
at most 20 at a time), and says "whole" when all of them are ready and have their devices. It
answers "memory" with the kilobytes that it has, and "costs" with where its time went since the
line "profile". At the end of its input it stops the agents, so that it never outlives the bench.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agent.logs import configure
from coordinator.keys import Keys
from tests.bench.hosts import InlineLoop, MemoryHost
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Self

    from tests.bench.figures import Stage

__all__ = ["Fleet", "fleets", "start"]

_ROOT = Path(__file__).parents[2]
_DEADLINE = 10.0  # seconds for a process to end before it is killed; it takes three
_PARTS = (
    ("coordinator/etcd/", "messages and calls"),
    ("grpc", "messages and calls"),
    ("google", "messages and calls"),
    ("coordinator/", "the namespace's code"),
    ("agent/simulated_", "the simulated kernel"),
    ("agent/worker.py", "the workers"),
    ("agent/", "the agent's code"),
    ("tests/", "the simulated kernel"),
    ("asyncio", "asyncio"),
    ("structlog", "the log"),
    ("json", "JSON"),
    ("msgspec", "JSON"),
    ("prometheus_client", "metrics"),
)
"""Files by a part of their path, and what they are called."""
_TOLD = 2000  # characters of what one said that has ended
_WHOLE = 120.0  # seconds in which a host is to have its devices


class Fleet:
    """The bench's end of a process of hosts."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log

    async def hear(self) -> str:
        """The next that it says; waits for it.

        Raises:
            AssertionError: it has ended.
        """
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        said = "" if line else self._log.read_text(errors="replace")[-_TOLD:]
        assert line, f"a process of hosts has ended by itself:\n{said}"
        return line.decode().strip()

    def say(self, word: str) -> None:
        """Tell it something."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    async def ask(self, word: str) -> str:
        """Tell it something, and wait for its answer."""
        self.say(word)
        return await self.hear()

    def let_go(self) -> None:
        """Have it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def gone(self) -> None:
        """Wait for its end."""
        try:
            async with asyncio.timeout(_DEADLINE):
                await self._process.wait()
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def fleets(
    stage: Stage,
    endpoint: str,
    hosts: range,
    devices: int,
    *,
    booted: bool,
    processes: int = 1,
) -> AsyncIterator[list[Fleet]]:
    """Hosts of the line's cluster in so many processes, made and not started; gone after."""
    size = -(-len(hosts) // processes)
    parts = [hosts[at : at + size] for at in range(0, len(hosts), size)]
    kernel = "booted" if booted else "empty"
    found: list[Fleet] = []
    try:
        with (stage.directory / "fleet.log").open("ab") as log:
            for part in parts:
                numbers = (str(number) for number in (part.start, len(part), devices))
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.bench.fleet"),
                    *(endpoint, stage.cluster, *numbers, kernel),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=_ROOT,
                    env=os.environ | {"PYTHONPATH": str(_ROOT)},
                )
                found.append(Fleet(process, stage.directory / "fleet.log"))
        for fleet in found:
            assert await fleet.hear() == "made"
        yield found
    finally:
        for fleet in found:
            fleet.let_go()
        await asyncio.gather(*(fleet.gone() for fleet in found))


async def start(parts: Sequence[Fleet], together: int | None = None) -> None:
    """Start the agents of all, so many of each at a time; returns when all have their devices."""
    for part in parts:
        part.say("start" if together is None else f"start {together}")
    for part in parts:
        assert await part.hear() == "whole"


class _Hosts:
    """The hosts of this process."""

    def __init__(self, hosts: list[MemoryHost]) -> None:
        self._hosts = hosts
        self._starting: list[asyncio.Task[None]] = []
        self._running: list[asyncio.Task[None]] = []

    @classmethod
    def of(cls, arguments: list[str]) -> Self:
        """As the command line says."""
        endpoint, cluster, first, count, devices, kernel = arguments
        numbers = range(int(first), int(first) + int(count))
        keys = Keys(cluster)
        return cls(
            [
                MemoryHost(n, int(devices), endpoint, keys, booted=kernel == "booted")
                for n in numbers
            ]
        )

    async def obey(self) -> None:
        """Do what is said, to the end of the input, or until an agent breaks."""
        said = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(said), sys.stdin
        )
        _answer("made")
        async with asyncio.TaskGroup() as group:
            await self._obey(said, group)
            for task in self._starting:
                task.cancel()
        for host in self._hosts:
            host.agent.stop.set()
        await asyncio.gather(*self._running)

    async def _obey(self, said: asyncio.StreamReader, group: asyncio.TaskGroup) -> None:
        profile = cProfile.Profile()
        while word := (await said.readline()).strip():
            if word.startswith(b"start"):
                together = int(word.partition(b" ")[2] or len(self._hosts))
                self._starting.append(group.create_task(self._start(together)))
            elif word == b"memory":
                _answer(str(_resident()))
            elif word == b"profile":
                profile.enable()
            elif word == b"costs":
                profile.disable()
                _answer(json.dumps(_costs(profile)))

    async def _start(self, together: int) -> None:
        """Start all, so many at a time, and say when all are whole."""
        places = asyncio.Semaphore(together)

        async def begin(host: MemoryHost) -> None:
            async with places:
                running = asyncio.create_task(host.run())
                self._running.append(running)
                await wait_until_async(lambda: host.is_whole or running.done(), _WHOLE)
                assert host.is_whole, running

        await asyncio.gather(*map(begin, self._hosts))
        _answer("whole")


def _answer(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _costs(profile: cProfile.Profile) -> dict[str, float]:
    """The share of each part of the code in the time that a profile saw."""
    costs: Counter[str] = Counter()
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]  # the stubs do not know it
        costs[_part(file, function)] += own
    return {part: seconds / costs.total() for part, seconds in costs.most_common()}


def _part(file: str, function: str) -> str:
    where = file.removeprefix(f"{_ROOT}/")
    return next((part for mark, part in _PARTS if mark in where or mark in function), "the rest")


def _resident() -> int:
    """Kilobytes in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> None:
    """Be hosts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the bench, and so our input
    configure()
    with asyncio.Runner(loop_factory=InlineLoop) as runner:

        async def serve() -> None:
            await _Hosts.of(sys.argv[1:]).obey()

        runner.run(serve())


if __name__ == "__main__":
    main()
