"""The simulated host answers as the kernel was measured to, and forgets nothing when killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.bus import Presence
from agent.locks import AgentLock, Generation
from agent.simulated import SimulatedBus
from agent.simulated_kernel import SimulatedKernel, parse_number
from agent.simulated_state import Saved
from coordinator.errors import ExistsOnHost, InUse, InvalidValue, NotFound, TryAgain
from coordinator.model import Name
from tests.support.killed import calls_of, killed_at
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

P0, P1 = "0000:3b:00.0", "0000:3c:00.0"
N1 = Name("aaaaaaaa-0000-4000-8000-000000000001")
N2 = Name("aaaaaaaa-0000-4000-8000-000000000002")
LONG = 3600.0  # seconds that no test waits for


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A simulated host; whatever waits in its kernel at the end is let go by a reboot."""
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


def in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[str | None]]:
    results: list[str | None] = []
    thread = threading.Thread(target=lambda: results.append(errno_of(call)), daemon=True)
    thread.start()
    return thread, results


def program(text: str, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", text, *args])


@pytest.mark.parametrize(
    ("data", "value"), [(b"010", 8), (b"+3", 3), (b"0X1f\n", 31), (b"0", 0), (b"00", 0)]
)
def test_numbers_are_read_as_kstrtoul_does(data: bytes, value: int) -> None:
    """A number may be octal, hexadecimal or signed, and end in a newline."""
    assert parse_number(data) == value


@pytest.mark.parametrize(
    "data", [b"08", b"0x", b"0x1g", b"\n", b"1\n\n", b"%d" % (1 << 64)], ids=repr
)
def test_what_is_no_number_is_refused(data: bytes) -> None:
    """What kstrtoul does not take, and what no long holds, is EINVAL."""
    assert errno_of(lambda: parse_number(data)) == "EINVAL"


def test_a_host_looks_like_sysfs(host: Path) -> None:
    """Types, counts and devices are where the kernel has them, for anybody to look at."""
    simulated.create(host, P0, "mtty-2", N1)
    types = host / "sys/class/mdev_bus" / P0 / "mdev_supported_types"
    device = host / "sys/bus/mdev/devices" / N1
    assert sorted(path.name for path in (types / "mtty-2").iterdir()) == [
        "available_instances",
        "create",
        "device_api",
        "devices",
        "name",
    ]
    assert (types / "mtty-1/available_instances").read_text() == "22\n"
    assert (types / "mtty-2/devices" / N1).resolve() == device.resolve()
    assert (device / "mdev_type").resolve() == (types / "mtty-2").resolve()
    assert (device / "remove").exists()


def test_nobody_writes_into_a_file_without_a_kernel(host: Path) -> None:
    """A plain write to `create` of a simulated host is an error, and not lost in a file."""
    create = host / "sys/class/mdev_bus" / P0 / "mdev_supported_types/mtty-1/create"
    assert errno_of(lambda: create.write_text(N1)) == "ENXIO"


def test_creates_of_all_parents_take_as_long_as_one(host: Path) -> None:
    """The list lock is held for a moment: slow drivers work at the same time."""
    for parent in (P0, P1):
        simulated.tune(host, parent, latency=LONG, window=LONG)
    writers = [
        in_thread(lambda p=p, n=n: simulated.create(host, p, "mtty-1", n))  # type: ignore[misc]
        for p, n in ((P0, N1), (P1, N2))
    ]
    bus = SimulatedBus(host)
    wait_until(lambda: {N1, N2} <= set(bus.scan().devices))
    for name in (N1, N2):
        simulated.let_go(host, name)
    for thread, results in writers:
        thread.join(60)
        assert results == [None]


def test_a_serial_driver_makes_one_after_the_other(tmp_path: Path) -> None:
    """With `serial` the second create of a parent waits for the first one's latency, too."""
    host = tmp_path / "host"
    simulated.init(host, 1, {"mtty-1": 4}, LONG, serial=True)
    writers = [
        in_thread(lambda n=n: simulated.create(host, P0, "mtty-1", n))  # type: ignore[misc]
        for n in (N1, N2)
    ]
    kernel = SimulatedKernel(host)
    wait_until(lambda: len(kernel.look().devices) == 2)
    first, second = sorted(device["ready"] for device in kernel.look().devices.values())
    assert second - first == pytest.approx(LONG)
    simulated.reboot(host)
    for thread, results in writers:
        thread.join(60)
        assert results == ["EIO"]


def test_a_device_comes_in_steps(tmp_path: Path) -> None:
    """A create is no device at first, then one without a type, then one, then it returns."""
    host, now = tmp_path / "host", [1000.0]
    simulated.init(host, 1, {"mtty-1": 4}, 100.0, window=20.0)
    seen: list[Presence] = []
    kernel = SimulatedKernel(host, clock=lambda: now[0], pause=lambda _: tick())
    bus = SimulatedBus(host, kernel=kernel)

    def tick() -> None:
        now[0] += 9.0
        seen.append(bus.scan().presence(N1))

    bus.create(P0, "mtty-1", N1)
    steps = [a for a, b in zip(seen, [None, *seen], strict=False) if a != b]
    assert steps == [Presence.ABSENT, Presence.UNKNOWN, Presence.PRESENT]
    assert now[0] >= 1100.0
    simulated.reboot(host)


def test_a_create_that_fails_is_met_as_a_phantom(tmp_path: Path) -> None:
    """A driver's failure is on the bus for a while, never with a type, and leaves nothing."""
    host, now = tmp_path / "host", [1000.0]
    simulated.init(host, 1, {"mtty-1": 4}, 100.0, window=50.0)
    simulated.fail_creates(host, P0, "EIO")
    seen: set[Presence] = set()
    kernel = SimulatedKernel(host, clock=lambda: now[0], pause=lambda _: tick())
    bus = SimulatedBus(host, kernel=kernel)

    def tick() -> None:
        now[0] += 9.0
        seen.add(bus.scan().presence(N1))

    assert errno_of(lambda: bus.create(P0, "mtty-1", N1)) == "EIO"
    assert seen == {Presence.ABSENT, Presence.UNKNOWN}
    assert bus.scan().presence(N1) is Presence.ABSENT
    bus.create(P0, "mtty-1", N1)


def test_a_killed_writer_does_not_undo_its_create(host: Path) -> None:
    """SIGKILL in the middle of a create: the driver goes on, and the device comes."""
    simulated.tune(host, P0, latency=LONG)
    text = (
        "import sys, pathlib; from agent import simulated;"
        "simulated.create(pathlib.Path(sys.argv[1]), *sys.argv[2:])"
    )
    writer = program(text, str(host), P0, "mtty-1", N1)
    kernel = SimulatedKernel(host)
    wait_until(lambda: kernel.look().devices)
    writer.kill()
    writer.wait()
    assert errno_of(lambda: simulated.create(host, P1, "mtty-1", N1)) == "EEXIST"
    simulated.let_go(host, N1)
    assert SimulatedBus(host).scan().presence(N1) is Presence.PRESENT


def test_a_half_made_tree_is_made_whole(host: Path) -> None:
    """What a process left that was killed between state and tree is put right by the next."""
    simulated.create(host, P0, "mtty-1", N1)
    home = host / "sys/devices/pci0000:3b" / P0
    with Saved(host / "kernel").locked() as saved:
        saved.write(saved.read())
    (host / "sys/bus/mdev/devices" / N1).unlink()
    (home / f".{N2}").mkdir()
    (home / N2).mkdir()
    (host / "sys/bus/mdev/devices" / N2).symlink_to(home / N2)
    (home / "mdev_supported_types/mtty-1/available_instances").write_text("7\n")
    scan = SimulatedBus(host).scan()
    assert set(scan.devices) == {N1}
    assert not (home / N2).exists()
    assert not (home / f".{N2}").exists()
    assert (home / "mdev_supported_types/mtty-1/available_instances").read_text() == "23\n"


def _shown(host: Path) -> dict[str, str]:
    """All that stands in the tree, with what is left of each type."""
    paths = [path for place in ("sys/devices", "sys/bus") for path in (host / place).rglob("*")]
    return {
        str(path): path.read_text() if path.name == "available_instances" else "" for path in paths
    }


@pytest.mark.parametrize("kind", ["create", "remove", "attribute"])
def test_a_worker_may_be_killed_anywhere(host: Path, kind: str) -> None:
    """At whatever system call a worker is killed, its write is done, whole, or never began."""
    bus, worker = SimulatedBus(host), SimulatedBus(host, for_worker=True)
    text = host / "sys/bus/mdev/devices" / N1 / "vgpu_params"

    def write(on: SimulatedBus, *, back: bool = False) -> None:
        if kind == "attribute":
            on.write_attribute(N1, "vgpu_params", "before" if back else "after")
        elif (kind == "create") is not back:
            on.create(P0, "mtty-1", N1)
        else:
            on.remove(N1, "mtty-1")

    def seen() -> tuple[object, ...]:
        bus.scan()
        return _shown(host), text.read_text() if text.exists() else None

    if kind != "create":
        bus.create(P0, "mtty-1", N1)
    if kind == "attribute":
        write(bus, back=True)
    before = seen()
    write(bus)
    after = seen()
    found = []
    for number in count():
        write(bus, back=True)
        was_killed = killed_at(lambda: write(worker), number)
        found.append(seen())
        if found[-1] == before:
            write(bus)
        assert seen() == after
        if not was_killed:
            break
    assert found == sorted(found, key=lambda one: one == after)
    assert found[0] == before
    assert found[-1] == after


def test_only_a_write_that_sleeps_takes_a_process(host: Path) -> None:
    """A worker whose write returns at once makes it itself; all that sleep share one child."""
    worker = SimulatedBus(host, for_worker=True)
    create, remove = partial(worker.create, P0, "mtty-1", N1), partial(worker.remove, N1, "mtty-1")
    for write in (create, remove):
        assert "os.fork" not in calls_of(write)
    simulated.tune(host, P0, latency=0.001)

    def more() -> None:
        for name in (N1, N2):
            worker.create(P0, "mtty-1", name)

    assert calls_of(more)["os.fork"] == 1
    assert {N1, N2} == set(SimulatedBus(host).scan().devices)


def test_what_a_sleeping_write_held_is_let_go_with_it(host: Path) -> None:
    """The child of a worker that goes on keeps no descriptor of a write that has returned."""
    simulated.tune(host, P0, latency=0.001)
    worker = SimulatedBus(host, for_worker=True)
    for name in (N1, N2):
        read, write = os.pipe()
        worker.create(P0, "mtty-1", name)
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)
    worker.kernel.sleeper.end()


