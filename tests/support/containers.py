"""Containers without a registry: an empty image, and this machine's programs mounted into it."""

from __future__ import annotations

import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ROOT", "docker_client", "empty_image", "mounted"]

ROOT = Path(__file__).parents[2]


@contextmanager
def docker_client() -> Iterator[Any]:
    """Docker's own client."""
    client = docker.from_env()
    try:
        yield client
    finally:
        client.close()


def mounted() -> list[Path]:
    """This machine's programs, this Python and its environment, and the checkout."""
    system = [path for path in map(Path, ("/usr", "/lib", "/lib64", "/bin")) if path.exists()]
    more = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    return [*system, *(path for path in sorted(more) if not path.is_relative_to("/usr"))]


@contextmanager
def empty_image() -> Iterator[str]:
    """An image with nothing in it."""
    repository, tag = "mdevns-test-empty", uuid.uuid4().hex[:8]
    name, empty = f"{repository}:{tag}", b"\0" * 10240  # a tar archive's end, and nothing before
    with docker_client() as client:
        client.api.import_image_from_data(empty, repository=repository, tag=tag)
        try:
            yield name
        finally:
            client.images.remove(name)
