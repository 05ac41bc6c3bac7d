"""Whether this machine is fit to run an agent: what `doctor` looks at here. Changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from agent.buses import open_bus
from agent.sysfs import MachineUnknown
from coordinator.fitness import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.places import Directories
    from agent.sysfs import SysfsBus

__all__ = ["has_parents", "host_findings", "mdevctl_findings"]

_UDEV_CALLS = Path("usr/sbin/mdevctl")  # what Debian's rule calls, where no mdevctl is (measured)


def has_parents(spec: str) -> bool:
    """Whether there is anything here for an agent to manage."""
    try:
        return bool(open_bus(spec, Path()).parents())
    except (ValueError, OSError):
        return False


def host_findings(spec: str, places: Directories, host: str) -> Iterator[Finding]:
    """What is wrong with this machine, for the agent of `host`."""
    try:
        bus = open_bus(spec, places.run)
    except ValueError as error:
        yield Finding(Level.FAULT, "bus", host, str(error))
        return
    yield from _bus(bus, spec, host)
    yield from _machine(bus, host)
    yield from _directory("run_dir", places.run, host)
    yield from _directory("state_dir", places.state, host)
    yield from mdevctl_findings(bus.root, host)


def _bus(bus: SysfsBus, spec: str, host: str) -> Iterator[Finding]:
    try:
        why = bus.problem()
    except FileNotFoundError:
        why = f"there is no host behind {spec}"
    except PermissionError as error:
        why = str(error.strerror)
    if why is not None:
        yield Finding(Level.FAULT, "bus", host, why)


def _machine(bus: SysfsBus, host: str) -> Iterator[Finding]:
    try:
        bus.boot_id()
        identity = bus.identity()
    except MachineUnknown as error:
        why = f"{error.filename}: {error.strerror}; set it up: systemd-machine-id-setup"
        yield Finding(Level.FAULT, "machine", host, why)
    except OSError as error:
        yield Finding(Level.FAULT, "machine", host, f"{error.filename}: {error.strerror}")
    else:
        if identity.product_uuid is None and os.geteuid() == 0:
            why = "its product UUID cannot be read: a clone is told by its machine-id alone"
            yield Finding(Level.NOTE, "machine", host, why)


def _directory(what: str, path: Path, host: str) -> Iterator[Finding]:
    place = next(some for some in (path, *path.absolute().parents) if some.exists())
    if not os.access(place, os.W_OK):
        option = f"--{what.replace('_', '-')}"
        why = f"{path} cannot be written: run as root, or name another with {option}"
        yield Finding(Level.FAULT, what, host, why)
    elif shutil.disk_usage(place).free == 0:
        yield Finding(Level.FAULT, what, host, f"{place} is full")


def mdevctl_findings(root: Path, host: str) -> Iterator[Finding]:
    """What is to be told of the mdevctl of `host`, whose file system begins at `root`."""
    if (root / "usr/bin/mdevctl").exists() and not (root / _UDEV_CALLS).exists():
        why = (
            "mdevctl's own autostart never runs here: Debian's udev rule calls /usr/sbin/mdevctl, "
            "which is not there; mdevns's does not need it"
        )
        yield Finding(Level.NOTE, "mdevctl", host, why)
