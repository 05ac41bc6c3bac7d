"""An event loop whose time does not pass but jumps: to the next moment that anybody waits for.

So code that waits with asyncio (`sleep`, `timeout`, tenacity's backoff) runs at once, in the
order in which it would run in an hour. Nothing outside of the loop can be waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from coordinator.memory import MemoryEtcd

__all__ = ["pass_time", "run_virtual"]

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, time goes on."""

    def __init__(self, passed: Callable[[float], None]) -> None:
        super().__init__()
        self._passed = passed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; when nothing is, let the time pass that would be waited."""
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits for something that nobody will do")
        if not ready and timeout:
            self._passed(timeout)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, passed: Callable[[float], None]) -> None:
        self._now = 0.0
        self._tell = passed
        super().__init__(_JumpingSelector(self._jump))

    def _jump(self, seconds: float) -> None:
        self._now += seconds
        self._tell(seconds)

    def time(self) -> float:
        return self._now


def run_virtual(work: Coroutine[Any, Any, T], core: MemoryEtcd) -> T:
    """Run `work` on virtual time, with which the store's clock goes."""
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(core.advance)) as runner:
        return runner.run(work)


async def pass_time(seconds: float) -> None:
    """Let virtual time pass; costs none. On another loop it would wait, so it refuses."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, _VirtualLoop):
        raise TypeError("time passes by itself here; wait for a condition")
    passed = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    await passed
