"""The real bus: everything that mdevns knows of sysfs stands here.

`root` is the only path from which all others derive, so that the same code reads a simulated
host. What is done to the kernel besides reading goes through `SystemCalls`, so that the same
code writes to a simulated one, too.

Starts fast, for the workers: what only the agent needs is imported where it is used.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import threading
from contextlib import suppress
from pathlib import Path

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Protocol, Self, TypeGuard

    from agent.bus import Device, Scan, Watcher
    from coordinator.model import IdentityValue, Name, ParentType

    class _UdevDevice(Protocol):
        @property
        def subsystem(self) -> str | None: ...
        @property
        def sys_name(self) -> str: ...
        @property
        def properties(self) -> Mapping[str, str]: ...

    class _UdevMonitor(Protocol):
        def fileno(self) -> int: ...
        def poll(self, timeout: float | None = None, /) -> _UdevDevice | None: ...


__all__ = ["MachineUnknown", "OpenFile", "SysfsBus", "SystemCalls", "UdevWatcher", "is_name"]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NIL = "00000000-0000-0000-0000-000000000000"  # the kernel takes it, it is no name of ours
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of the machine's room, not of the file
_EVENTS_AT_ONCE = 10_000  # a bound for one drain; what is left makes the next hint
_PAGE = 65536  # bytes, more than a file of sysfs has: no more than the largest page
_DIGITS = 20  # of a number; the kernel's have fewer
_RECEIVE_BUFFER = 8 << 20  # thousands of events; the default holds those of some 100 creates


class MachineUnknown(OSError):
    """The machine has no machine-id by which to know it again."""


class OpenFile:
    """A file of the kernel, open for writing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> int:
        """One write; raises OSError with the kernel's errno."""
        return os.write(self._fd, data)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class SystemCalls:
    """What is done to the kernel besides reading its files."""

    def open(self, path: Path) -> OpenFile:
        """Open an existing file for writing; never makes one and never empties one."""
        return OpenFile(os.open(path, os.O_WRONLY | os.O_CLOEXEC))

    def probe(self, path: Path) -> None:
        """Open a vfio node and let go of it at once; raises what open says."""
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


