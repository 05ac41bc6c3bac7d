"""Where an agent keeps what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Directories", "directories"]


class Directories(NamedTuple):
    """Where an agent keeps what it needs: `run` lasts as long as a boot, `state` outlives it.

    In `run` are the locks and the socket, in `state` is the journal.
    """

    run: Path
    state: Path


def directories(bus: str, run: str | Path | None, state: str | Path | None) -> Directories:
    """The directories that were chosen, and for those that were not the bus's own."""
    simulated = bus.removeprefix("sim:")
    if simulated == bus:
        own = Directories(Path("/run/mdevns"), Path("/var/lib/mdevns"))
    else:
        own = Directories(Path(simulated) / "run", Path(simulated) / "state")
    return Directories(Path(run) if run else own.run, Path(state) if state else own.state)
