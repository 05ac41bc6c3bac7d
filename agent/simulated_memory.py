"""The simulated kernel's memory: what it knows of parents and devices, and how time changes it.

Starts fast, for the workers.
"""

from __future__ import annotations

import errno
import math
import os
import time

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from typing import NotRequired, TypedDict

    class DeviceRecord(TypedDict):
        """A name on the kernel's list, a device or a placeholder."""

        token: int  # tells it from an earlier device of the same name
        parent: str
        type: str
        phase: str
        counted: bool  # takes its share of the parent's pool
        errno: int  # what the driver will say at `ready`; 0: a device
        since: float
        shown: float  # when it appears in sysfs …
        typed: float  # … when its type can be read …
        ready: float  # … and when create returns; seconds of CLOCK_BOOTTIME
        removable: bool  # its `remove` file is still there
        held: bool
        group_open: NotRequired[bool]  # as by whoever holds it, and by others
        view: list[str]  # what of it the tree shows

    class ParentRecord(TypedDict):
        """A parent device; `registered` while its driver is bound."""

        path: str
        registered: bool
        leaving: NotRequired[bool]  # its driver waits for creates, to be unbound then
        token: int  # tells this registration from an earlier one
        types: dict[str, int]
        latency: float
        window: float | None
        serial: bool
        core_counts: bool
        busy_until: float
        failures: list[int]  # what the driver will say to the next creates

    class State(TypedDict):
        """The kernel's memory."""

        seed: str
        boots: int
        boot_id: str
        tokens: int
        linger: float
        attributes: dict[str, bool]  # each device's attributes; whether they can be written
        failing: dict[str, int]
        probe: NotRequired[int]  # what every open of a vfio node says; 0: what it finds
        parents: dict[str, ParentRecord]
        devices: dict[str, DeviceRecord]


__all__ = [
    "ACTIVE",
    "BUS",
    "COMING",
    "DEVICE",
    "GOING",
    "LINGERING",
    "REMOVE",
    "TYPE",
    "Memory",
    "boottime",
    "failure",
]

COMING, ACTIVE, GOING, LINGERING = "coming", "active", "going", "lingering"

DEVICE, REMOVE, BUS, TYPE = "device", "remove", "bus", "type"  # in the order of appearance


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME, the same for all processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def failure(number: int, path: object = None) -> OSError:
    """The error that the kernel's errno makes."""
    return OSError(number, os.strerror(number), None if path is None else str(path))


