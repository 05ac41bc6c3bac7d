"""The simulated kernel: behaves as kernel-reference.md says, errno by errno.

    DIR/sys, DIR/proc, DIR/etc     what the kernel shows, laid out as the real one's
    DIR/kernel/lock                its list lock: held for a moment, never for a creation
    DIR/kernel/state.[01]          what it knows: placeholders, pools, who holds a device
    DIR/kernel/nodes               what is the same in all devices, to be linked into them
    DIR/kernel/nudge               grows when somebody who sleeps should look again
    DIR/kernel/events              a pipe with the kernel's events, for a watcher

There is no process behind it. Whoever comes by, takes the lock and first settles what time
has brought: a create whose driver is done is a device, whether its writer still lives or not.
The tree is made from the state, after it; one that a killed process left half made is made
again. So who is killed anywhere in a change has made it or never began it. The state outlives
any killed process, but not the machine's power.

Starts fast, for the workers.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import contextmanager, suppress

from agent.simulated_memory import (
    ACTIVE,
    BUS,
    COMING,
    GOING,
    TYPE,
    Memory,
    boottime,
    failure,
)
from agent.simulated_sleeper import Sleeper
from agent.simulated_state import Saved
from agent.simulated_tree import Tree, clear
from agent.sysfs import OpenFile, SystemCalls

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from agent.simulated_memory import DeviceRecord, State
    from agent.simulated_state import SavedState

__all__ = ["SimulatedKernel", "parse_number", "parse_uuid"]

_UUID = re.compile(rb"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NUMBER = re.compile(rb"\+?(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))\n?")
_LOST = "lost"  # the event of one who was killed before he told
_TICK = 0.02  # seconds between two looks at the nudge of one who sleeps in the kernel


def parse_uuid(data: bytes) -> str:
    """The name in what was written to `create` (Linux: create_store, guid_parse).

    A 37th byte is there for the newline, and nobody looks at it.
    """
    if len(data) not in (36, 37) or not _UUID.fullmatch(data[:36]):
        raise failure(errno.EINVAL)
    return data[:36].decode().lower()


def parse_number(data: bytes) -> int:
    """The number in what was written to `remove` (Linux: kstrtoul with base 0).

    One that no long holds is EINVAL as well: remove_store tells no errno of kstrtoul's.
    """
    match = _NUMBER.fullmatch(data)
    for digits, base in zip(match.groups() if match else (), (16, 8, 10), strict=False):
        if digits is not None and int(digits, base) < 1 << 64:
            return int(digits, base)
    raise failure(errno.EINVAL)


def _told(view: list[str]) -> int:
    """How much of a device's arrival was told when this is shown of it: nothing, add, bind."""
    if not view:
        return 0
    # One of which nothing but the directory is left was whole before.
    return 2 if TYPE in view or BUS not in view else 1


def _arrival(name: str, device: DeviceRecord, came: int) -> list[str]:
    """The events of its arrival so far that were not told yet."""
    return [f"add {name}", f"bind {name}"][_told(device["view"]) : came]