def test_a_killed_sleeper_is_an_error_and_no_end(host: Path) -> None:
    """Nobody can kill the real kernel; if somebody kills this, the next write has another."""
    simulated.tune(host, P0, latency=LONG)
    worker = SimulatedBus(host, for_worker=True)
    thread, results = in_thread(lambda: worker.create(P0, "mtty-1", N1))
    # Not by a look, which takes the list's lock: the sleeper gets copies of all our descriptors.
    wait_until(lambda: any(N1.encode() in path.read_bytes() for path in host.rglob("state.?")))
    os.kill(worker.kernel.sleeper._pid, signal.SIGKILL)
    thread.join(60)
    assert results == ["EIO"]
    simulated.tune(host, P0, latency=0.001)
    simulated.let_go(host, N1)
    worker.create(P0, "mtty-1", N2)
    worker.kernel.sleeper.end()
    assert SimulatedBus(host).scan().presence(N2) is Presence.PRESENT


def test_a_sleeper_that_was_killed_between_two_writes_is_an_error_and_no_end(host: Path) -> None:
    """It had nothing to do when it was killed; the write that finds it gone is the last to fail."""
    simulated.tune(host, P0, latency=0.001)
    worker = SimulatedBus(host, for_worker=True)
    worker.create(P0, "mtty-1", N1)
    sleeper = worker.kernel.sleeper._pid
    os.kill(sleeper, signal.SIGKILL)
    os.waitid(os.P_PID, sleeper, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError, match="error") as refused:
        worker.create(P0, "mtty-1", N2)
    assert refused.value.errno == errno.EIO
    worker.create(P0, "mtty-1", N2)
    worker.kernel.sleeper.end()
    assert SimulatedBus(host).scan().presence(N2) is Presence.PRESENT


