"""What `mdevns list` makes of etcd's answers, against those answers alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.keys import Keys
from tests.bench.filling import fill
from tests.bench.programs import MDEVNS, compile_ours, environment, run
from tests.bench.raw import connect
from tests.bench.turns import Turn, figure, in_turns, p50

if TYPE_CHECKING:
    from tests.bench.figures import Figure, Stage

__all__ = ["measure"]

_MANY, _SOME = 100_000, 10_000
_A_HOST = 100  # names
_PAGE = 1000  # keys; as ours (coordinator.store.pages)
# With each page etcd counts all keys that are left (etcd: mvcc/kvstore_txn.go, rangeKeys), so a
# script that takes more memory for larger pages is faster.
_LARGE = 10_000
_MEMORY = 250_000  # kilobytes


@dataclass
class _Listing:
    """The two programs, and what they print."""

    stage: Stage
    memory: list[int] = field(default_factory=list)
    large: list[float] = field(default_factory=list)

    async def ours(self) -> list[float]:
        """`mdevns list -o json`."""
        seconds, kilobytes = await self._run([*MDEVNS, "list", "-o", "json"], "ours.json")
        self.memory.append(kilobytes)
        return [seconds]

    async def theirs(self) -> list[float]:
        """The same keys through the bare stubs; and once more by large pages."""
        self.large.append(await self._bare(_LARGE))
        return [await self._bare(_PAGE)]

    async def _bare(self, page: int) -> float:
        keys = Keys(self.stage.cluster)
        target = self.stage.endpoint.removeprefix("http://")
        bare = [sys.executable, "-m", "tests.bench.bare", target, str(page)]
        seconds, _ = await self._run([*bare, keys.names, keys.hosts], "theirs")
        return seconds

    async def _run(self, command: list[str], output: str) -> tuple[float, int]:
        with (self.stage.directory / output).open("wb") as file:
            return await run(command, environment(self.stage.endpoint, self.stage.cluster), file)

    def check(self, count: int) -> None:
        """See that both have met all of the names."""
        lines = (self.stage.directory / "ours.json").read_bytes().count(b"\n")
        keys = int((self.stage.directory / "theirs").read_text())
        assert (lines, keys) == (count, 2 * count)


async def measure(stage: Stage) -> list[Figure]:
    """List so many names, as often as there is time for."""
    compile_ours()
    count = stage.size(_MANY, _SOME)
    async with connect(stage.endpoint) as raw:
        await fill(raw, Keys(stage.cluster), range(count // _A_HOST), _A_HOST)
    listing = _Listing(stage)
    turns = await in_turns(
        listing.ours, listing.theirs, rounds=stage.size(3, 2), seconds=stage.seconds / 2
    )
    listing.check(count)
    ours = p50([turn.ours[0] for turn in turns])
    theirs = p50([turn.theirs[0] for turn in turns])
    notes = (
        (
            f"{count:,} names: {ours:.2f} s; raw {theirs:.2f} s by pages of {_PAGE:,} as ours, "
            f"{p50(listing.large):.2f} s by pages of {_LARGE:,}; all with the program's start"
        ),
    )
    large = [Turn(turn.ours, [raw]) for turn, raw in zip(turns, listing.large, strict=True)]
    peaks = [Turn([kilobytes], [_MEMORY]) for kilobytes in listing.memory]
    peak = f"at most {max(listing.memory) / 1000:,.0f} MB, against 250 MB that it may have"
    return [
        figure(stage.line, "time", turns, must=2.5, notes=notes),
        figure(stage.line, "time by large pages", large),
        figure(stage.line, "peak memory", peaks, must=1.0, notes=(peak,)),
    ]
