"""`sim`: simulated hosts."""

# No `from __future__ import annotations`: Typer reads the annotations.

from pathlib import Path
from typing import Annotated

import typer

from agent import simulated
from cli.context import Call, command
from coordinator.errors import InvalidValue
from coordinator.model import parse_label, parse_name

__all__ = ["app"]

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="Simulated hosts, for demos and tests."
)

_Dir = Annotated[Path, typer.Argument(metavar="DIR", help="The simulated host's directory.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The name of a device of it.")]


@app.callback()
def _group() -> None:
    """Simulated hosts, for demos and tests."""


@app.command()
@command
def init(
    _: Call,
    directory: _Dir,
    *,
    parents: Annotated[int, typer.Option(metavar="N", help="So many parents.")] = 2,
    type_: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE=CAPACITY",
            help="A type, and how many a parent has of it; repeat for more.",
        ),
    ] = None,
    latency: Annotated[
        float, typer.Option(metavar="S", help="Seconds that the driver takes for a create.")
    ] = 0.0,
) -> None:
    """Make a host: a directory that looks like /sys.

    Then run its agent: mdevns agent --bus sim:DIR
    """
    types = dict(map(_capacity, type_ or ()))
    simulated.init(directory, parents, types or None, latency)


@app.command()
@command
def reboot(_: Call, directory: _Dir) -> None:
    """Reboot it: all devices are gone. Its agent ends first, as it would."""
    simulated.reboot(directory)


@app.command()
@command
def hold(_: Call, directory: _Dir, name: _Name) -> None:
    """Keep a device open, as a VM does: a remove of it waits."""
    simulated.hold(directory, parse_name(name))


@app.command("let-go")
@command
def let_go(_: Call, directory: _Dir, name: _Name) -> None:
    """Close a device that is held open."""
    simulated.let_go(directory, parse_name(name))


def _capacity(text: str) -> tuple[str, int]:
    name, _, capacity = text.partition("=")
    if not capacity.isdecimal():
        raise InvalidValue(text, "not a type with its capacity", "write it as TYPE=NUMBER")
    return parse_label(name, "type"), int(capacity)
