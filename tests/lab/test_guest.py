"""The guests behave as machines do, and say what happened when they don't."""

from __future__ import annotations

import errno
import json
import os
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from deploy.lab.errors import GuestDied, GuestError, GuestTimeout
from deploy.lab.guest import BOOT_S, SILENCE_S, wait_for
from deploy.lab.mdev import Mdev
from deploy.lab.tidy import mend, tidy

if TYPE_CHECKING:
    from deploy.lab.guest import Guest
    from tests.lab.conftest import Guests

pytestmark = pytest.mark.lab


@pytest.fixture
def name() -> str:
    """A name nobody has used."""
    return str(uuid.uuid4())


@pytest.fixture
def guest(guests: Guests) -> Guest:
    """A running guest, of Debian 12."""
    return guests[2]


@pytest.fixture
def newer(guests: Guests) -> Guest:
    """A running guest, of Debian 13."""
    return guests[1]


@pytest.mark.parametrize(
    ("place", "versions"),
    [(0, ("6.1.", "Python 3.11.", "1.2.0")), (1, ("6.12.", "Python 3.13.", "1.4.0"))],
    ids=["Debian 12", "Debian 13"],
)
def test_flavours(guests: Guests, place: int, versions: tuple[str, str, str]) -> None:
    """Guests of both Debians run their own kernel, Python and mdevctl."""
    kernel, python, mdevctl = versions
    guest = guests[place]
    assert guest.run("uname", "-r").stdout.startswith(kernel)
    assert guest.run("python3", "--version").stdout.startswith(python)
    assert mdevctl in guest.run("mdevctl", "--version").stdout
    assert json.loads(guest.run("mdevctl", "types", "--dumpjson").stdout)


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


def test_power_off_and_on(guest: Guest, name: str) -> None:
    """Over a shutdown the disk and the identity stay; boot id and devices do not."""
    before = guest.boot_id, guest.read("/etc/machine-id")
    Mdev(guest).create("mtty", "mtty-1", name)
    trap = "trap 'echo orderly >/root/ended; exit' TERM; while :; do sleep 0.1; done"
    guest.spawn("sh", "-c", f"echo >/root/ready; {trap}")
    wait_for(lambda: guest.exists("/root/ready"), what="the process")
    guest.reboot()
    assert guest.read("/root/ended") == "orderly\n"
    assert guest.read("/etc/machine-id") == before[1]
    assert guest.boot_id != before[0]
    assert Mdev(guest).devices() == []


def test_power_loss(guest: Guest, name: str) -> None:
    """What was synced survives a power loss; what only the guest's memory had does not."""
    before = guest.boot_id
    Mdev(guest).create("mtty", "mtty-1", name)
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


@pytest.mark.parametrize(
    ("place", "file", "what"),
    [
        (1, "/proc/sysrq-trigger", "Kernel panic"),
        (2, "/sys/module/mtty/parameters/oops", "kernel BUG"),
    ],
    ids=["panic", "oops"],
)
def test_crash_is_shown(guests: Guests, place: int, file: str, what: str) -> None:
    """When the kernel panics or has an oops whoever waits is told so, with the console."""
    with pytest.raises(GuestDied, match=what):
        guests[place].poke(file, "c")


def ask_while_stopped(guest: Guest, server: int) -> None:
    """Stop the server and ask it for something: it may still answer the request that stops it."""
    guest.kill(server, signal.SIGSTOP)
    guest.run("true")


def test_hang_is_shown(newer: Guest) -> None:
    """When a machine stops giving signs of life whoever waits is told so, before his deadline."""
    server = int(newer.run("pgrep", "-P", "1", "-f", "pid1.py").stdout)
    newer.put("/dev/console", "standing still\n")
    newer.silence_s = 3.0
    try:
        with pytest.raises(GuestTimeout, match=r"(?s)said nothing for 3 s.*standing still"):
            ask_while_stopped(newer, server)
    finally:
        newer.silence_s = SILENCE_S
        newer.power_loss()


def test_boot_that_hangs_is_shown(newer: Guest) -> None:
    """When a machine does not come up in time whoever waits is told so, with the console."""
    newer.put("/usr/local/sbin/modprobe", "#!/bin/sh\necho stuck >/dev/console\nsleep 1000\n")
    newer.run("chmod", "+x", "/usr/local/sbin/modprobe", check=True)
    newer.power_off()
    newer.start()
    try:
        wait_for(lambda: "stuck" in newer.console(), what="the boot to hang", timeout=BOOT_S)
        with pytest.raises(GuestTimeout, match=r"(?s)is not up within 1 s.*stuck"):
            newer.wait_ready(timeout=1)
    finally:
        newer.renew()


def test_broken_guest_is_mended(guest: Guest) -> None:
    """A guest that does not answer is booted again, with its disk; one that does is left alone."""
    before = guest.boot_id
    assert not mend(guest)
    guest.put("/root/kept", "yes")
    guest.run("sync", check=True)
    guest.pause()
    assert mend(guest)
    assert guest.answers()
    assert guest.boot_id != before
    assert guest.read("/root/kept") == "yes"


@pytest.mark.parametrize(
    ("place", "scripts"),
    [(0, "/etc/mdevctl.d/scripts.d"), (1, "/usr/lib/mdevctl/scripts.d")],
    ids=["Debian 12", "Debian 13"],
)
def test_tidy(guests: Guests, name: str, place: int, scripts: str) -> None:
    """A tidied guest runs on, with no process, device or definition of before, and its network."""
    guest = guests[place]
    before = guest.boot_id
    mdev = Mdev(guest)
    mdev.create("mtty", "mtty-1", name)
    holder = guest.hold(name)
    guest.put(f"/etc/mdevctl.d/mtty/{name}", '{"mdev_type": "mtty-1", "start": "auto"}')
    guest.put(f"{scripts}/callouts/one", "#!/bin/sh\n")
    guest.put("/var/lib/mdevns/state", "left")
    guest.cut_network()
    tidy(guest)
    assert guest.boot_id == before
    assert not holder.alive()
    assert (mdev.devices(), mdev.parents()) == ([], ["mbochs", "mdpy", "mtty"])
    assert guest.run("mdevctl", "list", "--defined").stdout.strip() == ""
    assert not guest.exists("/etc/mdevctl.d/mtty")
    assert (guest.listdir(scripts), guest.listdir(f"{scripts}/callouts")) == (
        ["callouts", "notifiers"],
        [],
    )
    assert not guest.exists("/var/lib/mdevns")
    assert guest.read("/sys/class/net/eth0/operstate") == "up\n"
    guest.run("udevadm", "settle", "--timeout=30", check=True)
