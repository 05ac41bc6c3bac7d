"""Metrics and health over HTTP, on loopback, in a thread of its own.

`/metrics` for Prometheus, `/healthz` whether the process works, `/readyz` whether it serves its
host; the latter two answer 200 or 503 with a JSON body that says why not.

Everybody on the machine reaches the port, so nothing of it may cost the agent much: there are
few connections at a time, each ends soon, and a port that is taken is waited for. The thread has
an event loop of its own, so `/healthz` answers while the agent's loop hangs.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
from contextlib import contextmanager
from http import HTTPStatus
from threading import Thread
from typing import TYPE_CHECKING

import structlog
from prometheus_client import generate_latest

from agent.health import verdict
from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.health import Vitals
    from agent.metrics import Metrics

__all__ = ["MOST", "OFF", "parse_address", "serving"]

_log = structlog.get_logger()

OFF = "off"
MOST = 32
"""Connections at a time; a further connection ends the oldest."""

_SECONDS = 10.0  # for a whole request, from the connection to the end of the answer
_LARGEST = 8192  # bytes of a request's head
_TEXT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds until a port that is taken is tried again

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
def serving(
    address: _Address | None, metrics: Metrics, vitals: Vitals, *, seconds: float = _SECONDS
) -> Iterator[None]:
    """Serve while the context is open, as soon as the port can be had.

    A request has `seconds`, from the connection to the end of the answer.
    """
    if address is None:
        yield
        return
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    server = _Server(metrics, vitals, seconds)

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve(address, stop))

    thread = Thread(target=run, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


class _Server:
    """The pages, and the connections that ask for them."""

    def __init__(self, metrics: Metrics, vitals: Vitals, seconds: float) -> None:
        self._metrics, self._vitals, self._seconds = metrics, vitals, seconds
        # Oldest first. The tasks are kept here, since a loop keeps none.
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def serve(self, address: _Address, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; a port that cannot be had yet is tried again."""
        listening = asyncio.create_task(self._listen(*address))
        await stop.wait()
        listening.cancel()
        if listening.done() and not listening.cancelled():
            listening.result().close()

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        """Listen, with longer and longer pauses between tries; each reason is logged once."""
        pause, logged = _FIRST_PAUSE, ""
        while True:
            try:
                server = await asyncio.start_server(self._connected, host, port, limit=_LARGEST)
            except OSError as error:
                why = os.strerror(error.errno or errno.EIO)
                if why != logged:
                    _log.warning("metrics cannot be served yet", address=f"{host}:{port}", why=why)
                    logged = why
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                _log.info("serves metrics", port=server.sockets[0].getsockname()[1])
                return server

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.transport.abort()
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections[writer] = task
        task.add_done_callback(lambda _: self._connections.pop(writer, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; who sends none, or reads no answer, is left without a word."""
        writer.transport.set_write_buffer_limits(0)  # so that to drain is to have sent all
        try:
            async with asyncio.timeout(self._seconds):
                writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # among them the timeout
        finally:
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        words = head.decode("latin-1").partition("\r\n")[0].split(" ")
        if len(words) != 3:
            return _page(HTTPStatus.BAD_REQUEST, "text/plain", b"this is not HTTP\n")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _page(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"only GET is answered\n")
        page = self._page(target.partition("?")[0])
        return page if method == "GET" else page.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    def _page(self, path: str) -> bytes:
        if path == "/metrics":
            return _page(HTTPStatus.OK, _TEXT, generate_latest(self._metrics.registry))
        if path not in ("/healthz", "/readyz"):
            body = b"there are /metrics, /healthz and /readyz\n"
            return _page(HTTPStatus.NOT_FOUND, "text/plain", body)
        found = verdict(self._vitals.facts())
        well = found.live if path == "/healthz" else found.ready
        said = {"ok": well, "reasons": found.reasons, "degraded": found.degraded}
        body = json.dumps(said).encode() + b"\n"
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        return _page(status, "application/json", body)


def _page(status: HTTPStatus, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