def test_a_second_device_makes_few_files(host: Path) -> None:
    """What is the same in all devices is linked, and the state is written over an older one."""
    bus = SimulatedBus(host)
    bus.create(P0, "mtty-1", N1)
    bus.create(P0, "mtty-1", Name(f"{N1[:-1]}3"))
    made = calls_of(lambda: bus.create(P0, "mtty-1", N2))
    # Its directory and one in it; its group, its type, and that the bus and its type list it.
    assert (made["os.mkdir"], made["os.symlink"]) == (2, 4)
    assert (made["os.link"], made["os.rename"]) == (2, 1)
    assert made["os.remove"] == 1  # what may be left of a directory that was being made


def test_a_name_lingers(tmp_path: Path) -> None:
    """With `linger` a removed name is taken and counted for a while, though it is absent."""
    host, now = tmp_path / "host", [1000.0]
    simulated.init(host, 1, {"mtty-1": 1}, linger=5.0)
    bus = SimulatedBus(host, kernel=SimulatedKernel(host, clock=lambda: now[0]))
    bus.create(P0, "mtty-1", N1)
    bus.remove(N1, "mtty-1")
    assert bus.scan().presence(N1) is Presence.ABSENT
    assert errno_of(lambda: bus.create(P0, "mtty-1", N1)) == "EEXIST"
    assert errno_of(lambda: bus.create(P0, "mtty-1", N2)) == "ENOSPC"
    now[0] += 5.0
    bus.create(P0, "mtty-1", N1)


