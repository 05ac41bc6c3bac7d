"""The sysfs bus: what a scan makes of a tree, and what it writes to a kernel."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.bus import Device, Presence, ScanFailed
from agent.buses import open_bus
from agent.simulated import SimulatedBus
from agent.sysfs import MachineUnknown, SysfsBus, SystemCalls, UdevWatcher
from coordinator.model import IdentityValue, Name, ParentType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

P0, P1 = "0000:3b:00.0", "0000:3c:00.0"
N1 = Name("aaaaaaaa-0000-4000-8000-000000000001")
N2 = Name("aaaaaaaa-0000-4000-8000-000000000002")
NIL = "00000000-0000-0000-0000-000000000000"


class TreeBuilder:
    """A directory like `/sys`, made by hand: what a kernel might show, sane or not."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bus = root / "sys/bus/mdev/devices"
        self.classes = root / "sys/class/mdev_bus"
        for directory in (self.bus, self.classes):
            directory.mkdir(parents=True)
        self.set_boot("boot-1")

    def set_boot(self, boot_id: str) -> None:
        """Another boot id."""
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{boot_id}\n")

    def parent(self, name: str, *types: str) -> Path:
        """A registered parent; gives its real directory."""
        home = self.root / "sys/devices/pci0000:00" / name
        for type_ in types:
            directory = home / "mdev_supported_types" / type_
            directory.mkdir(parents=True)
            (directory / "available_instances").write_text("24\n")
            (directory / "device_api").write_text("vfio-pci\n")
        home.mkdir(parents=True, exist_ok=True)
        (self.classes / name).symlink_to(f"../../devices/pci0000:00/{name}")
        return home

    def device(self, name: str, home: Path, type_: str | None) -> Path:
        """A device on the bus."""
        directory = home / name
        directory.mkdir()
        if type_ is not None:
            (directory / "mdev_type").symlink_to(f"../mdev_supported_types/{type_}")
        (self.bus / name).symlink_to(f"../../../devices/pci0000:00/{home.name}/{name}")
        return directory


@pytest.fixture
def tree(tmp_path: Path) -> TreeBuilder:
    return TreeBuilder(tmp_path / "root")


@pytest.fixture
def bus(tree: TreeBuilder, tmp_path: Path) -> SysfsBus:
    return SysfsBus(tree.root, run_dir=tmp_path / "run")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "host"
    simulated.init(directory, 2, {"mtty-1": 24, "mtty-2": 12})
    yield directory
    simulated.reboot(directory)


def errno_of(call: Callable[[], object]) -> str | None:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def test_a_scan_tells_devices_with_parent_and_type(tree: TreeBuilder, bus: SysfsBus) -> None:
    """Devices of the bus come with parent and type, parents with their types."""
    tree.device(N1, tree.parent(P0, "mtty-1", "mtty-2"), "mtty-2")
    tree.parent(P1)
    scan = bus.scan()
    assert scan.boot_id == "boot-1"
    assert scan.devices == {N1: Device(N1, Presence.PRESENT, P0, "mtty-2")}
    assert scan.parents == {P0: frozenset({"mtty-1", "mtty-2"})}
    assert scan.presence(N2) is Presence.ABSENT
    assert not scan.blind


