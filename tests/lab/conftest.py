"""The lab's fixtures: etcd outside and three guests, booted once a session for all of its tests.

A guest is given to each file of tests as if it was new, and to each test running.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from coordinator.embedded import EmbeddedCluster
from coordinator.errors import NotFound
from deploy.lab.flavours import DEBIAN_12, DEBIAN_13
from deploy.lab.guest import Guest, boot_all
from deploy.lab.images import build
from deploy.lab.machines import Lab
from deploy.lab.tidy import mend, tidy
from tests.cli.driver import Cli
from tests.lab.hosts import Host, Records
from tests.support.etcd_servers import newest_etcd

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

Guests = tuple[Guest, Guest, Guest]
_FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def members() -> Iterator[EmbeddedCluster]:
    """The three members of the etcd outside: take a cluster name of your own in it."""
    try:
        # Members are killed, and some versions lose writes by themselves then.
        with EmbeddedCluster(binary=newest_etcd(print).binary) as cluster:
            yield cluster
    except NotFound as error:
        pytest.skip(error.line)


@pytest.fixture(scope="session")
def lab(members: EmbeddedCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The built images; every guest sees the members at the three addresses of guest.ETCD."""
    ports = [int(url.rpartition(":")[2]) for url in members.endpoints]
    with Lab(build(), tmp_path_factory.mktemp("lab"), ports) as opened:
        yield opened


@pytest.fixture(scope="session")
def machines(lab: Lab) -> Guests:
    """The session's guests; ask for `guests`."""
    flavours = {"gpu01": DEBIAN_12, "gpu02": DEBIAN_13, "gpu03": DEBIAN_12}
    one, two, three = (lab.guest(name, flavour) for name, flavour in flavours.items())
    boot_all((one, two, three))
    return one, two, three


@pytest.fixture(scope="module")
def guests(machines: Guests) -> Guests:
    """Three running guests: gpu01 and gpu03 are Debian 12, gpu02 is Debian 13.

    They are the same ones in every file, but nothing of another file is left on them. Whatever a
    test does to one, the next test finds it running: it was booted again if need be.
    """
    for machine in machines:
        tidy(machine)
    return machines


@pytest.fixture(scope="module")
def cluster() -> str:
    """The name of a cluster that nobody else has."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def cli(members: EmbeddedCluster, cluster: str) -> Cli:
    """The command, outside the guests."""
    return Cli(",".join(members.endpoints), cluster)


@pytest.fixture(scope="module")
def records(members: EmbeddedCluster, cluster: str) -> Records:
    """The cluster's keys in etcd."""
    return Records(members.endpoints, cluster)


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> None:
    if "guests" in request.fixturenames:
        for guest in request.getfixturevalue("guests"):
            mend(guest)


def has_failed(item: pytest.Item) -> bool:
    """Whether a test has failed so far: what it leaves is then not to be relied on."""
    return item.stash.get(_FAILED, False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the consoles of a failed test's guests, and what their agents said."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        for one in _used_by(item):
            if isinstance(one, Guest):
                report.sections.append((f"console of {one.name}", one.console()))
            if isinstance(one, Host):
                report.sections.append((f"agents of {one.name}", one.log()))
                report.sections.append((f"console of {one.name}", one.guest.console()))
    return report


def _used_by(item: pytest.Item) -> set[Guest | Host]:
    values = item.funcargs.values() if isinstance(item, pytest.Function) else ()
    each = (one for value in values for one in (value if isinstance(value, tuple) else (value,)))
    # What is on a host says which.
    found = (getattr(one, "host", one) for one in each)
    return {one for one in found if isinstance(one, Guest | Host)}
