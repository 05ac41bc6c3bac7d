"""What a row is played on: a bus, sysfs below it, and what moves the kernel behind it."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coordinator.model import Name

from .orders import Orders

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from agent.bus import Watcher
    from agent.sysfs import OpenFile, SysfsBus

__all__ = ["PARENTS", "Subject"]

PARENTS = ("mbochs", "mdpy", "mtty")


class Subject(ABC):
    """A host with the parents mtty, mdpy and mbochs and no device.

    What is read and written is the same for all of them; what an operator, a VM and the machine
    do to the kernel is each one's own. Errors are the kernel's OSErrors.
    """

    def __init__(self, kernel: str, bus: SysfsBus) -> None:
        self.kernel = kernel
        self.bus = bus
        self._devices = bus.root / "sys/bus/mdev/devices"
        self._parents = bus.root / "sys/class/mdev_bus"
        # Looked up while they are there: the link goes with the driver.
        self._homes = {parent: self._home(parent).resolve() for parent in PARENTS}
        self._watcher: Watcher | None = None

    # -- names of parents

    def real_name(self, parent: str) -> str:
        """What this kernel calls a parent."""
        return parent

    def our_name(self, parent: str) -> str:
        """What the rows call it."""
        return parent

    def _home(self, parent: str) -> Path:
        return self._parents / self.real_name(parent)

    def _type(self, type_: str) -> Path:
        return self._home(parent_of(type_)) / "mdev_supported_types" / type_

    # -- what is written

    def open_create(self, type_: str) -> OpenFile:
        """Open a type's `create` for writing."""
        return self.bus.calls.open(self._type(type_) / "create")

    def open_remove(self, name: str) -> OpenFile:
        """Open a device's `remove` for writing."""
        return self.bus.calls.open(self._devices / name / "remove")

    def open_group(self, name: str) -> None:
        """Open the node of a device's group, and close it."""
        group = (self._devices / name / "iommu_group").readlink().name
        self.bus.calls.probe(self.bus.root / "dev/vfio" / group)

    # -- what is seen

    def shows(self, type_: str, name: str) -> list[str]:
        """Where sysfs shows the name: see `vocabulary.Shows`."""
        home = self._homes[parent_of(type_)]
        places = {
            "bus": self._devices / name,
            "type": self._devices / name / "mdev_type",
            "listed": home / "mdev_supported_types" / type_ / "devices" / name,
            "directory": home / name,
            "remove": self._devices / name / "remove",
        }
        return [what for what, path in places.items() if path.is_symlink() or path.exists()]

    def available(self, type_: str) -> int:
        """A type's available instances."""
        return int((self._type(type_) / "available_instances").read_text())

    def types(self, parent: str) -> list[str]:
        """What the bus says that a parent offers, a line a type."""
        offered = self.bus.parents()[self.real_name(parent)]
        return sorted(
            " ".join([each.type, str(each.available), each.device_api or "-", each.name or "-"])
            for each in offered
        )

    def parents(self) -> list[str]:
        """The parents that a scan meets."""
        return sorted(self.our_name(parent) for parent in self.bus.scan().parents)

    def scan(self, name: str) -> str:
        """What a scan makes of a name."""
        scan = self.bus.scan()
        presence = scan.presence(Name(name)).value
        device = scan.devices.get(Name(name))
        if device is None:
            return presence
        return f"{presence} {device.type or '(no type)'} on {self.our_name(device.parent)}"

    # -- events

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Have the bus watch."""
        watcher = self._watcher = self.bus.watch()
        assert watcher is not None
        try:
            yield
        finally:
            watcher.close()

    def hints(self) -> str | list[str]:
        """The names in the hints that wait; "nobody" when one has none; or "nothing"."""
        assert self._watcher is not None
        if not select.select([self._watcher], [], [], 0)[0]:
            return "nothing"
        return sorted(self._watcher.drain()) or "nobody"

    @abstractmethod
    def listening(self) -> AbstractContextManager[None]:
        """Take down the kernel's events."""

    @abstractmethod
    def events(self, of: str) -> list[str]:
        """The events of mdev (and of parents) or of vfio-dev since the last look."""

    # -- workers

    @contextmanager
    def employing(self) -> Iterator[None]:
        """Have workers."""
        self._orders = Orders(self.bus, self.bus.run_dir)
        try:
            yield
        finally:
            self._orders.close()

    def order(self, kind: str, type_: str, name: str) -> str:
        """Have a worker create or remove."""
        return self._orders.order(kind, self.real_name(parent_of(type_)), type_, name)

    def in_flight(self) -> list[str]:
        """The names with a write under way."""
        return self._orders.in_flight()

    def kill_workers(self) -> None:
        """SIGKILL them."""
        self._orders.kill()

    # -- what moves the kernel

    @abstractmethod
    def unprivileged(self) -> AbstractContextManager[None]:
        """Be nobody in particular."""

    @abstractmethod
    def make_slow(self, parent: str) -> None:
        """Have the driver take long for creates, whose devices are on the bus meanwhile."""

    @abstractmethod
    def finish(self, name: str) -> None:
        """Have the driver be done with a create that is under way, and slow no more."""

    @abstractmethod
    def hold(self, name: str) -> None:
        """Open a device as a VM does."""

    @abstractmethod
    def hold_group(self, name: str) -> None:
        """Open a device's group only."""

    @abstractmethod
    def let_go(self, name: str) -> None:
        """Close what was opened."""

    @abstractmethod
    def load(self, parent: str) -> None:
        """Load a parent's driver."""

    @abstractmethod
    def unload(self, parent: str) -> None:
        """Unload it; its devices go with it."""

    @abstractmethod
    def unload_sleeps(self, parent: str) -> bool:
        """Whether an unload has begun and waits in the kernel."""

    @abstractmethod
    def reset(self) -> None:
        """Be again as at the beginning: all drivers loaded and quick, and no device."""


def parent_of(type_: str) -> str:
    """The parent whose type it is."""
    return type_.partition("-")[0]
