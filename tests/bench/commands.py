"""What it takes to start a command, since people and scripts call them in loops."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.keys import Keys
from tests.bench.filling import fill
from tests.bench.programs import MDEVNS, compile_ours, environment, run
from tests.bench.raw import connect
from tests.bench.turns import figure, in_turns, p50

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.figures import Figure, Stage
    from tests.bench.turns import Measured

__all__ = ["measure"]

_HOSTS, _A_HOST = 3, 10  # a small cluster, and names of a host
_EACH = 3  # runs a round, of which the fastest counts: what else the machine does only adds
_PAGE = -1000  # one page of so many

# As ours is made: no completion, and help that is plain text.
_EMPTY = """
import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def root() -> None:
    "Nothing."

"""
_COMMAND = """
@app.command("c{number}")
def c{number}() -> None:
    "Do nothing, {number}."

"""


async def measure(stage: Stage) -> list[Figure]:
    """Run commands of ours and programs that do no more than they must, in turns."""
    compile_ours()
    keys = Keys(stage.cluster)
    async with connect(stage.endpoint) as raw:
        await fill(raw, keys, range(_HOSTS), _A_HOST)
    empty = stage.directory / "empty.py"
    count = await _count(stage)
    commands = "".join(_COMMAND.format(number=number) for number in range(count))
    empty.write_text(f"{_EMPTY}{commands}\napp()\n")
    target = stage.endpoint.removeprefix("http://")
    bare = [str(Path(__file__).with_name("bare.py")), target, str(_PAGE), keys.names]
    return [
        await _figure(
            stage,
            "--help",
            [*MDEVNS, "--help"],
            [sys.executable, str(empty), "--help"],
            1.3,
            f"an empty Typer app with {count} commands",
        ),
        await _figure(
            stage,
            "list",
            [*MDEVNS, "list"],
            [sys.executable, *bare],
            1.5,
            f"a script of one range of {_HOSTS * _A_HOST} keys",
        ),
    ]


async def _count(stage: Stage) -> int:
    """How many commands the help of ours lists."""
    with (stage.directory / "help").open("w+b") as output:
        await run([*MDEVNS, "--help"], environment(stage.endpoint, stage.cluster), output)
        output.seek(0)
        _, _, listed = output.read().partition(b"Commands:\n")
    return len(
        [line for line in listed.splitlines() if line[:3].strip() and line.startswith(b"  ")]
    )


async def _figure(
    stage: Stage,
    measure: str,
    ours: Sequence[str],
    theirs: Sequence[str],
    must: float,
    against: str,
) -> Figure:
    variables = environment(stage.endpoint, stage.cluster)
    with (stage.directory / "output").open("wb") as output:

        def times(command: Sequence[str]) -> Measured:
            async def measured() -> list[float]:
                each = range(stage.size(_EACH, 1))
                return [(await run(command, variables, output))[0] for _ in each]

            return measured

        turns = await in_turns(
            times(ours), times(theirs), rounds=stage.size(9, 3), seconds=stage.seconds / 2
        )
    of_ours, of_theirs = (
        p50([min(times) for times in side])
        for side in ([turn.ours for turn in turns], [turn.theirs for turn in turns])
    )
    note = f"{of_ours * 1e3:.0f} ms against {of_theirs * 1e3:.0f} ms of {against}"
    return figure(stage.line, measure, turns, by=min, must=must, notes=(note,))