def test_a_hidden_device_is_going(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A device that only its parent's directory still has is going, not absent."""
    home = tree.parent(P0, "mtty-1")
    (home / N1).mkdir()
    (home / "power").mkdir()
    assert bus.scan().devices == {N1: Device(N1, Presence.GOING, P0, None)}


def test_a_device_without_its_type_is_unknown(tree: TreeBuilder, bus: SysfsBus) -> None:
    """On the bus and without a type it is coming or going, and nothing is decided by it."""
    tree.device(N1, tree.parent(P0, "mtty-1"), None)
    assert bus.scan().devices == {N1: Device(N1, Presence.UNKNOWN, P0, None)}


def test_a_device_that_vanishes_meanwhile_is_no_error(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A link that leads nowhere any more is a device that went during the scan."""
    tree.parent(P0, "mtty-1")
    (tree.bus / N1).symlink_to(f"../../../devices/pci0000:00/{P0}/{N1}")
    assert bus.scan().presence(N1) is Presence.ABSENT


def test_the_nil_device_is_no_name(tree: TreeBuilder, bus: SysfsBus) -> None:
    """The kernel takes nil; it can be no name of ours, so a scan does not tell it."""
    tree.device(NIL, tree.parent(P0, "mtty-1"), "mtty-1")
    assert not bus.scan().devices


def test_a_parent_is_remembered_within_a_boot(
    tree: TreeBuilder, bus: SysfsBus, tmp_path: Path
) -> None:
    """Its class link gone, another agent of the same boot still finds what is in it."""
    home = tree.parent(P0, "mtty-1")
    bus.scan()
    (home / N1).mkdir()
    (tree.classes / P0).unlink()
    again = SysfsBus(tree.root, run_dir=tmp_path / "run")
    scan = again.scan()
    assert scan.presence(N1) is Presence.GOING
    assert not scan.parents
    tree.set_boot("boot-2")
    assert again.scan().presence(N1) is Presence.ABSENT
    stored = json.loads((tmp_path / "run/parents.json").read_text())
    assert stored == {"boot_id": "boot-1", "parents": {P0: str(home)}}


def test_the_parent_of_a_device_is_remembered_too(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A parent that was never registered while we looked is known by its device."""
    directory = tree.device(N1, tree.parent(P0, "mtty-1"), "mtty-1")
    (tree.classes / P0).unlink()
    bus.scan()
    (tree.bus / N1).unlink()
    (directory / "mdev_type").unlink()
    assert bus.scan().presence(N1) is Presence.GOING


@pytest.mark.parametrize("damaged", ["{", '{"a":' * 100_000], ids=["cut", "deep"])
def test_a_memory_that_is_damaged_is_not_guessed_at(
    tree: TreeBuilder, bus: SysfsBus, tmp_path: Path, damaged: str
) -> None:
    """When it cannot be read where the parents are, the scan fails, and nothing is absent."""
    tree.parent(P0, "mtty-1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/parents.json").write_text(damaged)
    with pytest.raises(ScanFailed, match="damaged"):
        bus.scan()


def test_an_unreadable_parent_makes_blind(tree: TreeBuilder, bus: SysfsBus) -> None:
    """While a parent's directory cannot be read no name is absent."""
    home = tree.parent(P0)
    tree.device(N2, tree.parent(P1, "mtty-1"), "mtty-1")
    home.rmdir()
    home.symlink_to(home.name)  # ELOOP, which root meets as well
    scan = bus.scan()
    assert scan.blind == {P0}
    assert scan.presence(N1) is Presence.UNKNOWN
    assert scan.presence(N2) is Presence.PRESENT


def test_an_unbound_parent_that_cannot_be_read_makes_blind(
    tree: TreeBuilder, bus: SysfsBus
) -> None:
    """Its link in the class is gone, and what is still in its directory cannot be seen."""
    home = tree.parent(P0)
    bus.scan()
    (tree.classes / P0).unlink()
    home.rmdir()
    home.symlink_to(home.name)  # ELOOP, which root meets as well
    scan = bus.scan()
    assert scan.blind == {P0}
    assert scan.presence(N1) is Presence.UNKNOWN


def test_a_parent_that_is_gone_makes_not_blind(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A remembered parent whose directory is gone has no device in it."""
    home = tree.parent(P0)
    bus.scan()
    (tree.classes / P0).unlink()
    home.rmdir()
    scan = bus.scan()
    assert not scan.blind
    assert scan.presence(N1) is Presence.ABSENT


def test_without_the_module_a_scan_fails(tree: TreeBuilder, bus: SysfsBus) -> None:
    """No bus is no evidence of absence; the error says which module is missing."""
    tree.bus.rmdir()
    with pytest.raises(ScanFailed, match="the module mdev is not loaded"):
        bus.scan()
    assert "modprobe mdev" in (bus.problem() or "")


def test_an_unreadable_bus_fails_the_scan(tree: TreeBuilder, bus: SysfsBus) -> None:
    """What cannot be listed is an error of the whole scan."""
    tree.bus.rmdir()
    tree.bus.symlink_to("devices")
    with pytest.raises(ScanFailed):
        bus.scan()


def test_problem_says_why_not(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A host without a parent cannot make devices; one with a parent can."""
    assert "no parent is registered" in (bus.problem() or "")
    home = tree.parent(P0, "mtty-1")
    (home / "mdev_supported_types/mtty-1/create").touch()
    assert bus.problem() is None


def test_parents_tell_what_they_offer(tree: TreeBuilder, bus: SysfsBus) -> None:
    """Types come with what is available; what some drivers lack is None."""
    home = tree.parent(P0, "mtty-1", "nvidia-63")
    (home / "mdev_supported_types/nvidia-63/name").write_text("GRID P4-1Q\n")
    (home / "mdev_supported_types/nvidia-63/description").write_text("num_heads=4\n")
    assert bus.parents() == {
        P0: (
            ParentType(type="mtty-1", available=24, device_api="vfio-pci"),
            ParentType(
                type="nvidia-63",
                available=24,
                device_api="vfio-pci",
                name="GRID P4-1Q",
                description="num_heads=4",
            ),
        )
    }


def test_the_machine_is_identified(tree: TreeBuilder, bus: SysfsBus) -> None:
    """The machine-id must be there, the product UUID may."""
    with pytest.raises(MachineUnknown):
        bus.identity()
    path = tree.root / "etc/machine-id"
    path.parent.mkdir()
    path.write_text("uninitialized\n")
    assert errno_of(bus.identity) == "ENODATA"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    assert bus.identity() == IdentityValue(machine_id="0123456789abcdef0123456789abcdef")
    dmi = tree.root / "sys/class/dmi/id/product_uuid"
    dmi.parent.mkdir(parents=True)
    dmi.write_text("4C4C4544-0042\n")
    assert bus.identity().product_uuid == "4c4c4544-0042"


def test_no_descriptor_left_is_no_word_on_the_machine(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A machine-id that cannot be opened for want of room is not taken to be absent."""
    for path, text in (("etc/machine-id", "0" * 32), ("sys/class/dmi/id/product_uuid", "p")):
        (tree.root / path).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / path).write_text(text)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fd = os.open("/", os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd, limits[1]))
        assert errno_of(bus.identity) == "EMFILE"
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 1, limits[1]))
        os.close(fd)
        fd = -1
        assert bus.identity() == IdentityValue(machine_id="0" * 32, product_uuid="p")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if fd >= 0:
            os.close(fd)


def test_the_type_is_read_again_before_a_remove(host: Path) -> None:
    """Another type, no type, no device: three errors, and nothing was written in any."""
    bus = SimulatedBus(host)
    assert errno_of(lambda: bus.remove(N1, "mtty-1")) == "ENOENT"
    bus.create(P0, "mtty-1", N1)
    assert errno_of(lambda: bus.remove(N1, "mtty-2")) == "ESTALE"
    assert bus.scan().presence(N1) is Presence.PRESENT
    bus.remove(N1, "mtty-1")
    assert bus.scan().presence(N1) is Presence.ABSENT


def test_what_has_no_type_is_not_removed(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A remove of what is no device yet is EAGAIN from us, and never reaches the kernel."""
    directory = tree.device(N1, tree.parent(P0, "mtty-1"), None)
    (directory / "remove").touch()
    assert errno_of(lambda: bus.remove(N1, "mtty-1")) == "EAGAIN"
    assert (directory / "remove").read_bytes() == b""


def test_what_is_written_is_written_once(tree: TreeBuilder, bus: SysfsBus) -> None:
    """Create, remove and attributes are one write each, into files that exist already."""
    home = tree.parent(P0, "mtty-1")
    create = home / "mdev_supported_types/mtty-1/create"
    assert errno_of(lambda: bus.create(P0, "mtty-1", N1)) == "ENOENT"
    assert not create.exists()
    create.touch()
    bus.create(P0, "mtty-1", N1)
    assert create.read_text() == N1
    directory = tree.device(N1, home, "mtty-1")
    for file in ("remove", "vgpu_params"):
        (directory / file).touch()
    bus.remove(N1, "mtty-1")
    assert (directory / "remove").read_bytes() == b"1"
    bus.write_attribute(N1, "vgpu_params", "frl=60")
    assert (directory / "vgpu_params").read_text() == "frl=60"


@pytest.mark.parametrize(
    "attribute",
    ["remove", "./remove", "mdev_type/create", "../x", "/etc/x", "vendor/../remove", "link", ""],
)
def test_an_attribute_does_not_lead_out_of_the_device(
    tree: TreeBuilder, bus: SysfsBus, attribute: str
) -> None:
    """An attribute is no way to remove the device, nor to make another past the namespace."""
    home = tree.parent(P0, "mtty-1")
    directory = tree.device(N1, home, "mtty-1")
    (directory / "vendor").mkdir()
    (directory / "link").symlink_to("remove")
    for path in (directory / "remove", home / "mdev_supported_types/mtty-1/create", home / "x"):
        path.touch()
    assert errno_of(lambda: bus.write_attribute(N1, attribute, "1")) == "EPERM"


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "a\0b"])
def test_a_part_of_a_path_is_one_part(bus: SysfsBus, part: str) -> None:
    """What cannot be the name of a parent, type or device is not there."""
    assert errno_of(lambda: bus.create(part, "mtty-1", N1)) == "ENOENT"
    assert errno_of(lambda: bus.create(P0, part, N1)) == "ENOENT"
    assert errno_of(lambda: bus.remove(part, "mtty-1")) == "ENOENT"


def test_a_held_device_is_busy(host: Path) -> None:
    """While something has the group open, a remove would sleep."""
    bus = SimulatedBus(host)
    bus.create(P0, "mtty-1", N1)
    assert not bus.busy(N1)
    simulated.hold(host, N1)
    assert bus.busy(N1)
    simulated.let_go(host, N1)
    assert not bus.busy(N1)
    assert not bus.busy(N2)


class BusyNodes(SystemCalls):
    """System calls that say an errno for some nodes."""

    def __init__(self, answers: Mapping[str, int]) -> None:
        self.answers, self.asked = answers, list[str]()

    def probe(self, path: Path) -> None:
        """What open would say."""
        self.asked.append(str(path))
        if path.name in self.answers:
            raise OSError(self.answers[path.name], "")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (0, None),
        (errno.EBUSY, "something has the device open"),
        (errno.EPERM, "cannot be looked at (EPERM); allow the agent to open it"),
        (errno.EACCES, "(EACCES); allow the agent"),
        (errno.ENOENT, "(ENOENT); load vfio"),
        (errno.ENXIO, "(ENXIO); load vfio"),
        (errno.ENODEV, "(ENODEV); try again"),
        (errno.EMFILE, "(EMFILE); try again"),
        (errno.EIO, "(EIO); load vfio"),
    ],
)
def test_only_a_probe_that_opened_says_free(
    tree: TreeBuilder, tmp_path: Path, answer: int, says: str | None
) -> None:
    """A device that could not be probed may be in use, and the reason says what to do."""
    calls = BusyNodes({"17": answer} if answer else {})
    bus = SysfsBus(tree.root, run_dir=tmp_path, calls=calls)
    directory = tree.device(N1, tree.parent(P0, "mtty-1"), "mtty-1")
    (directory / "iommu_group").symlink_to("../../../../kernel/iommu_groups/17")
    why = bus.busy(N1)
    assert (says is None) == (why is None)
    assert (says or "") in (why or "")
    assert calls.asked == [str(tree.root / "dev/vfio/17")]


