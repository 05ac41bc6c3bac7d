"""The mdev files of one guest, by name: what a test does to the kernel without mdevns."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from .guest import COMMAND_S, wait_for
from .kernel import SAMPLES

if TYPE_CHECKING:
    from .guest import Guest

BUS = "/sys/bus/mdev/devices"
PARENTS = "/sys/class/mdev_bus"
CREATE_DELAY = "/sys/module/mtty/parameters/create_delay_ms"


class Mdev:
    """A guest's mediated devices, as root sees them in sysfs. Errors are the kernel's OSErrors."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def create(self, parent: str, kind: str, name: str, timeout: float = COMMAND_S) -> None:
        """Write a name to a type's `create`; returns when the driver has made the device."""
        self._guest.poke(f"{self._type(parent, kind)}/create", name, timeout)

    def remove(self, name: str, timeout: float = COMMAND_S) -> None:
        """Write 1 to a device's `remove`; returns when it is gone."""
        self._guest.poke(f"{BUS}/{name}/remove", "1", timeout)

    def devices(self) -> list[str]:
        """The names on the bus, sorted."""
        return self._guest.listdir(BUS)

    def parents(self) -> list[str]:
        """The registered parents, sorted."""
        return self._guest.listdir(PARENTS)

    def types(self, parent: str) -> list[str]:
        """A parent's types, sorted."""
        return self._guest.listdir(f"{PARENTS}/{parent}/mdev_supported_types")

    def available(self, parent: str, kind: str) -> int:
        """A type's available instances."""
        return int(self._guest.read(f"{self._type(parent, kind)}/available_instances"))

    def type_of(self, name: str) -> str:
        """A device's type. Raises FileNotFoundError also while the driver still makes it."""
        return self._guest.realpath(f"{BUS}/{name}/mdev_type").rpartition("/")[2]

    def parent_of(self, name: str) -> str:
        """A device's parent."""
        return self._guest.realpath(f"{BUS}/{name}").split("/")[-2]

    def delay_creates(self, milliseconds: int) -> None:
        """Let mtty's creates take so long; a smaller value ends those that are under way."""
        self._guest.poke(CREATE_DELAY, str(milliseconds))

    def let_go(self) -> None:
        """End the delay of creates, where there is a driver to end it for."""
        with suppress(FileNotFoundError):
            self.delay_creates(0)

    def reload(self) -> None:
        """Unload and load the sample drivers: no device is left, not even one lost for good.

        A device that is held open keeps its driver from going, so end its holders before.
        """
        self.let_go()
        wait_for(self._unloaded, what="the sample drivers to be unloaded", guests=[self._guest])
        for driver in SAMPLES:
            self._guest.run("modprobe", driver, check=True)

    def _unloaded(self) -> bool:
        return self._guest.run("modprobe", "--remove", *SAMPLES).rc == 0

    def _type(self, parent: str, kind: str) -> str:
        return f"{PARENTS}/{parent}/mdev_supported_types/{kind}"