def test_holding_is_for_devices(host: Path) -> None:
    """A placeholder cannot be held, nor what is not there."""
    simulated.tune(host, P0, latency=LONG)
    thread, _ = in_thread(lambda: simulated.create(host, P0, "mtty-1", N1))
    kernel = SimulatedKernel(host)
    wait_until(lambda: kernel.look().devices)
    with pytest.raises(TryAgain):
        simulated.hold(host, N1)
    with pytest.raises(NotFound):
        simulated.hold(host, N2)
    with pytest.raises(NotFound):
        simulated.let_go(host, N2)
    simulated.let_go(host, N1)
    thread.join(60)
    simulated.hold(host, N1)


def test_a_held_device_survives_its_driver(host: Path) -> None:
    """Unplugged, a parent's link and free devices go at once; one in use is going until let go."""
    for name in (N1, N2):
        simulated.create(host, P0, "mtty-1", name)
    bus = SimulatedBus(host)
    bus.scan()
    simulated.hold(host, N1)
    simulated.unplug(host, P0)
    scan = bus.scan()
    assert set(scan.parents) == {P1}
    assert (scan.presence(N1), scan.presence(N2)) == (Presence.GOING, Presence.ABSENT)
    simulated.plug(host, P0)
    assert errno_of(lambda: simulated.create(host, P0, "mtty-1", N1)) == "EEXIST"
    simulated.let_go(host, N1)
    assert bus.scan().presence(N1) is Presence.ABSENT
    simulated.create(host, P0, "mtty-1", N1)


