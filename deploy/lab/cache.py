"""The lab's cache: what was built, under a key of what it was built from.

A component is a directory `<name>-<key>`; its name may say after a hyphen which of several of the
sort it is (`root-bookworm`, `root-trixie`). It is built in a temporary directory beside its place
and renamed into it, so that it is either complete or not there, whoever is killed when. One
process builds at a time, in several threads if it likes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_UNFINISHED = ".unfinished-"
_KEPT_UNUSED_S = 14 * 24 * 3600.0


def default_directory(name: str = "lab") -> Path:
    """Where a cache lies: below $LAB_CACHE, else below the user's own.

    Not called MDEVNS_…, which would be a setting of the command that it does not know.
    """
    chosen = os.environ.get("LAB_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(chosen) if chosen else Path(user) / "mdevns").absolute() / name


class Cache:
    """Components by name and key, each built once."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self.directory = directory
        self._say = say
        directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache against every other process that builds. Waits as long as it takes."""
        with (self.directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("another process builds the lab; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._drop_unfinished()
            yield

    def component(
        self,
        name: str,
        inputs: Mapping[str, object],
        sources: Sequence[Path],
        build: Callable[[Path], None],
        *,
        kept_unused_s: float = _KEPT_UNUSED_S,
    ) -> Path:
        """The directory of a component, built now when there is none of these inputs.

        `inputs` is everything that the result depends on and that JSON can say; `sources` are the
        files that say how it is built. Older ones of the sort are dropped once unused for
        `kept_unused_s` seconds: another checkout may use them. To be called with the lock held.
        """
        place = self.directory / f"{name}-{_key(inputs, sources)}"
        if not place.is_dir():
            self._build(name, place, build)
            self._drop_unused(name, place, kept_unused_s)
        os.utime(place)
        return place

    def _build(self, name: str, place: Path, build: Callable[[Path], None]) -> None:
        began = time.monotonic()
        self._say(f"building {name}")
        work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.directory))
        try:
            build(work)
            work.chmod(0o755)
            work.rename(place)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        self._say(f"built {name} in {time.monotonic() - began:.0f} s")

    def _drop_unused(self, name: str, current: Path, kept_s: float) -> None:
        for old in self.directory.glob(f"{name.partition('-')[0]}-*"):
            if old != current and time.time() - old.stat().st_mtime > kept_s:
                shutil.rmtree(old, ignore_errors=True)

    def _drop_unfinished(self) -> None:
        for left in self.directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)


def _key(inputs: Mapping[str, object], sources: Sequence[Path]) -> str:
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for source in sources:
        digest.update(b"\0" + source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]