def test_a_process_that_cannot_be_looked_at_may_have_the_node(
    tree: TreeBuilder, bus: SysfsBus
) -> None:
    """A table of descriptors that says an error is no proof that the device's node is closed."""
    directory = tree.device(N1, tree.parent(P0, "mtty-1"), "mtty-1")
    (directory / "vfio-dev/vfio3").mkdir(parents=True)
    process = tree.root / "proc/4711"
    process.mkdir(parents=True)
    assert bus.busy(N1) is None  # the process is gone
    (process / "fd").symlink_to("fd")  # to look at it is ELOOP
    assert "may be in use" in (bus.busy(N1) or "")


def test_an_open_device_node_is_busy(tree: TreeBuilder, bus: SysfsBus) -> None:
    """A device's own node opens for anybody, so it is asked which process has it open."""
    directory = tree.device(N1, tree.parent(P0, "mtty-1"), "mtty-1")
    (directory / "vfio-dev/vfio3").mkdir(parents=True)
    fds = tree.root / "proc/4711/fd"
    fds.mkdir(parents=True)
    (fds / "7").symlink_to("/dev/vfio/devices/vfio33")
    assert not bus.busy(N1)
    (fds / "8").symlink_to("/dev/vfio/devices/vfio3")
    assert bus.busy(N1)


