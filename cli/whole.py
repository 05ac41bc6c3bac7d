"""Files that are there whole or not at all, whatever is killed or loses power meanwhile."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.errors import MdevnsError, NotAllowed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["as_ours", "write_whole"]


@contextmanager
def as_ours() -> Iterator[None]:
    """What the file system refuses becomes an error of ours.

    Raises:
        NotAllowed: it may not be written.
        MdevnsError: it cannot.
    """
    try:
        yield
    except OSError as error:
        what, why = str(error.filename or "the file system"), error.strerror or str(error)
        name = errno.errorcode.get(error.errno or errno.EIO, "EIO")
        if name in ("EACCES", "EPERM"):
            raise NotAllowed(what, why, "run it as root", errno_name=name) from None
        raise MdevnsError(what, why, errno_name=name) from None


def write_whole(path: Path, text: str, *, mode: int, by_way_of: Path) -> None:
    """Write a file of root's own (when root does it): on the disk first, then in its place.

    `by_way_of` is a directory of the same file system, for what is not in its place yet.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=by_way_of)
    made = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is open already
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)
            if os.geteuid() == 0:
                os.fchown(descriptor, 0, 0)
            os.fsync(descriptor)
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def _settle(directory: Path) -> None:
    """Let the names in a directory outlive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