class SysfsBus:
    """The mdev bus of a host as the kernel shows it in sysfs (`agent.bus.Bus`)."""

    def __init__(
        self, root: Path = Path("/"), *, run_dir: Path, calls: SystemCalls | None = None
    ) -> None:
        """Everything is read and written below `root`; `run_dir` is emptied at boot."""
        self.root = root.resolve()
        self.run_dir = run_dir.absolute()
        self.spec = "sysfs" if self.root == Path("/") else f"sysfs:{self.root}"
        self.calls = calls or SystemCalls()
        self._bus = self.root / "sys/bus/mdev/devices"
        self._class = self.root / "sys/class/mdev_bus"
        self._memory = _ParentMemory(self.run_dir / "parents.json")

    # -- what the host is

    def boot_id(self) -> str:
        """The kernel's boot id."""
        return (self.root / "proc/sys/kernel/random/boot_id").read_text().strip()

    def identity(self) -> IdentityValue:
        """The machine-id and, where one can be read, the DMI product UUID.

        Raises:
            MachineUnknown: there is no machine-id, or it is not set yet.
            OSError: they cannot be read at this moment, which says nothing of the machine.
        """
        from coordinator.model import IdentityValue  # noqa: PLC0415 - workers start without it

        path = self.root / "etc/machine-id"
        machine_id = ""
        with suppress(FileNotFoundError):
            machine_id = _read_text(path)
        if not re.fullmatch(r"[0-9a-f]{32}", machine_id):
            raise MachineUnknown(errno.ENODATA, "the machine-id is not set", str(path))
        product_uuid = None
        try:
            text = _read_text(self.root / "sys/class/dmi/id/product_uuid").lower()
            product_uuid = text or None
        except OSError as error:  # not every machine has one, and it is root's to read
            if error.errno in _SHORT:
                raise
        return IdentityValue(machine_id=machine_id, product_uuid=product_uuid)

    def problem(self) -> str | None:
        """Why devices cannot be made here yet, or None.

        Raises:
            PermissionError: and never will be, by us.
        """
        if not self._bus.is_dir():
            return self._not_loaded()
        creates = list(self._class.glob("*/mdev_supported_types/*/create"))
        if not creates:
            return f"no parent is registered: {self._class} is empty; load the vendor's driver"
        if not any(os.access(path, os.W_OK) for path in creates):
            raise PermissionError(errno.EACCES, f"not allowed to write {creates[0]}; run as root")
        return None

    def _not_loaded(self) -> str:
        return f"the module mdev is not loaded: there is no {self._bus}; modprobe mdev"

    # -- looking

    def scan(self) -> Scan:
        """Look at all devices and parents.

        The bus is listed first and the parents' directories after it. A device that is
        there all the time is met in one of the two whatever happens to it meanwhile.

        Raises:
            ScanFailed: the bus or the class of parents could not be read, or it could not
                be remembered where the parents are.
        """
        from agent.bus import ScanFailed  # noqa: PLC0415 - workers start without it

        try:
            return self._scan()
        except ScanFailed:
            raise
        except OSError as error:
            if error.errno == errno.ENOENT and error.filename == str(self._bus):
                raise ScanFailed(errno.ENOENT, self._not_loaded()) from error
            raise ScanFailed(error.errno, f"scan: {error.strerror}", error.filename) from error

    def _scan(self) -> Scan:
        from agent.bus import Scan, ScanFailed  # noqa: PLC0415 - workers start without it

        boot_id = self.boot_id()
        met = dict(self._on_the_bus())
        found = {name: device for name, (device, _) in met.items()}
        registered = self._registered()
        homes = {device.parent: home for device, home in met.values()}
        known = self._memory.add(boot_id, homes | registered)
        blind = self._look_into(known, found)
        parents = self._types(registered, blind)
        if self.boot_id() != boot_id:  # only a simulated host can do that to us
            raise ScanFailed(errno.ESTALE, "the host was rebooted during the scan")
        return Scan(boot_id, found, parents, frozenset(blind))

    def _on_the_bus(self) -> Iterator[tuple[Name, tuple[Device, str]]]:
        """The devices that the bus lists, each with its parent's real directory."""
        for entry in _listdir(self._bus):
            if is_name(entry):
                met = self._met_on_the_bus(entry)
                if met is not None:
                    yield met[0].name, met

    def _met_on_the_bus(self, name: Name) -> tuple[Device, str] | None:
        """A device of the bus; None when it vanished, which is no error."""
        from agent.bus import Device, Presence  # noqa: PLC0415 - workers start without it

        real = self._real(name)
        if real is None:
            return None
        type_ = _type_of(real)
        if type_ is None and not os.path.lexists(real):
            return None
        # Without its type it is coming or going: the link is made last and goes first.
        presence = Presence.UNKNOWN if type_ is None else Presence.PRESENT
        home = real.rpartition("/")[0]
        return Device(name, presence, home.rpartition("/")[2], type_), home

    def _real(self, name: str) -> str | None:
        """The device's real directory, by its link on the bus."""
        try:
            return os.path.normpath(f"{self._bus}/{_readlink(f'{self._bus}/{name}')}")
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def _registered(self) -> dict[str, str]:
        """The registered parents and their real directories."""
        directories = {}
        for parent in _listdir(self._class):
            with suppress(FileNotFoundError):  # unregistered meanwhile
                target = _readlink(f"{self._class}/{parent}")
                directories[parent] = os.path.normpath(f"{self._class}/{target}")
        return directories

    def _look_into(self, known: Mapping[str, str], found: dict[Name, Device]) -> set[str]:
        """Add the devices that only their parent's directory still shows.

        Gives the parents that could not be looked into.
        """
        blind = set()
        for parent, directory in known.items():
            try:
                entries = _listdir(directory)
            except OSError as error:
                # A directory that is gone has no device in it: the kernel removes it last.
                if error.errno not in _GONE:
                    blind.add(parent)
                continue
            for entry in entries:
                if is_name(entry) and entry not in found:
                    device = self._off_the_bus(entry, parent, directory)
                    if device is not None:
                        found[entry] = device
        return blind

    def _off_the_bus(self, name: Name, parent: str, directory: str) -> Device | None:
        from agent.bus import Device, Presence  # noqa: PLC0415 - workers start without it

        met = self._met_on_the_bus(name)  # it may have come since the bus was listed
        if met is not None:
            return met[0]
        if not os.path.lexists(f"{directory}/{name}"):
            return None
        return Device(name, Presence.GOING, parent, None)

    def _types(
        self, directories: Mapping[str, str], blind: set[str]
    ) -> Mapping[str, frozenset[str]]:
        parents = {}
        for parent, directory in directories.items():
            try:
                parents[parent] = frozenset(_listdir(f"{directory}/mdev_supported_types"))
            except OSError as error:
                # Its types go after its link, so without them it is being unregistered.
                if error.errno not in _GONE:
                    blind.add(parent)
                    parents[parent] = frozenset()
        return parents

    def parents(self) -> Mapping[str, tuple[ParentType, ...]]:
        """Each registered parent's types, with what is available now (a hint)."""
        result = {}
        for parent in self.registered():
            with suppress(FileNotFoundError):
                result[parent] = tuple(self.offer(parent)[0])
        return result

    def registered(self) -> list[str]:
        """The registered parents, in order."""
        return sorted(self._registered())

    def offer(self, parent: str) -> tuple[list[ParentType], list[str]]:
        """A parent's types, and what is wrong with what its driver says of them."""
        directory = f"{self._class}/{_component(parent)}"
        types = f"{directory}/mdev_supported_types"
        troubles: list[str] = []
        read = [_read_type(types, name, troubles) for name in sorted(_listdir(types))]
        if os.path.lexists(f"{directory}/{_NIL}"):
            text = "a device with the nil UUID, which is no name, takes an instance: remove it"
            troubles.append(f"{text} with echo 1 > {self._bus}/{_NIL}/remove")
        return [type_ for type_ in read if type_ is not None], troubles

    def busy(self, name: str) -> str | None:
        """Why a remove would or might sleep; None: nothing has the device open.

        A hint, not a proof: somebody may open it right after. For a moment the probe itself
        has the group open, and a VM that opens it just then is told EBUSY. A device that may
        not be probed counts as in use (`agent.opened`).
        """
        from agent.opened import why_busy  # noqa: PLC0415 - workers start without it

        return why_busy(self.root, self._bus / name, self.calls.probe)

    # -- writing, which workers do

    def create(self, parent: str, type_: str, name: str) -> None:
        """Have the driver make the device; returns when it is made."""
        types = self._class / _component(parent) / "mdev_supported_types"
        self._write(types / _component(type_) / "create", name.encode())

    def remove(self, name: str, type_: str) -> None:
        """Remove a device that was seen as `type_`; returns when it is gone.

        Raises:
            OSError: ENOENT, it is not there; EAGAIN, it has no type and so is no device (yet,
                or any more); ESTALE, it is of another type. In these three nothing was
                written. Any other errno is the kernel's.
        """
        device = self._bus / _component(name)
        found = _type_of(str(device))
        if found is None:
            here = os.path.lexists(device)
            number = errno.EAGAIN if here else errno.ENOENT
            raise OSError(number, "it has no type" if here else os.strerror(number), str(device))
        if found != type_:
            raise OSError(errno.ESTALE, f"it is of type {found}, not {type_}", str(device))
        self._write(device / "remove", b"1")

    def write_attribute(self, name: str, attribute: str, value: str) -> None:
        """Write a vendor attribute; `attribute` is a path below the device's directory.

        Raises:
            OSError: EPERM, it is `remove`, or leads out of the device (`mdev_type/create`
                would make a device past the namespace). Any other errno is the kernel's.
        """
        device = (self._bus / _component(name)).resolve()
        path = device / attribute
        inside = path.parent.resolve().is_relative_to(device) and not path.is_symlink()
        if not inside or path == device or path.resolve() == device / "remove":
            raise OSError(errno.EPERM, "not an attribute of the device", str(path))
        self._write(self._bus / name / attribute, value.encode())

    def _write(self, path: Path, data: bytes) -> None:
        with self.calls.open(path) as file:
            file.write(data)

    # -- hints

    def watch(self) -> Watcher | None:
        """The kernel's own events, or None where they cannot be had."""
        if self.root != Path("/"):
            return None  # the machine's events are not this root's
        try:
            import pyudev  # noqa: PLC0415 - workers start without it

            # Not udev's: the kernel's come where no udevd runs, and only names are taken.
            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            monitor.start()
        except (ImportError, OSError):
            return None
        with suppress(OSError):  # CAP_NET_ADMIN; without it events are lost sooner
            monitor.set_receive_buffer_size(_RECEIVE_BUFFER)
        return UdevWatcher(monitor)


