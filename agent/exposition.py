"""Metrics and health over HTTP, on loopback, in a thread of its own.

`/metrics` for Prometheus, `/healthz` whether the process works, `/readyz` whether it serves its
host; the latter two answer 200 or 503 with a JSON body that says why not.
"""

from __future__ import annotations

import ipaddress
import json
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from agent.health import verdict
from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from agent.health import Verdict, Vitals
    from agent.metrics import Metrics

__all__ = ["OFF", "parse_address", "serving"]

OFF = "off"

_Address = tuple[str, int]


def parse_address(text: str) -> _Address | None:
    """Where to listen: `127.0.0.1:9477`, or None for `off`.

    Raises:
        Misconfigured: it is neither, or others than this machine would reach it: what it tells
            is guarded by nothing.
    """
    if text == OFF:
        return None
    host, _, port = text.rpartition(":")
    try:
        address, number = ipaddress.IPv4Address(host), int(port)
    except ValueError:
        raise _wrong(text, "is neither off nor an IPv4 address with a port") from None
    if not 0 <= number < 1 << 16:
        raise _wrong(text, "has no such port")
    if not address.is_loopback:
        raise _wrong(text, "is not on loopback, and nothing guards it")
    return str(address), number


def _wrong(text: str, why: str) -> Misconfigured:
    hint = "use off, or 127.0.0.1:9477"
    return Misconfigured(f"metrics {text}", why, hint, setting="agent.metrics")


@contextmanager
def serving(address: _Address | None, metrics: Metrics, vitals: Vitals) -> Iterator[int | None]:
    """Serve while the context is open; the port that is listened on.

    Raises:
        Misconfigured: the port is taken.
    """
    if address is None:
        yield None
        return
    try:
        server = make_server(*address, _app(metrics, vitals), _Server, _Handler)
    except OSError as error:
        raise _wrong(f"{address[0]}:{address[1]}", str(error.strerror)) from None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _app(metrics: Metrics, vitals: Vitals) -> WSGIApplication:
    of_metrics: WSGIApplication = make_wsgi_app(metrics.registry)

    def health(chosen: Callable[[Verdict], bool], start: StartResponse) -> Iterable[bytes]:
        found = verdict(vitals.facts())
        well = chosen(found)
        start(
            "200 OK" if well else "503 Service Unavailable", [("Content-Type", "application/json")]
        )
        return [json.dumps({"ok": well, "reasons": list(found.reasons)}).encode() + b"\n"]

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return of_metrics(environ, start)
            case "/healthz":
                return health(lambda found: found.live, start)
            case "/readyz":
                return health(lambda found: found.ready, start)
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"there are /metrics, /healthz and /readyz\n"]

    return app


class _Server(ThreadingMixIn, WSGIServer):
    """One that a slow reader does not hold up, nor our end."""

    daemon_threads = True
    block_on_close = False


class _Handler(WSGIRequestHandler):
    """One that does not write a line for each request, and lets nobody take a thread for ever."""

    timeout = 10.0

    def log_message(self, *_: object) -> None:
        """Say nothing."""
