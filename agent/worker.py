"""A worker: the process that writes to the kernel, one order at a time.

    python -m agent.worker SPEC RUN_DIR

It reads orders from its standard input and answers on its standard output, one JSON object a
line; it says `{"ready": true}` when it has started and `{"beginning": true}` before each write.
At the end of its input it ends, after the write that is under way has returned: it lives in a
session of its own and takes no notice of SIGINT and SIGTERM, so it outlives its agent. When
nobody reads its answers any more it begins nothing.

Starts fast: the standard library's small modules and the bus, nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from agent.buses import open_bus
from agent.locks import Generation, NameLock

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager
    from typing import Protocol, TypedDict

    from agent.bus import Bus

    class OrderMessage(TypedDict):
        """What the agent sends."""

        generation: int
        deadline: float  # seconds of CLOCK_BOOTTIME
        kind: str
        name: str
        parent: str
        type: str
        attrs: list[tuple[str, str]]

    class Lock(Protocol):
        """A write is under way, until it is released."""

        def release(self) -> None: ...

    class Gate(Protocol):
        """Whose orders may be begun, and which names have a write under way."""

        def in_force(self, number: int, /) -> AbstractContextManager[bool]: ...

        def take(self, name: str, /) -> Lock | None: ...

    Writes = Generator[Callable[[], None], int, "AnswerMessage"]
    """Writes to the kernel, each to be done when it is given; takes the errno, or 0."""

    class ReadyMessage(TypedDict):
        """What it is told when the worker has started."""

        ready: bool

    class BeginningMessage(TypedDict):
        """What it is told before each write."""

        beginning: bool

    class AnswerMessage(TypedDict, total=False):
        """What it gets; the fields are those of `agent.workers.Answer`."""

        begun: bool
        known: bool
        errno: str | None
        attribute: str | None
        why: str
        seconds: float


__all__ = ["AgentGone", "carry_out", "errno_of", "main", "writes"]


class AgentGone(Exception):
    """Nobody reads the answers any more: nothing is begun."""


class _Locks:
    """The gate that all processes of the host share: lock files in the run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.in_force = Generation(run_dir).in_force

    def take(self, name: str) -> NameLock | None:
        return NameLock.take(self._run_dir, name)


def carry_out(
    bus: Bus, run_dir: Path, order: OrderMessage, tell_begun: Callable[[], None]
) -> AnswerMessage:
    """Carry out an order, or say why it will never begin; see `writes`."""
    steps, number = writes(bus, _Locks(run_dir), order, tell_begun, boottime), None
    while True:
        try:
            step = next(steps) if number is None else steps.send(number)
        except StopIteration as end:
            answer: AnswerMessage = end.value
            return answer
        number = errno_of(step)


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def writes(
    bus: Bus,
    gate: Gate,
    order: OrderMessage,
    tell_begun: Callable[[], None],
    clock: Callable[[], float],
) -> Writes:
    """The writes of an order, one after the other; the answer comes at the end.

    The name's lock is taken while the generation is held, and kept until the last write has
    returned. So whoever puts a new generation in force finds the name in flight from then
    on, or the order has not begun and never will. Each of several writes passes this gate:
    an attribute is not written for an agent that has been superseded.
    """
    with gate.in_force(order["generation"]) as ours:
        if not ours:
            return _not_begun("stale generation")
        try:
            lock = gate.take(order["name"])
        except OSError as error:  # a full or read-only run directory
            return _not_begun(f"no lock: {error.strerror}")
    if lock is None:
        return _not_begun("in flight")
    try:
        return (yield from _write(bus, gate, order, tell_begun, clock))
    finally:
        lock.release()


def _write(
    bus: Bus,
    gate: Gate,
    order: OrderMessage,
    tell_begun: Callable[[], None],
    clock: Callable[[], float],
) -> Writes:
    started = 0.0
    for attribute, step in _steps(bus, order):
        why = _why_not(gate, order, tell_begun, clock)
        if why and not started:
            return _not_begun(why)
        if why:
            return {"begun": True, "known": False, "why": why, "seconds": clock() - started}
        started = started or clock()
        number = yield step
        if number:
            name = errno.errorcode.get(number, "EIO")
            seconds = clock() - started
            return {"begun": True, "errno": name, "attribute": attribute, "seconds": seconds}
    return {"begun": True, "seconds": clock() - started if started else 0.0}


def _why_not(
    gate: Gate, order: OrderMessage, tell_begun: Callable[[], None], clock: Callable[[], float]
) -> str:
    """Why the next write must not be begun; empty when it may be, and that is told."""
    with gate.in_force(order["generation"]) as ours:
        if not ours:
            return "stale generation"
    if clock() > order["deadline"]:
        return "deadline"
    try:
        tell_begun()
    except AgentGone:
        return "agent gone"
    return ""


def _steps(bus: Bus, order: OrderMessage) -> Iterator[tuple[str | None, Callable[[], None]]]:
    """The writes of an order, each with the attribute it writes."""
    name, type_ = order["name"], order["type"]
    if order["kind"] == "remove":
        yield None, lambda: bus.remove(name, type_)
        return
    if order["kind"] == "create":
        yield None, lambda: bus.create(order["parent"], type_, name)
    for key, value in order["attrs"]:
        # One at a time: what the loop's variables are now is what the step writes.
        yield key, lambda key=key, value=value: bus.write_attribute(name, key, value)  # type: ignore[misc]


def errno_of(step: Callable[[], None]) -> int:
    """What the kernel says to a write; 0: it is done."""
    try:
        step()
    except OSError as error:
        return error.errno or errno.EIO
    except ValueError:  # a NUL where a path is made
        return errno.EINVAL
    return 0


def _not_begun(why: str) -> AnswerMessage:
    return {"begun": False, "why": why, "seconds": 0.0}


def _send(message: AnswerMessage | BeginningMessage | ReadyMessage) -> None:
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        raise AgentGone from None


def _orders() -> Iterator[OrderMessage]:
    with os.fdopen(0, "rb") as stdin:
        for line in stdin:
            if line.endswith(b"\n"):  # half an order is none: its sender is gone
                yield json.loads(line)


def main(spec: str, run_dir: str) -> None:
    """Carry out orders until there are no more."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    directory = Path(run_dir)
    bus = open_bus(spec, directory, for_worker=True)
    _let_go_of_everything_else()
    with suppress(AgentGone):
        _send({"ready": True})
        for order in _orders():
            _send(_answer(bus, directory, order))


def _answer(bus: Bus, run_dir: Path, order: OrderMessage) -> AnswerMessage:
    try:
        return carry_out(bus, run_dir, order, lambda: _send({"beginning": True}))
    except Exception as error:  # noqa: BLE001 - a defect of ours, which somebody has to hear of
        return {"begun": True, "known": False, "why": f"worker failed: {error!r}", "seconds": 0.0}


def _let_go_of_everything_else() -> None:
    """Keep nothing of the agent's that could outlive it with us.

    A descriptor that some library leaked could keep the agent's lock taken, its standard
    error whoever reads that to its end, its directory a file system.
    """
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nothing, 2)
    with suppress(OSError):  # not by number up to the limit, which can be a billion
        for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all that is wanted
            if int(fd) > 2:
                with suppress(OSError):
                    os.close(int(fd))


if __name__ == "__main__":
    main(*sys.argv[1:])
