"""What a process of the workload is told to do, and how long it goes on: until its stdin ends."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.credentials import Credentials
from tests.support.containers import ROOT

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Orders", "Process", "pool_names"]

_SOON = 60.0  # seconds; whoever asks gives up sooner


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All that a process of the workload is told. `directory` has its diary and the pool's number.

    `tls` has the files that etcd is shown, where it wants any; persistent names are defined on
    `parent` of a host. `pace` is how many seconds lie between the beginnings of two requests.
    """

    role: str
    process: str
    directory: str
    endpoints: tuple[str, ...]
    cluster: str
    tls: str | None
    type: str
    parent: str
    hosts: tuple[str, ...]
    seed: int
    pace: float
    pool_size: int = 12

    @property
    def diary(self) -> Path:
        """Where it notes what it asks and is told."""
        return Path(self.directory) / f"{self.process}.history"

    @property
    def credentials(self) -> Credentials:
        """What it shows etcd."""
        if self.tls is None:
            return Credentials()
        tls = Path(self.tls)
        return Credentials(
            cacert=tls / "ca.pem", cert=tls / "operator.pem", key=tls / "operator.key"
        )

    @property
    def pool(self) -> int:
        """The number of the pool of names that all ask for now."""
        return int((Path(self.directory) / "pool").read_text())

    def as_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the command line."""
        read = json.loads(text)
        return cls(**read | {key: tuple(read[key]) for key in ("endpoints", "hosts")})


def pool_names(seed: int, pool: int, size: int) -> list[str]:
    """The names of a pool: the same for everybody, so that they collide."""
    return [f"{seed & 0xFFFFFFFF:08x}-{pool:04x}-4000-8000-{number:012x}" for number in range(size)]


class Process:
    """A process of the workload, which may be killed and is then followed by another."""

    def __init__(self, orders: Orders) -> None:
        self._first, self._number = orders, 0
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, under another name than the one before."""
        self._number += 1
        orders = replace(
            self._first,
            process=f"{self._first.process}.{self._number}",
            seed=self._first.seed,
        )
        log = Path(orders.directory) / f"{orders.process}.log"
        with log.open("wb") as file:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.operators", orders.as_json()],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
            )

    def kill(self) -> None:
        """SIGKILL, in the midst of whatever it asks."""
        if self._running is not None:
            self._running.kill()
            self._end()

    def ask_to_end(self) -> None:
        """Let it be answered what it has asked, and ask no more."""
        if self._running is not None:
            assert self._running.stdin is not None
            self._running.stdin.close()

    def stop(self) -> None:
        """The same, and wait until it has ended."""
        if self._running is None:
            return
        self.ask_to_end()
        try:
            self._running.wait(_SOON)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self._first.process} does not end") from None
        self._end()

    def _end(self) -> None:
        assert self._running is not None
        assert self._running.stdin is not None
        self._running.stdin.close()
        self._running.wait()
        self._running = None

    @property
    def failed(self) -> str:
        """Why it ended by itself, empty where it has not."""
        if self._running is None or self._running.poll() is None:
            return ""
        name = f"{self._first.process}.{self._number}"
        return (Path(self._first.directory) / f"{name}.log").read_text(errors="replace")
