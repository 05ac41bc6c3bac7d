"""One who asks with the command line, as people and scripts do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.chaos.history import Told, Verb
from tests.support.linearizable import ANY

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from tests.chaos.history import Asked, Diary
    from tests.chaos.orders import Orders

__all__ = ["Clerk", "environment"]


def environment(orders: Orders) -> dict[str, str]:
    """What the command is run in: nothing of this machine's own configuration."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("MDEVNS_")}
    marks = {key: value for key, value in os.environ.items() if key.startswith("MDEVNS_TEST_")}
    credentials = orders.credentials
    shown = {"CACERT": credentials.cacert, "CERT": credentials.cert, "KEY": credentials.key}
    return {
        **others,
        **marks,
        "MDEVNS_CONFIG": os.devnull,
        "MDEVNS_ENDPOINTS": ",".join(orders.endpoints),
        "MDEVNS_CLUSTER": orders.cluster,
        **{f"MDEVNS_{key}": str(path) for key, path in shown.items() if path is not None},
    }


class Clerk:
    """One command after the other, each a process."""

    def __init__(self, orders: Orders, diary: Diary, rng: random.Random) -> None:
        self._orders, self._environment = orders, environment(orders)
        self._diary, self.rng = diary, rng

    async def asks(self, verb: Verb, name: str, host: str | None) -> Told:
        """Ask, and note what is told."""
        request = uuid.UUID(int=self.rng.getrandbits(128)).hex
        # `define` makes up its own, which is known when it has answered.
        asked = self._diary.asks(verb, name, ANY if verb is Verb.DEFINE else request, host)
        code, out, err = await self._run(*_words(asked, self._orders))
        told = _told(asked, code, _read(out), _read(err))
        self._diary.told(told)
        return told

    async def _run(self, *words: str) -> tuple[int, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", "-o", "json", "--timeout", "3", *words),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out, err


def _words(asked: Asked, orders: Orders) -> list[str]:
    on = ["--host", asked.host] if asked.host else []
    match asked.verb:
        case Verb.CREATE:
            more = ["--type", orders.type, "--request", asked.request, "--ttl", "6", *on]
        case Verb.RESERVE:
            more = ["--request", asked.request, "--ttl", "8"]
        case Verb.DEFINE:
            more = ["--type", orders.type, "--parent", orders.parent, *on]
        case Verb.MOVE:
            more = ["--to", asked.host or ""]
        case _:
            more = []
    return [asked.verb.value, asked.name, *more]


def _read(text: bytes) -> Mapping[str, Any]:
    """The last object that was printed, empty where none was."""
    with suppress(ValueError):
        read = json.loads(text)
        read = read[-1] if isinstance(read, list) and read else read
        return read if isinstance(read, dict) else {}
    return {}


def _told(asked: Asked, code: int, out: Mapping[str, Any], err: Mapping[str, Any]) -> Told:
    """The answer; what a command does not print of the holder is not known."""
    holder = err.get("holder") or {}
    host = holder.get("host") if code else out.get("host")
    return Told(
        id=asked.id,
        code=code,
        at=time.monotonic(),
        held=bool(holder) if code else "name" in out,
        host=host,
        request=None if code else out.get("request"),
        state=holder.get("state") if code else out.get("state"),
        line=str(err.get("message", "")),
    )
