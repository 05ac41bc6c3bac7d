"""The hosts' kernels: the pure model of the simulated kernel, in memory, on virtual time.

The same model answers the directory's simulated kernel (`agent.simulated_kernel.Memory`), which
the conformance rows hold to Linux's own. Here are only the looks at it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from agent.bus import Device, Presence, Scan, ScanFailed
from agent.simulated_memory import GOING, LINGERING, Memory, failure
from coordinator.model import IdentityValue, Name, ParentType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.bus import Watcher
    from agent.simulated_memory import DeviceRecord, State

__all__ = ["ATTRIBUTE", "TYPES", "Kernel", "SimBus", "SimWatcher"]

ATTRIBUTE = "vgpu_params"
TYPES = {"small": 1, "large": 2}  # of what a parent has, how much one takes


class Kernel:
    """One host's kernel, for as long as the machine exists; `clock` gives virtual seconds.

    `changed` is called with the names of which something was shown, for whoever listens.
    """

    def __init__(
        self, number: int, parents: int, capacity: int, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self.number = number
        self.changed: Callable[[frozenset[Name]], None] = _nobody
        types = {"small": capacity, "large": max(1, capacity // 2)}
        self.state: State = {
            "seed": str(number),
            "boots": 0,
            "boot_id": "",
            "tokens": 0,
            "linger": 0.0,
            "attributes": {ATTRIBUTE: True},
            "failing": {},
            "parents": {
                f"0000:{0x3B + index:02x}:00.0": {
                    "path": "",
                    "registered": True,
                    "token": 0,
                    "types": types,
                    "latency": 0.0,
                    "window": None,
                    "serial": False,
                    "core_counts": False,
                    "busy_until": 0.0,
                    "failures": [],
                }
                for index in range(parents)
            },
            "devices": {},
        }
        self._memory = Memory(self.state, clock())
        self.blind = self.broken = False
        self.boot()

    def boot(self) -> None:
        """A power loss and a boot: a new boot id and no device."""
        self.state["boots"] += 1
        self.state["boot_id"] = f"{self.number:08x}-0000-4000-8000-{self.state['boots']:012x}"
        for record in self.state["devices"].values():
            record["ready"], record["phase"] = -1.0, LINGERING  # for who waits for it
        self.state["devices"].clear()
        for parent in self.state["parents"].values():
            parent["busy_until"] = 0.0

    def memory(self) -> Memory:
        """What it knows now."""
        memory = self._memory
        memory.now = self._clock()
        if memory.devices or self._leaving():
            memory.settle()
        if memory.ended or memory.unbound:
            names = {name for name, _ in memory.ended}
            everything = bool(memory.unbound)
            memory.ended.clear()
            memory.unbound.clear()
            self.changed(frozenset() if everything else frozenset(map(Name, names)))
        return memory

    def _leaving(self) -> bool:
        return any(parent.get("leaving") for parent in self.state["parents"].values())

    def parent(self, index: int) -> str:
        """The name of its index-th parent."""
        return list(self.state["parents"])[index]

    # Writes.

    def create(self, parent: str, type_: str, name: str) -> DeviceRecord:
        """Begin to make a device; the record tells how far it is. Raises the kernel's OSError."""
        memory = self.memory()
        owner = memory.registered(parent)
        if owner is None or type_ not in owner["types"]:
            raise failure(errno.ENOENT)
        record = memory.begin(name, parent, owner["token"], type_)
        self.changed(frozenset({Name(name)}))
        return record

    def remove(self, name: str) -> DeviceRecord | None:
        """Begin to remove a device; the record is of one that goes as soon as it is let go."""
        memory = self.memory()
        record = memory.devices.get(name)
        if record is None or "bus" not in memory.view(record):
            raise failure(errno.ENOENT)
        number = memory.removed(name, record["token"])
        if number:
            raise failure(number)
        self.changed(frozenset({Name(name)}))
        self.memory()
        return record if record["phase"] == GOING else None

    def configure(self, name: str, attribute: str) -> None:
        """Write an attribute."""
        memory = self.memory()
        record = memory.devices.get(name)
        if record is None or attribute not in self.state["attributes"]:
            raise failure(errno.ENOENT)
        number = memory.configured(name, record["token"], attribute)
        if number:
            raise failure(number)

    def let_go(self, name: str) -> None:
        """Whoever has a device open closes it."""
        memory = self.memory()
        record = memory.devices.get(name)
        if record is None:
            return
        record["held"] = False
        if record["phase"] == GOING:
            memory.leave(name)
        self.memory()

    def unplug(self, parent: str) -> None:
        """Unbind a parent's driver, once its creates have ended."""
        self.state["parents"][parent]["leaving"] = True
        self.memory()

    def plug(self, parent: str) -> None:
        """Bind it again."""
        record = self.state["parents"][parent]
        record["leaving"] = False
        if not record["registered"]:
            record["registered"], record["token"] = True, self._memory.token()
        self.changed(frozenset())

    def device(self, name: str) -> DeviceRecord | None:
        """The device or placeholder of a name, if it is more than a name that lingers."""
        record = self.memory().devices.get(name)
        return record if record is not None and record["phase"] != LINGERING else None


