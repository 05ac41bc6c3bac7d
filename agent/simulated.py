"""A simulated host: a directory that looks like `/sys`, with the simulated kernel behind it.

`SimulatedBus` is the sysfs bus on that directory: the same code scans it and writes to it,
only the system calls are another's. The functions are what an operator, a VM and a machine
do to such a host; the `sim` commands are made of them, and tests. They raise the errors of
`coordinator.errors`, but `create` and `remove`, which are plain writes and raise OSError.

What is not simulated: an unplug returns at once where a real one sleeps until the last device
in use is let go, and the parent's directory stays, as when only its driver is unbound.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from agent.simulated_kernel import SimulatedKernel
from agent.simulated_memory import ACTIVE, COMING, GOING, Memory
from agent.sysfs import SysfsBus, is_name

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent.bus import Scan
    from agent.simulated_memory import ParentRecord, State
    from coordinator.errors import NotFound
    from coordinator.model import Name, ParentType

__all__ = [
    "SimulatedBus",
    "create",
    "fail_attribute",
    "fail_creates",
    "hold",
    "init",
    "let_go",
    "plug",
    "reboot",
    "refuse_probe",
    "remove",
    "tune",
    "unplug",
]

_TYPES = {"mtty-1": 24, "mtty-2": 12}  # as the kernel's sample driver has them, from one pool
_ATTRIBUTES = {"vgpu_params": True, "vendor/serial": False}
_BUSES = 192  # parents per PCI domain, from bus 3b on
_PIPE = 65536


class SimulatedBus(SysfsBus):
    """The bus of a simulated host (`agent.bus.Bus`)."""

    def __init__(
        self,
        directory: Path,
        *,
        run_dir: Path | None = None,
        kernel: SimulatedKernel | None = None,
        for_worker: bool = False,
    ) -> None:
        """`run_dir` is DIR/run: a host's own, emptied by its reboot."""
        root = directory.resolve()
        self.kernel = kernel or SimulatedKernel(root, unkillable=for_worker)
        super().__init__(root, run_dir=run_dir or root / "run", calls=self.kernel)
        self.spec = f"sim:{root}"

    def scan(self) -> Scan:
        """Look at all devices and parents, after what time has brought."""
        self._settle()
        return super().scan()

    def parents(self) -> Mapping[str, tuple[ParentType, ...]]:
        """Each registered parent's types, with what is available now."""
        self._settle()
        return super().parents()

    def registered(self) -> list[str]:
        """The registered parents, after what time has brought."""
        self._settle()
        return super().registered()

    def _settle(self) -> None:
        with suppress(FileNotFoundError):  # the scan says what is missing
            self.kernel.settle()

    def watch(self) -> PipeWatcher:
        """The names that change, from the simulated kernel's pipe."""
        return PipeWatcher(self.root / "kernel/events")


class PipeWatcher:
    """Hints from the simulated kernel (`agent.bus.Watcher`)."""

    def __init__(self, path: Path) -> None:
        # Also for writing: then there is a writer always, and never an end of the file.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Readable when there is a hint."""
        return self._fd

    def drain(self) -> frozenset[Name]:
        """The names among the hints that wait.

        Empty when a parent came or went, and when some were lost: with a writer that was
        killed, or as the pipe was full.
        """
        try:
            data = os.read(self._fd, _PIPE)
        except BlockingIOError:
            return frozenset()
        events = [line.partition(" ") for line in data.decode().splitlines()]
        unnamed = any(what in ("registered", "unregistered", "lost") for what, _, _ in events)
        if unnamed or len(data) > _PIPE - os.pathconf("/", "PC_PIPE_BUF"):
            return frozenset()
        return frozenset(name for _, _, name in events if is_name(name))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def init(  # noqa: PLR0913 - each is one property of the host
    directory: Path,
    parents: int = 2,
    types: Mapping[str, int] | None = None,
    latency: float = 0.0,
    *,
    window: float | None = None,
    linger: float = 0.0,
    serial: bool = False,
    core_counts: bool = False,
    attributes: Mapping[str, bool] | None = None,
    seed: str | None = None,
) -> None:
    """Make a simulated host.

    Args:
        directory: is made; must not hold a host already.
        parents: how many there are, named like PCI addresses.
        types: each type's capacity on an empty parent. All share the parent's one pool.
        latency: seconds that the driver takes for a create.
        window: for how many seconds before its create returns a device is in sysfs; a
            quarter of the latency unless told. Its type can be read in the later half.
        linger: for how many seconds a removed name is still EEXIST and counted.
        serial: whether a parent's driver makes one device at a time.
        core_counts: an exhausted parent says EUSERS (the core counts) and not ENOSPC.
        attributes: each device's attributes, and whether they can be written.
        seed: what the host's ids are made from; random unless told.

    Raises:
        InvalidValue: a number that cannot be.
        ExistsOnHost: the directory holds a host already.
    """
    from coordinator.errors import ExistsOnHost, InvalidValue  # noqa: PLC0415 - not for workers

    types = dict(types or _TYPES)
    bad = [str(n) for n in (parents, *types.values()) if n < 1]
    bad += [str(n) for n in (latency, window or 0.0, linger) if n < 0]
    if bad:
        raise InvalidValue(bad[0], "a simulated host cannot have that", "use a positive number")
    root = directory.absolute()
    if (root / "kernel").exists():
        raise ExistsOnHost(str(root), "holds a simulated host already", "choose another directory")
    names = [f"{n // _BUSES:04x}:{0x3B + n % _BUSES:02x}:00.0" for n in range(parents)]
    state: State = {
        "seed": seed or os.urandom(16).hex(),
        "boots": 0,
        "boot_id": "",
        "tokens": parents,
        "linger": linger,
        "attributes": dict(_ATTRIBUTES if attributes is None else attributes),
        "failing": {},
        "parents": {
            name: {
                "path": f"sys/devices/pci{name[:7]}/{name}",
                "registered": True,
                "token": token,
                "types": types,
                "latency": latency,
                "window": window,
                "serial": serial,
                "core_counts": core_counts,
                "busy_until": 0.0,
                "failures": [],
            }
            for token, name in enumerate(names)
        },
        "devices": {},
    }
    _lay_out(root, state)