def test_unplug_waits_for_creates(host: Path) -> None:
    """A driver is unbound only after its creates under way, and bound only after that."""
    simulated.tune(host, P0, latency=LONG, window=0.0)
    create, created = in_thread(lambda: simulated.create(host, P0, "mtty-1", N1))
    kernel = SimulatedKernel(host)
    wait_until(lambda: kernel.look().devices)
    unplug, _ = in_thread(lambda: simulated.unplug(host, P0))
    wait_until(lambda: kernel.look().parents[P0].get("leaving"))
    assert unplug.is_alive()
    assert errno_of(lambda: simulated.create(host, P0, "mtty-1", N2)) == "ENODEV"
    with pytest.raises(InUse, match="unbound"):
        simulated.plug(host, P0)
    simulated.let_go(host, N1)
    for thread in (create, unplug):
        thread.join(60)
    assert created == [None]
    assert not SimulatedBus(host).scan().devices
    assert not (host / "sys/devices/pci0000:3b" / P0 / "mdev_supported_types").exists()
    simulated.plug(host, P0)
    assert P0 in SimulatedBus(host).scan().parents


def test_a_reboot_leaves_nothing_but_the_machine(host: Path) -> None:
    """New boot id, no device, empty run directory; machine and late parents as before."""
    bus = SimulatedBus(host)
    before, identity = bus.scan(), bus.identity()
    simulated.create(host, P1, "mtty-1", N1)
    simulated.hold(host, N1)
    thread, removed = in_thread(lambda: simulated.remove(host, N1))
    wait_until(lambda: bus.scan().presence(N1) is Presence.GOING)
    simulated.unplug(host, P0)
    simulated.reboot(host)
    thread.join(60)
    after = bus.scan()
    assert removed == ["EIO"]
    assert after.boot_id != before.boot_id
    assert not after.devices
    assert set(after.parents) == {P1}
    assert bus.identity() == identity
    assert {path.name for path in bus.run_dir.iterdir()} == {"parents.json"}  # of this scan


def test_no_power_loss_under_a_running_agent(host: Path) -> None:
    """A reboot is refused while an agent runs: a real one would have taken it along."""
    boot_id = SimulatedBus(host).boot_id()
    with AgentLock(host / "run"), pytest.raises(InUse, match=f"pid {os.getpid()}"):
        simulated.reboot(host)
    assert SimulatedBus(host).boot_id() == boot_id


def test_a_process_of_an_earlier_boot_writes_nothing(host: Path) -> None:
    """A worker from before a reboot finds its generation gone, and its kernel, too."""
    generation = Generation(host / "run")
    number = generation.renew()
    bus = SimulatedBus(host, for_worker=True)
    simulated.reboot(host)
    with generation.in_force(number) as ours:
        assert not ours
    assert errno_of(lambda: bus.create(P0, "mtty-1", N1)) == "EIO"
    assert not SimulatedBus(host).scan().devices


def test_ids_come_from_the_seed(tmp_path: Path) -> None:
    """Two hosts of one seed are one machine in one boot; of two seeds they share nothing."""
    buses = []
    for name, seed in (("a", "s"), ("b", "s"), ("c", "t")):
        simulated.init(tmp_path / name, 1, seed=seed)
        buses.append(SimulatedBus(tmp_path / name))
    a, b, c = ((bus.boot_id(), bus.identity()) for bus in buses)
    assert a == b
    assert a[0] != c[0]
    assert a[1].machine_id != c[1].machine_id


