"""The worker processes: whatever is written to the kernel is ordered here.

One write at a time for each process, as many at once for each parent as configured and as the
host bears (`agent.slots`), and no parent waits for the driver of another. A process and not a
thread, because one that hangs in the kernel keeps its whole process from ending, and the agent's
lock with it.

What is not promised: that a worker which is paused (SIGSTOP, a frozen VM) right before its
write does not write much later. It is in flight all that time, for every agent of this host.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from agent.locks import Generation, names_in_flight
from agent.slots import STOPPING, Bounds, Slots
from agent.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from coordinator.model import Name

__all__ = [
    "Answer",
    "Machine",
    "Order",
    "OrderKind",
    "Processes",
    "Worker",
    "Workers",
    "answer_of",
]

_IDLE = 30.0  # seconds until a worker that has nothing to do is let go
_STARTED = 5.0  # seconds for which one that starts keeps another from it
_PACKAGES = str(Path(__file__).resolve().parent.parent)
# Not `-m`, whose runpy costs time; isolated and without site, which costs more.
_START = "import sys; sys.path.insert(0, {!r}); from agent.worker import main; main(*sys.argv[1:])"


class OrderKind(StrEnum):
    """What is to be done to a device."""

    CREATE = "create"  # create, then its attributes in order
    CONFIGURE = "configure"  # its attributes only
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to write to the kernel."""

    kind: OrderKind
    name: Name
    parent: str
    type: str
    attrs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of an order.

    `begun` false: nothing was written, and never will be; `why` says why (`stale generation`,
    `deadline`, `in flight`, `stopping`, `agent gone`, `worker died`, `no worker`,
    `parent stuck`).
    `known` false: it was begun, and how it ended is not known; look again. Some of it may
    still be to come, then the name is in flight; some of it may never come, as after a create
    in the midst of which the deadline passed, whose attributes are not written.
    `errno` names the errno of the write that failed, None: all was done. `attribute` is the
    attribute that failed, None: the create or remove itself.
    `seconds` from the beginning of the first write to the end of the last.
    """

    begun: bool
    known: bool = True
    errno: str | None = None
    attribute: str | None = None
    why: str = ""
    seconds: float


def _not_begun(why: str) -> Answer:
    return Answer(begun=False, why=why, seconds=0.0)


class Worker(Protocol):
    """The agent's end of one process that carries out orders, one at a time."""

    pid: int
    """Its process."""
    ended: asyncio.Future[None]
    """Done when it has ended and its last word was read."""
    resting: asyncio.Handle
    """What ends it when it has had nothing to do for long."""
    is_asked: bool
    """Whether it has an order that it has not answered."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        ...

    async def ask(self, line: bytes) -> Answer:
        """Send an order and wait for what became of it."""
        ...

    def hang_up(self) -> None:
        """Let it end when its write has returned; whoever waits for an answer is told."""
        ...

    def close(self) -> None:
        """Let go of all that is held for it."""
        ...


async def answer_of(
    messages: asyncio.Queue[dict[str, Any] | None], is_given_up: Callable[[], bool]
) -> Answer:
    """What became of an order, from a worker's messages; None is the last: there are no more.

    `is_given_up` says whether that is because nobody listens any more.
    """
    begun = False
    while True:
        message = await messages.get()
        if message is None and not begun and not is_given_up():
            # It would have said so before it wrote, and cannot any more.
            return _not_begun("worker died")
        if message is None:
            why = "still under way" if is_given_up() else "worker died"
            return Answer(begun=True, known=False, why=why, seconds=0.0)
        if "beginning" not in message:
            return Answer(**message)
        begun = True


class Machine(Protocol):
    """What all agents of a host share: its workers' processes, and the locks that they take."""

    def renew(self) -> int:
        """Put a new generation in force; see `agent.locks.Generation`."""
        ...

    def revoke(self, number: int) -> None:
        """Let no order of this generation begin any more."""
        ...

    def in_flight(self) -> frozenset[Name]:
        """The names for which a write is under way, whoever began it."""
        ...

    async def start(self) -> Worker:
        """Start a worker; returns when it can be asked, or soon.

        Raises:
            OSError: there can be none.
        """
        ...


class Processes:
    """The machine itself (`Machine`): processes, and lock files in the run directory."""

    def __init__(self, spec: str, run_dir: Path) -> None:
        """`spec` is the bus's (`Bus.spec`)."""
        self._spec, self._run_dir = spec, run_dir.absolute()
        generation = Generation(self._run_dir)
        self.renew, self.revoke = generation.renew, generation.revoke

    def in_flight(self) -> frozenset[Name]:
        """The names whose lock is taken."""
        return cast("frozenset[Name]", names_in_flight(self._run_dir))

    async def start(self) -> Worker:
        """Start a process. Raises OSError where there can be none."""
        process = _Process(await in_thread(_spawn, self._spec, self._run_dir))
        await asyncio.wait({process.ready}, timeout=_STARTED)
        return process


