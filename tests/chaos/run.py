"""One run of chaos, from the first container to the report."""

from __future__ import annotations

import random
import time
from traceback import format_exception
from typing import TYPE_CHECKING

from tests.chaos.checker import Checker, in_directories
from tests.chaos.cluster import HOSTS, Cluster
from tests.chaos.history import read
from tests.chaos.judge import final, longest_refusal, untold
from tests.chaos.report import Report
from tests.chaos.schedule import FAULTS, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.chaos.faults import Fault

__all__ = ["run"]


def run(
    seconds: float,
    seed: int,
    say: Callable[[str], None],
    *,
    faults: Sequence[type[Fault]] = FAULTS,
    all_once: bool = False,
    keep: bool = False,
) -> tuple[Report, Path | None]:
    """Let faults befall a cluster at work for so many seconds, and judge what came of it.

    With a violation, or `keep`, the histories and logs are kept in the directory that is
    returned; nothing else is left.
    """
    with Cluster(seed, say, pace=0.5) as cluster:
        report = _run(cluster, seconds, say, faults, all_once=all_once)
        if report.violations or keep:
            cluster.keep()
        report.save(cluster.directory / "report.json")
        return report, cluster.directory if cluster.kept else None


def _run(
    cluster: Cluster,
    seconds: float,
    say: Callable[[str], None],
    faults: Sequence[type[Fault]],
    *,
    all_once: bool,
) -> Report:
    report = Report(cluster.seed, cluster.server, 0.0)
    begun = time.monotonic()
    schedule = Schedule(cluster, random.Random(cluster.seed), faults, say)
    directories = {name: host.directory for name, host in cluster.hosts.items()}
    checker = Checker(
        in_directories(directories), cluster.look, cluster.set_back.is_set, lambda: schedule.now
    )
    with checker:
        try:
            cluster.start_work()
            cluster.await_work(begun)
            schedule.run(seconds, all_once=all_once)
            schedule.now = "at the end"
            cluster.stop_work()
            report.violations += final(cluster)
        except Exception as error:  # noqa: BLE001 - what was waited for did not come, or failed
            report.violations.append(f"{schedule.now}: {''.join(format_exception(error))}")
    if checker.failed is not None:
        raise checker.failed
    entries = read(cluster.diaries())
    report.lasted = time.monotonic() - begun
    report.violations += checker.seen.violations + untold(entries, schedule.injected)
    report.count(entries)
    report.count_faults([each.kind for each in FAULTS], schedule.injected)
    refusal = longest_refusal(entries, schedule.injected, HOSTS)
    report.told_refusal(refusal, schedule.injected)
    report.names = len(checker.seen.names | {entry.asked.name for entry in entries})
    report.looks, report.looks_with_etcd = checker.seen.looks, checker.seen.looks_with_etcd
    return report
