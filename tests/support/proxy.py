"""A way to some servers that can be cut: TCP proxies with a port of their own for each."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["Proxy"]

_DEADLINE = 60.0  # seconds
_AT_ONCE = 65536


class Proxy:
    """TCP ways to servers, all of them cut and mended together; a context manager.

    What `hold` stops is not lost but late, as packets are that TCP sends again: `let_go`
    delivers it. After `break_off` it never arrives, and the connections are gone.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._ports = [int(endpoint.rpartition(":")[2]) for endpoint in endpoints]
        self._passing = threading.Event()
        self._passing.set()
        self._lock = threading.Lock()
        self._ways: set[_Way] = set()
        self._servers: list[socket.socket] = []
        self._open = ExitStack()

    @property
    def endpoints(self) -> list[str]:
        """The URLs that lead to the servers, in their order."""
        return [f"http://127.0.0.1:{server.getsockname()[1]}" for server in self._servers]

    def hold(self) -> None:
        """Nothing passes any more, neither way; who connects anew hears nothing."""
        self._passing.clear()

    def let_go(self) -> None:
        """What was held arrives, and all passes again."""
        self._passing.set()

    def break_off(self) -> None:
        """What was held is lost, its connections end, and whoever connects anew gets through."""
        with self._lock:
            ways = list(self._ways)
        for way in ways:
            way.end()
        self._passing.set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.break_off)
            for port in self._ports:
                server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                accepting = threading.Thread(target=self._accept, args=(server, port), daemon=True)
                accepting.start()
                stack.callback(accepting.join, _DEADLINE)
                stack.callback(self._stop, server)
                self._servers.append(server)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _stop(self, server: socket.socket) -> None:
        server.shutdown(socket.SHUT_RDWR)
        self._passing.set()

    def _accept(self, server: socket.socket, port: int) -> None:
        with suppress(OSError):  # shut down
            while True:
                near, _ = server.accept()
                self._passing.wait()
                try:
                    far = socket.create_connection(("127.0.0.1", port), _DEADLINE)
                except OSError:  # nobody is there
                    near.close()
                    continue
                far.settimeout(None)
                self._carry(_Way(near, far))

    def _carry(self, way: _Way) -> None:
        with self._lock:
            self._ways.add(way)
        for source, target in ((way.near, way.far), (way.far, way.near)):
            threading.Thread(target=self._pump, args=(way, source, target), daemon=True).start()

    def _pump(self, way: _Way, source: socket.socket, target: socket.socket) -> None:
        """Hand on what comes, as soon as it may pass, until one end is gone."""
        with suppress(OSError):
            while data := source.recv(_AT_ONCE):
                self._passing.wait()
                target.sendall(data)
        way.end()
        with self._lock:
            self._ways.discard(way)
            way.left()


class _Way:
    """One connection: its two ends."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self._pumps = 2

    def end(self) -> None:
        """End both. Whoever reads or writes them sees that."""
        for one in (self.near, self.far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def left(self) -> None:
        """One of its pumps is through; the last one closes both ends."""
        self._pumps -= 1
        if not self._pumps:
            self.near.close()
            self.far.close()
