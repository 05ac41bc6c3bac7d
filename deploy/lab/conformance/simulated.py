"""The rows' view of a simulated host."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent import simulated
from agent.simulated import SimulatedBus
from agent.simulated_kernel import SimulatedKernel

from .subject import Subject
from .vocabulary import SIMULATED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["SimulatedSubject"]

_LONG = 3600.0  # seconds that nobody waits for
_TYPES = {
    "mbochs": {"mbochs-small": 64, "mbochs-medium": 16, "mbochs-large": 4},
    "mdpy": {"mdpy-hd": 4, "mdpy-vga": 4, "mdpy-xga": 4},
    "mtty": {"mtty-1": 24, "mtty-2": 12},
}
_CORE_COUNTS = "mdpy"
_ADDRESSES = dict(zip(_TYPES, ("0000:3b:00.0", "0000:3c:00.0", "0000:3d:00.0"), strict=True))
_NAMES = {address: parent for parent, address in _ADDRESSES.items()}
_ATTRIBUTES = {"vendor/sample_mdev_dev": False}


class SimulatedSubject(Subject):
    """A simulated host with the sample drivers' parents, in a directory that must not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        simulated.init(directory, len(_TYPES), attributes=_ATTRIBUTES)
        for parent, types in _TYPES.items():
            simulated.tune(
                directory, _ADDRESSES[parent], types=types, core_counts=parent == _CORE_COUNTS
            )
        self._events = -1
        super().__init__(SIMULATED, SimulatedBus(directory))

    def real_name(self, parent: str) -> str:
        """The address of a parent; what is no parent of ours is no address."""
        return _ADDRESSES.get(parent, parent)

    def our_name(self, parent: str) -> str:
        """The parent at an address."""
        return _NAMES[parent]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Read the simulated kernel's pipe as it is."""
        # Also for writing: then there is a writer always, and never an end of the file.
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        self._events = os.open(self._directory / "kernel/events", flags)
        try:
            yield
        finally:
            os.close(self._events)

    def events(self, of: str) -> list[str]:
        """What has come; there is no vfio-dev here."""
        if of != "mdev":
            return []
        try:
            lines = os.read(self._events, 65536).decode().splitlines()
        except BlockingIOError:
            return []
        parts = (line.partition(" ") for line in lines)
        return [f"{action} {_NAMES.get(whom, whom)}" for action, _, whom in parts]

    @contextmanager
    def unprivileged(self) -> Iterator[None]:
        """Make the calls of somebody else."""
        calls = self.bus.calls
        self.bus.calls = SimulatedKernel(self._directory, privileged=False)
        try:
            yield
        finally:
            self.bus.calls = calls

    def make_slow(self, parent: str) -> None:
        """Creates take an hour, and are on the bus for all of it."""
        simulated.tune(self._directory, _ADDRESSES[parent], latency=_LONG, window=_LONG)

    def finish(self, name: str) -> None:
        """End the create of that name."""
        for address in _NAMES:
            simulated.tune(self._directory, address, latency=0.0)
        simulated.let_go(self._directory, name)

    def hold(self, name: str) -> None:
        """Hold it."""
        simulated.hold(self._directory, name)

    def hold_group(self, name: str) -> None:
        """Hold its group."""
        simulated.hold(self._directory, name, group_only=True)

    def let_go(self, name: str) -> None:
        """Let it go."""
        simulated.let_go(self._directory, name)

    def load(self, parent: str) -> None:
        """Bind the parent's driver."""
        simulated.plug(self._directory, _ADDRESSES[parent])

    def unload(self, parent: str) -> None:
        """Unbind it."""
        simulated.unplug(self._directory, _ADDRESSES[parent])

    def unload_sleeps(self, parent: str) -> bool:
        """Whether the simulated kernel will make no more devices on the parent."""
        record = SimulatedKernel(self._directory).look().parents[_ADDRESSES[parent]]
        return record.get("leaving", False)

    def reset(self) -> None:
        """Boot it; whoever waits in its kernel is let go by that."""
        simulated.reboot(self._directory)
        for parent, address in _ADDRESSES.items():
            simulated.tune(self._directory, address, latency=0.0)
            self.load(parent)
