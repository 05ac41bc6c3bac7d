"""What the simulated kernel shows, as files and links laid out as the real one's.

Starts fast, for the workers.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from agent.simulated_memory import BUS, DEVICE, REMOVE, TYPE

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from pathlib import Path

    from agent.simulated_memory import DeviceRecord, ParentRecord, State

__all__ = ["Tree", "clear"]

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Tree:
    """What the simulated kernel shows, as files. Each step can be done again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bus = root / "sys/bus/mdev/devices"
        self._class = root / "sys/class/mdev_bus"

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
            _node(types / type_ / "create")
        _link(self._class / name, home)  # last, as the kernel does

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
            _put(types / type_ / "available_instances", str(count))

    def show(
        self, name: str, device: DeviceRecord, home: str, view: list[str], state: State
    ) -> None:
        """Exactly `view` of a device: what came, in the order of its coming, and the reverse."""
        types = self._root / home / "mdev_supported_types" / device["type"]
        directory, links = self._root / home / name, types / "devices"
        if TYPE not in view:
            (directory / "mdev_type").unlink(missing_ok=True)
            (links / name).unlink(missing_ok=True)
        if REMOVE not in view:
            (directory / "remove").unlink(missing_ok=True)
        if BUS not in view:
            (self._bus / name).unlink(missing_ok=True)
        if DEVICE not in view:
            clear(directory)
            return
        if not directory.is_dir():
            self._make(directory, device, state)
        if REMOVE in view:
            _node(directory / "remove")
        if BUS in view:
            _link(self._bus / name, directory)
        if TYPE in view:
            _link(directory / "mdev_type", types)
            _link(links / name, directory)

    def _make(self, directory: Path, device: DeviceRecord, state: State) -> None:
        directory.mkdir()
        group = self._root / "sys/kernel/iommu_groups" / str(device["token"])
        _link(directory / "iommu_group", group)
        for attribute, writable in state["attributes"].items():
            path = directory / attribute
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o644 if writable else 0o444)

    def sweep(self, homes: list[str], known: dict[str, DeviceRecord]) -> None:
        """Remove all that no name on the list accounts for."""
        places = [self._bus, *(self._root / home for home in homes)]
        places += [p for home in places[1:] for p in home.glob("mdev_supported_types/*/devices")]
        for place in places:
            for path in place.iterdir() if place.is_dir() else ():
                if _UUID.fullmatch(path.name) and path.name not in known:
                    clear(path)

    def attribute(self, name: str, attribute: str) -> Path:
        """The file of a device's attribute."""
        return self._bus / name / attribute


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


def _link(path: Path, target: Path) -> None:
    with suppress(FileExistsError):
        path.symlink_to(os.path.relpath(target, path.parent))


def _node(path: Path) -> None:
    """A file to be seen and not to be opened: nobody writes to a kernel that is not there.

    To open a socket's node is ENXIO; a plain file would take what is written and do nothing.
    """
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFSOCK | 0o200)


def clear(path: Path) -> None:
    """Remove a file, a link or a whole directory."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for entry in path.iterdir():
        clear(entry)
    path.rmdir()
