"""A caller of an agent's local socket, in the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.threads import in_thread

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Answer", "ask", "ask_blocking"]

_DEADLINE = 60.0  # seconds


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket, whose path may be of any length."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_DEADLINE)
        self._path = path

    def connect(self) -> None:
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(_DEADLINE)
            self.sock.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.close(directory)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: Any


def ask_blocking(
    path: Path, method: str, where: str, body: object = None, *, text: bool = False
) -> Answer:
    """One request; its answer's body as JSON, or with `text` as the line that was asked for."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
    headers = {"Accept": "text/plain"} if text else {}
    with closing(_Connection(path)) as connection:
        connection.request(method, where, data, headers)
        answer = connection.getresponse()
        read = answer.read().decode()
    return Answer(answer.status, read if text else json.loads(read))


async def ask(
    path: Path, method: str, where: str, body: object = None, *, text: bool = False
) -> Answer:
    """The same, off the event loop."""
    return await in_thread(lambda: ask_blocking(path, method, where, body, text=text))
