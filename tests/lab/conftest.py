"""The lab's fixtures: images and etcd once a session, two guests for each file of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.lab.guest import Guest, boot_all
from deploy.lab.images import build
from deploy.lab.machines import Lab
from tests.lab.hosts import Host

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
    """Show the consoles of a failed test's guests, and what their agents said."""
    report = yield
    if report.failed:
        for one in _used_by(item):
            if isinstance(one, Guest):
                report.sections.append((f"console of {one.name}", one.console()))
            if isinstance(one, Host):
                report.sections.append((f"agents of {one.name}", one.log()))
    return report


def _used_by(item: pytest.Item) -> set[Guest | Host]:
    values = item.funcargs.values() if isinstance(item, pytest.Function) else ()
    each = (one for value in values for one in (value if isinstance(value, tuple) else (value,)))
    return {one for one in each if isinstance(one, Guest | Host)}
