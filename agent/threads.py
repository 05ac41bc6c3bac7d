"""Blocking calls off the event loop, in threads that do not keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """What `function` returns or raises, called in a daemon thread of its own.

    Not asyncio's own threads: whoever ends waits for those, and a file of a driver can block
    its reader for as long as it likes. A reader in state D still keeps the process there,
    until the driver returns; nothing can end that.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def end(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return  # nobody waits any more
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def call() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            failure = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(end, result, failure)

    threading.Thread(target=call, daemon=True).start()
    return await done