class SimulatedKernel(SystemCalls):
    """The system calls of a simulated host.

    `clock` gives seconds that all processes share, `pause` sleeps; who waits in the kernel
    looks every 20 ms whether the `nudge` file grew, and else at the time it knows of.

    `unkillable` is for workers: a write that sleeps is done by a child with copies of all
    descriptors, as in the real kernel no SIGKILL frees who is in the midst of one. A worker that
    is killed leaves it, and with it the lock of the name, until the write returns. Any other
    write is done or never began, whenever its worker is killed. Such a kernel also ends with its
    boot: after a reboot none of its writes reaches the new one.
    """

    def __init__(
        self,
        root: Path,
        *,
        privileged: bool = True,
        unkillable: bool = False,
        clock: Callable[[], float] = boottime,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.root = root
        self.tree = Tree(root)
        self._own = root / "kernel"
        self._saved, self._nudge = Saved(self._own), f"{self._own}/nudge"
        self._quiet = 0, 0.0, 0.0  # the state of this number changes not from then until then
        self._privileged, self._unkillable = privileged, unkillable
        self._clock, self._pause = clock, pause
        self._boot_id = self.boot_id() if unkillable else None
        self.sleeper = Sleeper(lambda call: self._write(call[0], *call[1], may_sleep=True))

    def boot_id(self) -> str:
        """The boot id as shown."""
        return (self.root / "proc/sys/kernel/random/boot_id").read_text().strip()

    # -- the memory

    def begin(self, state: State) -> None:
        """Make the host's memory what this says, and the tree from it."""
        with self._saved.locked() as saved:
            saved.write(state)
            self.show_all(Memory(state, self._clock()))
            saved.clean()

    @property
    def is_there(self) -> bool:
        """Whether there is such a host."""
        return self._saved.is_there()

    @contextmanager
    def memory(self) -> Iterator[Memory]:
        """The kernel's memory, settled, under its lock. What is changed inside is kept.

        Nothing is when an error comes out of it.
        """
        with self._saved.locked() as saved:
            memory = self._settled(saved)
            old = {name: device.copy() for name, device in memory.devices.items()}
            yield memory
            memory.settle()
            self._keep(saved, memory, old)

    def look(self) -> Memory:
        """The kernel's memory as it is now, settled and shown. Changes of it are not kept."""
        with self._saved.locked() as saved:
            return self._settled(saved)

    def settle(self) -> None:
        """Let happen, and be seen, what time has brought."""
        with self._saved.locked() as saved:
            number, since, until = self._quiet
            if number != saved.number or not since <= self._clock() < until or saved.is_dirty:
                memory = self._settled(saved)
                # Time alone changes nothing before that; a clock can begin anew, though.
                self._quiet = saved.number, memory.now, memory.next_of_all()

    def _settled(self, saved: SavedState) -> Memory:
        memory = Memory(saved.read(), self._clock())
        if saved.is_dirty:
            self.show_all(memory)
            self.tell([_LOST])  # what whoever left it so had to tell
            saved.clean()
        old = {name: device.copy() for name, device in memory.devices.items()}
        memory.settle()
        if memory.unbound or memory.devices != old or memory.news():
            self._keep(saved, memory, old)
        return memory

    def _keep(self, saved: SavedState, memory: Memory, old: dict[str, DeviceRecord]) -> None:
        """Save and show the memory."""
        news = memory.news()
        events = self._events(memory, news)
        changed = [name for name in old if name not in memory.devices]
        for name, device, view in news:
            device["view"] = view
            changed.append(name)
        # Killed from here on, the tree and the state may differ: then all is shown again.
        saved.write(memory.state)
        self._show(memory, old, changed)
        if events:
            self.tell(events)
        saved.clean()
        memory.unbound.clear()

    def _events(self, memory: Memory, news: list[tuple[str, DeviceRecord, list[str]]]) -> list[str]:
        """What is to be told of devices that came and went, since they were shown last."""
        events = []
        for name, device in memory.ended:
            came = 1 if device["errno"] else 2  # the kernel tells of a create that fails, too
            events += _arrival(name, device, came)
            events += [f"unbind {name}", f"remove {name}"][2 - came :]
        events += [f"unregistered {parent}" for parent in memory.unbound]
        memory.ended.clear()
        for name, device, view in news:
            if device["phase"] in (COMING, ACTIVE):
                events += _arrival(name, device, _told(view))
        return events

    def _show(self, memory: Memory, old: dict[str, DeviceRecord], changed: list[str]) -> None:
        for name in changed:
            device = memory.devices.get(name) or old[name]
            view = device["view"] if name in memory.devices else []
            home = memory.parents[device["parent"]]["path"]
            self.tree.show(name, device, home, view, memory.state)
        # A placeholder is counted before anything of it is seen, so not only what changed.
        before = {(name, device["parent"]) for name, device in old.items()}
        after = {(name, device["parent"]) for name, device in memory.devices.items()}
        for parent in {parent for _, parent in before ^ after}.union(memory.unbound):
            self._show_left(memory, parent)

    def _show_left(self, memory: Memory, name: str) -> None:
        """What is left of a parent: its counts, or of one without a driver nothing."""
        parent = memory.parents[name]
        if parent["registered"]:
            self.tree.show_available(parent, memory.available(name))
        else:
            self.tree.hide_parent(name, parent)

    def show_parent(self, memory: Memory, name: str) -> None:
        """Show a parent as it is registered or not."""
        if memory.parents[name]["registered"]:
            self.tree.show_parent(name, memory.parents[name])
        self._show_left(memory, name)

    def show_all(self, memory: Memory) -> None:
        """Make the whole tree from the state."""
        self.tree.show_boot(memory.state)
        homes = [parent["path"] for parent in memory.parents.values()]
        self.tree.sweep(homes, memory.devices)
        for name in memory.parents:
            self.show_parent(memory, name)
        for name, device in memory.devices.items():
            home = memory.parents[device["parent"]]["path"]
            for other in homes:
                if other != home:
                    clear(self.root / other / name)
            self.tree.show(name, device, home, device["view"], memory.state)

    def nudge(self) -> None:
        """Have all who sleep in the kernel look again."""
        with open(self._nudge, "ab") as file:  # noqa: PTH123 - its path is no Path
            file.write(b".")  # its size tells, as two of them may be of one time stamp

    def _nudges(self) -> int:
        return os.stat(self._nudge).st_size  # noqa: PTH116 - all who sleep do it all the time

    def tell(self, events: list[str]) -> None:
        """Tell a watcher, if there is one; events are lost when it does not keep up.

        Each is what happened and to whom: add, bind, unbind or remove and a device's name,
        registered or unregistered and a parent's; or that some were lost.
        """
        with suppress(OSError):
            fd = os.open(self._own / "events", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                for event in events:
                    os.write(fd, f"{event}\n".encode())
            finally:
                os.close(fd)

    # -- the calls

    def open(self, path: Path) -> OpenFile:
        """Open one of the files that can be written: `create`, `remove` or an attribute."""
        match path.relative_to(self.root).parts:
            case ("sys", "class", "mdev_bus", parent, "mdev_supported_types", type_, "create"):
                return self._open_create(path, parent, type_)
            case ("sys", "bus", "mdev", "devices", name, *attribute) if attribute:
                return self._open_attribute(path, name, "/".join(attribute))
        raise failure(errno.ENOENT, path)

    def _open_create(self, path: Path, parent: str, type_: str) -> OpenFile:
        record = self.look().registered(parent)
        if record is None or type_ not in record["types"]:
            raise failure(errno.ENOENT, path)
        self._check_privilege(path)
        token = record["token"]
        sleeps = record["latency"] > 0
        return self._file("create", parent, token, type_, sleeps=sleeps)

    def _open_attribute(self, path: Path, name: str, attribute: str) -> OpenFile:
        memory = self.look()
        device = memory.devices.get(name)
        if device is None or BUS not in device["view"]:
            raise failure(errno.ENOENT, path)
        token = device["token"]
        if attribute == "remove" and device["removable"]:
            self._check_privilege(path)
            return self._file("remove", name, token)
        writable = memory.state["attributes"].get(attribute)
        if writable is None:
            raise failure(errno.ENOENT, path)
        if not writable:  # sysfs says that to root, too
            raise failure(errno.EACCES, path)
        self._check_privilege(path)
        return self._file("attribute", name, token, attribute)

    def _file(self, kind: str, *what: str | int, sleeps: bool = False) -> OpenFile:
        """A file; `sleeps` where it is known before that its write will."""

        def write(data: bytes) -> int:
            if not self._unkillable:
                return self._write(kind, *what, data, may_sleep=True)
            if not sleeps:
                with suppress(_WouldSleep):
                    return self._write(kind, *what, data, may_sleep=False)
            number = self.sleeper.call((kind, (*what, data)))
            if number:
                raise failure(number)
            return len(data)

        return _SimulatedFile(write)

    def _write(self, kind: str, *what: Any, may_sleep: bool) -> int:
        """A write to a file that was opened. It raises _WouldSleep where it may not and would."""
        writes: dict[str, Callable[..., int]] = {
            "create": self._create,
            "remove": self._remove,
            "attribute": self._write_attribute,
        }
        return writes[kind](*what, may_sleep=may_sleep)

    def _check_privilege(self, path: Path) -> None:
        if not self._privileged:
            raise failure(errno.EACCES, path)

    def probe(self, path: Path) -> None:
        """Open a vfio group's node: EBUSY while somebody else has it open."""
        memory = self.look()
        refusal = memory.state.get("probe", 0)
        if refusal:
            raise failure(refusal, path)
        for device in memory.devices.values():
            if path == self.root / "dev/vfio" / str(device["token"]) and device["view"]:
                if device.get("group_open", device["held"]):
                    raise failure(errno.EBUSY, path)
                return
        raise failure(errno.ENOENT, path)

    # -- what they do

    def _create(
        self, parent: str, registration: int, type_: str, data: bytes, *, may_sleep: bool
    ) -> int:
        if not data:
            return 0
        name = parse_uuid(data)
        with self._entered() as memory:
            device = memory.begin(name, parent, registration, type_)
            if device["ready"] > memory.now and not may_sleep:
                raise _WouldSleep
        # Decided when the lock was held: nothing but a reboot takes it back.
        if device["phase"] == COMING:
            self.wait_while(name, device["token"], COMING, memory.state["boot_id"])
        if device["errno"]:
            raise failure(device["errno"])
        return len(data)

    def _remove(self, name: str, token: int, data: bytes, *, may_sleep: bool) -> int:
        if not data or parse_number(data) == 0:
            return len(data)
        with self._entered() as memory:
            number = memory.removed(name, token)
            device = memory.devices.get(name)
            sleeps = not number and device is not None and device["phase"] == GOING
            if sleeps and not may_sleep:
                raise _WouldSleep
        if number:
            raise failure(number)
        if sleeps:
            self.wait_while(name, token, GOING, memory.state["boot_id"])
        return len(data)

    def _write_attribute(
        self, name: str, token: int, attribute: str, data: bytes, *, may_sleep: bool
    ) -> int:
        del may_sleep  # it never does
        with self._entered() as memory:
            number = memory.configured(name, token, attribute)
            if number:
                raise failure(number)
            self.tree.write_attribute(name, attribute, data)
        return len(data)

    @contextmanager
    def _entered(self) -> Iterator[Memory]:
        """The memory, for a write; a process of an earlier boot is no more."""
        with self.memory() as memory:
            self._check_boot(memory.state["boot_id"], self._boot_id)
            yield memory

    def _check_boot(self, now: str, then: str | None) -> None:
        if then is not None and now != then:
            raise OSError(errno.EIO, "the simulated host was rebooted under the writer")

    def wait_while(self, name: str, token: int, phase: str, boot_id: str) -> None:
        """Sleep until the device is gone or in another phase; raises EIO after a reboot."""
        while True:
            nudges = self._nudges()  # before the look: a nudge after it is not missed
            memory = self.look()
            self._check_boot(memory.state["boot_id"], boot_id)
            device = memory.devices.get(name)
            if device is None or device["token"] != token or device["phase"] != phase:
                return
            self._doze(memory.next_change(device), nudges)

    def _doze(self, until: float | None, nudges: int) -> None:
        while self._nudges() == nudges:
            left = _TICK if until is None else until - self._clock()
            if left <= 0:
                return
            self._pause(min(left, _TICK))


class _WouldSleep(Exception):
    """A write would sleep in the kernel; nothing of it was done."""


class _SimulatedFile(OpenFile):
    """An open file whose write the simulated kernel answers."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        """One write."""
        return self._write(data)

    def close(self) -> None:
        """Let go of it."""
