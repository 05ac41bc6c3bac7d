"""Where the simulated kernel keeps its memory, so that a process may be killed at any point.

    DIR/kernel/lock               the list lock; in it, which state counts, and whether it is shown
    DIR/kernel/state.[01]         that state, and what the next one is written over

Nothing is made or renamed for a change, which would cost more than the change itself.

Starts fast, for the workers.
"""

from __future__ import annotations

import errno
import marshal
import os
import struct
from contextlib import contextmanager

from agent.locks import exclusive

TYPE_CHECKING = False  # importing typing costs a worker a sixth of its start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.simulated_memory import State

__all__ = ["Saved", "SavedState"]

_FORMAT = 2  # of marshal, which every Python 3 reads, in half of JSON's time
_MARK = struct.Struct("<QQ?")  # the state's number, its length in bytes, whether it is not shown


class SavedState:
    """The state while its lock is held.

    `number` grows with each state that is written; `is_dirty` while the tree may differ.
    """

    def __init__(self, directory: Path, fd: int) -> None:
        self._directory, self._fd = directory, fd
        mark = os.pread(fd, _MARK.size, 0)
        self.number, self._length, self.is_dirty = _MARK.unpack(mark) if mark else (0, 0, False)

    def read(self) -> State:
        """What was written last.

        Raises:
            FileNotFoundError: nothing ever was.
        """
        if not self.number:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._directory))
        fd = os.open(self._path(self.number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            state: State = marshal.loads(os.read(fd, self._length))  # noqa: S302 - our own
        finally:
            os.close(fd)
        return state

    def write(self, state: State) -> None:
        """Put another one in its place; from then on it is dirty."""
        data = marshal.dumps(state, _FORMAT)  # type: ignore[arg-type]  # dicts, lists and scalars
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self._path(self.number + 1), flags, 0o644)
        try:
            if os.pwrite(fd, data, 0) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        finally:
            os.close(fd)
        # Killed before, it was never written; killed after, all of it was.
        self.number, self._length = self.number + 1, len(data)
        self._set(is_dirty=True)

    def clean(self) -> None:
        """Note that the tree is as the state says."""
        self._set(is_dirty=False)

    def _set(self, *, is_dirty: bool) -> None:
        self.is_dirty = is_dirty
        os.pwrite(self._fd, _MARK.pack(self.number, self._length, is_dirty), 0)

    def _path(self, number: int) -> str:
        return f"{self._directory}/state.{number % 2}"


class Saved:
    """The files of one host."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._lock = directory, directory / "lock"

    def is_there(self) -> bool:
        """Whether a state was ever written."""
        try:
            return self._lock.stat().st_size > 0
        except FileNotFoundError:
            return False

    @contextmanager
    def locked(self) -> Iterator[SavedState]:
        """Hold the list lock."""
        with exclusive(self._lock) as fd:
            yield SavedState(self._directory, fd)
