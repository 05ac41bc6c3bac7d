"""Time that passes: where what is measured is what happens meanwhile."""

from __future__ import annotations

import asyncio

__all__ = ["window"]


async def window(seconds: float) -> None:
    """Let so many seconds pass. Nothing is waited for: whatever happens in them counts."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(seconds, over.set_result, None)
    try:
        await over
    finally:
        timer.cancel()
