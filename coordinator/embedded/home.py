"""Where servers have their data, and the context in which they run."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.errors import NotAllowed

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Home"]


class Home(ABC):
    """A context with a directory: a given one that stays, or a temporary one that goes with it."""

    def __init__(self, directory: Path | None) -> None:
        self._given = directory
        self.directory = directory or Path()

    def _make_directory(self) -> None:
        try:
            if self._given is None:
                self.directory = Path(tempfile.mkdtemp(prefix="mdevns-etcd-"))
            else:
                self._given.mkdir(parents=True, exist_ok=True)
                (self._given / "etcd.log").touch()
        except OSError as error:
            raise NotAllowed(
                str(error.filename), f"it cannot hold an etcd: {error.strerror}", "name another"
            ) from error

    @abstractmethod
    def _open(self) -> None:
        """Start the servers."""

    def close(self) -> None:
        """Remove the directory, unless it was given. Servers are stopped before, by subclasses."""
        if self._given is None and self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