def test_a_spec_opens_the_same_bus(host: Path, tmp_path: Path) -> None:
    """What a worker opens by its spec is the bus that its agent has."""
    for bus in (SimulatedBus(host), SysfsBus(tmp_path, run_dir=tmp_path)):
        again = open_bus(bus.spec, bus.run_dir)
        assert (type(again), again.root, again.spec) == (type(bus), bus.root, bus.spec)
    assert SysfsBus(run_dir=tmp_path).spec == "sysfs"
    for spec in ("sim:", "sim", "", "pci"):
        with pytest.raises(ValueError, match="not a bus"):
            open_bus(spec, tmp_path)


def test_there_are_no_events_of_another_root(bus: SysfsBus) -> None:
    """The machine's events say nothing of a directory."""
    assert bus.watch() is None


def test_the_kernels_events_can_be_watched(tmp_path: Path) -> None:
    """On the real root a watcher is had where netlink is, and has no hint to begin with."""
    watcher = SysfsBus(run_dir=tmp_path).watch()
    if watcher is not None:
        assert watcher.fileno() >= 0
        watcher.close()
        assert watcher.drain() == frozenset()


@dataclass
class Event:
    """A kernel's event, as pyudev shows it."""

    subsystem: str | None
    sys_name: str
    properties: dict[str, str] = field(default_factory=dict)


