"""Three etcd members with disks of their own, TLS for everybody but who looks from outside.

Agents and operators come by https and show a certificate. Whoever judges them comes by the plain
port of the same members, so that an expired certificate blinds nobody who looks.
"""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc

from coordinator.embedded import free_ports
from tests.cluster.etcd_containers import PEER, ContainerCluster
from tests.support import rawetcd
from tests.support.etcd_servers import etcdctl
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from tests.support.tls import Authority

__all__ = ["QUOTA", "SECURE", "Members"]

SECURE = 2381  # the port for agents and operators
QUOTA = 48 << 20  # bytes that a member may store
DISK = "512m"  # of which etcd lays out two files of 64 MiB beforehand
LIFE = timedelta(days=1)  # of a certificate; a run takes minutes
_WAIT = 60.0  # seconds
_ANSWER = 1.0  # seconds in which a member that is well answers
_FLAGS = (
    f"--quota-backend-bytes={QUOTA}",
    f"--listen-client-urls=http://0.0.0.0:2379,https://0.0.0.0:{SECURE}",
    "--client-cert-auth",
    "--trusted-ca-file=/tls/ca.pem",
    "--auto-compaction-mode=revision",
    "--auto-compaction-retention=2000",
    "--snapshot-count=2000",
    "--max-wals=2",
    "--max-snapshots=2",
)


class Members(ContainerCluster):
    """The members, in a context. Member `index` keeps its data in `directory`/etcd`index`."""

    def __init__(
        self, image: str, directory: Path, authority: Authority, labels: Mapping[str, str]
    ) -> None:
        super().__init__(image, flags=_FLAGS, labels=labels)
        self.homes = [directory / name for name in self._names]
        self.authority = authority
        self._secure_ports: list[int] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for index, home in enumerate(self.homes):
                home.mkdir()
                _run("mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(home))
                stack.callback(_run, "umount", "--lazy", str(home))
                self.certify(index)
            super().__enter__()
            self._made = _after(self._made, stack.pop_all())
        return self

    def _members(self) -> ExitStack:
        self._secure_ports = free_ports(len(self._names))
        return super()._members()

    def _make(self, index: int, of_cluster: str) -> Any:
        container = super()._make(index, of_cluster)
        container.with_volume_mapping(str(self.homes[index]), "/data", "rw")
        container.with_volume_mapping(str(self.authority.cacert.parent), "/tls", "ro")
        container.ports[f"{SECURE}/tcp"] = ("127.0.0.1", self._secure_ports[index])
        return container

    def _command(self, name: str) -> list[str]:
        shown = [f"--cert-file=/tls/{name}.pem", f"--key-file=/tls/{name}.key"]
        return [*super()._command(name), *shown]

    def certify(self, index: int, until: datetime | None = None) -> None:
        """Put a new certificate of a member in place; it is shown to whoever connects next."""
        name = self._names[index]
        self.authority.issue(
            name, name, "localhost", "127.0.0.1", until=until or datetime.now(UTC) + LIFE
        )

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._names)

    @property
    def network(self) -> str:
        """The name of their network."""
        return str(self._network.name)

    @property
    def secure_endpoints(self) -> list[str]:
        """Where operators on this machine reach them."""
        return [f"https://127.0.0.1:{port}" for port in self._secure_ports]

    @property
    def inner_endpoints(self) -> list[str]:
        """Where containers on their network reach them."""
        return [f"https://{name}:{SECURE}" for name in self._names]

    def answering(self) -> list[str]:
        """The plain endpoints of those that can be read through a majority, full or not."""
        return [endpoint for endpoint in self.endpoints if _answers(endpoint)]

    def address(self, index: int) -> str:
        """Its address on their network."""
        container = self._docker(index)
        container.reload()
        return str(container.attrs["NetworkSettings"]["Networks"][self.network]["IPAddress"])

    def log(self, index: int) -> bytes:
        """What it has said since it was last made."""
        return bytes(self._docker(index).logs())

    def running(self, index: int) -> bool:
        """Whether its process is there, paused or not."""
        return bool(self._state(index)["Running"])

    def deaf(self, index: int) -> None:
        """Let a member's peers hear it, and it not hear its peers."""
        for end in ("--dport", "--sport"):
            rule = ["!", "-i", "lo", "-p", "tcp", end, str(PEER), "-j", "DROP"]
            self._iptables(index, "-A", "INPUT", *rule)

    def reset(self, index: int) -> None:
        """Break every connection of agents and operators off; none is made until `mend`."""
        rule = ["-p", "tcp", "--dport", str(SECURE), "-j", "REJECT", "--reject-with", "tcp-reset"]
        self._iptables(index, "-A", "INPUT", *rule)

    def pass_all(self, index: int) -> None:
        """Let all packets through again."""
        self._iptables(index, "-F")

    def replace(self, index: int) -> None:
        """As of a machine that is lost: an empty one comes in its place."""
        self._docker(index).kill()
        _empty(self.homes[index])
        super().replace(index)

    def save(self, file: Path) -> None:
        """Save a snapshot of what one member has now, as an operator does."""
        (one, *_) = self.answering()
        _run(str(etcdctl()), "--endpoints", one, "snapshot", "save", str(file), ETCDCTL_API="3")

    def restore(self, file: Path, token: str) -> None:
        """Put the data of all members, which do not run, back to a snapshot."""
        peers = ",".join(f"{name}=http://{name}:{PEER}" for name in self._names)
        for name, home in zip(self._names, self.homes, strict=True):
            _empty(home)
            self._etcdutl(
                home, file, "snapshot", "restore", "/snapshot", f"--name={name}",
                f"--initial-cluster={peers}",
                f"--initial-advertise-peer-urls=http://{name}:{PEER}",
                f"--initial-cluster-token={token}", "--data-dir=/into/fresh",
            )  # fmt: skip
            fresh = home / "fresh"
            for each in fresh.iterdir():
                shutil.move(each, home)
            fresh.rmdir()

    def _etcdutl(self, home: Path, snapshot: Path, *words: str) -> None:
        """Run it where the members' names mean something: it looks them up."""
        utility = etcdctl().with_name("etcdutl")
        volumes = {str(home): "/into", str(snapshot): "/snapshot", str(utility): "/etcdutl"}
        self._network._docker.client.containers.run(
            self._image,
            ["/etcdutl", *words],
            volumes=[f"{outside}:{inside}" for outside, inside in volumes.items()],
            extra_hosts=dict.fromkeys(self._names, "127.0.0.1"),
            labels=self._labels,
            remove=True,
        )

    def all_answer(self) -> bool:
        """Whether all of them have a leader and answer."""
        return len(self.answering()) == self.count

    def await_all(self) -> None:
        """Wait until they do."""
        wait_until(self.all_answer, _WAIT)


def _answers(endpoint: str) -> bool:
    try:
        return rawetcd.revision(endpoint, _ANSWER) > 0
    except grpc.RpcError:
        return False


def _empty(directory: Path) -> None:
    for each in directory.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def _after(first: ExitStack, then: ExitStack) -> ExitStack:
    """One that closes both, in this order."""
    both = ExitStack()
    both.callback(then.close)
    both.callback(first.close)
    return both


def _run(*command: str, **environment: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment or None
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
