"""`demo`: what mdevns does, told by its own commands on this machine alone."""

# No `from __future__ import annotations`: Typer reads the annotations.

import signal
from typing import Annotated

import typer

from cli.context import Call, command
from cli.ending import interruptible
from cli.stage import Stage, staged
from cli.story import STEPS
from coordinator.errors import Interrupted

__all__ = ["demo"]


@command
def demo(
    call: Call,
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it all running afterwards, until Ctrl-C.")
    ] = False,
) -> None:
    """Show what mdevns does, on this machine alone, in a minute.

    An etcd and three simulated hosts with real agents; each step checks what it says, in the
    hosts' directories and by exit codes. Nothing is left afterwards.
    """
    with interruptible():
        try:
            with staged() as stage:
                _play(stage)
                if keep:
                    stage.hand_over()
                    signal.pause()
        except KeyboardInterrupt:
            raise Interrupted(call.path, "interrupted", "nothing was left behind") from None


def _play(stage: Stage) -> None:
    for number, (title, step) in enumerate(STEPS, 1):
        stage.title(f"{number}. {title}")
        step(stage)
    stage.title(f"All {len(STEPS)} steps did what they said, in {stage.seconds:.0f} s.")