class UdevWatcher:
    """Hints from a udev monitor: the mdev subsystem's events, and parents that come and go."""

    def __init__(self, monitor: _UdevMonitor) -> None:
        self._monitor: _UdevMonitor | None = monitor

    def fileno(self) -> int:
        """Readable when there is a hint."""
        assert self._monitor is not None
        return self._monitor.fileno()

    def drain(self) -> frozenset[Name]:
        """The names among the hints that wait.

        Empty when events were lost (the socket's buffer ran over): something changed, and
        nobody can say what. A parent that came or went names nobody either.
        """
        names: set[Name] = set()
        lost = False
        for _ in range(_EVENTS_AT_ONCE):
            if self._monitor is None or not _is_readable(self._monitor.fileno()):
                break
            try:
                event = self._monitor.poll(0)
            except OSError:  # ENOBUFS: the kernel dropped some
                lost = True
                continue
            if event is None:
                continue
            lost = lost or "MDEV_STATE" in event.properties
            if event.subsystem == "mdev" and is_name(event.sys_name):
                names.add(event.sys_name)
        return frozenset() if lost else frozenset(names)

    def close(self) -> None:
        """Let go of it."""
        self._monitor = None  # libudev's monitor closes with its last reference


def _is_readable(fd: int) -> bool:
    """Whether something waits there. Not by select, which takes no descriptor over 1,023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class _ParentMemory:
    """Where each parent's real directory is, for the length of a boot.

    When a driver is unbound the parent's link in the class goes first, and its devices that
    are in use stay in its directory. An agent that starts then has only this to find them by.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot_id: str | None = None
        self._known: dict[str, str] = {}

    def add(self, boot_id: str, seen: dict[str, str]) -> Mapping[str, str]:
        """Remember what was seen; gives all that is known of this boot."""
        if self._boot_id != boot_id:
            self._boot_id, self._known = boot_id, self._read(boot_id)
        known = self._known | seen
        if known != self._known:
            self._save(boot_id, known)
            self._known = known
        return known

    def _read(self, boot_id: str) -> dict[str, str]:
        try:
            stored = json.loads(self._path.read_text())
            same_boot = stored["boot_id"] == boot_id
            return {p: str(d) for p, d in stored["parents"].items()} if same_boot else {}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # To go on without it could miss a device: absent must be seen, never guessed.
            raise OSError(
                errno.EIO, "damaged; remove it after a reboot", str(self._path)
            ) from error

    def _save(self, boot_id: str, known: Mapping[str, str]) -> None:
        text = json.dumps({"boot_id": boot_id, "parents": known})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Two threads may scan at once: each writes a file of its own.
        temporary = self._path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


