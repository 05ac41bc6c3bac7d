"""A cluster of three etcd members: in containers where there is Docker, else as processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.etcd_containers import (
    Cluster,
    ContainerCluster,
    ProcessCluster,
    etcd_image,
)
from tests.conftest import docker_runs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    """The etcd image, built once."""
    with etcd_image() as name:
        yield name


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three members with a leader; what a test breaks it mends again."""
    if docker_runs():
        with ContainerCluster(request.getfixturevalue("image")) as containers:
            yield containers
    else:
        with ProcessCluster() as processes:
            yield processes