def test_attributes_are_the_hosts(host: Path) -> None:
    """Attributes are written and seen, refused when they are to fail, unknown or read-only."""
    simulated.create(host, P0, "mtty-1", N1)
    bus = SimulatedBus(host)
    bus.write_attribute(N1, "vgpu_params", "frl=60")
    assert (host / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == "frl=60"
    simulated.fail_attribute(host, "vgpu_params")
    assert errno_of(lambda: bus.write_attribute(N1, "vgpu_params", "x")) == "EINVAL"
    simulated.fail_attribute(host, "vgpu_params", None)
    bus.write_attribute(N1, "vgpu_params", "x")
    assert errno_of(lambda: bus.write_attribute(N1, "no_such", "x")) == "ENOENT"
    assert errno_of(lambda: bus.write_attribute(N1, "vendor/serial", "x")) == "EACCES"


def test_a_watcher_hears_what_changes(host: Path) -> None:
    """Names come with the device that changed; a parent that goes names nobody."""
    watcher = SimulatedBus(host).watch()
    simulated.create(host, P0, "mtty-1", N1)
    assert watcher.drain() == {N1}
    assert watcher.drain() == frozenset()
    simulated.remove(host, N1)
    assert watcher.drain() == {N1}
    simulated.create(host, P0, "mtty-1", N2)
    simulated.unplug(host, P0)
    assert watcher.drain() == frozenset()
    watcher.close()


def test_a_watcher_that_lost_some_names_nobody(host: Path) -> None:
    """When more happened than the pipe holds, it is a hint without names."""
    watcher = SimulatedBus(host).watch()
    SimulatedKernel(host).tell([f"add {N1}"] * 4000)
    assert watcher.drain() == frozenset()
    watcher.close()


def test_a_stuck_write_cannot_be_killed(host: Path) -> None:
    """A worker's kernel keeps the killed worker's descriptors until the write has returned."""
    simulated.create(host, P0, "mtty-1", N1)
    simulated.hold(host, N1)
    text = (
        "import sys, pathlib; from agent.simulated import SimulatedBus;"
        "SimulatedBus(pathlib.Path(sys.argv[1]), for_worker=True).remove(sys.argv[2], 'mtty-1')"
    )
    read, write = os.pipe()
    writer = subprocess.Popen([sys.executable, "-c", text, str(host), N1], pass_fds=[write])
    os.close(write)
    bus = SimulatedBus(host)
    wait_until(lambda: bus.scan().presence(N1) is Presence.GOING)
    os.set_blocking(read, False)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with pytest.raises(BlockingIOError):
        os.read(read, 1)
    simulated.let_go(host, N1)
    os.set_blocking(read, True)
    assert os.read(read, 1) == b""
    os.close(read)


def test_what_cannot_be_is_refused(tmp_path: Path, host: Path) -> None:
    """A host is not made twice, nor with impossible numbers, and not found where none is."""
    with pytest.raises(ExistsOnHost):
        simulated.init(host)
    with pytest.raises(InvalidValue):
        simulated.init(tmp_path / "other", 0)
    with pytest.raises(InvalidValue):
        simulated.init(tmp_path / "other", latency=-1.0)
    with pytest.raises(InvalidValue):
        simulated.fail_creates(host, P0, "ENOSUCH")
    with pytest.raises(NotFound):
        simulated.reboot(tmp_path / "nowhere")
    with pytest.raises(NotFound):
        simulated.plug(host, "0000:ff:00.0")
    simulated.create(host, P0, "mtty-1", N1)
    with pytest.raises(InUse):
        simulated.tune(host, P0, types={"other-1": 1})


def test_a_clock_from_another_boot_of_the_machine_hangs_nothing(tmp_path: Path) -> None:
    """A create begun before the machine itself was booted is done, not waited for."""
    host, now = tmp_path / "host", [time.monotonic() + 1e6]
    simulated.init(host, 1, {"mtty-1": 1}, 10.0)
    kernel = SimulatedKernel(host, clock=lambda: now[0])
    with kernel.memory() as memory:
        memory.begin(N1, P0, memory.parents[P0]["token"], "mtty-1")
    now[0] = 5.0
    assert SimulatedBus(host, kernel=kernel).scan().presence(N1) is Presence.PRESENT
