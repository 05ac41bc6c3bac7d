"""The workers: what was ordered is written once or never, and seen in flight while it is."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent import locks, simulated
from agent.bus import Presence
from agent.locks import AgentLock, Generation, NameLock, names_in_flight
from agent.simulated import SimulatedBus
from agent.slots import Bounds
from agent.worker import AgentGone, carry_out
from agent.workers import Answer, Order, OrderKind, Workers
from coordinator.model import Name
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent.worker import OrderMessage

P0, P1 = "0000:3b:00.0", "0000:3c:00.0"
N1, N2, N3, N4 = (Name(f"aaaaaaaa-0000-4000-8000-00000000000{n}") for n in range(1, 5))
ROOT = Path(__file__).parents[2]
LONG = 3600.0  # seconds that no test waits for
SOON = 0.05  # seconds that a test waits for something not to happen

# An agent as far as workers see one: it takes its lock, orders a create, and waits for it.
AGENT = """
import asyncio, pathlib, sys
from agent.locks import AgentLock
from agent.simulated import SimulatedBus
from agent.workers import Order, OrderKind, Workers

async def main(directory, parent, name):
    bus = SimulatedBus(pathlib.Path(directory))
    with AgentLock(bus.run_dir):
        workers = Workers(bus.spec, bus.run_dir)
        workers.new_generation()
        order = Order(kind=OrderKind.CREATE, name=name, parent=parent, type="mtty-1",
                      attrs=(("vgpu_params", "late"),))
        await workers.order(order, deadline=lambda: float("inf"))

asyncio.run(main(*sys.argv[1:]))
"""

# Workers that are started for as long as there are descriptors, and how many are open after.
SHORT_OF_DESCRIPTORS = """
import asyncio, os, pathlib, resource, sys
from agent.simulated import SimulatedBus
from agent.workers import Order, OrderKind, Workers

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

async def main(directory, parent, name):
    bus = SimulatedBus(pathlib.Path(directory))
    workers = Workers(bus.spec, bus.run_dir)
    workers.new_generation()
    order = Order(kind=OrderKind.CREATE, name=name, parent=parent, type="mtty-1")
    told, opened = [], []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    while True:  # but for so many descriptors, from none on, all are taken
        try:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    for _ in range(5):
        answer = await workers.order(order, deadline=lambda: float("inf"))
        told.append(answer.why)
        fds = sum(map(is_open, range(64)))
        print(answer.begun, fds)
        os.close(opened.pop())

asyncio.run(main(*sys.argv[1:]))
"""


def never() -> float:
    return float("inf")


def create(name: Name, parent: str = P0, *attrs: tuple[str, str]) -> Order:
    return Order(kind=OrderKind.CREATE, name=name, parent=parent, type="mtty-1", attrs=attrs)


def remove(name: Name, parent: str = P0) -> Order:
    return Order(kind=OrderKind.REMOVE, name=name, parent=parent, type="mtty-1")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A simulated host; whatever waits in its kernel at the end is let go by a reboot."""
    directory = tmp_path / "host"
    simulated.init(directory, 2, {"mtty-1": 24})
    yield directory
    simulated.reboot(directory)


@pytest.fixture
def bus(host: Path) -> SimulatedBus:
    return SimulatedBus(host)


@pytest.fixture
async def workers(host: Path, bus: SimulatedBus) -> AsyncIterator[Workers]:
    """Workers of an agent that has enrolled; nothing of them is left at the end."""
    workers = Workers(bus.spec, bus.run_dir, per_parent=2, stuck_after=LONG)
    workers.new_generation()
    yield workers
    for name in SimulatedBus(host).scan().devices:
        simulated.let_go(host, name)
    await workers.stop(10.0)


