"""The real command as a process, simulated hosts with their agents, and a proxy that loses."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from agent import simulated
from agent.locks import names_in_flight
from cli.main import app
from coordinator.errors import NotFound
from coordinator.keys import Keys
from tests.support import etcd_kv
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NOWHERE", "TYPE", "Cli", "Done", "Host", "in_process", "losing_proxy", "one_line"]

TYPE = "nvidia-35"
NOWHERE = "http://127.0.0.1:1"  # where no store is
DEADLINE = 60  # seconds; a command takes half of one, so this is for a busy machine
_MDEVNS = (sys.executable, "-m", "cli")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its answer, as JSON."""
        return json.loads(self.out)

    @property
    def names(self) -> list[str]:
        """Its answer, as names."""
        return self.out.split()


@dataclass
class Cli:
    """The command, for one cluster of one etcd."""

    endpoint: str
    cluster: str

    def environment(self, **more: str) -> dict[str, str]:
        """What the command is run in: nothing of this machine's own configuration."""
        others = {key: value for key, value in os.environ.items() if not key.startswith("MDEVNS_")}
        marks = {key: value for key, value in os.environ.items() if key.startswith("MDEVNS_TEST_")}
        return {
            **others,
            **marks,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]]),
            "MDEVNS_CONFIG": os.devnull,
            "MDEVNS_ENDPOINTS": self.endpoint,
            "MDEVNS_CLUSTER": self.cluster,
            **more,
        }

    def start(self, *args: str, **more: str) -> subprocess.Popen[str]:
        """Start a command; `more` is set in its environment."""
        return subprocess.Popen(
            (*_MDEVNS, *args),
            env=self.environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, stdin: str = "", **more: str) -> Done:
        """Run a command to its end."""
        return ended(self.start(*args, **more), stdin)

    def ok(self, *args: str, stdin: str = "") -> Done:
        """Run a command that is to succeed without a word on stderr."""
        done = self.run(*args, stdin=stdin)
        assert (done.code, done.err) == (0, ""), done
        return done

    @property
    def keys(self) -> Keys:
        """The keys of its namespace."""
        return Keys(self.cluster)

    def read(self, key: str) -> Any:
        """What stands in etcd under a key, None when nothing does."""
        value = etcd_kv.get(self.endpoint, key)
        return None if value is None else json.loads(value)

    def state(self, name: str) -> str | None:
        """The state of a name as it stands in etcd, None when it is free."""
        taken = self.read(self.keys.name(name))
        if taken is None or taken["host"] is None:
            return taken and "reserved"
        claim = self.read(self.keys.claim(taken["host"], name))
        return claim and str(claim["state"])


def ended(process: subprocess.Popen[str], stdin: str | None = None) -> Done:
    """What became of a process that ends by itself."""
    try:
        out, err = process.communicate(stdin, timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
    return Done(process.returncode, out, err)


def in_process(*args: str) -> Done:
    """The app called in this process, for what must not get as far as any store."""
    runner = CliRunner(env={"MDEVNS_ENDPOINTS": NOWHERE, "MDEVNS_CONFIG": os.devnull})
    done = runner.invoke(app, args)
    return Done(done.exit_code, done.stdout, done.stderr)


def one_line(done: Done, errno_name: str) -> str:
    """The one line on stderr; there is no more, and it is no stack trace."""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith(f"{errno_name}: "), lines[0]
    assert "Traceback" not in lines[0]
    return lines[0]


@dataclass
class Host:
    """A simulated host of a cluster, and its agent as a process."""

    cli: Cli
    name: str
    directory: Path
    session: int = 60
    """Seconds that its session lasts: no busy machine ends it."""
    agent: subprocess.Popen[bytes] | None = field(default=None)

    def init(self, *, parents: int = 2, capacity: int = 16, latency: float = 0.0) -> Host:
        """Make it."""
        simulated.init(self.directory, parents, {TYPE: capacity}, latency)
        return self

    @property
    def bus(self) -> str:
        """How an agent is told of it."""
        return f"sim:{self.directory}"

    @property
    def parents(self) -> list[str]:
        """Its parents, as its kernel has them."""
        return sorted(path.name for path in (self.directory / "sys/class/mdev_bus").iterdir())

    def devices(self) -> set[str]:
        """Its devices, as its kernel has them."""
        return {path.name for path in (self.directory / "sys/bus/mdev/devices").iterdir()}

    def boot(self) -> None:
        """Start its agent, and wait until the cluster sees it and its parents."""
        with (self.directory / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                (
                    *(*_MDEVNS, "agent", "--host", self.name, "--bus", self.bus),
                    *("--session-ttl", str(self.session)),
                ),
                env=self.cli.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._seen, DEADLINE)

    def _seen(self) -> bool:
        keys, name = self.cli.keys, self.name
        wanted = [keys.session(name), *(keys.parent(name, parent) for parent in self.parents)]
        return all(self.cli.read(key) is not None for key in wanted)

    def finish(self, name: str) -> None:
        """Let the driver be done with what it is at, as soon as it has begun with it.

        A claim is `creating` a moment before the kernel is asked.
        """

        def done() -> bool:
            try:
                simulated.let_go(self.directory, name)
            except NotFound:
                return False
            return True

        wait_until(done, DEADLINE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End its agent, and wait for what that had begun in the kernel."""
        if self.agent is not None:
            self.agent.send_signal(number)
            self.agent.wait(DEADLINE)
        wait_until(lambda: not names_in_flight(self.directory / "run"), DEADLINE)


@contextmanager
def losing_proxy(endpoint: str, mark: bytes) -> Iterator[str]:
    """A way to etcd on which no answer arrives any more once a request with `mark` was sent."""
    port = int(endpoint.rpartition(":")[2])
    lost = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=_accept, args=(server, port, mark, lost), daemon=True)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            accepting.join(DEADLINE)


def _accept(server: socket.socket, port: int, mark: bytes, lost: threading.Event) -> None:
    with suppress(OSError):  # the server is shut down when the test is over
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for source, target, asks in ((near, far, True), (far, near, False)):
                args = (source, target, mark if asks else b"", lost)
                threading.Thread(target=_pump, args=args, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, mark: bytes, lost: threading.Event) -> None:
    """Hand on what comes; requests are looked at, answers are dropped once one is to be lost."""
    with suppress(OSError):
        while data := source.recv(65536):
            if mark and mark in data:
                lost.set()
            if mark or not lost.is_set():
                target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
