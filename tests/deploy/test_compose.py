"""The cluster of deploy/compose, brought up by docker-compose as an operator does.

No registry is asked: etcd's image is ours, mdevns' is an empty one with this machine's programs
and this checkout mounted read-only.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.embedded import free_ports
from tests.cli.driver import Cli, Done, one_line
from tests.cluster.etcd_containers import PEER, etcd_image
from tests.support.containers import ROOT, docker_client, empty_image, mounted
from tests.support.etcd_servers import etcdctl, newest_etcd
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMPOSE = ROOT / "deploy/compose"
MEMBERS, HOSTS = ["etcd1", "etcd2", "etcd3"], ["gpu01", "gpu02", "gpu03"]
DEADLINE = 60.0  # seconds for what takes one or two
UP = 180.0  # seconds for what takes fifteen


class Deployment:
    """A project of docker-compose, and the operator's command line on this machine."""

    def __init__(self, pki: Path, images: Mapping[str, str]) -> None:
        self.project = f"mdevns-test-{uuid.uuid4().hex[:8]}"
        self.pki = pki
        ports = free_ports(len(MEMBERS))
        self._environment = {
            **os.environ,
            **images,
            **{f"ETCD{n}_PORT": str(port) for n, port in enumerate(ports, 1)},
            "PKI_DIR": str(pki),
        }
        self.endpoints = ",".join(f"https://127.0.0.1:{port}" for port in ports)
        self._override = pki.with_name("override.json")
        self._override.write_text(json.dumps(_override()))

    def prepare(self) -> None:
        """Make the certificates."""
        self._run([str(COMPOSE / "certificates")])

    def compose(self, *arguments: str) -> str:
        """Run docker-compose; what it printed."""
        files = [str(COMPOSE / "compose.yaml"), "-f", str(self._override)]
        return self._run(["docker-compose", "-p", self.project, "-f", *files, *arguments])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=UP,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def mdevns(self, *arguments: str) -> Done:
        """The command as the operator, with the configuration that `certificates` wrote."""
        return self.cli.run("--config", str(self.pki / "operator.toml"), *arguments)

    def mdevns_as(self, somebody: str, *arguments: str) -> Done:
        """The command with another certificate."""
        files = {"CERT": f"{somebody}.crt", "KEY": f"{somebody}.key", "CACERT": "ca.crt"}
        shown = {f"MDEVNS_{key}": str(self.pki / file) for key, file in files.items()}
        return self.cli.run(*arguments, **shown)

    @property
    def cli(self) -> Cli:
        """The command, with nothing to show."""
        return Cli(self.endpoints, "default")

    def hosts(self) -> dict[str, str]:
        """The hosts that the operator is shown, and whether they are alive."""
        done = self.mdevns("hosts", "-o", "json")
        assert done.code == 0, done
        return {each["host"]: each["session"] for each in done.json}

    def containers(self) -> dict[str, Any]:
        """What Docker tells of each service's container."""
        with docker_client() as client:
            found = client.containers.list(all=True, filters=self._ours)
            return {each.labels["com.docker.compose.service"]: each.attrs for each in found}

    def left(self) -> list[str]:
        """What Docker has of the project."""
        with docker_client() as client:
            return [
                each.name
                for found in (
                    client.containers.list(all=True, filters=self._ours),
                    client.networks.list(filters=self._ours),
                    client.volumes.list(filters=self._ours),
                )
                for each in found
            ]

    @property
    def _ours(self) -> dict[str, str]:
        return {"label": f"com.docker.compose.project={self.project}"}