def _lay_out(root: Path, state: State) -> None:
    for place in ("kernel", "run", "etc", "sys/class/dmi/id"):
        (root / place).mkdir(parents=True, exist_ok=True)
    _start_boot(state)
    machine = _uuid(state["seed"], "machine").replace("-", "")
    (root / "etc/machine-id").write_text(f"{machine}\n")
    (root / "sys/class/dmi/id/product_uuid").write_text(f"{_uuid(state['seed'], 'product')}\n")
    (root / "kernel/nudge").touch()
    os.mkfifo(root / "kernel/events", 0o600)
    SimulatedKernel(root).begin(state)


def _start_boot(state: State) -> None:
    state["boots"] += 1
    state["boot_id"] = _uuid(state["seed"], f"boot {state['boots']}")


def _uuid(seed: str, what: str) -> str:
    from hashlib import sha256  # noqa: PLC0415 - workers start without it
    from uuid import UUID  # noqa: PLC0415 - workers start without it

    return str(UUID(bytes=sha256(f"{seed}/{what}".encode()).digest()[:16], version=4))


def _kernel(directory: Path) -> SimulatedKernel:
    from coordinator.errors import NotFound  # noqa: PLC0415 - workers start without it

    root = directory.resolve()
    kernel = SimulatedKernel(root)
    if not kernel.is_there:
        raise NotFound(str(root), "holds no simulated host", "make one: mdevns sim init DIR")
    return kernel


def reboot(directory: Path) -> None:
    """A power loss and a boot: a new boot id, no device, an empty run directory.

    Parents that were unplugged stay so: like virtual functions that come late, they are
    plugged when the test says so. Writes that are under way end with EIO in their processes,
    and those of workers that were ordered before never reach the new boot.

    Raises:
        InUse: an agent runs on it. A power loss takes it along; so kill it first.
    """
    from agent.locks import AgentLock, Generation  # noqa: PLC0415 - not for workers

    kernel = _kernel(directory)
    run = kernel.root / "run"
    with AgentLock(run):
        with kernel.memory() as memory:
            memory.devices.clear()
            for parent in memory.parents.values():
                parent["busy_until"] = 0.0
            _start_boot(memory.state)
            kernel.tree.show_boot(memory.state)
        Generation(run).renew()  # nothing that was ordered begins any more
        _empty(run)
    kernel.nudge()


def _empty(directory: Path) -> None:
    from shutil import rmtree  # noqa: PLC0415 - workers start without it

    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            rmtree(path)
        else:
            path.unlink(missing_ok=True)


def hold(directory: Path, name: str, *, group_only: bool = False) -> None:
    """A VM opens the device: removing it blocks until it is let go.

    With `group_only` it has opened no more than the device's group: that is busy, but a remove
    does not wait for it.

    Raises:
        NotFound: there is no such device.
        TryAgain: it is a placeholder.
    """
    from coordinator.errors import TryAgain  # noqa: PLC0415 - workers start without it

    with _kernel(directory).memory() as memory:
        device = memory.devices.get(name.lower())
        if device is not None and device["phase"] == ACTIVE:
            device["held"], device["group_open"] = not group_only, True
        elif device is not None:
            raise TryAgain(name, f"is {device['phase']}", "hold it when it is made", name=name)
        else:
            raise _no_device(name)


def let_go(directory: Path, name: str) -> None:
    """The VM closes the device; a remove that waits for it returns.

    A create that is under way returns now, too: its driver is done, however long its latency.

    Raises:
        NotFound: there is no such device, not even one on its way.
    """
    kernel = _kernel(directory)
    with kernel.memory() as memory:
        device = memory.devices.get(name.lower())
        if device is None:
            raise _no_device(name)
        device["held"] = device["group_open"] = False
        if device["phase"] == COMING:
            device["ready"] = device["typed"] = device["shown"] = memory.now
        if device["phase"] == GOING:
            memory.leave(name.lower())
    kernel.nudge()


