"""Who is at the other end of the agent's socket, and for which process it may speak.

The kernel notes the process that connects (SO_PEERCRED). Its pid alone can be another process's by
now, so it is kept with the start of its process. A kernel that has SO_PEERPIDFD (Linux 6.5) shows
whether the two belong together; an older one is asked as soon as the connection is accepted.

A caller names the process that writes to the kernel. The agent believes only what it can look up:
that process is the caller itself, the caller's parent (mdevctl, whose callout asks), or for a new
claim a child of the caller.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import select
import socket
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from agent.makers import lineage, living, maker_of
from coordinator.errors import NotAllowed

if TYPE_CHECKING:
    from coordinator.model import Maker

__all__ = ["GROUP", "Peer", "group", "peer_of"]

GROUP = "mdevns"
"""Members of this group may use the socket, as root may."""

_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module names neither
_SO_PEERPIDFD = 77
_NEVER_ENDS = (0, 1)  # 0: a process of another PID namespace; 1: init


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as the kernel notes it, and whether it may ask.

    `process` is None if it has ended, or is in a PID namespace that the agent cannot see.
    """

    pid: int
    uid: int
    allowed: bool
    process: Maker | None = None

    @property
    def asked_by(self) -> str:
        """Who it is, as it stands in claims."""
        return f"uid {self.uid} (pid {self.pid})"

    def writer(self, pid: int, *, its_child: bool = False) -> Maker:
        """Look up the process that the peer names as who writes to the kernel.

        It is the peer or its parent; with `its_child` it may be a child of the peer, too.

        Raises:
            NotFound: there is no such process.
            NotAllowed: it is another one, or the peer has ended.
        """
        if pid in _NEVER_ENDS:
            raise _not_allowed(pid, "never ends, and its claim could not be taken back")
        writer = maker_of(pid)
        parent = lineage(pid)
        # Last, for a process that lives with this parent now had it all the while.
        me = lineage(self.pid)
        if self.process is None or me is None or me.process != self.process:
            why = f"is named by process {self.pid}, which has ended or cannot be seen from here"
            raise _not_allowed(pid, why)
        if writer == self.process or (me.parent == pid and living(pid) == writer):
            return writer
        if its_child and parent is not None and parent == (writer, self.pid):
            return writer
        raise _not_allowed(pid, f"is neither process {self.pid}, which asks, nor its parent")


def _not_allowed(pid: int, why: str) -> NotAllowed:
    hint = "The process that writes to create or remove has to ask itself, or a child of it."
    return NotAllowed(f"process {pid}", why, hint)


def peer_of(connection: socket.socket, gid: int | None) -> Peer:
    """Ask the kernel who connected, at once when the connection is accepted.

    Allowed are root, the agent's own user, and the members of the group `gid`.

    Raises:
        OSError: the kernel does not say.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, own_gid = _UCRED.unpack(credentials)
    allowed = uid in (0, os.geteuid()) or gid in {own_gid, *_supplementary(connection)}
    return Peer(pid, uid, allowed, _process(connection, pid))


@cache
def group() -> int | None:
    """The number of the group `mdevns`, or None if the host has no such group."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _process(connection: socket.socket, pid: int) -> Maker | None:
    """The process that connected; None if it has ended or cannot be seen."""
    if pid == 0:
        return None
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:  # Linux before 6.5
            return living(pid)
        return None  # ESRCH, ENODATA, EINVAL: it has ended; EMFILE: it cannot be known
    fd = int.from_bytes(data, "little")
    try:
        process = living(pid)
        has_ended = select.poll()
        has_ended.register(fd, select.POLLIN)
        return None if has_ended.poll(0) else process
    finally:
        os.close(fd)


def _supplementary(connection: socket.socket) -> tuple[int, ...]:
    """The peer's supplementary groups, as many as there are.

    By libc's own call, since Python's reads 1,024 bytes at most, which are 256 groups.

    Raises:
        OSError: the kernel does not say.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_uint32(0)
    while True:
        groups = ctypes.create_string_buffer(max(size.value, 4))
        size = ctypes.c_uint32(len(groups) if size.value else 0)
        got = libc.getsockopt(
            connection.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size)
        )
        if got == 0:
            return struct.unpack_from(f"{size.value // 4}I", groups)
        number = ctypes.get_errno()
        if number != errno.ERANGE:  # with ERANGE the size that is needed is set
            raise OSError(number, os.strerror(number))
