"""What the simulated kernel shows, as files and links laid out as the real one's.

Starts fast, for the workers.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress

from agent.simulated_memory import BUS, DEVICE, REMOVE, TYPE

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent.simulated_memory import DeviceRecord, ParentRecord, State

__all__ = ["Tree", "clear"]

# A device's directory, or one that was being made.
_DEVICE = re.compile(r"\.?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Tree:
    """What the simulated kernel shows, as files. Each step can be done again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bus = root / "sys/bus/mdev/devices"
        self._class = root / "sys/class/mdev_bus"
        self._nodes = root / "kernel/nodes"

    def show_boot(self, state: State) -> None:
        """The boot id, and the module mdev loaded."""
        self._class.mkdir(parents=True, exist_ok=True)
        self._bus.mkdir(parents=True, exist_ok=True)
        _put(self._root / "proc/sys/kernel/random/boot_id", state["boot_id"])

    def show_parent(self, name: str, parent: ParentRecord) -> None:
        """A registered parent and its types."""
        home = self._root / parent["path"]
        types = home / "mdev_supported_types"
        for type_ in parent["types"]:
            (types / type_ / "devices").mkdir(parents=True, exist_ok=True)
            _put(types / type_ / "device_api", "vfio-pci")
            for file, text in _about(type_, parent["types"][type_]).items():
                _put(types / type_ / file, text)
            _node(f"{types}/{type_}/create")
        _link(
            f"{self._class}/{name}", os.path.relpath(home, self._class)
        )  # last, as the kernel does

    def hide_parent(self, name: str, parent: ParentRecord) -> None:
        """A parent without a driver."""
        home = self._root / parent["path"]
        home.mkdir(parents=True, exist_ok=True)
        (self._class / name).unlink(missing_ok=True)  # first, as the kernel does
        clear(home / "mdev_supported_types")

    def show_available(self, parent: ParentRecord, available: dict[str, int]) -> None:
        """What a parent has left."""
        types = self._root / parent["path"] / "mdev_supported_types"
        for type_, count in available.items():
            _overwrite(types / type_ / "available_instances", str(count))

    def show(
        self, name: str, device: DeviceRecord, home: str, view: list[str], state: State
    ) -> None:
        """Exactly `view` of a device: what came, in the order of its coming, and the reverse."""
        parent, on_bus = f"{self._root}/{home}", f"{self._bus}/{name}"
        directory, type_ = f"{parent}/{name}", f"mdev_supported_types/{device['type']}"
        listed = f"{parent}/{type_}/devices/{name}"
        if TYPE not in view:
            _unlink(f"{directory}/mdev_type")
            _unlink(listed)
        if REMOVE not in view:
            _unlink(f"{directory}/remove")
        if BUS not in view:
            _unlink(on_bus)
        if DEVICE not in view:
            clear(directory)
            return
        if not os.path.isdir(directory):
            self._make(directory, home, device, state)
        if REMOVE in view:
            self._join("remove", _node, f"{directory}/remove")
        if BUS in view:
            _link(on_bus, f"../../../{home.removeprefix('sys/')}/{name}")
        if TYPE in view:
            _link(f"{directory}/mdev_type", f"../{type_}")
            _link(listed, f"../../../{name}")

    def _make(self, directory: str, home: str, device: DeviceRecord, state: State) -> None:
        """Make its directory, whole: nobody who is killed leaves half of one under its name."""
        parent, _, name = directory.rpartition("/")
        new = f"{parent}/.{name}"
        clear(new)
        os.mkdir(new)
        up = "../" * (home.count("/") + 1)
        _link(f"{new}/iommu_group", f"{up}kernel/iommu_groups/{device['token']}")
        for attribute, writable in state["attributes"].items():
            if "/" in attribute:
                os.makedirs(os.path.dirname(f"{new}/{attribute}"), exist_ok=True)
            if writable:  # by whoever comes by
                _touch(f"{new}/{attribute}", 0o644)
            else:
                self._join("attribute", _read_only, f"{new}/{attribute}")
        os.rename(new, directory)

    def _join(self, node: str, make: Callable[[str], None], path: str) -> None:
        """Make a file by linking one that is the same everywhere.

        To make an inode costs a file system many times what a link costs.
        """
        one = f"{self._nodes}/{node}"
        with suppress(FileExistsError):
            try:
                os.link(one, path)
            except FileNotFoundError:
                os.makedirs(self._nodes, exist_ok=True)
                make(one)
                os.link(one, path)
            except OSError as error:
                if error.errno not in (errno.EMLINK, errno.EPERM):
                    raise
                make(path)  # it has as many links as it can have, or is another user's

    def sweep(self, homes: list[str], known: dict[str, DeviceRecord]) -> None:
        """Remove all that no name on the list accounts for."""
        places = [self._bus, *(self._root / home for home in homes)]
        places += [p for home in places[1:] for p in home.glob("mdev_supported_types/*/devices")]
        for place in places:
            for path in place.iterdir() if place.is_dir() else ():
                if _DEVICE.fullmatch(path.name) and path.name not in known:
                    clear(path)

    def write_attribute(self, name: str, attribute: str, data: bytes) -> None:
        """Have an attribute of a device read so."""
        new = self._root / "kernel/attribute"
        new.write_bytes(data)
        new.replace(self._bus / name / attribute)


_NAMES = {"mtty-1": "Single port serial", "mtty-2": "Dual port serial"}


def _about(type_: str, capacity: int) -> dict[str, str]:
    if type_ in _NAMES:  # as mtty has it: a name, and no description
        return {"name": _NAMES[type_]}
    return {"name": type_, "description": f"simulated, up to {capacity} a parent"}


def _put(path: Path, text: str) -> None:
    """Write a file whole, so that nobody reads half of it."""
    with suppress(FileNotFoundError):
        if path.read_text() == f"{text}\n":
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(f"{text}\n")
    temporary.replace(path)


def _overwrite(path: Path, text: str) -> None:
    """Write a number over another; half of it is never read, at most a newline too many."""
    data = f"{text}\n".encode()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        before = os.pread(fd, len(data) + 64, 0)
        if before != data:
            os.pwrite(fd, data.ljust(len(before), b"\n"), 0)
            os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _link(path: str, target: str) -> None:
    with suppress(FileExistsError):
        os.symlink(target, path)


def _touch(path: str, mode: int) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode))


def _read_only(path: str) -> None:
    _touch(path, 0o444)


def _node(path: str) -> None:
    """A file to be seen and not to be opened: nobody writes to a kernel that is not there.

    To open a socket's node is ENXIO; a plain file would take what is written and do nothing.
    """
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFSOCK | 0o200)


def clear(path: str | Path) -> None:
    """Remove a file, a link or a whole directory."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        with os.scandir(path) as entries:
            for entry in entries:
                clear(entry.path)
        os.rmdir(path)
