"""Three etcd members in containers, each of which can be killed, paused and cut off.

`ContainerCluster` needs a Docker daemon; `ProcessCluster` is the same interface on local
processes, which can do everything but be cut off.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import docker
import pytest
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network

from coordinator.embedded import (
    EmbeddedCluster,
    find_leader,
    free_ports,
    healthy,
    wait_until,
)
from tests.support import rawetcd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

# Its reaper would have to be pulled. `ContainerCluster` removes what it made by itself.
testcontainers_config.ryuk_disabled = True

START_DEADLINE = 60.0  # seconds
PORT_TRIES = 5
CLIENT, PEER = 2379, 2380


class Cluster(Protocol):
    """Members by their index, and what can befall them."""

    @property
    def endpoints(self) -> list[str]:
        """The URLs for clients; they stay the same whatever befalls a member."""

    def leader(self) -> int:
        """Wait for a leader that a majority agrees on."""

    def kill(self, index: int) -> None:
        """SIGKILL; the data stay."""

    def start(self, index: int, *, wait: bool = True) -> None:
        """Start a killed member again and wait until it answers."""

    def pause(self, index: int) -> None:
        """Stop a member's time; its connections stay open."""

    def unpause(self, index: int) -> None:
        """Let a paused member go on."""

    def disconnect(self, index: int) -> None:
        """Cut a member off from its peers and its clients."""

    def connect(self, index: int) -> None:
        """Bring a member that was cut off back, and wait until it answers."""


class ProcessCluster(EmbeddedCluster):
    """The members as local processes, for machines without a Docker daemon.

    They run the etcd that is found first on PATH.
    """

    def disconnect(self, index: int) -> NoReturn:
        """Skip the test: local processes share one loopback."""
        pytest.skip(f"cutting off etcd{index} needs containers, and there is no Docker daemon")

    def connect(self, index: int) -> NoReturn:
        """Skip the test, as `disconnect`."""
        self.disconnect(index)


