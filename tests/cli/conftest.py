"""A namespace of its own for each test, and two hosts that the tests of a module share."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from tests.cli.driver import Cli, Host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coordinator.embedded import EmbeddedEtcd


@pytest.fixture
def cli(etcd: EmbeddedEtcd) -> Cli:
    """The command, in a namespace of its own with nothing in it."""
    return Cli(etcd.endpoint, uuid.uuid4().hex)


@pytest.fixture
def host_in(tmp_path: Path) -> Iterator[Callable[[Cli, str], Host]]:
    """Makes hosts for one test; their agents end with it."""
    hosts: list[Host] = []

    def make(cli: Cli, name: str) -> Host:
        hosts.append(Host(cli, name, tmp_path / name))
        return hosts[-1]

    yield make
    for host in hosts:
        host.stop()


@pytest.fixture(scope="module")
def pair(
    etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cli, Host, Host]]:
    """A cluster with two hosts, gpu01 and gpu02, for the tests of a module."""
    cli = Cli(etcd.endpoint, uuid.uuid4().hex)
    root = tmp_path_factory.mktemp("hosts")
    hosts = [Host(cli, name, root / name).init() for name in ("gpu01", "gpu02")]
    try:
        for host in hosts:
            host.boot()
        yield cli, hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.stop()


@pytest.fixture
def name() -> str:
    """A name that nobody holds."""
    return str(uuid.uuid4())
