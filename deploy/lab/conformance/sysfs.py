"""The rows' view of a real kernel: sysfs and the sample drivers, for root in a guest of the lab."""

from __future__ import annotations

import errno
import os
import platform
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.sysfs import SysfsBus
from deploy.lab.inside.hold import hold, hold_group
from deploy.lab.mdev import CREATE_DELAY

from .subject import PARENTS, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SysfsSubject"]

_HELD_MS = "600000"
_NOBODY = 65534
_KOBJECT_UEVENT = 15  # linux/netlink.h: NETLINK_KOBJECT_UEVENT …
_KERNELS_GROUP = 1  # … and its multicast group of the kernel's own events
_RESET_S = 30.0
_NAME_LENGTH = 36


class SysfsSubject(Subject):
    """The machine that we run on."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, ...]] = {}
        self._heard: list[dict[str, str]] = []
        self._socket: socket.socket | None = None
        self._unloading = 0
        kernel = ".".join(platform.release().split(".")[:2])
        super().__init__(kernel, SysfsBus(run_dir=Path("/run/conformance")))

    # -- events

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the kernel's own events, before udevd has seen them."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._heard = []
        with socket.socket(socket.AF_NETLINK, kind, _KOBJECT_UEVENT) as heard:
            heard.bind((0, _KERNELS_GROUP))
            self._socket = heard
            yield

    def events(self, of: str) -> list[str]:
        """What has come of one subsystem, a line an event."""
        self._hear()
        mine = [_told(event, of) for event in self._heard]
        self._heard = [event for event, line in zip(self._heard, mine, strict=True) if not line]
        return [line for line in mine if line]

    def _hear(self) -> None:
        assert self._socket is not None
        with suppress(BlockingIOError):
            while True:
                message = self._socket.recv(65536).decode(errors="replace")
                pairs = (line.partition("=") for line in message.split("\0")[1:])
                self._heard.append({key: value for key, _, value in pairs})

    # -- what moves the kernel

    @contextmanager
    def unprivileged(self) -> Iterator[None]:
        """Be nobody."""
        os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    def make_slow(self, parent: str) -> None:
        """Have creates sleep for ten minutes: mtty can."""
        assert parent == "mtty", f"{parent} cannot be slow"
        Path(CREATE_DELAY).write_text(_HELD_MS)

    def finish(self, name: str) -> None:  # noqa: ARG002 - here all creates are let finish
        """End the sleep of all creates."""
        Path(CREATE_DELAY).write_text("0")

    def hold(self, name: str) -> None:
        """Hold it as a VM does."""
        self._held[name] = hold(name)

    def hold_group(self, name: str) -> None:
        """Hold its group."""
        self._held[name] = (hold_group(name),)

    def let_go(self, name: str) -> None:
        """Close what was opened, the device first."""
        for descriptor in reversed(self._held.pop(name)):
            os.close(descriptor)

    def load(self, parent: str) -> None:
        """Load the driver."""
        subprocess.run(["modprobe", parent], check=True)  # noqa: S603, S607 - ours, in a guest

    def unload(self, parent: str) -> None:
        """Unload the driver."""
        with subprocess.Popen(["modprobe", "--remove", parent]) as unloading:  # noqa: S603, S607 - as above
            self._unloading = unloading.pid
        if unloading.returncode:
            raise OSError(errno.EBUSY, "modprobe refused")

    def unload_sleeps(self, parent: str) -> bool:
        """Whether the driver's end has begun, and modprobe waits for something."""
        with suppress(FileNotFoundError):
            ends = Path("/sys/module", parent, "initstate").read_text() == "going\n"
            state = Path(f"/proc/{self._unloading}/stat").read_text().rpartition(") ")[2][0]
            return ends and state == "D"
        return False

    def reset(self) -> None:
        """Remove what was left; what cannot be removed goes with its driver."""
        for name in list(self._held):
            self.let_go(name)
        if all(self._home(parent).exists() for parent in PARENTS):
            self.finish("")
            self._remove_all()
        if not self._is_clean():
            self._reload()

    def _remove_all(self) -> None:
        for device in self._devices.iterdir():
            with suppress(OSError), self.open_remove(device.name) as file:
                file.write(b"1")

    def _is_clean(self) -> bool:
        homes = self._homes.values()
        return all(self._home(parent).exists() for parent in PARENTS) and not any(
            len(path.name) == _NAME_LENGTH for home in homes for path in home.iterdir()
        )

    def _reload(self) -> None:
        """Unload and load the drivers; one that is in use yet is tried again."""
        deadline = time.monotonic() + _RESET_S
        while subprocess.run(["modprobe", "--remove", *PARENTS], check=False).returncode:  # noqa: S603, S607 - as above
            assert time.monotonic() < deadline, "the sample drivers cannot be unloaded"
            time.sleep(0.05)
        for parent in PARENTS:
            self.load(parent)


def _told(event: dict[str, str], of: str) -> str:
    """An event of one subsystem as the rows have it; empty when it is another's."""
    path = event.get("DEVPATH", "").split("/")
    if of == "mdev" and event.get("SUBSYSTEM") == "mdev":
        return f"{event['ACTION']} {path[-1]}"
    if of == "mdev" and "MDEV_STATE" in event:
        return f"{event['MDEV_STATE']} {path[-1]}"
    if of == "vfio-dev" and event.get("SUBSYSTEM") == "vfio-dev":
        return f"{event['ACTION']} of {path[-3]}"  # …/<name>/vfio-dev/vfio0
    return ""
