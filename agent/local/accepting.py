"""The connections to the agent's socket: how many there may be, and how long a request may take.

Descriptors are what a caller can use up for everybody. So there is a bound for each user and one
for all users but root and the agent's own; when a user reaches it, that user's oldest connection
without a request goes, and if each has one the new connection is refused. The bounds follow from
the limit of descriptors (RLIMIT_NOFILE), of which the socket takes a quarter at most.

The event loop's own `create_server` is not used: while no descriptor is left it logs a traceback a
hundred times a second (Python 3.11), and it accepts before anybody is asked who connects.
"""

from __future__ import annotations

import asyncio
import os
import resource
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from agent.local.peers import peer_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from agent.local.peers import Peer

__all__ = ["Acceptor", "Connection", "most_connections"]

_log = structlog.get_logger()

_AT_ONCE = 64  # connections to accept before others get their turn
_PAUSE = 1.0  # seconds until the next try where nothing can be accepted
_MOST = 1024
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"EAGAIN: the agent's socket: too many connections of your user; close some\n"
)


def most_connections() -> int:
    """How many connections there may be: a quarter of the descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else max(4, min(_MOST, soft // 4))


class Connection(asyncio.Protocol):
    """What the acceptor knows of a connection."""

    peer: Peer
    is_waiting: bool = True
    """Whether its request has not arrived whole."""
    ended: Callable[[], None]
    """To be called when the connection is lost."""

    def abort(self) -> None:
        """Close it at once."""
        raise NotImplementedError


class Acceptor:
    """Accepts connections within the bounds, and gives each to a protocol."""

    def __init__(
        self,
        listening: socket.socket,
        gid: int | None,
        protocol: Callable[[Peer], Connection],
        most: int,
    ) -> None:
        """`gid` is the group whose members may ask; `most` bounds the connections."""
        listening.setblocking(False)
        self._listening, self._gid, self._protocol, self._most = listening, gid, protocol, most
        self._loop = asyncio.get_running_loop()
        self._connections: dict[Connection, asyncio.Task[object]] = {}  # oldest first
        self._logged: set[str] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._start()

    def close(self) -> None:
        """Accept no more."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listening.fileno())

    def _start(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # EMFILE, ENFILE, ENOBUFS, ENOMEM: it stays in the backlog
                self._log_once("cannot accept connections", str(error.strerror))
                self._loop.remove_reader(self._listening.fileno())
                self._retry = self._loop.call_later(_PAUSE, self._start)
                return
            try:
                self._take(connection)
            except OSError as error:
                self._log_once("connection dropped", str(error.strerror))
                connection.close()

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        peer = peer_of(connection, self._gid)
        if not self._has_room(peer):
            self._log_once("connections refused", f"uid {peer.uid} has too many")
            with suppress(OSError):
                connection.send(_REFUSAL)
            connection.close()
            return
        protocol = self._protocol(peer)
        protocol.peer, protocol.ended = peer, lambda: self._over(protocol)
        serving = self._loop.connect_accepted_socket(lambda: protocol, connection)
        self._connections[protocol] = asyncio.create_task(serving)

    def _has_room(self, peer: Peer) -> bool:
        """Whether the user may have one more; one that waits for its request may go for it."""
        while not self._fits(peer):
            oldest = next((c for c in self._connections if c.is_waiting and _same(c, peer)), None)
            if oldest is None:
                return False
            self._over(oldest)
            oldest.abort()
        return True

    def _fits(self, peer: Peer) -> bool:
        if _is_trusted(peer):
            return len(self._connections) < self._most
        others = [c.peer.uid for c in self._connections if not _is_trusted(c.peer)]
        return len(others) < self._most // 2 and others.count(peer.uid) < self._most // 4

    def _over(self, protocol: Connection) -> None:
        self._connections.pop(protocol, None)
        if not self._connections:
            self._logged.clear()

    def _log_once(self, event: str, why: str) -> None:
        """Log what goes on for a while once, and again after all was quiet."""
        if event not in self._logged:
            self._logged.add(event)
            _log.warning(event, socket="agent.sock", why=why)


def _is_trusted(peer: Peer) -> bool:
    return peer.uid in (0, os.geteuid())


def _same(connection: Connection, peer: Peer) -> bool:
    return connection.peer.uid == peer.uid