def ended_with(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


def is_under_way(bus: SimulatedBus, name: Name) -> bool:
    return name in bus.kernel.look().devices


def message(name: Name, **more: object) -> OrderMessage:
    order: OrderMessage = {
        "generation": 0,
        "deadline": float("inf"),
        "kind": "create",
        "name": name,
        "parent": P0,
        "type": "mtty-1",
        "attrs": [],
    }
    order.update(more)  # type: ignore[typeddict-item] # a test's own keys
    return order


async def test_an_order_is_carried_out(host: Path, bus: SimulatedBus, workers: Workers) -> None:
    """Create with attributes, attributes alone, remove: done, and no longer in flight."""
    answer = await workers.order(create(N1, P0, ("vgpu_params", "a")), deadline=never)
    assert answer == Answer(begun=True, seconds=answer.seconds)
    assert (host / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == "a"
    configure = Order(
        kind=OrderKind.CONFIGURE,
        name=N1,
        parent=P0,
        type="mtty-1",
        attrs=(("vgpu_params", "b"), ("vgpu_params", "c")),
    )
    assert (await workers.order(configure, deadline=never)).errno is None
    assert (host / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == "c"
    assert (await workers.order(remove(N1), deadline=never)).errno is None
    assert bus.scan().presence(N1) is Presence.ABSENT
    assert workers.in_flight() == frozenset()


async def test_the_kernels_errno_comes_back(host: Path, workers: Workers) -> None:
    """What failed is named: the create, or which attribute; what follows is not written."""
    answer = await workers.order(remove(N1), deadline=never)
    assert (answer.begun, answer.known, answer.errno) == (True, True, "ENOENT")
    simulated.fail_creates(host, P0, "EIO")
    answer = await workers.order(create(N1, P0, ("vgpu_params", "a")), deadline=never)
    assert (answer.errno, answer.attribute) == ("EIO", None)
    attributes = (("no_such", "a"), ("vgpu_params", "b"))
    answer = await workers.order(create(N1, P0, *attributes), deadline=never)
    assert (answer.errno, answer.attribute) == ("ENOENT", "no_such")
    assert (host / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == ""
    answer = await workers.order(create(N1), deadline=never)
    assert answer.errno == "EEXIST"


async def test_an_attribute_longer_than_a_pipe_arrives(host: Path, workers: Workers) -> None:
    """However much an order carries, all of it arrives, and nobody blocks on it."""
    value = "x" * 200_000
    answer = await workers.order(create(N1, P0, ("vgpu_params", value)), deadline=never)
    assert answer.errno is None
    assert (host / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == value


async def test_without_an_enrolment_nothing_is_written(bus: SimulatedBus) -> None:
    """Before its first generation an agent orders nothing."""
    workers = Workers(bus.spec, bus.run_dir)
    assert (await workers.order(create(N1), deadline=never)).why == "stale generation"


async def test_an_order_of_an_old_generation_never_happens(
    bus: SimulatedBus, workers: Workers
) -> None:
    """What was ordered before another agent enrolled is refused, and nothing is written."""
    Generation(bus.run_dir).renew()
    answer = await workers.order(create(N1), deadline=never)
    assert (answer.begun, answer.why) == (False, "stale generation")
    assert not bus.scan().devices
    workers.new_generation()
    assert (await workers.order(create(N1), deadline=never)).errno is None


async def test_nothing_begins_after_its_deadline(bus: SimulatedBus, workers: Workers) -> None:
    """A deadline on CLOCK_BOOTTIME, asked when a worker gets the order, is held to."""
    past = time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001
    answer = await workers.order(create(N1), deadline=lambda: past)
    assert (answer.begun, answer.why) == (False, "deadline")
    assert not bus.scan().devices
    answer = await workers.order(create(N1), deadline=lambda: past + 60.0)
    assert answer.errno is None


async def test_two_orders_of_a_name_are_not_at_once(
    host: Path, bus: SimulatedBus, workers: Workers
) -> None:
    """A name in flight takes no second order, neither by this agent nor by the next."""
    simulated.tune(host, P0, latency=LONG)
    first = asyncio.create_task(workers.order(create(N1), deadline=never))
    await wait_until_async(lambda: is_under_way(bus, N1))
    assert (await workers.order(remove(N1), deadline=never)).why == "in flight"
    successor = Workers(bus.spec, bus.run_dir)
    successor.new_generation()
    assert successor.in_flight() == {N1}
    answer = await successor.order(create(N1, P1), deadline=never)
    assert (answer.begun, answer.why) == (False, "in flight")
    await successor.stop(5.0)
    simulated.let_go(host, N1)
    assert (await first).errno is None
    await wait_until_async(lambda: not workers.in_flight())


async def test_a_parent_takes_so_many_and_no_other_waits(
    host: Path, bus: SimulatedBus, workers: Workers
) -> None:
    """The third order of a parent waits for its place; another parent's does not."""
    simulated.tune(host, P0, latency=LONG)
    orders = [asyncio.create_task(workers.order(create(n), deadline=never)) for n in (N1, N2, N3)]
    await wait_until_async(lambda: is_under_way(bus, N1) and is_under_way(bus, N2))
    async with asyncio.timeout(60.0):
        assert (await workers.order(create(N4, P1), deadline=never)).errno is None
    assert not is_under_way(bus, N3)
    assert workers.in_flight() == {N1, N2, N3}
    simulated.let_go(host, N1)
    await wait_until_async(lambda: is_under_way(bus, N3))
    for name in (N2, N3):
        simulated.let_go(host, name)
    assert [answer.errno for answer in await asyncio.gather(*orders)] == [None] * 3


async def test_a_hung_remove_blocks_neither_others_nor_the_stop(
    host: Path, bus: SimulatedBus
) -> None:
    """What hangs gives its place back, stays in flight, and is left to end by itself."""
    workers = Workers(bus.spec, bus.run_dir, per_parent=1, stuck_after=SOON)
    workers.new_generation()
    assert (await workers.order(create(N1), deadline=never)).errno is None
    simulated.hold(host, N1)
    hung = asyncio.create_task(workers.order(remove(N1), deadline=never))
    await wait_until_async(lambda: bus.scan().presence(N1) is Presence.GOING)
    assert (await workers.order(create(N2), deadline=never)).errno is None
    assert workers.in_flight() == {N1}
    pids = {process.pid for process in workers._processes if process.is_asked}
    await workers.stop(SOON)
    answer = await hung
    assert (answer.begun, answer.known, answer.why) == (True, False, "still under way")
    assert names_in_flight(bus.run_dir) == {N1}
    simulated.let_go(host, N1)
    for pid in pids:
        assert await asyncio.to_thread(ended_with, pid) == 0
    assert names_in_flight(bus.run_dir) == frozenset()


async def test_a_stop_lets_nothing_begin(host: Path, bus: SimulatedBus) -> None:
    """Orders that wait are answered, what has begun is waited for, later ones are refused."""
    workers = Workers(bus.spec, bus.run_dir, per_parent=1)
    workers.new_generation()
    simulated.tune(host, P0, latency=LONG)
    first = asyncio.create_task(workers.order(create(N1), deadline=never))
    await wait_until_async(lambda: is_under_way(bus, N1))
    second = asyncio.create_task(workers.order(create(N2), deadline=never))
    stop = asyncio.create_task(workers.stop(10.0))
    answer = await second
    assert (answer.begun, answer.why) == (False, "stopping")
    assert not (await workers.order(create(N3), deadline=never)).begun
    simulated.let_go(host, N1)
    assert (await first).errno is None
    await stop
    assert set(bus.scan().devices) == {N1}
    workers.new_generation()
    assert (await workers.order(create(N3, P1), deadline=never)).errno is None
    await workers.stop(5.0)


async def test_a_stop_revokes_what_a_worker_has_in_hand(bus: SimulatedBus) -> None:
    """A worker that is paused before its write finds its order revoked; the answer says less."""
    workers = Workers(bus.spec, bus.run_dir)
    workers.new_generation()
    assert (await workers.order(create(N1), deadline=never)).errno is None
    (process,) = workers._processes
    os.kill(process.pid, signal.SIGSTOP)
    order = asyncio.create_task(workers.order(create(N2), deadline=never))
    await wait_until_async(lambda: process.is_asked)
    await workers.stop(SOON)
    answer = await order
    assert (answer.begun, answer.known) == (True, False)
    os.kill(process.pid, signal.SIGCONT)
    assert await asyncio.to_thread(ended_with, process.pid) == 0
    assert set(bus.scan().devices) == {N1}


async def test_a_stop_spares_a_successor(bus: SimulatedBus, workers: Workers) -> None:
    """An agent that stops late takes nothing from the one that has enrolled since."""
    successor = Workers(bus.spec, bus.run_dir)
    successor.new_generation()
    await workers.stop(1.0)
    assert (await successor.order(create(N1), deadline=never)).errno is None
    await successor.stop(5.0)


async def test_cancelled_while_it_waits_it_never_begins(
    host: Path, bus: SimulatedBus, workers: Workers
) -> None:
    """Cancelled before its place came, an order is dropped; after, it goes on and is in flight."""
    simulated.tune(host, P0, latency=LONG)
    orders = [asyncio.create_task(workers.order(create(n), deadline=never)) for n in (N1, N2, N3)]
    await wait_until_async(lambda: is_under_way(bus, N1) and is_under_way(bus, N2))
    for order in orders:
        order.cancel()
    await asyncio.gather(*orders, return_exceptions=True)
    assert workers.in_flight() == {N1, N2}
    for name in (N1, N2):
        simulated.let_go(host, name)
    await wait_until_async(lambda: not workers.in_flight())
    assert set(bus.scan().devices) == {N1, N2}


async def test_a_worker_that_dies_in_its_write_leaves_it_unknown(
    host: Path, bus: SimulatedBus, workers: Workers
) -> None:
    """Killed in the kernel, a worker's write goes on, in flight until it ends, and unknown."""
    simulated.tune(host, P0, latency=LONG)
    order = asyncio.create_task(workers.order(create(N1), deadline=never))
    await wait_until_async(lambda: is_under_way(bus, N1))
    (process,) = workers._processes
    os.kill(process.pid, signal.SIGKILL)
    await wait_until_async(lambda: not process.is_alive)
    assert names_in_flight(bus.run_dir) == {N1}
    assert not order.done()
    simulated.let_go(host, N1)
    answer = await order
    assert (answer.begun, answer.known, answer.why) == (True, False, "worker died")
    assert bus.scan().presence(N1) is Presence.PRESENT
    assert workers.in_flight() == frozenset()
    assert (await workers.order(create(N2, P1), deadline=never)).errno is None


async def test_a_worker_that_dies_before_its_write_has_not_begun(
    bus: SimulatedBus, workers: Workers
) -> None:
    """Killed with its order in hand and not begun, a worker leaves nothing behind."""
    assert (await workers.order(create(N1), deadline=never)).errno is None
    (process,) = workers._processes
    os.kill(process.pid, signal.SIGSTOP)
    order = asyncio.create_task(workers.order(create(N2), deadline=never))
    await wait_until_async(lambda: process.is_asked)
    os.kill(process.pid, signal.SIGKILL)
    answer = await order
    assert (answer.begun, answer.why) == (False, "worker died")
    assert set(bus.scan().devices) == {N1}


async def test_an_idle_worker_is_let_go(bus: SimulatedBus) -> None:
    """A worker with nothing to do ends, and leaves no zombie; the next order starts another."""
    workers = Workers(bus.spec, bus.run_dir, idle_after=0.0)
    workers.new_generation()
    for name in (N1, N2):
        assert (await workers.order(create(name), deadline=never)).errno is None
        await wait_until_async(lambda: not workers._processes)
    await workers.stop(1.0)


async def test_a_worker_that_cannot_start_is_told(tmp_path: Path) -> None:
    """A bus that cannot be opened ends the worker before it begins anything."""
    workers = Workers(f"sim:{tmp_path / 'nowhere'}", tmp_path / "run")
    workers.new_generation()
    answer = await workers.order(create(N1), deadline=never)
    assert (answer.begun, answer.why) == (False, "worker died")
    await workers.stop(1.0)


def test_a_worker_outlives_its_killed_agent(host: Path, bus: SimulatedBus) -> None:
    """kill -9 of an agent: its write ends, in flight meanwhile; its lock is free at once."""
    simulated.tune(host, P0, latency=LONG)
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(host), P0, N1])
    wait_until(lambda: is_under_way(bus, N1))
    agent.kill()
    agent.wait()
    with AgentLock(bus.run_dir):
        successor = Workers(bus.spec, bus.run_dir)
        successor.new_generation()
        assert successor.in_flight() == {N1}
        assert bus.scan().presence(N1) is Presence.ABSENT  # as sysfs shows it: not yet
        simulated.let_go(host, N1)
        wait_until(lambda: not successor.in_flight())
        assert bus.scan().presence(N1) is Presence.PRESENT
    # The attribute had not begun when its agent was superseded, so it is never written.
    assert (host / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == ""


def test_a_worker_ignores_the_signals_of_its_agent(host: Path, bus: SimulatedBus) -> None:
    """Ctrl-C and SIGTERM to everybody end the agent, not the worker in the kernel."""
    simulated.tune(host, P0, latency=LONG)
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(host), P0, N1],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: is_under_way(bus, N1))
    (worker,) = children(agent.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker, number)
    os.killpg(agent.pid, signal.SIGTERM)
    agent.wait()
    assert names_in_flight(bus.run_dir) == {N1}
    simulated.let_go(host, N1)
    wait_until(lambda: not names_in_flight(bus.run_dir))
    wait_until(lambda: not is_running(worker))
    assert bus.scan().presence(N1) is Presence.PRESENT


def children(pid: int) -> list[int]:
    """A process' children, whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - one line of procfs
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_a_worker_holds_nothing_of_its_agents(bus: SimulatedBus) -> None:
    """A descriptor that leaked to it, and its agent's standard error, are let go at the start."""
    read, write = os.pipe()
    os.set_inheritable(write, True)  # as a careless library does
    program = "import sys; from agent.worker import main; main(*sys.argv[1:])"
    worker = subprocess.Popen(
        [sys.executable, "-c", program, bus.spec, str(bus.run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
        close_fds=False,
    )
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    assert worker.poll() is None
    worker.communicate()
    assert worker.returncode == 0


def test_a_worker_starts_with_little(tmp_path: Path) -> None:
    """A worker of either bus loads none of what makes the agent slow to start."""
    program = (
        "import sys, pathlib, agent.worker, agent.simulated; from agent.buses import open_bus;"
        "open_bus('sysfs', pathlib.Path(sys.argv[1]), for_worker=True); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-S", "-c", program, tmp_path],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    slow = {"asyncio", "coordinator", "dataclasses", "grpc", "msgspec", "pyudev", "typing"}
    assert not loaded & slow


def test_a_worker_can_be_run_by_hand(bus: SimulatedBus) -> None:
    """`python -m agent.worker` answers each order by a line, and says before when it begins."""
    number = Generation(bus.run_dir).renew()
    orders = [message(N1, generation=number), message(N2, generation=number + 1)]
    done = subprocess.run(
        [sys.executable, "-m", "agent.worker", bus.spec, str(bus.run_dir)],
        input="".join(json.dumps(order) + "\n" for order in orders) + '{"half": ',
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[:2] == [{"ready": True}, {"beginning": True}]
    assert told[2]["begun"]
    assert told[3] == {"begun": False, "why": "stale generation", "seconds": 0.0}
    assert set(bus.scan().devices) == {N1}


class TestGate:
    """What a worker does between its order and the write."""

    @staticmethod
    def nothing() -> None:
        """Told that it begins."""

    def test_nobody_listens(self, bus: SimulatedBus) -> None:
        """When its agent is gone before the write, the write never happens."""

        def gone() -> None:
            raise AgentGone

        number = Generation(bus.run_dir).renew()
        answer = carry_out(bus, bus.run_dir, message(N1, generation=number), gone)
        assert (answer["begun"], answer["why"]) == (False, "agent gone")
        assert not bus.scan().devices
        assert not names_in_flight(bus.run_dir)

    def test_superseded_between_writes(self, bus: SimulatedBus) -> None:
        """An attribute is not written for an agent that was superseded during the create."""
        gate, told = Generation(bus.run_dir), list[str]()

        def tell() -> None:
            told.append("begins")
            if len(told) == 2:  # the new generation comes before the third write
                gate.renew()

        attributes = [("vgpu_params", "a"), ("vgpu_params", "b")]
        order = message(N1, generation=gate.renew(), attrs=attributes)
        answer = carry_out(bus, bus.run_dir, order, tell)
        assert (answer["begun"], answer["known"], answer["why"]) == (
            True,
            False,
            "stale generation",
        )
        assert (bus.root / "sys/bus/mdev/devices" / N1 / "vgpu_params").read_text() == "a"

    def test_the_lock_is_kept_until_the_last_write(self, bus: SimulatedBus) -> None:
        """The name is in flight from before the first write to after the last."""
        seen: list[frozenset[str]] = []
        number = Generation(bus.run_dir).renew()
        order = message(N1, generation=number, attrs=[("vgpu_params", "a")])
        carry_out(bus, bus.run_dir, order, lambda: seen.append(names_in_flight(bus.run_dir)))
        assert seen == [{N1}, {N1}]
        assert not names_in_flight(bus.run_dir)

    def test_the_generation_is_held_until_the_lock_is_taken(self, bus: SimulatedBus) -> None:
        """Else an agent could enrol between the two, and see neither order nor write."""
        gate = Generation(bus.run_dir)
        order = message(N1, generation=gate.renew())
        lock_file = bus.run_dir / "names" / N1
        ignored = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent to who holds a file's lease
        leased = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            # Whoever opens the lock's file waits (fcntl(2), leases) until this is let go.
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with ThreadPoolExecutor() as pool:
                carried_out = pool.submit(carry_out, bus, bus.run_dir, order, lambda: None)
                wait_until(lambda: fcntl.fcntl(leased, fcntl.F_GETLEASE) != fcntl.F_WRLCK)
                is_held = locks._is_taken(bus.run_dir / "generation")
                fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                os.close(leased)
                assert carried_out.result(10.0)["begun"]
                assert is_held
        finally:
            signal.signal(signal.SIGIO, ignored)

    def test_a_taken_name(self, bus: SimulatedBus) -> None:
        """A name whose lock is taken is in flight, whoever took it."""
        number = Generation(bus.run_dir).renew()
        lock = NameLock.take(bus.run_dir, N1)
        assert lock is not None
        answer = carry_out(bus, bus.run_dir, message(N1, generation=number), self.nothing)
        assert (answer["begun"], answer["why"]) == (False, "in flight")
        lock.release()

    def test_a_path_that_cannot_be(self, bus: SimulatedBus) -> None:
        """What no path can hold is an error of that write, not of the worker."""
        number = Generation(bus.run_dir).renew()
        order = message(N1, generation=number, attrs=[("a\0b", "1")])
        answer = carry_out(bus, bus.run_dir, order, self.nothing)
        assert (answer["errno"], answer["attribute"]) == ("EINVAL", "a\0b")


async def test_a_stop_that_waits_lets_nothing_begin_meanwhile(bus: SimulatedBus) -> None:
    """What a worker has in hand and has not begun is refused although the agent is there still."""
    workers = Workers(bus.spec, bus.run_dir)
    workers.new_generation()
    assert (await workers.order(create(N1), deadline=never)).errno is None
    (process,) = workers._processes
    os.kill(process.pid, signal.SIGSTOP)
    order = asyncio.create_task(workers.order(create(N2), deadline=never))
    await wait_until_async(lambda: process.is_asked)
    stop = asyncio.create_task(workers.stop(10.0))
    await wait_until_async(lambda: workers._generation == 0)
    os.kill(process.pid, signal.SIGCONT)
    answer = await order
    assert (answer.begun, answer.why) == (False, "stale generation")
    await stop
    assert set(bus.scan().devices) == {N1}


async def test_a_place_is_given_back_for_the_next(bus: SimulatedBus) -> None:
    """A parent that takes one write at a time takes one after the other."""
    workers = Workers(bus.spec, bus.run_dir, per_parent=1)
    workers.new_generation()
    async with asyncio.timeout(60.0):
        for name in (N1, N2, N3):
            assert (await workers.order(create(name), deadline=never)).errno is None
    await workers.stop(5.0)


async def test_writes_that_hang_are_bounded_and_the_parent_says_so(
    host: Path, bus: SimulatedBus
) -> None:
    """A driver that lets every write hang gets so many processes, and another parent goes on."""
    bounds = Bounds(per_parent=1, hung=2, extra=4, total=8)
    workers = Workers(bus.spec, bus.run_dir, bounds=bounds, stuck_after=0.0)
    workers.new_generation()
    simulated.tune(host, P0, latency=LONG)
    hung = [asyncio.create_task(workers.order(create(n), deadline=never)) for n in (N1, N2)]
    await wait_until_async(lambda: workers.stuck() == {P0: 2})
    answer = await workers.order(create(N3), deadline=never)
    assert (answer.begun, answer.why) == (False, "parent stuck")
    assert (await workers.order(create(N4, P1), deadline=never)).errno is None
    for name in (N1, N2):
        await wait_until_async(lambda name=name: is_under_way(bus, name))  # type: ignore[misc]
        simulated.let_go(host, name)
    assert [answer.errno for answer in await asyncio.gather(*hung)] == [None] * 2
    assert not workers.stuck()
    await workers.stop(5.0)


def test_a_worker_that_cannot_start_leaves_no_descriptor(host: Path) -> None:
    """However few are left, a start that fails gives back all that it took (EMFILE)."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_DESCRIPTORS, str(host), P0, N1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    told = [line.split() for line in done.stdout.splitlines()]
    # One descriptor fewer is taken with each try, and none is left of it.
    assert told == [["False", str(64 - left)] for left in range(5)]
