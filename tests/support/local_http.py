"""An HTTP server on a Unix socket that answers as it is told and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Desk", "served"]


@dataclass
class Desk:
    """What is answered, by event, and what was asked so far; `silent` answers nothing at all."""

    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    silent: frozenset[str] = frozenset()
    over: threading.Event = field(default_factory=threading.Event)
    came: threading.Event = field(default_factory=threading.Event)

    @property
    def heard(self) -> list[tuple[str, str, str]]:
        """Event, action and state of all that was asked."""
        return [(one["event"], one["action"], one["state"]) for one in self.asked]


@contextmanager
def served(socket: Path) -> Iterator[Desk]:
    """A server there, as long as this lasts."""
    desk = Desk()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # http.server's name for it
            assert self.path == "/v1/mdevctl"
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            desk.asked.append(question)
            desk.headers.append({key.lower(): value for key, value in self.headers.items()})
            desk.came.set()
            if question["event"] in desk.silent:
                desk.over.wait()
                return
            status, text = desk.answers.get(question["event"], (200, ""))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "a process of this host"

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - http.server's
            """Nobody reads it."""

    class Server(ThreadingMixIn, UnixStreamServer):
        daemon_threads = True

    with Server(str(socket), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield desk
        finally:
            desk.over.set()
            server.shutdown()
            serving.join()
