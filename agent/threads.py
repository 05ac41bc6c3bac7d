"""Blocking calls off the event loop, in threads that do not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_thread"]

T = TypeVar("T")


class _DaemonThreads(Executor):
    """A daemon thread for each call.

    Not asyncio's own threads: whoever ends waits for those, and a file of a driver can block
    its reader for as long as it likes. A reader in state D still keeps the process there,
    until the driver returns; nothing can end that.
    """

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """Call `fn` in a thread. What has begun cannot be cancelled, and it begins at once."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def call() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=call, daemon=True).start()
        return future


_THREADS = _DaemonThreads()


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """What `function` returns or raises, called in a daemon thread of its own.

    The loop is asked to do it, so that one with a time of its own can call it in its own way.
    """
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function, *args)
