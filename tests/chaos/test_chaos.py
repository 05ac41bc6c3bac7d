"""Chaos in the short: whatever comes first of a fresh schedule; and that it would be seen."""

from __future__ import annotations

import os
import random
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.chaos.checker import Checker, in_directories
from tests.chaos.cluster import Cluster, missing
from tests.chaos.run import run
from tests.chaos.schedule import FAULTS
from tests.support.agents import TYPE
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.long, pytest.mark.containers, pytest.mark.timeout(600)]

SECONDS = 45.0  # in which faults are begun; all else comes on top
SOON = 60.0  # seconds, for a busy machine
BRIEF = [fault for fault in FAULTS if not fault.slow]


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := missing():
        pytest.skip(f"needs {', '.join(lacking)}")


def test_nothing_is_violated_while_faults_befall_a_cluster_at_work() -> None:
    """No name is on two hosts, no device unclaimed, no answer untrue, and all comes back."""
    given = os.environ.get("MDEVNS_TEST_SEED")
    seed = int(given) if given else random.SystemRandom().getrandbits(32)
    report, kept = run(SECONDS, seed, print, faults=BRIEF)
    print(report)  # noqa: T201 - shown when the test fails, or with -s
    assert not report.violations, f"{report}\nhistories and logs: {kept}"
    assert sum(report.faults.values()) > 1, report
    assert report.done["create"] > 20, report
    assert report.looks_with_etcd > 50, report


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Members and hosts at which nobody works."""
    with Cluster(0, print) as cluster:
        yield cluster


def test_a_name_on_two_hosts_is_seen(cluster: Cluster) -> None:
    """A host that is evicted and was not fenced leaves a device of a name that another takes."""
    name, host = str(uuid.uuid4()), cluster.hosts["gpu01"]
    cluster.ok("create", name, "--type", TYPE, "--host", host.name)
    directories = {name: host.directory for name, host in cluster.hosts.items()}
    see = in_directories(directories)
    with Checker(see, cluster.look, cluster.set_back.is_set, lambda: "") as checker:
        host.pause()
        try:
            cluster.await_session(host.name, there=False)
            assert not checker.seen.violations
            cluster.ok("evict", host.name, "--confirm-fenced", "--reason", "it is not")
            wait_until(lambda: _is_told(checker, f"{name}: a device on gpu01, whose"), SOON)
            cluster.ok("create", name, "--type", TYPE, "--host", "gpu02")
            wait_until(lambda: _is_told(checker, f"{name}: a device on gpu01 and on gpu02"), SOON)
        finally:
            host.unpause()


def _is_told(checker: Checker, what: str) -> bool:
    return any(what in each for each in checker.seen.violations)