class Monitor:
    """A monitor with some events to tell: an error is raised, None is one filtered out."""

    def __init__(self, *events: Event | OSError | None) -> None:
        self._events = list(events)
        self._socket, self._kernel = socket.socketpair()
        self._kernel.send(b"." * len(events))

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def poll(self, _timeout: float | None = None) -> Event | None:
        """The next event."""
        self._socket.recv(1)
        event = self._events.pop(0)
        if isinstance(event, OSError):
            raise event
        return event

    def close(self) -> None:
        """Both ends."""
        self._socket.close()
        self._kernel.close()


@pytest.mark.parametrize(
    ("events", "names"),
    [
        ((), ()),
        ((Event("mdev", N1), None, Event("vfio", "7"), Event("mdev", N2)), (N1, N2)),
        ((Event("pci", P0), Event(None, "x")), ()),
        ((Event("mdev", N1), OSError(errno.ENOBUFS, ""), Event("mdev", N2)), ()),
        ((Event("mdev", N1), Event("pci", P0, {"MDEV_STATE": "registered"})), ()),
    ],
)
def test_hints_name_devices_unless_some_were_lost(
    events: tuple[Event | OSError | None, ...], names: tuple[str, ...]
) -> None:
    """Names are those of mdev events; lost events, or a parent's, make a hint without names."""
    monitor = Monitor(*events)
    watcher = UdevWatcher(monitor)
    assert watcher.drain() == frozenset(names)
    assert watcher.drain() == frozenset()
    watcher.close()
    monitor.close()
