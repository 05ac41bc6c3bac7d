"""The agent's workers, ordered from threads: what writes to the kernel where mdevns runs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.workers import Order, OrderKind, Workers
from coordinator.model import Name

if TYPE_CHECKING:
    from agent.bus import Bus
    from agent.workers import Answer

__all__ = ["Orders"]

_GRACE = 20.0  # seconds for what is under way at the end
_AN_HOUR = 3600.0  # seconds; nothing here is late


class Orders:
    """The workers of a bus, with an event loop of their own."""

    def __init__(self, bus: Bus, run_dir: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._workers = Workers(bus.spec, run_dir)
        self._workers.new_generation()

    def order(self, kind: str, parent: str, type_: str, name: str) -> str:
        """Order a create or a remove; gives what became of it."""
        order = Order(kind=OrderKind(kind), name=Name(name), parent=parent, type=type_)
        late = time.clock_gettime(time.CLOCK_BOOTTIME) + _AN_HOUR
        answering = self._workers.order(order, deadline=lambda: late)
        return _told(asyncio.run_coroutine_threadsafe(answering, self._loop).result())

    def in_flight(self) -> list[str]:
        """The names with a write under way, whoever began it, dead or alive."""
        return sorted(self._workers.in_flight())

    def kill(self) -> None:
        """SIGKILL every worker."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                parent = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
                if parent == os.getpid() and b"agent.worker" in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    def close(self) -> None:
        """Let them end."""
        asyncio.run_coroutine_threadsafe(self._workers.stop(_GRACE), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _told(answer: Answer) -> str:
    if not answer.begun:
        return f"not begun: {answer.why}"
    if not answer.known:
        return f"not known: {answer.why}"
    return answer.errno or "done"
