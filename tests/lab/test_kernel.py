"""What the rest of the lab stands on: both kernels' own answers, held to kernel-reference.md."""

from __future__ import annotations

import errno
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from deploy.lab.guest import ETCD, wait_for
from deploy.lab.mdev import BUS, PARENTS, Mdev
from tests.support import etcd_kv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.embedded import EmbeddedCluster
    from deploy.lab.guest import Background, Guest
    from deploy.lab.machines import Lab
    from tests.lab.conftest import Guests

pytestmark = pytest.mark.lab

HELD_MS = 600_000

# Prints "watching", then each event of the mdev bus, until the name given is removed.
WATCH_EVENTS = """
import sys, pyudev
monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=sys.argv[2])
monitor.filter_by("mdev")
monitor.start()
print("watching")
while True:
    device = monitor.poll()
    if device is None:  # woken for something that it filters out
        continue
    print(device.action, device.sys_name)
    if (device.action, device.sys_name) == ("remove", sys.argv[1]):
        break
"""

PUT_AND_GET = """
import sys, grpc
from etcd3 import etcdrpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    store = etcdrpc.KVStub(channel)
    key, value = sys.argv[2].encode(), sys.argv[3].encode()
    store.Put(etcdrpc.PutRequest(key=key, value=value), timeout=20)
    print(store.Range(etcdrpc.RangeRequest(key=key), timeout=20).kvs[0].value.decode())
"""


@pytest.fixture
def name() -> str:
    """A name nobody has used."""
    return str(uuid.uuid4())