class Workers:
    """The workers of a host. Its coroutines belong to one event loop."""

    def __init__(
        self,
        spec: str,
        run_dir: Path,
        *,
        machine: Machine | None = None,
        per_parent: int = 4,
        bounds: Bounds | None = None,
        stuck_after: float = 10.0,
        idle_after: float = _IDLE,
    ) -> None:
        """`spec` is the bus's (`Bus.spec`); all times are seconds.

        A write that has not returned after `stuck_after` gives its turn at the parent to
        others; it stays in flight until it returns. `bounds` are what this host bears and
        `machine` is this one, unless told.
        """
        self._machine = machine or Processes(spec, run_dir)
        self._slots = Slots(bounds or Bounds.of_host(per_parent))
        self._stuck_after, self._idle_after = stuck_after, idle_after
        self._generation = 0
        self._stopping = False
        # A start costs a processor for a while: more of them at once keep the agent from its own.
        self._starts = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        self._names: set[Name] = set()
        self._writes: set[asyncio.Task[Answer]] = set()
        self._processes: set[Worker] = set()
        self._idle: list[Worker] = []

    def new_generation(self) -> int:
        """Put a new generation in force; to be called at each enrolment.

        Afterwards no order of an older one begins, by whichever agent of this host, and those
        that have begun are `in_flight`. Blocks for moments, so it may be called from a thread.
        """
        self._generation = self._machine.renew()
        self._stopping = False
        return self._generation

    def in_flight(self) -> frozenset[Name]:
        """The names with an order here, begun or not, or a write under way, whoever began it.

        May be called from a thread.
        """
        # Ours first: an order that is answered in between has returned before the other look.
        ours = frozenset(self._names)
        return ours | self._machine.in_flight()

    def stuck(self) -> Mapping[str, int]:
        """The parents whose driver lets writes hang, so that no more are begun, and how many."""
        return self._slots.stuck()

    async def order(self, order: Order, *, deadline: Callable[[], float]) -> Answer:
        """Carry out an order, when the parent has a turn for it.

        `deadline` is asked when a worker gets it: seconds of CLOCK_BOOTTIME after which no
        write of it begins. Cancelled while it waits for its turn, it never begins; later,
        it goes on, and its name is in flight until it has ended.
        """
        if not self._generation:
            return _not_begun("stale generation")
        if self._stopping:
            return _not_begun("stopping")
        if order.name in self._names:
            return _not_begun("in flight")
        generation = self._generation
        self._names.add(order.name)
        try:
            why = await self._slots.take(order.parent)
        except BaseException:
            self._names.discard(order.name)
            raise
        if not why and self._stopping:  # it came in the moment of the stop
            self._slots.give_back(order.parent, hung=False)
            why = STOPPING
        if why:
            self._names.discard(order.name)
            return _not_begun(why)
        write = asyncio.create_task(self._write(order, generation, deadline))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        return await asyncio.shield(write)

    async def stop(self, grace: float) -> None:
        """Begin nothing more, and wait up to `grace` seconds for what has begun.

        Orders that have not begun never will, and are answered so. What hangs is left to end
        by itself, answered as not known; its name stays in flight for the next agent.
        """
        self._stopping = True
        self._slots.close()
        # Those that a worker has in hand and has not begun, too.
        await in_thread(self._machine.revoke, self._generation)
        self._generation = 0
        if self._writes:
            await asyncio.wait(self._writes, timeout=grace)
        ending = [process.ended for process in self._processes if not process.is_asked]
        for process in list(self._processes):
            process.hang_up()
        if self._writes:
            await asyncio.wait(self._writes)
        if ending:
            await asyncio.wait(ending, timeout=max(grace, 1.0))
        for process in list(self._processes):
            self._forget(process)

    async def _write(self, order: Order, generation: int, deadline: Callable[[], float]) -> Answer:
        hung = False
        try:
            try:
                process = await self._take_process()
            except OSError as error:
                return _not_begun(f"no worker: {error.strerror}")
            if self._stopping:  # its start took until after the stop
                process.hang_up()
                return _not_begun(STOPPING)
            if not process.is_alive:
                return _not_begun("worker died")  # before it was asked
            exchange = asyncio.create_task(self._exchange(process, order, generation, deadline))
            await asyncio.wait({exchange}, timeout=self._stuck_after)
            if not exchange.done():
                hung = True
                self._slots.hang(order.parent)
            return await exchange
        finally:
            self._names.discard(order.name)
            self._slots.give_back(order.parent, hung=hung)

    async def _exchange(
        self, process: Worker, order: Order, generation: int, deadline: Callable[[], float]
    ) -> Answer:
        message = {
            "generation": generation,
            "deadline": deadline(),
            "kind": order.kind.value,
            "name": order.name,
            "parent": order.parent,
            "type": order.type,
            "attrs": order.attrs,
        }
        answer = await process.ask(json.dumps(message).encode() + b"\n")
        if process.is_alive and not self._stopping:
            self._put_aside(process)
        else:
            process.hang_up()
        return answer

    async def _take_process(self) -> Worker:
        """One that has nothing to do, or another that is started when it is its turn.

        Raises:
            OSError: there can be none.
        """
        process = self._idle_process()
        if process is not None:
            return process
        async with self._starts:
            process = self._idle_process()  # some were put aside meanwhile
            if process is None:
                process = await self._machine.start()
                self._keep(process)
            return process

    def _idle_process(self) -> Worker | None:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                process.resting.cancel()
                return process
        return None

    def _keep(self, process: Worker) -> None:
        self._processes.add(process)
        process.ended.add_done_callback(lambda _: self._forget(process))

    def _put_aside(self, process: Worker) -> None:
        loop = asyncio.get_running_loop()
        process.resting = loop.call_later(self._idle_after, process.hang_up)
        self._idle.append(process)

    def _forget(self, process: Worker) -> None:
        self._processes.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        process.close()