def _no_device(name: str) -> NotFound:
    from coordinator.errors import NotFound  # noqa: PLC0415 - workers start without it

    return NotFound(name, "no such device on the simulated host", name=name)


def create(directory: Path, parent: str, type_: str, name: str) -> None:
    """A device made by hand, past every agent. Raises OSError with the kernel's errno."""
    SimulatedBus(directory, kernel=_kernel(directory)).create(parent, type_, name)


def remove(directory: Path, name: str) -> None:
    """A device removed by hand, past every agent. Raises OSError with the kernel's errno."""
    kernel = _kernel(directory)
    with kernel.open(kernel.root / "sys/bus/mdev/devices" / name / "remove") as file:
        file.write(b"1")


def unplug(directory: Path, parent: str) -> None:
    """The parent's driver is unbound. Waits for creates that are under way.

    Meanwhile the parent is there, and no other create of it succeeds. Then its devices go; those
    that are in use are left going until they are let go.

    Raises:
        NotFound: no such parent is registered.
    """
    kernel = _kernel(directory)
    with kernel.memory() as memory:
        _parent(memory, parent)["leaving"] = True
        mine = {n: d for n, d in memory.devices.items() if d["parent"] == parent}
    for name, device in mine.items():
        kernel.wait_while(name, device["token"], COMING, memory.state["boot_id"])


def plug(directory: Path, parent: str) -> None:
    """The parent's driver is bound again.

    Raises:
        NotFound: there is no such parent.
        InUse: it is still being unbound.
    """
    from coordinator.errors import InUse  # noqa: PLC0415 - workers start without it

    kernel = _kernel(directory)
    with kernel.memory() as memory:
        record = _parent(memory, parent, registered=False)
        if record.get("leaving"):
            raise InUse(parent, "is still being unbound", "wait for its creates")
        is_new = not record["registered"]
        if is_new:
            record["registered"], record["token"] = True, memory.token()
            record["busy_until"] = 0.0
            kernel.show_parent(memory, parent)
    if is_new:
        kernel.tell([f"registered {parent}"])


def tune(
    directory: Path,
    parent: str,
    *,
    types: Mapping[str, int] | None = None,
    latency: float | None = None,
    window: float | None = None,
    serial: bool | None = None,
    core_counts: bool | None = None,
) -> None:
    """Make one parent another than `init` made it; what is not told stays.

    Raises:
        NotFound: there is no such parent.
        InUse: its types cannot change while it has a device.
    """
    from coordinator.errors import InUse  # noqa: PLC0415 - workers start without it

    kernel = _kernel(directory)
    with kernel.memory() as memory:
        record = _parent(memory, parent, registered=False)
        if types is not None:
            if any(device["parent"] == parent for device in memory.devices.values()):
                raise InUse(parent, "has devices, so its types stay")
            kernel.tree.hide_parent(parent, record)
            record["types"] = dict(types)
        record["latency"] = record["latency"] if latency is None else latency
        record["window"] = record["window"] if window is None else window
        record["serial"] = record["serial"] if serial is None else serial
        record["core_counts"] = record["core_counts"] if core_counts is None else core_counts
        kernel.show_parent(memory, parent)


def fail_creates(directory: Path, parent: str, errno_name: str, count: int = 1) -> None:
    """The parent's driver fails the next creates, each after its latency, with that errno.

    Raises:
        NotFound: there is no such parent.
        InvalidValue: there is no such errno.
    """
    number = _number(errno_name)
    with _kernel(directory).memory() as memory:
        _parent(memory, parent, registered=False)["failures"] += [number] * count


def fail_attribute(directory: Path, attribute: str, errno_name: str | None = "EINVAL") -> None:
    """Writes of the attribute fail with that errno, on all devices; None: no longer.

    Raises:
        InvalidValue: there is no such errno.
    """
    number = 0 if errno_name is None else _number(errno_name)
    with _kernel(directory).memory() as memory:
        memory.state["failing"][attribute] = number


def refuse_probe(directory: Path, errno_name: str | None) -> None:
    """Every open of a vfio node fails with that errno, as under device rules; None: no longer.

    Raises:
        InvalidValue: there is no such errno.
    """
    number = 0 if errno_name is None else _number(errno_name)
    with _kernel(directory).memory() as memory:
        memory.state["probe"] = number


def _number(errno_name: str) -> int:
    from coordinator.errors import InvalidValue  # noqa: PLC0415 - workers start without it

    number = getattr(errno, errno_name, None)
    if not isinstance(number, int):
        raise InvalidValue(errno_name, "there is no such errno")
    return number


def _parent(memory: Memory, parent: str, *, registered: bool = True) -> ParentRecord:
    from coordinator.errors import NotFound  # noqa: PLC0415 - workers start without it

    record = memory.parents.get(parent)
    if record is None or (registered and not record["registered"]):
        raise NotFound(parent, "no such parent on the simulated host")
    return record