@pytest.fixture(params=[0, 1], ids=["6.1", "6.12"])
def guest(guests: Guests, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A running guest of each kernel, whose drivers are loaded afresh afterwards."""
    guest = guests[request.param]
    yield guest
    Mdev(guest).reload()


@pytest.fixture
def mdev(guest: Guest) -> Mdev:
    """The mediated devices of that guest: none."""
    return Mdev(guest)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The kernel refuses with this errno."""
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


@contextmanager
def creating(guest: Guest, name: str) -> Iterator[Future[None]]:
    """Inside, the driver is making mtty's device of this name; afterwards it is let finish.

    The device is on the bus a moment before the driver counts it; both have happened.
    """
    mdev = Mdev(guest)
    room = mdev.available("mtty", "mtty-1")
    mdev.delay_creates(HELD_MS)
    with ThreadPoolExecutor(1) as pool:
        create = pool.submit(mdev.create, "mtty", "mtty-1", name)
        try:
            wait_for(lambda: name in mdev.devices(), what="the device to show", guests=[guest])
            wait_for(
                lambda: mdev.available("mtty", "mtty-1") == room - 1,
                what="the driver to count it",
                guests=[guest],
            )
            yield create
        finally:
            mdev.delay_creates(0)


def watch_events(guest: Guest, name: str, source: str) -> Background:
    """Start telling events, until this name is removed; returns when it listens."""
    watcher = guest.spawn("python3", "-c", WATCH_EVENTS, name, source)
    # Its line comes in two pieces: an unbuffered print writes the newline by itself.
    wait_for(
        lambda: "\n" in watcher.output() or not watcher.alive(), what="the watcher", guests=[guest]
    )
    assert watcher.output() == "watching\n"
    return watcher


def fill(mdev: Mdev, parent: str, kind: str) -> None:
    """Create devices until nothing is available."""
    for _ in range(mdev.available(parent, kind)):
        mdev.create(parent, kind, str(uuid.uuid4()))


def test_sample_parents(mdev: Mdev) -> None:
    """The guest's kernel has the mdev core, and the three sample drivers are parents."""
    assert mdev.parents() == ["mbochs", "mdpy", "mtty"]
    assert mdev.types("mtty") == ["mtty-1", "mtty-2"]
    assert mdev.types("mdpy") == ["mdpy-hd", "mdpy-vga", "mdpy-xga"]
    assert mdev.available("mtty", "mtty-1") == 24
    assert mdev.available("mtty", "mtty-2") == 12
    assert mdev.available("mdpy", "mdpy-hd") == 4


def test_create_and_remove(mdev: Mdev, name: str) -> None:
    """A create makes a device of its type on its parent, and a remove frees name and instance."""
    mdev.create("mtty", "mtty-2", name)
    assert mdev.devices() == [name]
    assert (mdev.parent_of(name), mdev.type_of(name)) == ("mtty", "mtty-2")
    assert mdev.available("mtty", "mtty-1") == 22
    mdev.remove(name)
    assert mdev.devices() == []
    assert mdev.available("mtty", "mtty-1") == 24


def test_upper_case_is_folded(mdev: Mdev, name: str) -> None:
    """A name written in upper case becomes a device of the lower-case name."""
    mdev.create("mtty", "mtty-1", name.upper())
    assert mdev.devices() == [name]


@pytest.mark.parametrize(
    ("parent", "kind"), [("mtty", "mtty-1"), ("mtty", "mtty-2"), ("mdpy", "mdpy-hd")]
)
def test_duplicate(mdev: Mdev, name: str, parent: str, kind: str) -> None:
    """A name that lives is EEXIST: for its type, for another type, and on another parent."""
    mdev.create("mtty", "mtty-1", name)
    with refused(errno.EEXIST):
        mdev.create(parent, kind, name)
    assert (mdev.parent_of(name), mdev.type_of(name)) == ("mtty", "mtty-1")


def test_one_of_many_creates_wins(mdev: Mdev, name: str) -> None:
    """Of eight creates of one name at the same time one makes the device, seven are EEXIST."""
    with ThreadPoolExecutor(8) as pool:
        creates = [pool.submit(mdev.create, "mtty", "mtty-1", name) for _ in range(8)]
        errors = [create.exception() for create in creates]
    assert errors.count(None) == 1
    assert [e.errno for e in errors if isinstance(e, OSError)] == [errno.EEXIST] * 7


@pytest.mark.parametrize("shape", ["not-a-name", "{%s}", " %s", "%s\r\n"])
def test_wrong_shapes(mdev: Mdev, name: str, shape: str) -> None:
    """What is not 36 characters of a UUID and perhaps a newline is EINVAL."""
    with refused(errno.EINVAL):
        mdev.create("mtty", "mtty-1", shape.replace("%s", name))
    assert mdev.devices() == []


@pytest.mark.parametrize(
    ("parent", "kind", "number"),
    [("mtty", "mtty-1", errno.ENOSPC), ("mdpy", "mdpy-vga", errno.EUSERS)],
    ids=["the driver counts", "the mdev core counts"],
)
def test_exhausted(mdev: Mdev, name: str, parent: str, kind: str, number: int) -> None:
    """An exhausted parent is ENOSPC where the driver counts, EUSERS where the mdev core does."""
    fill(mdev, parent, kind)
    before = mdev.devices()
    with refused(number):
        mdev.create(parent, kind, name)
    with refused(errno.EEXIST):
        mdev.create(parent, kind, before[0])
    assert mdev.devices() == before


def test_create_can_be_held(guest: Guest, mdev: Mdev, name: str) -> None:
    """While the driver makes a device it is on the bus without a type, and counted."""
    with creating(guest, name) as create:
        assert not create.done()
        assert mdev.available("mtty", "mtty-1") == 23
        with refused(errno.ENOENT):
            mdev.type_of(name)
        with refused(errno.EEXIST):
            mdev.create("mdpy", "mdpy-hd", name)
        mdev.create("mdpy", "mdpy-hd", str(uuid.uuid4()))
    create.result()
    assert mdev.type_of(name) == "mtty-1"


def test_create_survives_its_writer(guest: Guest, mdev: Mdev, name: str) -> None:
    """SIGKILL does not free who writes to create: the device is made, and then the writer dies."""
    mdev.delay_creates(HELD_MS)
    create = f"{PARENTS}/mtty/mdev_supported_types/mtty-1/create"
    writer = guest.spawn("sh", "-c", f"printf %s {name} >{create}")
    wait_for(lambda: name in mdev.devices(), what="the device to show", guests=[guest])
    writer.kill()
    stat = f"/proc/{writer.pid}/stat"
    wait_for(lambda: guest.read(stat).split()[2] == "D", what="state D", guests=[guest])
    assert writer.alive()
    mdev.delay_creates(0)
    assert writer.wait() == -9
    assert mdev.type_of(name) == "mtty-1"


def test_remove_while_creating(guest: Guest, mdev: Mdev, name: str) -> None:
    """A remove while the driver creates is EAGAIN, and the device can then never be removed."""
    with creating(guest, name) as create, refused(errno.EAGAIN):
        mdev.remove(name)
    create.result()
    assert mdev.type_of(name) == "mtty-1"
    with refused(errno.ENOENT):
        mdev.remove(name)
    with refused(errno.EEXIST):
        mdev.create("mtty", "mtty-1", name)
    assert mdev.available("mtty", "mtty-1") == 23
    mdev.reload()
    assert mdev.devices() == []


def test_remove_while_held(guest: Guest, mdev: Mdev, name: str) -> None:
    """A remove blocks while a VM has the device, which is already off the bus but not gone."""
    mdev.create("mtty", "mtty-1", name)
    directory = guest.realpath(f"{BUS}/{name}")
    holder = guest.hold(name)
    with ThreadPoolExecutor(1) as pool:
        remove = pool.submit(mdev.remove, name)
        wait_for(lambda: name not in mdev.devices(), what="the link to go", guests=[guest])
        assert not remove.done()
        assert guest.exists(directory)
        assert mdev.available("mtty", "mtty-1") == 23
        with refused(errno.EEXIST):
            mdev.create("mtty", "mtty-1", name)
        holder.kill()
        remove.result()
    assert not guest.exists(directory)
    assert mdev.available("mtty", "mtty-1") == 24


def test_open_group_is_busy(guest: Guest, mdev: Mdev, name: str) -> None:
    """The vfio group of a device that a VM has can't be opened: EBUSY."""
    mdev.create("mtty", "mtty-1", name)
    group = guest.realpath(f"{BUS}/{name}/iommu_group").rpartition("/")[2]
    holder = guest.hold(name)
    with refused(errno.EBUSY):
        guest.poke(f"/dev/vfio/{group}", "")
    holder.kill()
    holder.wait()


def test_two_hosts_know_nothing_of_each_other(guests: Guests, name: str) -> None:
    """All hosts' kernels create the same name: the hole that mdevns closes."""
    for guest in guests:
        Mdev(guest).create("mtty", "mtty-1", name)
    assert [Mdev(guest).devices() for guest in guests] == [[name]] * 3
    for guest in guests:
        Mdev(guest).remove(name)


def test_hosts_differ(guests: Guests) -> None:
    """Each guest has a boot id, a machine-id, a product UUID and a host name of its own."""
    assert len({guest.boot_id for guest in guests}) == 3
    for path in ("/etc/machine-id", "/sys/class/dmi/id/product_uuid", "/etc/hostname"):
        assert len({guest.read(path) for guest in guests}) == 3
    for guest in guests:
        assert guest.read("/etc/machine-id").strip() == guest.machine_id
        assert guest.read("/sys/class/dmi/id/product_uuid").strip() == guest.product_uuid
        assert guest.run("uname", "-n").stdout.strip() == guest.name


@pytest.mark.parametrize("source", ["kernel", "udev"])
def test_events(guest: Guest, mdev: Mdev, name: str, source: str) -> None:
    """A create is announced by add and bind, a remove by unbind and remove."""
    watcher = watch_events(guest, name, source)
    mdev.create("mtty", "mtty-1", name)
    mdev.remove(name)
    assert watcher.wait() == 0
    events = watcher.output().splitlines()[1:]
    assert events == [f"{action} {name}" for action in ("add", "bind", "unbind", "remove")]


def test_events_of_a_failed_create(guest: Guest, mdev: Mdev, name: str) -> None:
    """A create that the driver refuses is announced by add and remove, without bind."""
    fill(mdev, "mtty", "mtty-2")
    watcher = watch_events(guest, name, "kernel")
    with refused(errno.ENOSPC):
        mdev.create("mtty", "mtty-2", name)
    assert watcher.wait() == 0
    assert watcher.output().splitlines()[1:] == [f"add {name}", f"remove {name}"]


def test_etcd_outside(guests: Guests, members: EmbeddedCluster, name: str) -> None:
    """What one guest writes to a member outside, with mdevns's own client, each other has too."""
    keys = [f"/lab/{name}/{guest.name}" for guest in guests]
    written = [f"{guest.name} to {address}" for guest, address in zip(guests, ETCD, strict=True)]
    with ThreadPoolExecutor(3) as pool:
        puts = pool.map(
            lambda guest, *args: guest.python(PUT_AND_GET, *args), guests, ETCD, keys, written
        )
        assert [put.stdout for put in puts] == [f"{value}\n" for value in written]
    for endpoint in members.endpoints:
        assert [etcd_kv.get(endpoint, key) for key in keys] == written


def test_nothing_else_outside(lab: Lab, guests: Guests) -> None:
    """A guest reaches the members by their three addresses only, and not the machine outside."""
    probe = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    guest = guests[0]
    # 10.0.2.2 is the loopback of the machine outside, for a network that is not restricted.
    assert guest.python(probe, "10.0.2.2", str(lab.etcd_ports[0])).rc != 0
    for address in ETCD:
        assert guest.python(probe, *address.split(":")).rc == 0
