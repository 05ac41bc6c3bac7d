"""The process that sleeps in the simulated kernel in a worker's place.

Starts fast, for the workers: what only a write that sleeps needs is imported then.
"""

from __future__ import annotations

import errno
import marshal
import os
from contextlib import suppress

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import TypeAlias

    Call: TypeAlias = "tuple[str, tuple[str | int | bytes, ...]]"
    """What to do and with what."""

__all__ = ["Sleeper"]

_STANDARD = 2  # the highest of the descriptors that it always has
_MOST = 250  # descriptors in one message; Linux takes 253
_MESSAGE = 1 << 20


class Sleeper:
    """Makes calls in a child that has copies of all our descriptors meanwhile.

    Whoever kills us leaves it, and with it what our descriptors hold, until the call has
    returned; then it ends. Else the child stays for the next call: what a fork makes the two
    copy costs more than a call does.
    """

    def __init__(self, make: Callable[[Call], object]) -> None:
        """`make` makes a call, or raises OSError."""
        self._make = make
        self._child: socket | None = None

    def call(self, call: Call) -> int:
        """Have a call made; its errno, or 0."""
        import socket  # noqa: PLC0415 - see above

        child = self._child or self._start()
        held = [fd for fd in _descriptors() if fd not in (child.fileno(), *range(_STANDARD + 1))]
        answer = b""
        with suppress(ConnectionError):  # it was killed before it took the call
            # Killed before this nothing began; killed after it, it has the copies and goes on.
            socket.send_fds(child, [marshal.dumps(call)], held)
            answer = child.recv(_MESSAGE)
        if not answer:
            self.end()
            return errno.EIO  # it was killed itself, which nobody can do to the real kernel
        return int.from_bytes(answer, "big")

    def _start(self) -> socket:
        import atexit  # noqa: PLC0415 - see above
        import socket  # noqa: PLC0415 - see above

        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._serve(its)
        its.close()
        self._child = ours
        atexit.register(self.end)
        return ours

    def end(self) -> None:
        """Have the child end, if there is one; there is another at the next call."""
        if self._child is not None:
            self._child.close()
            self._child = None
            os.waitpid(self._pid, 0)

    def _serve(self, calls: socket) -> None:
        """Be the child; never returns into its parent's code."""
        import socket  # noqa: PLC0415 - see above

        with suppress(BaseException):
            os.setsid()  # out of our group: a signal to all of that does not find it
            for fd in _descriptors():
                if fd not in (calls.fileno(), *range(_STANDARD + 1)):
                    with suppress(OSError):
                        os.close(fd)
            while True:
                data, held, _, _ = socket.recv_fds(calls, _MESSAGE, _MOST)
                if not data:
                    break
                number = self._errno_of(marshal.loads(data))  # noqa: S302 - our parent's
                for fd in held:
                    os.close(fd)
                calls.send(number.to_bytes(2, "big"))
        os._exit(0)

    def _errno_of(self, call: Call) -> int:
        try:
            self._make(call)
        except OSError as error:
            return error.errno or errno.EIO
        except BaseException:  # noqa: BLE001 - a defect: whoever waits is told
            return errno.EIO
        return 0


def _descriptors() -> list[int]:
    """Those that are open."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    return [fd for fd in numbers if _is_open(fd)]  # not the one of this look


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
