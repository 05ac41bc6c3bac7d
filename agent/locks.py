"""The locks of one host, all of them files in the agent's run directory.

    agent.lock     one agent a machine
    generation     whose orders may be begun: the number of the enrolment in force
    names/<uuid>   a write to the kernel is under way for this name, whoever began it

They are open file description locks (fcntl(2)). Like flock they belong to an open descriptor
and end with its last copy, so a process that hangs in the kernel keeps its lock however often
it is killed. Unlike flock, whether one is taken can be asked without taking it, so a look
never gets in the way of a worker.

Starts fast, for the workers: the standard library's small modules only.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager, suppress

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["AgentLock", "Generation", "NameLock", "exclusive", "names_in_flight"]

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux; l_pid is 0 for these locks
_NUMBER_WIDTH = 16  # always the same length, so that one write replaces the whole number


def _request(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _lock(fd: int, kind: int, *, wait: bool) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _request(kind))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
        return False
    return True


def _is_locked(fd: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _stands_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _open_locked(path: Path, kind: int, *, wait: bool = True, create: bool = True) -> int | None:
    """A descriptor of the file with its lock taken; None where it is taken and not waited for.

    A lock file may be removed by whoever holds it. Somebody who opened it before then locks
    a file that no longer stands there, while a third one locks a new file: so look again
    after locking, and start over.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            taken = _lock(fd, kind, wait=wait)
            if taken and _stands_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if not taken:
            return None


@contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Hold the lock of the file alone, waiting for it; gives the descriptor."""
    fd = _open_locked(path, fcntl.F_WRLCK)
    assert fd is not None  # it was waited for
    try:
        yield fd
    finally:
        os.close(fd)


class AgentLock:
    """One agent a machine, for as long as it is held. A context manager.

    The descriptor closes when another program is executed, so no child keeps it taken.
    """

    def __init__(self, run_dir: Path, machine: Path | None = None) -> None:
        """`machine` is a directory that every agent of the machine sees, as /sys is.

        It is locked too: two agents with run directories of their own would not see one
        another's writes to the kernel.
        """
        self._path, self._machine = run_dir / "agent.lock", machine
        self._fd: int | None = None
        self._machine_fd: int | None = None

    def take(self) -> None:
        """Take it, without waiting.

        Raises:
            InUse: another agent runs here.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._take_machine()
        fd = _open_locked(self._path, fcntl.F_WRLCK, wait=False)
        if fd is None:
            self.release()
            raise self._taken()
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd

    def _take_machine(self) -> None:
        if self._machine is None:
            return
        # flock, for a directory cannot be opened for writing, as the others would want.
        fd = os.open(self._machine, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise self._taken() from None
        self._machine_fd = fd

    def _taken(self) -> Exception:
        from coordinator.errors import InUse  # noqa: PLC0415 - workers do without its cost

        with suppress(OSError):
            pid = self._path.read_text().strip()
            if pid:
                why = f"another agent (pid {pid}) runs here"
                return InUse(str(self._path.parent), why, "one agent a machine; stop it first")
        why = "another agent runs here"  # it has not written its number yet
        return InUse(str(self._path.parent), why, "one agent a machine; stop it first")

    def release(self) -> None:
        """Let it go. Twice is fine."""
        for fd in (self._fd, self._machine_fd):
            if fd is not None:
                os.close(fd)
        self._fd = self._machine_fd = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.release()


class Generation:
    """Whose orders may be begun. Compared by value, as the epoch in the store is.

    A worker holds it shared from its check until it has taken the name's lock. Whoever
    renews it waits for that, so afterwards an order of an older generation is either seen
    as in flight or never begins: there is no third.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / "generation"

    def renew(self) -> int:
        """Put a new one in force and return it. Blocks for moments.

        Also sweeps up the lock files of workers that were killed: none can be between
        opening and locking one, because that happens under the shared lock.
        """
        names = self._run_dir / "names"
        names.mkdir(parents=True, exist_ok=True)
        number = int.from_bytes(os.urandom(6), "big") + 1  # by chance, as a counter may restart
        with exclusive(self._path) as fd:
            _write_number(fd, number)
            for path in names.iterdir():
                if not _is_taken(path):
                    path.unlink(missing_ok=True)
        return number

    def revoke(self, number: int) -> None:
        """Let no order of this generation begin any more. Nothing, when a newer one came."""
        with suppress(FileNotFoundError), exclusive(self._path) as fd:
            if _read_number(fd) == number:
                _write_number(fd, 0)

    @contextmanager
    def in_force(self, number: int) -> Iterator[bool]:
        """Whether orders of this generation may be begun, which stays so inside."""
        try:
            fd = _open_locked(self._path, fcntl.F_RDLCK, create=False)
        except FileNotFoundError:  # no agent has enrolled since the boot
            yield False
            return
        assert fd is not None  # it was waited for
        try:
            yield number > 0 and _read_number(fd) == number
        finally:
            os.close(fd)


def _write_number(fd: int, number: int) -> None:
    os.pwrite(fd, b"%0*x" % (_NUMBER_WIDTH, number), 0)


def _read_number(fd: int) -> int:
    return int(os.pread(fd, _NUMBER_WIDTH, 0) or b"0", 16)


class NameLock:
    """A write to the kernel is under way for a name, from before it until it has returned."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd = path, fd

    @classmethod
    def take(cls, run_dir: Path, name: str) -> NameLock | None:
        """Take it without waiting; None: somebody's write is under way.

        To be called while the generation is held, see `Generation.in_force`.
        """
        path = run_dir / "names" / name
        fd = _open_locked(path, fcntl.F_WRLCK, wait=False)
        return None if fd is None else cls(path, fd)

    def release(self) -> None:
        """Let it go. The file goes first, while it is ours: nobody else's is removed."""
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _is_taken(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its write has returned
        return False
    try:
        return _is_locked(fd)
    finally:
        os.close(fd)


def names_in_flight(run_dir: Path) -> frozenset[str]:
    """The names for which a write is under way, whoever began it."""
    try:
        paths = list((run_dir / "names").iterdir())
    except FileNotFoundError:
        return frozenset()
    return frozenset(path.name for path in paths if _is_taken(path))
