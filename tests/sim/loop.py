"""An event loop of many processes on virtual time, which decides by a seed who runs next.

Each handle belongs to the process whose context it carries: tasks copy their context, so all
that a process begins is its own. Within one process handles run in the order in which asyncio
runs them; between processes the seed chooses, one handle at a time. A process that is killed
loses all its handles at once, between any two awaits; one that is paused keeps them.

Time passes by a little with each handle, and else jumps to the next moment that is waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

__all__ = ["Handle", "Process", "SimLoop", "Stuck"]

T = TypeVar("T")

_STEP = 2e-5  # seconds that a handle takes
_BEGIN = 1000.0  # seconds; nobody may take 0 for "never"


class Stuck(RuntimeError):
    """Nobody waits for anything that will ever happen."""


class Process:
    """Whose handles these are. `on_death` is called once, when it is killed."""

    __slots__ = ("alive", "doomed", "name", "paused", "ready", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready: deque[Handle] = deque()
        self.alive, self.paused = True, False
        self.tasks: list[asyncio.Task[Any]] = []
        self.doomed: tuple[int, Callable[[], None]] | None = None


_PROCESS: ContextVar[Process] = ContextVar("process")


class Handle:
    """A call that will be made; also what `call_at` gives."""

    __slots__ = ("_when", "args", "callback", "context", "process")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context, when: float
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args, self.context, self._when = args, context, when
        self.process: Process = context[_PROCESS]

    def cancel(self) -> None:
        """Let it not be made."""
        self.callback = None

    def cancelled(self) -> bool:
        """Whether it will not be."""
        return self.callback is None

    def when(self) -> float:
        """When it is due."""
        return self._when


class SimLoop(asyncio.AbstractEventLoop):
    """The loop. `rng` chooses among the processes that could run."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._now = _BEGIN
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._runnable: list[Process] = []
        self._readers: dict[int, Handle] = {}
        self.processes: list[Process] = []
        self.world = Process("world")
        self._outside = copy_context()
        self._outside.run(_PROCESS.set, self.world)
        self.over = self.halted = False
        self.handles = 0
        self.defects: list[str] = []

    # What a process asks.

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def get_debug(self) -> bool:
        """No."""
        return False

    def is_running(self) -> bool:
        """Whether there is anything to wait for."""
        return not self.over

    def is_closed(self) -> bool:
        """Whether all is over."""
        return self.over

    def call_soon(  # type: ignore[override]  # a handle of our own, which is all that is asked of it
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Call it when its process is next at it."""
        handle = Handle(callback, args, context or copy_context(), 0.0)
        self._make_ready(handle)
        return handle

    def call_later(  # type: ignore[override]  # as call_soon
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        """Call it in `delay` seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # as call_soon
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        """Call it at a time."""
        handle = Handle(callback, args, context or copy_context(), when)
        self._count += 1
        heappush(self._timers, (when, self._count, handle))
        return handle

    def create_task(  # type: ignore[override]  # no factories
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Begin a task of the process at hand; it is kept until all is over.

        Else the `finally` of a process that was killed would run when it is forgotten.
        """
        task = asyncio.Task(coro, loop=self, name=name or "", context=context)
        process = _PROCESS.get() if context is None else context[_PROCESS]
        process.tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def run_in_executor(  # type: ignore[override]  # as call_soon
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call it in a moment; a thread of a process that is killed does nothing more."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        self.call_later(1e-4 + 2e-3 * self._random() ** 4, _run, future, func, args)
        return future

    def add_reader(  # type: ignore[override]  # as call_soon
        self, fd: int, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Have `hint` call it."""
        self._readers[fd] = Handle(callback, args, copy_context(), 0.0)

    def remove_reader(self, fd: Any) -> bool:
        """Have it be called no more."""
        return self._readers.pop(fd, None) is not None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody has caught is a defect, as long as the world lasts."""
        if not self.over:
            self.halted = True
            self.defects.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def pass_time(self, seconds: float) -> None:
        """Let virtual time pass for a task; costs none."""
        passed = self.create_future()
        self.call_later(seconds, _set, passed)
        await passed

    # What the world does.

    def hint(self, fd: int) -> None:
        """Whoever reads `fd` has something to read."""
        handle = self._readers.get(fd)
        if handle is not None and handle.callback is not None:
            self._make_ready(Handle(handle.callback, handle.args, handle.context, 0.0))

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Have the world do something at a time."""
        return self.call_at(when, callback, *args, context=self._outside)

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Have the world do something in `delay` seconds."""
        return self.call_at(self._now + delay, callback, *args, context=self._outside)

    def begin(self, process: Process, work: Callable[[], T]) -> T:
        """Do something as a new process."""
        self.processes.append(process)
        return self.context(process).run(work)

    def context(self, process: Process) -> Context:
        """A context in which calls are those of a process."""
        context = self._outside.copy()
        context.run(_PROCESS.set, process)
        return context

    def kill(self, process: Process) -> None:
        """SIGKILL it."""
        if not process.alive:
            return
        process.alive = False
        process.ready.clear()
        process.doomed = None
        if process in self._runnable:
            self._runnable.remove(process)

    def pause(self, process: Process) -> None:
        """SIGSTOP it."""
        process.paused = True
        if process in self._runnable:
            self._runnable.remove(process)

    def go_on(self, process: Process) -> None:
        """SIGCONT it."""
        process.paused = False
        if process.alive and process.ready and process not in self._runnable:
            self._runnable.append(process)

    def _make_ready(self, handle: Handle) -> None:
        process = handle.process
        if not process.alive or self.over:
            return
        if not process.ready and not process.paused:
            self._runnable.append(process)
        process.ready.append(handle)

    def run(self, until: float) -> None:
        """Go on until a time, or until somebody sets `halted`.

        Raises:
            Stuck: nothing will happen any more.
        """
        asyncio._set_running_loop(self)
        try:
            while self._now < until and not self.halted:
                self._step()
        finally:
            asyncio._set_running_loop(None)

    def _step(self) -> None:
        timers, runnable = self._timers, self._runnable
        while timers and timers[0][0] <= self._now:
            self._due(heappop(timers)[2])
        if not runnable:
            if not timers:
                raise Stuck
            self._now = max(self._now, timers[0][0])
            return
        index = int(self._random() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[index]
        handle = process.ready.popleft()
        if not process.ready:
            del runnable[index]
        if handle.callback is not None:
            self.handles += 1
            self._now += _STEP
            handle.context.run(handle.callback, *handle.args)
            if process.doomed is not None:
                _age(process)

    def _due(self, handle: Handle) -> None:
        if handle.callback is None:
            return
        if handle.process is self.world:
            handle.context.run(handle.callback, *handle.args)
        else:
            self._make_ready(handle)

    def end(self) -> None:
        """The world is over: nothing that still ends does anything."""
        self.over = True
        for process in (self.world, *self.processes):
            for task in process.tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own
            process.ready.clear()
        self._timers.clear()


def _age(process: Process) -> None:
    assert process.doomed is not None
    left, die = process.doomed
    process.doomed = (left - 1, die)
    if left <= 0:
        process.doomed = None
        die()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _run(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.done():
        return
    try:
        result = func(*args)
    except BaseException as error:  # noqa: BLE001 - whoever waits gets it
        future.set_exception(error)
    else:
        future.set_result(result)