def _override() -> dict[str, Any]:
    """What makes the images run that hold nothing, or no etcdctl; and looks more often."""
    programs, often = Path(sys.executable).parent, {"interval": "1s", "retries": 100}
    ours: dict[str, Any] = {
        "volumes": [f"{path}:{path}:ro" for path in mounted()],
        "environment": {
            "PATH": f"{programs}:{ROOT / 'deploy/pki'}:{etcdctl().parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    }
    member = {"volumes": [f"{etcdctl()}:/usr/local/bin/etcdctl:ro"], "healthcheck": often}
    services = dict.fromkeys(MEMBERS, member) | {"roles": ours}
    return {"services": services | {each: {**ours, "healthcheck": often} for each in HOSTS}}


@contextmanager
def brought_up(pki: Path) -> Iterator[Deployment]:
    """The cluster, with its certificates; all of it is removed after."""
    with etcd_image(lambda: newest_etcd(print).binary) as etcd, empty_image() as empty:
        deployment = Deployment(pki, {"ETCD_IMAGE": etcd, "AGENT_IMAGE": empty})
        deployment.prepare()
        try:
            deployment.compose("up", "--detach", "--no-build")
            yield deployment
        except BaseException as error:
            error.add_note(deployment.compose("logs", "--no-color", "--tail=20"))
            raise
        finally:
            deployment.compose("down", "--volumes", "--timeout", "1")


def _needed(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}; install {program}")


@pytest.mark.long
@pytest.mark.containers
def test_the_cluster_comes_up_refuses_a_duplicate_and_is_gone(tmp_path: Path) -> None:
    """Members and hosts are there for who shows a certificate, and afterwards nothing is left."""
    _needed("docker-compose")
    _needed("openssl")
    with brought_up(tmp_path / "pki") as deployment:
        _all_are_there(deployment)
        _only_loopback_listens(deployment)
        _only_who_is_known_is_answered(deployment)
        _only_members_are_peers(deployment)
        _a_name_is_taken_once(deployment)
    assert deployment.left() == []


def _all_are_there(deployment: Deployment) -> None:
    everybody = dict.fromkeys([*MEMBERS, *HOSTS], "healthy")
    wait_until(lambda: _health(deployment) == everybody, DEADLINE)
    assert deployment.hosts() == dict.fromkeys(HOSTS, "alive")
    assert deployment.containers()["roles"]["State"]["ExitCode"] == 0


def _health(deployment: Deployment) -> dict[str, str]:
    states = {name: each["State"] for name, each in deployment.containers().items()}
    return {name: state["Health"]["Status"] for name, state in states.items() if "Health" in state}


def _only_loopback_listens(deployment: Deployment) -> None:
    published = [
        (name, binding["HostIp"])
        for name, each in deployment.containers().items()
        for bindings in each["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    ]
    assert sorted(published) == [(name, "127.0.0.1") for name in MEMBERS]


def _only_who_is_known_is_answered(deployment: Deployment) -> None:
    stranger = deployment.cli.run("hosts", "--timeout", "1")
    assert stranger.code == 10, stranger
    one_line(stranger, "EHOSTUNREACH")
    host = deployment.mdevns_as("host-gpu01", "hosts")
    assert host.code == 12, host
    one_line(host, "EPERM")


def _only_members_are_peers(deployment: Deployment) -> None:
    context = ssl.create_default_context(cafile=deployment.pki / "ca.crt")
    context.load_cert_chain(deployment.pki / "host-gpu01.crt", deployment.pki / "host-gpu01.key")
    (network,) = deployment.containers()["etcd1"]["NetworkSettings"]["Networks"].values()
    with socket.create_connection((network["IPAddress"], PEER), DEADLINE) as plain:
        assert _answer(context, plain) == b""


def _answer(context: ssl.SSLContext, plain: socket.socket) -> bytes:
    """What the peers' port says to somebody, nothing where it turns them away."""
    try:
        with context.wrap_socket(plain, server_hostname="etcd1") as secured:
            secured.sendall(b"GET /version HTTP/1.1\r\nHost: etcd1\r\n\r\n")
            return secured.recv(1)
    except (ssl.SSLError, ConnectionError):
        return b""


def _a_name_is_taken_once(deployment: Deployment) -> None:
    name, parents = str(uuid.uuid4()), ["parents", "--host", "gpu01", "-o", "json"]
    kind = wait_until(lambda: deployment.mdevns(*parents).json, DEADLINE)[0]["types"][0]["type"]
    made = deployment.mdevns("create", name, "--type", kind, "--host", "gpu01")
    assert made.code == 0, made
    again = deployment.mdevns("create", name, "--type", kind, "--host", "gpu02")
    assert again.code == 4, again
    assert "gpu01" in one_line(again, "EEXIST")
