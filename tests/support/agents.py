"""Agents as processes on simulated hosts: started, killed, ended, and gone afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import simulated
from agent.enrolment import Parts
from agent.makers import Makers
from coordinator.clock import SystemClock
from tests.support import truth
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from agent.bus import Bus
    from agent.notes import Notes
    from agent.workers import Workers
    from coordinator.keys import Keys
    from coordinator.store import Store

__all__ = ["AgentProcess", "SimulatedHost", "parts"]

TYPE = "nvidia-35"
_ROOT = Path(__file__).parents[2]
_DEADLINE = 60.0  # seconds; a start takes one, so this is for a busy machine
_SESSION = 60  # seconds, so that no session lapses because the machine is busy
_LINES = 40  # so many last lines of a log go with a failure


@dataclass
class SimulatedHost:
    """A simulated host in a directory, with `parents` that each have room for what `types` say."""

    directory: Path
    name: str
    parents: int = 2
    types: Mapping[str, int] = field(default_factory=lambda: {TYPE: 16})
    latency: float = 0.0

    def init(self) -> Self:
        """Make it."""
        simulated.init(self.directory, self.parents, dict(self.types), self.latency)
        return self

    @property
    def bus(self) -> str:
        """How an agent and its workers are told of it."""
        return f"sim:{self.directory.resolve()}"

    def workers(self) -> list[int]:
        """The processes that write to its kernel now, whoever started them."""
        return [pid for pid in _processes() if self.bus in _arguments(pid)[-2:-1]]


def parts(store: Store, keys: Keys, bus: Bus, workers: Workers, notes: Notes) -> Parts:
    """What an agent in this process is made of, on the system's clock and randomness."""
    return Parts(
        store=store,
        keys=keys,
        clock=SystemClock(),
        rng=random.Random(random.SystemRandom().getrandbits(128)),
        bus=bus,
        workers=workers,
        notes=notes,
        makers=Makers(notes, bus.boot_id),
    )


class AgentProcess:
    """A host's agent as a process. A context manager: it and its workers are gone after.

    `arguments` are more for the command, `config` is its file; `session` is how many seconds its
    session lasts.
    """

    def __init__(
        self,
        host: SimulatedHost,
        endpoints: Sequence[str],
        cluster: str,
        *arguments: str,
        session: int = _SESSION,
        config: Path = Path(os.devnull),
    ) -> None:
        self.host, self.endpoints, self.cluster = host, tuple(endpoints), cluster
        self.log = host.directory / "agent.log"
        self._arguments = ("--session-ttl", str(session), *arguments)
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    def start(self, *, wait: bool = True) -> None:
        """Start it; `wait` until it is enrolled and all its parents are in the store."""
        command = [sys.executable, "-m", "cli", "agent", "--host", self.host.name]
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                [*command, "--bus", self.host.bus, *self._arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_enrolled()

    def _environment(self) -> dict[str, str]:
        """Nothing of this machine's own configuration; the mark of the test session stays."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("MDEVNS_")}
        ours |= {k: v for k, v in os.environ.items() if k.startswith("MDEVNS_TEST_")}
        return ours | {
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]]),
            "MDEVNS_CONFIG": str(self._config),
            "MDEVNS_ENDPOINTS": ",".join(self.endpoints),
            "MDEVNS_CLUSTER": self.cluster,
        }

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def lines(self) -> list[bytes]:
        """The lines that it logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            *whole, _ = log.read().split(b"\n")
        return whole

    def events(self, of: str) -> list[dict[str, Any]]:
        """The events of a kind that it logged since its last start."""
        mark = json.dumps(of).encode()
        events = [json.loads(line) for line in self.lines() if mark in line]
        return [event for event in events if event["event"] == of]

    @property
    def enrolled(self) -> bool:
        """Whether it has enrolled since its last start. One that ended by itself fails."""
        assert self.running, f"{self.host.name} ended by itself; {self.tail()}"
        return bool(self.events("enrolled"))

    def tail(self) -> str:
        """The end of its log, for a failure."""
        lines = self.log.read_text(errors="replace").splitlines()[-_LINES:]
        return "\n".join([f"{self.log} ends with:", *lines])

    def wait_enrolled(self) -> None:
        """Wait until this very process is enrolled and its parents are in the store."""
        try:
            wait_until(lambda: not self.running or self._is_seen(), _DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{self.host.name} did not enrol; {self.tail()}") from error
        assert self.running, f"{self.host.name} ended by itself; {self.tail()}"

    def _is_seen(self) -> bool:
        enrolments = self.events("enrolled")
        if not enrolments:
            return False
        seen = truth.look(self.endpoints[0], self.cluster, {})
        return (
            seen.sessions.get(self.host.name) == enrolments[-1]["instance"]
            and seen.parents[self.host.name] == self.host.parents
        )

    def kill(self) -> None:
        """SIGKILL, as the kernel's OOM killer does it. What its workers began goes on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP, as a machine does that has no time for it. Its workers go on."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def terminate(self) -> int:
        """SIGTERM; its exit code, when it has finished what the kernel was doing."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.host.name} does not stop; {self.tail()}") from None

    def defects(self) -> list[str]:
        """Lines of its whole log, over all starts, that tell of a defect."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line or '"level": "error"' in line]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.running:
            self.kill()
        try:
            wait_until(lambda: not self.host.workers(), _DEADLINE)
        finally:
            for pid in self.host.workers():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if error is not None:
            error.add_note(self.tail())


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:  # it just ended
        return []