class _Process:
    """The agent's end of one worker.

    Not asyncio's subprocess: that one kills the process when its transport is closed.
    """

    def __init__(self, spawned: _Spawned) -> None:
        self._loop = asyncio.get_running_loop()
        self.pid, self._pidfd, self._orders, self._answers = spawned
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when it has started, or never will."""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.resting: asyncio.Handle = self._loop.call_soon(lambda: None)
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._partial = b""
        self._writable = asyncio.Event()
        self._given_up = self._closed = self._exited = self._silent = False
        self.is_asked = False
        self._loop.add_reader(self._answers, self._read)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not (self._given_up or self._exited or self._silent)

    async def ask(self, line: bytes) -> Answer:
        """Send an order and wait for what became of it."""
        self.is_asked = True
        await self._send(line)
        answer = await answer_of(self._messages, lambda: self._given_up)
        self.is_asked = False
        return answer

    async def _send(self, line: bytes) -> None:
        with suppress(OSError):  # it died, or is given up: there will be no answer
            while line:
                try:
                    line = line[os.write(self._orders, line) :]
                except BlockingIOError:  # longer than a pipe holds
                    self._writable.clear()
                    self._loop.add_writer(self._orders, self._writable.set)
                    await self._writable.wait()
                    self._stop_writing()

    def _stop_writing(self) -> None:
        self._writable.set()
        if self._orders >= 0:
            self._loop.remove_writer(self._orders)

    def _read(self) -> None:
        try:
            data = os.read(self._answers, 65536)
        except BlockingIOError:
            return
        if not self.ready.done():
            self.ready.set_result(None)
        if not data:
            self._loop.remove_reader(self._answers)
            self._messages.put_nowait(None)
            self._silent = True
            self._check_end()
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        for message in map(json.loads, lines):
            if "ready" not in message:
                self._messages.put_nowait(message)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)  # it has ended, says the pidfd
        self._exited = True
        self._check_end()

    def _check_end(self) -> None:
        """It has ended when it has exited and its last word was read, whichever comes last."""
        if self._exited and self._silent and not self.ended.done():
            self.ended.set_result(None)

    def hang_up(self) -> None:
        """Let it end when its write has returned; whoever waits for an answer is told."""
        self._given_up = True
        self.resting.cancel()
        self._messages.put_nowait(None)
        self._stop_writing()
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1

    def close(self) -> None:
        """Let go of all descriptors."""
        if self._closed:
            return
        self._closed = True
        self.hang_up()
        for fd in (self._answers, self._pidfd):
            self._loop.remove_reader(fd)
            os.close(fd)


class _Spawned(NamedTuple):
    """A worker's process and the agent's ends of its pipes, which the caller closes."""

    pid: int
    pidfd: int
    orders: int
    answers: int


def _spawn(spec: str, run_dir: Path) -> _Spawned:
    """Start a worker; blocks for as long as the kernel takes for that.

    Raises:
        OSError: there can be none; nothing of it is left.
    """
    fds: list[int] = []
    pid = 0
    try:
        fds += os.pipe()
        fds += os.pipe()
        orders, our_orders, our_answers, answers = fds
        os.set_blocking(our_orders, False)
        os.set_blocking(our_answers, False)
        pid = _posix_spawn(spec, run_dir, orders, answers)
        pidfd = os.pidfd_open(pid)
    except OSError:
        for fd in fds:
            os.close(fd)
        if pid:
            os.waitpid(pid, 0)  # its input has ended, and so it ends
        raise
    os.close(orders)
    os.close(answers)
    return _Spawned(pid, pidfd, our_orders, our_answers)


def _posix_spawn(spec: str, run_dir: Path, orders: int, answers: int) -> int:
    """Start a worker in a session of its own, with two pipes and nothing else of ours."""
    program = _START.format(_PACKAGES)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", program, spec, str(run_dir)],
        # A password in the agent's environment is nothing for a worker.
        {key: text for key, text in os.environ.items() if not key.startswith("MDEVNS_")},
        file_actions=[(os.POSIX_SPAWN_DUP2, orders, 0), (os.POSIX_SPAWN_DUP2, answers, 1)],
        setsid=True,
    )
