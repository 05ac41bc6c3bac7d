"""Several members that elect a leader."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from typing import TYPE_CHECKING

from coordinator.embedded.home import Home
from coordinator.embedded.process import (
    START_DEADLINE,
    Server,
    find_etcd,
    flags_of,
    on_free_ports,
    start_again,
    wait_until,
)
from coordinator.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["EmbeddedCluster", "find_leader"]


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


class EmbeddedCluster(Home):
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
        self._servers: list[Server] = []

    def _open(self) -> None:
        if self._binary is None:
            find_etcd()
        self._make_directory()
        on_free_ports(2 * self._count, None, self._start_on)

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

    def _make_servers(self, clients: list[int], peers: list[int]) -> Iterator[Server]:
        names = [f"etcd{index}" for index in range(self._count)]
        urls = zip(names, peers, strict=True)
        cluster = ",".join(f"{name}=http://127.0.0.1:{peer}" for name, peer in urls)
        for name, client, peer in zip(names, clients, peers, strict=True):
            flags = flags_of(name, client, peer, cluster, self._extra)
            yield Server(flags, self.directory / name, client, binary=self._binary)

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
        start_again(self._servers[index], wait=wait)

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
