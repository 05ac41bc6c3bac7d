"""Whether something has a device open, so that a remove of it would sleep in the kernel.

Each device has up to two nodes. The group's node, `/dev/vfio/N`, opens once: the probe opens it,
and EBUSY says that something else has it. It says EBUSY also while the device is bound through
its own node (Linux drivers/vfio/group.c: cdev_device_open_cnt), so it is asked first. The
device's own node, `/dev/vfio/devices/vfioN`, opens any number of times, and each open descriptor
blocks a remove: so every process is asked whether it has that node open.

Only a probe that succeeded proves that a device is free. Every other answer is a reason to
believe that it may be in use:

    EPERM, EACCES   the unit's or the container's device rules forbid the open
    ENOENT, ENXIO   /dev has no such node, or nobody serves it: vfio was loaded after the agent,
                    or the agent sees another /dev than the machine's own
    ENODEV          the group is losing its device at this moment; a look afterwards tells
    EMFILE, ENFILE  the agent or the machine has no descriptor left; that passes
    any other       the kernel did not say who has it
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["why_busy"]

_OPEN = "something has the device open"
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)
_PASSES = (errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM, errno.EINTR)
_FORCE = "or use --force, which waits in the kernel"


def why_busy(root: Path, device: Path, probe: Callable[[Path], None]) -> str | None:
    """Why a remove of `device` might sleep; None: nothing has it open.

    `device` is its directory on the bus, below `root`; `probe` opens a node and closes it.
    """
    try:
        group = os.readlink(f"{device}/iommu_group").rpartition("/")[2]  # noqa: PTH115 - one call
    except OSError as error:
        # Without a group no descriptor of one can be open; a device that is gone has none.
        if error.errno not in _GONE:
            return _unseen(f"{device}/iommu_group", error)
    else:
        why = _group_is_open(root / "dev/vfio" / group, probe)
        if why is not None:
            return why
    return _node_is_open(root, device)


def _group_is_open(node: Path, probe: Callable[[Path], None]) -> str | None:
    try:
        probe(node)
    except OSError as error:
        return _OPEN if error.errno == errno.EBUSY else _unseen(str(node), error)
    return None


def _node_is_open(root: Path, device: Path) -> str | None:
    try:
        nodes = os.listdir(f"{device}/vfio-dev")  # noqa: PTH208 - names are all that is wanted
    except OSError as error:
        if error.errno in _GONE:
            return None  # this kernel has no nodes of devices
        return _unseen(f"{device}/vfio-dev", error)
    if not nodes:
        return None
    return _somebody_has_open(root / "proc", [f"devices/{node}" for node in nodes])


def _somebody_has_open(proc: Path, ends: list[str]) -> str | None:
    """Whether a process has a node open, by the end of its path: a container has its own /dev."""
    try:
        pids = [entry for entry in os.listdir(proc) if entry.isdecimal()]  # noqa: PTH208 - see above
    except OSError as error:
        return _unseen(str(proc), error)
    unseen: str | None = None
    for pid in pids:
        table = proc / pid / "fd"
        try:
            for fd in os.listdir(table):  # noqa: PTH208 - see above
                if _target(f"{table}/{fd}").endswith(tuple(ends)):
                    return _OPEN
        except OSError as error:
            if error.errno not in _GONE:
                unseen = _unseen(str(table), error)
    return unseen


def _target(fd: str) -> str:
    try:
        return os.readlink(fd)  # noqa: PTH115 - thousands of calls, and a Path costs more than each
    except OSError as error:
        if error.errno in _GONE:
            return ""  # closed meanwhile
        raise


def _unseen(path: str, error: OSError) -> str:
    """A device that cannot be looked at counts as in use; says how it can be."""
    name = errno.errorcode.get(error.errno or 0, "EIO")
    if error.errno in _PASSES:
        hint = f"try again, {_FORCE}"
    elif error.errno in (errno.EPERM, errno.EACCES):
        hint = f"allow the agent to open it (DeviceAllow, CAP_SYS_PTRACE), {_FORCE}"
    else:
        hint = f"load vfio and let the agent see the machine's /dev/vfio, {_FORCE}"
    return f"the device may be in use: {path} cannot be looked at ({name}); {hint}"
