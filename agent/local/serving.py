"""The agent's Unix socket: who may connect, and the server on it."""

from __future__ import annotations

import asyncio
import errno
import grp
import os
import socket
import struct
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.local.api import PEER, Peer, application
from coordinator.errors import MdevnsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from agent.health import Vitals
    from agent.local.service import Local

__all__ = ["GROUP", "SOCKET", "local_socket"]

_log = structlog.get_logger()

SOCKET = "agent.sock"
GROUP = "mdevns"
"""Whoever is in this group may use the socket, as root may."""

_MODE = 0o660
_END = 2.0  # seconds that requests under way have when the agent stops
_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module does not name it
_GROUPS = 1024  # of how many groups the kernel may tell; one who is in more is refused


@asynccontextmanager
async def local_socket(run_dir: Path, local: Local, vitals: Vitals) -> AsyncIterator[Path]:
    """Serve at `run_dir`/agent.sock while the context is open.

    Whoever calls holds the agent's lock: what stands there is what a killed agent left.

    Raises:
        MdevnsError: it cannot be made there.
    """
    path = run_dir / SOCKET
    try:
        listening = _listening(path)
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
        access_log=False,
        timeout_graceful_shutdown=round(_END),
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield path
    finally:
        server.should_exit = True
        await serving
        listening.close()
        path.unlink(missing_ok=True)


def _listening(path: Path) -> socket.socket:
    """A socket there, for root and the group, in the place of one that a killed agent left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By way of the directory: a socket's own path may have no more than 107 bytes (unix(7)).
        listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        _give_to_group(path)
        path.chmod(_MODE)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(directory)
    return listening


def _give_to_group(path: Path) -> None:
    gid = _group()
    if gid is not None and path.stat().st_gid != gid:
        with suppress(PermissionError):  # under systemd it is the group's already
            os.chown(path, -1, gid)


@cache
def _group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


class _Server(uvicorn.Server):
    """One that leaves signals to the agent."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class _Protocol(H11Protocol):
    """HTTP that tells the application who is at the other end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio hands it a transport
        """Ask the kernel who it is: what the mode of the socket allows is checked once more."""
        peer = _peer(transport.get_extra_info("socket"))
        self.app_state = {**self.app_state, PEER: peer}
        super().connection_made(transport)


def _peer(connection: socket.socket) -> Peer:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(credentials)
    groups = {gid, *_supplementary(connection)}
    allowed = uid in (0, os.geteuid()) or _group() in groups
    return Peer(pid, uid, allowed)


def _supplementary(connection: socket.socket) -> tuple[int, ...]:
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS)
    except OSError:  # ERANGE
        return ()
    return struct.unpack(f"{len(data) // 4}I", data)