def _nobody(_: frozenset[Name]) -> None:
    """For whoever does not listen."""


class SimWatcher:
    """Hints (`agent.bus.Watcher`)."""

    def __init__(self, fd: int, close: Callable[[SimWatcher], None]) -> None:
        self._fd, self._close = fd, close
        self.names: set[Name] = set()
        self.everything = False

    def fileno(self) -> int:
        """What the loop knows it by."""
        return self._fd

    def drain(self) -> frozenset[Name]:
        """All hints; none where it is not known of whom."""
        names, everything = frozenset(self.names), self.everything
        self.names.clear()
        self.everything = False
        return frozenset() if everything else names

    def close(self) -> None:
        """Let go of it."""
        self._close(self)


class SimBus:
    """A bus on a kernel (`agent.bus.Bus`). `under_way` is what the last write waits for."""

    spec = "sim:memory"

    def __init__(self, kernel: Kernel, watch: Callable[[], Watcher | None] = lambda: None) -> None:
        self._kernel, self.watch = kernel, watch
        self.under_way: DeviceRecord | None = None
        self.wrote: Callable[[str, str, Any], None] = lambda *_: None

    def boot_id(self) -> str:
        """The kernel's boot id."""
        return self._kernel.state["boot_id"]

    def identity(self) -> IdentityValue:
        """Which machine it is."""
        return IdentityValue(machine_id=f"{self._kernel.number:032x}", product_uuid=None)

    def problem(self) -> str | None:
        """None."""
        return None

    def scan(self) -> Scan:
        """Look."""
        kernel = self._kernel
        if kernel.broken:
            raise ScanFailed(errno.EIO, "scan: it was decided so")
        memory = kernel.memory()
        devices = {}
        for name, record in memory.devices.items():
            seen = self._seen(memory, Name(name), record)
            if seen is not None:
                devices[seen.name] = seen
        parents = {
            name: frozenset(parent["types"])
            for name, parent in memory.parents.items()
            if parent["registered"]
        }
        blind = frozenset(memory.parents) if kernel.blind else frozenset()
        return Scan(kernel.state["boot_id"], devices, parents, blind)

    def _seen(self, memory: Memory, name: Name, record: DeviceRecord) -> Device | None:
        view = memory.view(record)
        if not view or ("bus" not in view and self._kernel.blind):
            return None
        parent = record["parent"]
        if "bus" not in view:
            return Device(name, Presence.GOING, parent, None)
        if "type" not in view:
            return Device(name, Presence.UNKNOWN, parent, None)
        return Device(name, Presence.PRESENT, parent, record["type"])

    def parents(self) -> Mapping[str, tuple[ParentType, ...]]:
        """Each registered parent's types, with what is available now."""
        memory = self._kernel.memory()
        return {
            name: tuple(
                ParentType(type=type_, available=count, device_api="vfio-pci", name=None)
                for type_, count in memory.available(name).items()
            )
            for name, parent in memory.parents.items()
            if parent["registered"]
        }

    def registered(self) -> list[str]:
        """The registered parents."""
        return sorted(self.parents())

    def offer(self, parent: str) -> tuple[list[ParentType], list[str]]:
        """A parent's types."""
        types = self.parents().get(parent)
        if types is None:
            raise FileNotFoundError(errno.ENOENT, parent)
        return list(types), []

    def create(self, parent: str, type_: str, name: str) -> None:
        """Begin a create; `under_way` is it."""
        self.wrote("create", name, None)
        self.under_way = self._kernel.create(parent, type_, name)

    def remove(self, name: str, type_: str) -> None:
        """Begin a remove, unless the type is another."""
        memory = self._kernel.memory()
        record = memory.devices.get(name)
        view = memory.view(record) if record is not None else []
        if record is None or "bus" not in view:
            raise failure(errno.ENOENT)
        if "type" not in view:
            raise failure(errno.EAGAIN)
        if record["type"] != type_:
            raise failure(errno.ESTALE)
        self.wrote("remove", name, record)
        self.under_way = self._kernel.remove(name)

    def write_attribute(self, name: str, attribute: str, value: str) -> None:
        """Write an attribute."""
        del value
        self.wrote("attribute", name, None)
        self._kernel.configure(name, attribute)

    def busy(self, name: str) -> str | None:
        """Whether somebody has it open."""
        record = self._kernel.memory().devices.get(name)
        return "it is held" if record is not None and record["held"] else None
