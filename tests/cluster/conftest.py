"""A cluster of three etcd members: in containers where there is Docker, else as processes."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import pytest

from deploy.lab.errors import BuildError
from tests.cluster.etcd_containers import (
    Cluster,
    ContainerCluster,
    ProcessCluster,
    etcd_image,
)
from tests.cluster.stage import Stage
from tests.conftest import docker_runs
from tests.support.etcd_servers import debian_12_etcd, newest_etcd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tells whoever runs the tests what they run on."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\ncluster tests: {line}")  # noqa: T201 - a run says what it ran on

    return say


@pytest.fixture(scope="session")
def find_server(say: Callable[[str], None]) -> Callable[[], Path]:
    """Finds the etcd that members run, says which it is, and may take seconds to fetch it."""

    @cache
    def find() -> Path:
        server = newest_etcd(say)
        say(str(server))
        return server.binary

    return find


@pytest.fixture(scope="session")
def image(find_server: Callable[[], Path]) -> Iterator[str]:
    """The etcd image, built once."""
    with etcd_image(find_server, os.environ.get("MDEVNS_TEST_ETCD_IMAGE")) as name:
        yield name


@pytest.fixture(scope="session")
def old_image(say: Callable[[str], None]) -> Iterator[str]:
    """The image of the oldest etcd that is to do, built once."""
    try:
        server = debian_12_etcd(say)
    except BuildError as error:
        pytest.skip(f"etcd of Debian 12 cannot be had: {error}")
    say(str(server))
    with etcd_image(lambda: server.binary) as name:
        yield name


@pytest.fixture(scope="module", params=["image", "old_image"], ids=["newest", "debian-12"])
def any_image(request: pytest.FixtureRequest) -> str:
    """The image of each etcd that is to do, the newest and the oldest."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def stage(any_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Members and hosts that the tests of a module share; what they break is mended again."""
    with Stage(any_image, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


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
