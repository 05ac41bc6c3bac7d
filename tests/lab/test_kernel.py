"""What the rest of the lab stands on, besides what test_conformance.py holds to docs/kernel.md."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from deploy.lab.guest import ETCD, wait_for
from deploy.lab.mdev import PARENTS, Mdev
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


def watch_events(guest: Guest, name: str, source: str) -> Background:
    """Start telling events, until this name is removed; returns when it listens."""
    watcher = guest.spawn("python3", "-c", WATCH_EVENTS, name, source)
    # Its line comes in two pieces: an unbuffered print writes the newline by itself.
    wait_for(
        lambda: "\n" in watcher.output() or not watcher.alive(), what="the watcher", guests=[guest]
    )
    assert watcher.output() == "watching\n"
    return watcher


def test_sample_parents(mdev: Mdev) -> None:
    """The guest's kernel has the mdev core, and the three sample drivers are parents."""
    assert mdev.parents() == ["mbochs", "mdpy", "mtty"]
    assert mdev.types("mtty") == ["mtty-1", "mtty-2"]
    assert mdev.types("mdpy") == ["mdpy-hd", "mdpy-vga", "mdpy-xga"]
    assert mdev.available("mtty", "mtty-1") == 24
    assert mdev.available("mtty", "mtty-2") == 12
    assert mdev.available("mdpy", "mdpy-hd") == 4


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


def test_events_by_udev(guest: Guest, mdev: Mdev, name: str) -> None:
    """udevd runs, and passes on what the kernel says of a create and of a remove."""
    watcher = watch_events(guest, name, "udev")
    mdev.create("mtty", "mtty-1", name)
    mdev.remove(name)
    assert watcher.wait() == 0
    events = watcher.output().splitlines()[1:]
    assert events == [f"{action} {name}" for action in ("add", "bind", "unbind", "remove")]


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