class ContainerCluster:
    """Three members on a network of their own, in a context; all of it is removed after.

    Clients reach a member through a port of 127.0.0.1 that is chosen once, so that its
    endpoint is the same after a kill, a cut or a start. `flags` are more flags for etcd, and
    `labels` are put on all that Docker is asked for.
    """

    def __init__(
        self,
        image: str,
        members: int = 3,
        *,
        flags: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._image, self._flags, self._labels = image, tuple(flags), dict(labels or {})
        self._names = [f"etcd{index}" for index in range(members)]
        self._token = f"mdevns-{uuid.uuid4().hex[:8]}"
        self._network = Network(docker_network_kw={"labels": self._labels})
        self._containers: list[Any] = []
        self._ports: list[int] = []
        self._made = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._network._docker.client.close)
            stack.enter_context(self._network)
            stack.enter_context(self._members_on_free_ports())
            for index in range(len(self._names)):
                self._wait(index)
            self._made = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def _members_on_free_ports(self) -> ExitStack:
        """Start all members, on other ports when somebody took one; closing it removes them."""
        for left in reversed(range(PORT_TRIES)):
            try:
                return self._members()
            except docker.errors.APIError as error:
                if not left or "port is already allocated" not in str(error):
                    raise
        raise AssertionError

    def _members(self) -> ExitStack:
        self._ports = free_ports(len(self._names))
        self._containers.clear()
        with ExitStack() as stack:
            stack.callback(self._remove_all)
            for index in range(len(self._names)):
                self._containers.append(self._make(index, "new"))
                self._containers[index].start()
            return stack.pop_all()

    def _remove_all(self) -> None:
        with ExitStack() as stack:  # one that cannot be removed does not keep the others
            for container in self._containers:
                stack.callback(container.stop)

    def _make(self, index: int, of_cluster: str) -> Any:
        name = self._names[index]
        container = DockerContainer(
            self._image, name=f"{self._token}-{name}", labels=dict(self._labels)
        )
        container.with_network(self._network).with_network_aliases(name)
        container.with_command([*self._command(name), f"--initial-cluster-state={of_cluster}"])
        # Not by with_bind_ports, which would listen on all of the machine's addresses.
        container.ports[f"{CLIENT}/tcp"] = ("127.0.0.1", self._ports[index])
        return container

    def _command(self, name: str) -> list[str]:
        peers = ",".join(f"{each}=http://{each}:{PEER}" for each in self._names)
        return [
            "etcd",
            f"--name={name}",
            "--data-dir=/data",
            f"--listen-client-urls=http://0.0.0.0:{CLIENT}",
            f"--advertise-client-urls=http://{name}:{CLIENT}",
            f"--listen-peer-urls=http://0.0.0.0:{PEER}",
            f"--initial-advertise-peer-urls=http://{name}:{PEER}",
            f"--initial-cluster={peers}",
            f"--initial-cluster-token={self._token}",
            "--logger=zap",
            *self._flags,
        ]

    def _wait(self, index: int) -> None:
        if not wait_until(lambda: healthy(self._ports[index]), START_DEADLINE):
            log = self._docker(index).logs(tail=10).decode(errors="replace")
            pytest.fail(f"{self._names[index]} does not answer; its log ends with:\n{log}")

    def _docker(self, index: int) -> Any:
        return self._containers[index].get_wrapped_container()

    def _state(self, index: int) -> dict[str, Any]:
        container = self._docker(index)
        container.reload()
        state: dict[str, Any] = container.attrs["State"]
        return state

    @property
    def endpoints(self) -> list[str]:
        """One URL a member, in the order of their indexes."""
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def leader(self) -> int:
        """The index of the leader; waits until a majority agrees on one."""
        return find_leader(self.endpoints)

    def kill(self, index: int) -> None:
        """SIGKILL; the container and its data stay."""
        self._docker(index).kill()
        self._docker(index).wait()

    def start(self, index: int, *, wait: bool = True) -> None:
        """Start a killed member again; `wait` until it answers, which takes a majority."""
        self._docker(index).start()
        if wait:
            self._wait(index)

    def pause(self, index: int) -> None:
        """Stop a member's time."""
        self._docker(index).pause()

    def unpause(self, index: int) -> None:
        """Let a paused member go on."""
        self._docker(index).unpause()

    def cut_peers(self, index: int) -> None:
        """Lose every packet between a member and the others; clients reach it as before."""
        self._cut(index, PEER)

    def cut_clients(self, index: int) -> None:
        """Lose every packet between a member and its clients; its peers reach it as before."""
        self._cut(index, CLIENT)

    def _cut(self, index: int, port: int) -> None:
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            for end in ("--dport", "--sport"):
                # Not on its loopback, where it is its own client.
                rule = ["!", way, "lo", "-p", "tcp", end, str(port), "-j", "DROP"]
                self._iptables(index, "-A", chain, *rule)

    def mend(self) -> None:
        """Start whoever was killed, let all packets through, and wait until all answer.

        What was lost in a cut is not lost for good: TCP sends it again, and it arrives late.
        """
        for index in range(len(self._names)):
            if self._state(index)["Running"]:
                self._iptables(index, "-F")
            else:
                self.start(index, wait=False)
        for index in range(len(self._names)):
            self._wait(index)

    def _iptables(self, index: int, *arguments: str) -> None:
        """Change the packet filter of a member's network."""
        missing = [one for one in ("nsenter", "iptables") if shutil.which(one) is None]
        if missing or os.geteuid():
            pytest.skip(f"cutting a port needs root, nsenter and iptables; missing: {missing}")
        pid = str(self._state(index)["Pid"])
        inside = ["nsenter", "--target", pid, "--net", "iptables", "--wait", *arguments]
        subprocess.run(inside, check=True, capture_output=True, text=True)

    def replace(self, index: int) -> None:
        """Take a member and its data away for good, and put an empty one in its place.

        The members are told first that the old one is gone, then that a new one comes, as
        etcd's guide to runtime reconfiguration says.
        """
        self._containers[index].stop()
        other = self.endpoints[(index + 1) % len(self._names)]
        url = f"http://{self._names[index]}:{PEER}"
        wait_until(lambda: rawetcd.remove_member(other, url), START_DEADLINE)
        wait_until(lambda: rawetcd.add_member(other, url), START_DEADLINE)
        self._containers[index] = self._make(index, "existing")
        self._containers[index].start()
        self._wait(index)

    def disconnect(self, index: int) -> None:
        """Take a member off the network: no peer and no client reaches it."""
        self._network._unwrap_network.disconnect(self._docker(index))

    def connect(self, index: int) -> None:
        """Bring it back under its name, and wait until it answers."""
        self._network.connect(self._docker(index).id, network_aliases=[self._names[index]])
        self._wait(index)


@contextmanager
def etcd_image(find: Callable[[], Path], named: str | None = None) -> Iterator[str]:
    """The image to run: the one that is named, else one of our own.

    Ours is built FROM scratch with the etcd that `find` finds, under a name that nobody else
    has, and is removed after: two test runs on one machine cannot take it from each other.
    """
    if named:
        yield named
        return
    binary = find()
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()[:12]
    tag = f"mdevns-test-etcd:{digest}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="mdevns-image-") as directory:
        context = Path(directory)
        _fill(context, binary)
        image = DockerImage(context, tag=tag).build()
    try:
        yield tag
    finally:
        # By its name, so that a run beside us that built the same layers keeps its own.
        image.get_docker_client().client.images.remove(tag)
        image.get_docker_client().client.close()


def _fill(context: Path, binary: Path) -> None:
    """Lay out the image's files: etcd, and the libraries it is linked with, if any."""
    root = context / "root"
    # Where the images of the etcd project have it too, so that one command starts both.
    files = {binary: root / "usr/local/bin/etcd"}
    files |= {library: root / library.relative_to("/") for library in _libraries(binary)}
    for source, target in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")


def _libraries(binary: Path) -> list[Path]:
    """The shared libraries and the loader of a binary, none for a static one."""
    answer = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", answer.stdout)]