# A scan makes hundreds of these calls, and a Path costs more than each of them.


def _listdir(directory: str | Path) -> list[str]:
    return os.listdir(directory)  # noqa: PTH208 - see above


def is_name(text: str) -> TypeGuard[Name]:
    """Whether the kernel's entry is a name: its lower-case UUID, and not nil."""
    return _UUID.fullmatch(text) is not None and text != _NIL


def _component(text: str) -> str:
    """One part of a path, from outside; what cannot be one is not there."""
    if not text or "/" in text or "\0" in text or text in (".", ".."):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text)
    return text


def _type_of(device: str) -> str | None:
    try:
        return _readlink(f"{device}/mdev_type").rpartition("/")[2]
    except OSError:
        return None


def _readlink(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115 - see above


def _read_type(types: str, name: str, troubles: list[str]) -> ParentType | None:
    """A type as its parent offers it; None when it went meanwhile. A count that is none is 0."""
    from coordinator.model import ParentType  # noqa: PLC0415 - workers start without it

    directory = f"{types}/{name}"
    available = 0
    try:
        count = _read_text(f"{directory}/available_instances")
    except OSError as error:
        if error.errno in _GONE:
            return None
        troubles.append(f"{name}: available_instances cannot be read: {error.strerror}")
    else:
        if count.isascii() and count.isdecimal() and len(count) < _DIGITS:
            available = int(count)
        else:
            troubles.append(f"{name}: available_instances is no number: {count[:20]!r}")
    return ParentType(
        type=name,
        available=available,
        device_api=_read(f"{directory}/device_api"),
        name=_read(f"{directory}/name"),
        description=_read(f"{directory}/description"),
    )


def _read(path: str | Path) -> str | None:
    """What a file says, or None where it does not."""
    try:
        return _read_text(path)
    except OSError:
        return None


def _read_text(path: str | Path) -> str:
    """What a file says; a driver's words may be in whatever bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PAGE).decode(errors="replace").strip()
    finally:
        os.close(fd)
