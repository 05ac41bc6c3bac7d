"""The lab's fixtures: images and etcd once a session, two guests for each file of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.lab.guest import Guest, boot_all
from deploy.lab.images import build
from deploy.lab.machines import Lab

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from coordinator.embedded import EmbeddedEtcd


@pytest.fixture(scope="session")
def lab(etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The built images, and an etcd outside that every guest sees at 10.0.2.101:2379."""
    with Lab(build(), tmp_path_factory.mktemp("lab"), etcd.port) as opened:
        yield opened


@pytest.fixture(scope="module")
def guests(lab: Lab) -> Iterator[tuple[Guest, Guest]]:
    """Two running guests, gpu01 and gpu02."""
    pair = lab.guest("gpu01"), lab.guest("gpu02")
    boot_all(pair)
    yield pair
    for guest in pair:
        guest.discard()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the consoles of a failed test's guests."""
    report = yield
    if report.failed:
        for guest in _guests_of(item):
            report.sections.append((f"console of {guest.name}", guest.console()))
    return report


def _guests_of(item: pytest.Item) -> set[Guest]:
    values = item.funcargs.values() if isinstance(item, pytest.Function) else ()
    each = (one for value in values for one in (value if isinstance(value, tuple) else (value,)))
    return {one for one in each if isinstance(one, Guest)}
