"""Which bus a spec names: the kernel's, or a simulated host's.

Starts fast, for the workers: the simulated kernel is loaded where it is asked for.
"""

from __future__ import annotations

from pathlib import Path

from agent.sysfs import SysfsBus

__all__ = ["open_bus"]


def open_bus(spec: str, run_dir: Path, *, for_worker: bool = False) -> SysfsBus:
    """The bus that a spec names: `sysfs`, `sysfs:ROOT` or `sim:DIR`.

    Raises:
        ValueError: it names none.
    """
    kind, _, rest = spec.partition(":")
    if kind == "sysfs":
        return SysfsBus(Path(rest or "/"), run_dir=run_dir)
    if kind == "sim" and rest:
        from agent.simulated import SimulatedBus  # noqa: PLC0415 - real hosts do without it

        return SimulatedBus(Path(rest), run_dir=run_dir, for_worker=for_worker)
    raise ValueError(f"{spec}: not a bus; use sysfs or sim:DIR")
