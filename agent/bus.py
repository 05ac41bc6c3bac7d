"""The small interface to the kernel.

`agent.sysfs` is the real one; `agent.simulated` behaves as the kernel was measured to, errno
by errno, on a directory laid out as sysfs is.

Everything here blocks and raises OSError with the kernel's errno. The daemon calls what
reads from a thread; what writes is called by worker processes only (`agent.workers`), because
a write can sleep in the kernel where no signal ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.model import IdentityValue, Name, ParentType

__all__ = ["Bus", "Device", "Presence", "Scan", "ScanFailed", "Watcher"]


class Presence(StrEnum):
    """How the kernel has a name on this host, as far as a scan can tell."""

    ABSENT = "absent"  # neither on the bus nor in any parent's real directory
    PRESENT = "present"
    GOING = "going"  # hidden from the bus, still in a parent's directory
    UNKNOWN = "unknown"  # the scan could not look everywhere


@dataclass(frozen=True, slots=True)
class Device:
    """A device as a scan met it. A going one has no type any more."""

    name: Name
    presence: Presence
    parent: str
    type: str | None


@dataclass(frozen=True, slots=True)
class Scan:
    """What the kernel had at one look.

    `parents` are those registered now, each with its types. `blind` names the parents whose
    directory could not be read: no name is absent while one of them is (design 2.6).
    """

    boot_id: str
    devices: Mapping[Name, Device]
    parents: Mapping[str, frozenset[str]]
    blind: frozenset[str] = field(default=frozenset())

    def presence(self, name: Name) -> Presence:
        """Where `name` is. A failed or partial look is never evidence of absence."""
        device = self.devices.get(name)
        if device is not None:
            return device.presence
        return Presence.UNKNOWN if self.blind else Presence.ABSENT

    def offers(self, parent: str, type_: str) -> bool:
        """Whether the parent is there and offers the type."""
        return type_ in self.parents.get(parent, frozenset())


class ScanFailed(OSError):
    """The look failed as a whole; nothing is known."""


class Watcher(Protocol):
    """A source of hints that something changed on the bus. Hints may be lost or doubled."""

    def fileno(self) -> int:
        """Readable when there is a hint."""
        ...

    def drain(self) -> frozenset[Name]:
        """Take all hints that wait; the names among them. Does not block."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Bus(Protocol):
    """A host's mdev bus."""

    spec: str
    """How a worker opens the same bus: `sysfs` or `sim:DIR`."""

    def boot_id(self) -> str:
        """The kernel's boot id; all devices are gone when it changes."""
        ...

    def identity(self) -> IdentityValue:
        """Which machine this is: machine-id and, where there is one, DMI product UUID."""
        ...

    def problem(self) -> str | None:
        """Why devices cannot be made here yet (no driver, no parent), or None.

        Raises:
            PermissionError: they never can be, by us.
        """
        ...

    def scan(self) -> Scan:
        """Look at all devices and parents.

        Raises:
            ScanFailed: the bus itself could not be read.
        """
        ...

    def parents(self) -> Mapping[str, tuple[ParentType, ...]]:
        """Each registered parent's types, with what is available now."""
        ...

    def registered(self) -> list[str]:
        """The registered parents, in order. Asks no driver.

        Raises:
            OSError: it cannot be read which there are.
        """
        ...

    def offer(self, parent: str) -> tuple[list[ParentType], list[str]]:
        """A parent's types, and what is wrong with what its driver says of them.

        Its driver answers, in its own time.

        Raises:
            FileNotFoundError: the parent is not registered.
            OSError: its types cannot be listed.
        """
        ...

    def create(self, parent: str, type_: str, name: str) -> None:
        """Have the driver make the device; returns when it is made."""
        ...

    def remove(self, name: str, type_: str) -> None:
        """Remove a device, which was seen as `type_`; returns when it is gone.

        The type is read again right before the write; another one is ESTALE and nothing is
        written. Sleeps for as long as somebody has the device open.
        """
        ...

    def write_attribute(self, name: str, attribute: str, value: str) -> None:
        """Write a vendor attribute of a device."""
        ...

    def busy(self, name: str) -> str | None:
        """Why a remove would or might sleep; None: nothing has the group or the device open.

        A device that could not be probed may be in use, and the text says so.
        """
        ...

    def watch(self) -> Watcher | None:
        """A source of hints, or None where there is none: then the timer does it all."""
        ...
