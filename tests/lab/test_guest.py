"""The guests behave as machines do, and say what happened when they don't."""

from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from deploy.lab.errors import GuestDied, GuestError, GuestTimeout
from deploy.lab.guest import wait_for
from deploy.lab.mdev import Mdev

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.lab.guest import Guest
    from deploy.lab.machines import Lab

pytestmark = pytest.mark.lab

NAME = "b3f1f5f4-3c54-4c1c-9f2a-6d1c5c1e7a01"


@pytest.fixture(scope="module")
def machine(lab: Lab) -> Iterator[Guest]:
    """One guest, switched off."""
    guest = lab.guest("gpu03")
    yield guest
    guest.discard()


@pytest.fixture
def guest(machine: Guest) -> Guest:
    """That guest, running."""
    if not machine.running:
        machine.boot()
    return machine


def test_run(guest: Guest) -> None:
    """A command gives its exit code and both its streams, and gets its input and environment."""
    done = guest.run("sh", "-c", 'cat; echo "$A" >&2; exit 3', stdin="in", env={"A": "b"})
    assert (done.rc, done.stdout, done.stderr) == (3, "in", "b\n")
    with pytest.raises(GuestError, match="rc=3"):
        guest.run("sh", "-c", "exit 3", check=True)


def test_bytes_survive(guest: Guest) -> None:
    """Output that is no UTF-8, and a megabyte of it, arrives as it was."""
    done = guest.run("sh", "-c", r"printf '\377'; head -c 1000000 /dev/zero")
    assert os.fsencode(done.stdout) == b"\xff" + bytes(1_000_000)


def test_deadline(guest: Guest) -> None:
    """A command that is not done in time is killed, with its children, and that is an error."""
    with pytest.raises(GuestTimeout, match=r"not done after 0\.2 s"):
        guest.run("sh", "-c", "sleep 1234 | sleep 1234", timeout=0.2)
    wait_for(lambda: guest.run("pgrep", "-f", "sleep 1234").rc == 1, what="the children to end")


def test_many_at_once(guest: Guest) -> None:
    """Commands run beside each other: each of five ends once all five have begun."""
    begin = "mkdir -p /root/begun && touch /root/begun/$0"
    meet = f"{begin}; until [ $(ls /root/begun | wc -l) = 5 ]; do sleep 0.05; done"
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(guest.run, "sh", "-c", meet, str(n)) for n in range(5)]
        assert [each.result().rc for each in running] == [0] * 5


def test_background(guest: Guest) -> None:
    """A process left running has a pid and an output, can be killed by it, and is waited for."""
    process = guest.spawn("sh", "-c", "echo up; exec sleep 1000")
    wait_for(lambda: process.output() == "up\n", what="its output")
    assert process.alive()
    with pytest.raises(GuestTimeout):
        process.wait(timeout=0.1)
    guest.kill(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        process.kill()


def test_files_and_errnos(guest: Guest) -> None:
    """Files are written and read, and the guest's errno comes out of what it refuses."""
    guest.put("/root/a/b", "text")
    assert (guest.read("/root/a/b"), guest.listdir("/root/a")) == ("text", ["b"])
    for refused in (
        lambda: guest.read("/nowhere"),
        lambda: guest.poke("/nowhere", "1"),
        lambda: guest.run("/nowhere"),
    ):
        with pytest.raises(OSError, match="nowhere") as caught:
            refused()
        assert caught.value.errno == errno.ENOENT


def test_power_off_and_on(guest: Guest) -> None:
    """Over a shutdown the disk and the identity stay; boot id and devices do not."""
    before = guest.boot_id, guest.read("/etc/machine-id")
    Mdev(guest).create("mtty", "mtty-1", NAME)
    trap = "trap 'echo orderly >/root/ended; exit' TERM; while :; do sleep 0.1; done"
    guest.spawn("sh", "-c", f"echo >/root/ready; {trap}")
    wait_for(lambda: guest.exists("/root/ready"), what="the process")
    guest.reboot()
    assert guest.read("/root/ended") == "orderly\n"
    assert guest.read("/etc/machine-id") == before[1]
    assert guest.boot_id != before[0]
    assert Mdev(guest).devices() == []


def test_power_loss(guest: Guest) -> None:
    """What was synced survives a power loss; what only the guest's memory had does not."""
    before = guest.boot_id
    Mdev(guest).create("mtty", "mtty-1", NAME)
    guest.put("/root/synced", "yes")
    guest.run("sync", check=True)
    guest.put("/root/unsynced", "x" * 100)
    guest.power_loss()
    assert not guest.running
    with pytest.raises(GuestDied, match="switched off"):
        guest.run("true")
    guest.boot()
    assert guest.read("/root/synced") == "yes"
    assert "x" not in guest.run("cat", "/root/unsynced").stdout
    assert guest.boot_id != before
    assert Mdev(guest).devices() == []


def test_pause(guest: Guest) -> None:
    """A paused machine answers nothing, and goes on with what it was asked once it is resumed."""
    guest.pause()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(guest.run, "echo", "on")
        with pytest.raises(TimeoutError):
            asked.result(timeout=0.5)
        guest.resume()
        assert asked.result().stdout == "on\n"


def test_network_cut(guest: Guest) -> None:
    """A guest without its network still takes commands, and has its network again afterwards."""
    state = "/sys/class/net/eth0/operstate"
    guest.cut_network()
    assert guest.read(state) == "down\n"
    guest.restore_network()
    wait_for(lambda: guest.read(state) == "up\n", what="the network")


def test_udev_runs(guest: Guest) -> None:
    """udevd has an empty queue: it runs, and takes what the kernel says."""
    guest.run("udevadm", "settle", "--timeout=30", check=True)


def test_panic_is_shown(guest: Guest) -> None:
    """When the kernel panics whoever waits is told so, with the console."""
    with pytest.raises(GuestDied, match="Kernel panic"):
        guest.poke("/proc/sysrq-trigger", "c")
    guest.power_loss()
