"""The agent's Unix socket: who may connect, and the server on it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.local.accepting import Acceptor, Connection, most_connections
from agent.local.api import PEER, application
from agent.local.peers import GROUP, group
from coordinator.errors import MdevnsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from uvicorn.server import ServerState

    from agent.health import Vitals
    from agent.local.service import Local

__all__ = ["GROUP", "SOCKET", "local_socket"]

_log = structlog.get_logger()

SOCKET = "agent.sock"
_MODE = 0o660
_SECONDS = 10.0  # for a request to arrive whole
_END = 2.0  # seconds that requests under way have when the agent stops


@asynccontextmanager
async def local_socket(
    run_dir: Path,
    local: Local,
    vitals: Vitals,
    *,
    gid: int | None = None,
    seconds: float = _SECONDS,
    most: int | None = None,
) -> AsyncIterator[Path]:
    """Serve at `run_dir`/agent.sock while the context is open.

    Members of the group `gid` may ask, by default those of `mdevns`. A request has `seconds` to
    arrive whole, and there may be `most` connections. Whoever calls holds the agent's lock: what
    stands there is what a killed agent left.

    Raises:
        MdevnsError: it cannot be made there.
    """
    path, gid = run_dir / SOCKET, group() if gid is None else gid
    try:
        listening = _listening(path, gid)
    except OSError as error:
        hint = "see that its directory has room and is the agent's to write"
        name = errno.errorcode.get(error.errno or 0, "EIO")
        raise MdevnsError(f"socket {path}", str(error.strerror), hint, errno_name=name) from None
    config = uvicorn.Config(
        application(local, vitals),
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what a caller gets wrong is the caller's to know
        access_log=False,
        timeout_graceful_shutdown=round(_END),
    )
    config.load()
    server = _Server(config)
    acceptor = Acceptor(
        listening,
        gid,
        lambda peer: _Protocol(config, server.server_state, {PEER: peer}, seconds),
        most or most_connections(),
    )
    serving = asyncio.create_task(server.serve(sockets=[]))
    try:
        yield path
    finally:
        acceptor.close()
        server.should_exit = True
        await serving
        listening.close()
        path.unlink(missing_ok=True)


def _listening(path: Path, gid: int | None) -> socket.socket:
    """A socket there, for root and the group, in the place of one that a killed agent left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By way of the directory: a socket's own path may have no more than 107 bytes (unix(7)).
        listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        _give_to_group(path, gid)
        path.chmod(_MODE)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(directory)
    return listening


def _give_to_group(path: Path, gid: int | None) -> None:
    if gid is not None and path.stat().st_gid != gid:
        with suppress(PermissionError):  # under systemd it is the group's already
            os.chown(path, -1, gid)


class _Server(uvicorn.Server):
    """One that leaves signals to the agent."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class _Protocol(H11Protocol, Connection):
    """HTTP with a deadline for each request, from its first moment to the last byte of its body.

    The application finds the peer in the state of each request: what the mode of the socket allows
    is checked once more.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        seconds: float,
    ) -> None:
        """A request has so many seconds."""
        super().__init__(config, server_state, app_state)
        self._seconds = seconds
        self._deadline: asyncio.TimerHandle | None = None
        self._is_aborted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio hands it a transport
        """Expect a request."""
        super().connection_made(transport)
        if self._is_aborted:  # between its accept and now
            transport.abort()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no more."""
        if self._deadline is not None:
            self._deadline.cancel()
        self.ended()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Look after what has arrived whether more of a request is expected."""
        super().handle_events()
        self._expect()

    def _expect(self) -> None:
        cycle = self.cycle
        self.is_waiting = (
            cycle is None  # type: ignore[redundant-expr]  # so it is until a request has come
            or cycle.more_body
            or cycle.response_complete
        )
        if not self.is_waiting and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.is_waiting and self._deadline is None:
            self._deadline = self.loop.call_later(self._seconds, self.abort)

    def abort(self) -> None:
        """Close it at once; a caller that has not sent its request gets no answer."""
        self._is_aborted = True
        transport: asyncio.Transport | None = self.transport
        if transport is not None:
            transport.abort()
