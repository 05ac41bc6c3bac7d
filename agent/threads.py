"""Blocking calls off the event loop, in threads that do not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_thread"]

T = TypeVar("T")


_IDLE_MOST = 8


class _Call(NamedTuple):
    future: Future[Any]
    function: Callable[[], object]

    def make(self) -> None:
        try:
            result = self.function()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _DaemonThreads(Executor):
    """As many daemon threads as there are calls at once; a few of them stay for the next ones.

    Not asyncio's own threads: whoever ends waits for those, and a file of a driver can block
    its reader for as long as it likes. A reader in state D still keeps the process there,
    until the driver returns; nothing can end that. A call never waits for another one.
    """

    def __init__(self) -> None:
        self._idle: deque[SimpleQueue[_Call]] = deque()

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """Call `fn` in a thread. What has begun cannot be cancelled, and it begins at once."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        call = _Call(future, partial(fn, *args, **kwargs))
        try:
            self._idle.pop().put(call)  # nobody else has that thread any more
        except IndexError:
            threading.Thread(target=self._serve, args=(call,), daemon=True).start()
        return future

    def _serve(self, call: _Call) -> None:
        calls: SimpleQueue[_Call] = SimpleQueue()
        while True:
            call.make()
            del call  # nor what it was about, while nothing is to be done
            if len(self._idle) >= _IDLE_MOST:
                return
            self._idle.append(calls)
            call = calls.get()


_THREADS = _DaemonThreads()


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """What `function` returns or raises, called in a daemon thread that it has to itself.

    The loop is asked to do it, so that one with a time of its own can call it in its own way.
    """
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function, *args)
