"""A cluster of three etcd members: in containers where there is Docker, else as processes."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.cluster.etcd_containers import (
    Cluster,
    ContainerCluster,
    ProcessCluster,
    etcd_image,
)
from tests.conftest import docker_runs
from tests.support.newest_etcd import newest_etcd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def find_server(request: pytest.FixtureRequest) -> Callable[[], Path]:
    """Finds the etcd that members run, says which it is, and may take seconds to fetch it."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():  # a run says what it ran on
            print(f"\ncluster tests: {line}")  # noqa: T201 - see the line above

    @cache
    def find() -> Path:
        server = newest_etcd(say)
        say(str(server))
        return server.binary

    return find


@pytest.fixture(scope="session")
def image(find_server: Callable[[], Path]) -> Iterator[str]:
    """The etcd image, built once."""
    with etcd_image(find_server) as name:
        yield name


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three members with a leader; what a test breaks it mends again."""
    if docker_runs():
        with ContainerCluster(request.getfixturevalue("image")) as containers:
            yield containers
        return
    binary = request.getfixturevalue("find_server")()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", str(binary.parent), prepend=os.pathsep)
        with ProcessCluster() as processes:
            yield processes
