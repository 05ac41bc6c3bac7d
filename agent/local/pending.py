"""Definitions that mdevctl was let make or take back, until it is known what became of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import structlog

from agent.makers import ended
from coordinator.errors import MdevnsError
from coordinator.model import Name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.local.service import Local
    from coordinator.model import Maker

__all__ = ["Asked", "Pending"]

_log = structlog.get_logger()

_AGAIN = 2.0  # seconds between tries at what the store refused


class Asked(msgspec.Struct, frozen=True):
    """A call whose words were checked."""

    name: Name
    parent: str
    type: str
    attrs: tuple[tuple[str, str], ...]
    autostart: bool


class Pending:
    """Definitions that mdevctl makes or takes back, of which it has not told the end.

    It tells by a callout that may be killed, and ignores what that is answered. So once its
    process has ended, and the store answers, its file tells instead.
    """

    def __init__(self, local: Local, settle: Callable[[Asked], Awaitable[None]]) -> None:
        self._local, self._settle = local, settle
        self._waits: dict[tuple[Name, int], asyncio.Task[None]] = {}

    def watch(self, asked: Asked, maker: Maker) -> None:
        """A process has leave to define or undefine a name."""
        key = asked.name, maker.pid
        if key not in self._waits:
            self._waits[key] = asyncio.create_task(self._wait(asked, maker))

    def over(self, name: Name, pid: int) -> bool:
        """It has told, and what it told was noted; whether it was waited for."""
        wait = self._waits.pop((name, pid), None)
        if wait is not None:
            wait.cancel()
        return wait is not None

    async def idle(self) -> None:
        """Wait until nothing is waited for."""
        await asyncio.gather(*self._waits.values(), return_exceptions=True)

    async def _wait(self, asked: Asked, maker: Maker) -> None:
        try:
            await ended(maker)
            while True:
                await self._local.parts.notes.until(lambda: self._local.store_answers)
                try:
                    await self._settle(asked)
                except MdevnsError as error:
                    _log.warning("definition not settled", name=asked.name, error=error.line)
                    await asyncio.sleep(_AGAIN)
                else:
                    return
        finally:
            self._waits.pop((asked.name, maker.pid), None)
