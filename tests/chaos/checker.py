"""Looks from outside, all the time, whether what is promised is so: devices with `open`, etcd raw.

Nothing has to be at rest for a finding to be one, since a device that was seen can be asked
whether that very device is still there: no look takes one that came for one that went.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import Self

    from tests.support.truth import Truth

__all__ = ["Checker", "Device", "Seen", "in_directories"]

_PAUSE = 0.2  # seconds between two looks
_DEVICES = "sys/bus/mdev/devices"
WITH_DEVICE = {"creating", "active", "removing"}


@dataclass
class Seen:
    """What was looked at, and what was wrong."""

    looks: int = 0
    looks_with_etcd: int = 0
    devices: int = 0
    names: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)


class Device(Protocol):
    """A device that was seen on a host."""

    @property
    def host(self) -> str:
        """The host."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def lives(self) -> bool:
        """Whether that very device is still there."""


class Directory:
    """A device's directory, opened: it has a link for as long as that very device is there."""

    def __init__(self, host: str, name: str, descriptor: int) -> None:
        self.host, self.name, self._descriptor = host, name, descriptor

    @property
    def lives(self) -> bool:
        """Whether its directory still has a link."""
        return os.fstat(self._descriptor).st_nlink > 0


class Checker:
    """A context in which a thread looks.

    `see` gives the devices of all hosts, and whatever it opens for that is closed again; `look`
    gives etcd's keys, or None when it cannot. While `is_set_back`, a device may be there without
    its claim. `amid` says what is going on.
    """

    def __init__(
        self,
        see: Callable[[ExitStack], Iterable[Device]],
        look: Callable[[], Truth | None],
        is_set_back: Callable[[], bool],
        amid: Callable[[], str],
    ) -> None:
        self.seen = Seen()
        self.failed: BaseException | None = None
        self._see, self._look, self._amid = see, look, amid
        self._is_set_back = is_set_back
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.wait(_PAUSE):
                self.check_once()
        except BaseException as error:  # noqa: BLE001 - whoever started it is told
            self.failed = error

    def check_once(self) -> None:
        """Look at all hosts, then at etcd, and at the hosts again."""
        with ExitStack() as stack:
            excused = self._is_set_back()
            devices = list(self._see(stack))
            self._no_twins(devices)
            self.seen.looks += 1
            self.seen.devices = max(self.seen.devices, len(devices))
            self.seen.names |= {device.name for device in devices}
            truth = self._look()
            if truth is not None:
                self.seen.looks_with_etcd += 1
                self.seen.names |= truth.names.keys()
                self._keys_agree(truth)
                if not (excused or self._is_set_back()):
                    self._devices_are_claimed(devices, truth)

    def _no_twins(self, devices: list[Device]) -> None:
        """No name is a device on two hosts at one time.

        The first still lives after the second was opened: they were there together.
        """
        first: dict[str, Device] = {}
        for device in devices:
            other = first.setdefault(device.name, device)
            if other is not device and other.lives and device.lives:
                self._tell(f"{device.name}: a device on {other.host} and on {device.host} at once")

    def _keys_agree(self, truth: Truth) -> None:
        """Name and claim of one revision say the same, whatever is under way."""
        for line in truth.wrong():
            self._tell(line)

    def _devices_are_claimed(self, devices: list[Device], truth: Truth) -> None:
        """A device that was there before etcd was read and after it had its claim meanwhile."""
        for device in devices:
            claims = truth.claims.get(device.name, [])
            states = {claim.state for claim in claims if claim.host == device.host}
            if not states & WITH_DEVICE and device.lives:
                found = f"{states or None}, {truth.names.get(device.name)}"
                self._tell(f"{device.name}: a device on {device.host}, whose claim is {found}")

    def _tell(self, what: str) -> None:
        self.seen.violations.append(f"{time.monotonic():.3f} {self._amid()}: {what}")


def in_directories(hosts: Mapping[str, Path]) -> Callable[[ExitStack], list[Device]]:
    """See the devices of simulated hosts in their directories."""
    return lambda stack: [
        device for host, directory in hosts.items() for device in _opened(stack, host, directory)
    ]


def _opened(stack: ExitStack, host: str, directory: Path) -> list[Directory]:
    """A host's devices, each opened."""
    found = []
    for entry in (directory / _DEVICES).iterdir():
        with suppress(FileNotFoundError):  # gone meanwhile
            descriptor = os.open(entry, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            found.append(Directory(host, entry.name, descriptor))
    return found