class Memory:
    """The kernel's memory while its lock is held: pure changes of the state, no files."""

    def __init__(self, state: State, now: float) -> None:
        self.state, self.now = state, now
        self.devices, self.parents = state["devices"], state["parents"]
        self.ended: list[tuple[str, DeviceRecord]] = []  # what went since this was read …
        self.unbound: list[str] = []  # … and which parents

    def token(self) -> int:
        """A number that was not given before."""
        self.state["tokens"] += 1
        return self.state["tokens"]

    def registered(self, parent: str) -> ParentRecord | None:
        """The parent, if a driver is bound to it."""
        record = self.parents.get(parent)
        return record if record is not None and record["registered"] else None

    def available(self, parent: str) -> dict[str, int]:
        """Each type's available instances: what is left of the pool, by what one costs."""
        types = self.parents[parent]["types"]
        pool = math.lcm(*types.values()) if types else 0
        of_parent = (d for d in self.devices.values() if d["parent"] == parent and d["counted"])
        left = pool - sum(pool // types[device["type"]] for device in of_parent)
        return {type_: left // (pool // capacity) for type_, capacity in types.items()}

    def begin(self, name: str, parent: str, token: int, type_: str) -> DeviceRecord:
        """Put the placeholder on the list, as mdev_device_create does under the list lock."""
        if name in self.devices:  # checked over all parents, and before any capacity
            raise failure(errno.EEXIST)
        owner = self.registered(parent)
        full = self.available(parent)[type_] <= 0
        if owner is not None and owner["core_counts"] and full:
            raise failure(errno.EUSERS)
        if owner is None or owner["token"] != token or owner.get("leaving"):
            raise failure(errno.ENODEV)
        refusal = errno.ENOSPC if full else next(iter(owner["failures"]), 0)
        if not full:
            del owner["failures"][:1]
        record = self._placeholder(owner, parent, type_, refusal, full=full)
        self.devices[name] = record
        return record

    def _placeholder(
        self, owner: ParentRecord, parent: str, type_: str, refusal: int, *, full: bool
    ) -> DeviceRecord:
        latency, window = owner["latency"], owner["window"]
        window = latency / 4 if window is None else min(window, latency)
        start = max(self.now, owner["busy_until"]) if owner["serial"] else self.now
        # A driver sees at once that nothing is left, but even that phantom is met in sysfs.
        ready = start + (window if full else latency)
        owner["busy_until"] = ready
        return {
            "token": self.token(),
            "parent": parent,
            "type": type_,
            "phase": COMING,
            "counted": not full,
            "errno": refusal,
            "since": self.now,
            "shown": ready - window,
            # A create that fails never comes so far that its type could be read.
            "typed": ready if refusal else ready - window / 2,
            "ready": ready,
            "removable": True,
            "held": False,
            "view": [],
        }

    def removed(self, name: str, token: int) -> int:
        """What a write to `remove` does; gives its errno, or 0 where the device goes.

        A file that is gone answers so through a descriptor from before.
        """
        device = self.devices.get(name)
        if device is None or device["token"] != token or REMOVE not in self.view(device):
            return errno.ENODEV
        if device["phase"] == COMING:
            device["removable"] = False  # deleted before it was looked at, and for good
            return errno.EAGAIN
        self.leave(name)
        return 0

    def configured(self, name: str, token: int, attribute: str) -> int:
        """What a write to an attribute that can be written says; 0 where it is done."""
        device = self.devices.get(name)
        if device is None or device["token"] != token or BUS not in self.view(device):
            return errno.ENODEV
        return self.state["failing"].get(attribute, 0)

    def leave(self, name: str) -> None:
        """Take a device away: its links go at once, it itself when nobody holds it."""
        device = self.devices[name]
        if device["held"]:
            device["phase"] = GOING
        elif self.state["linger"]:
            self.ended.append((name, device.copy()))
            device["phase"], device["ready"] = LINGERING, self.now + self.state["linger"]
            device["since"] = self.now
        else:
            self.ended.append((name, self.devices.pop(name)))

    def settle(self) -> None:
        """Let happen what time has brought."""
        for name, device in list(self.devices.items()):
            # A clock before its beginning: the machine itself was booted since.
            due = self.now >= device["ready"] or self.now < device["since"]
            if due and device["phase"] == COMING and not device["errno"]:
                device["phase"] = ACTIVE
            elif due and device["phase"] == COMING:
                self.ended.append((name, self.devices.pop(name)))
            elif due and device["phase"] == LINGERING:
                del self.devices[name]  # which was told when it began to linger
        for name, parent in self.parents.items():
            if parent.get("leaving"):
                self._unbind(name, parent)

    def _unbind(self, name: str, parent: ParentRecord) -> None:
        """Take a parent and its devices away, once its creates under way have ended."""
        phases = {n: d["phase"] for n, d in self.devices.items() if d["parent"] == name}
        if COMING not in phases.values():
            parent["registered"] = parent["leaving"] = False
            self.unbound.append(name)
            for device in [n for n, phase in phases.items() if phase == ACTIVE]:
                self.leave(device)

    def news(self) -> list[tuple[str, DeviceRecord, list[str]]]:
        """The devices of which sysfs shows something else than their record says, and what."""
        views = ((name, device, self.view(device)) for name, device in self.devices.items())
        return [one for one in views if one[2] != one[1]["view"]]

    def view(self, device: DeviceRecord) -> list[str]:
        """What of a device sysfs shows now."""
        phase = device["phase"]
        if phase == ACTIVE and device["removable"]:  # nearly all of them
            return [DEVICE, REMOVE, BUS, TYPE]
        if phase == LINGERING or (phase == COMING and self.now < device["shown"]):
            return []
        if phase == GOING:
            return [DEVICE]
        removable = [REMOVE] if device["removable"] else []
        typed = [TYPE] if phase == ACTIVE or self.now >= device["typed"] else []
        return [DEVICE, *removable, BUS, *typed]

    def next_of_all(self) -> float:
        """When time alone changes anything next."""
        times = [math.inf]
        for device in self.devices.values():
            if device["phase"] in (COMING, LINGERING):
                when = (device["shown"], device["typed"], device["ready"])
                times += [at for at in when if at > self.now]
        return min(times)

    def next_change(self, device: DeviceRecord) -> float | None:
        """When time alone changes a device next; None: never."""
        if device["phase"] == COMING:
            return device["shown"] if self.now < device["shown"] else device["ready"]
        return device["ready"] if device["phase"] == LINGERING else None
