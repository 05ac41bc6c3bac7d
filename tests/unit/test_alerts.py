"""The metrics that are documented, alerted on and drawn are those that an agent has."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from agent.health import Vitals
from agent.metrics import Metrics
from coordinator.clock import SystemClock
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.session import Session
from tests.support.promtool import promtool

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
OF_OTHERS = {"etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes"}
PARTS = re.compile(r"_(bucket|count|sum)$")


def exported() -> set[str]:
    """The names of all metrics of an enrolled agent."""
    metrics, clock = Metrics(), SystemClock()
    vitals = Vitals(clock)
    store = MemoryStore(MemoryEtcd())
    vitals.enrolled(Session(store, clock, host="h", instance="i", lease=1, deadline=0.0))
    metrics.show(vitals, clock)
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, "") for family in metrics.registry.collect()}


def used(text: str) -> set[str]:
    """The names of metrics in a text, histograms by their own."""
    found = re.findall(r"\b(?:mdevns|etcd)_[a-z_]+", text)
    return {PARTS.sub("", name) for name in found} - OF_OTHERS


def test_every_metric_is_documented() -> None:
    """docs/metrics.md has a row for each metric that an agent has, and for no other."""
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(exported())


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/mdevns.json"])
def test_what_is_alerted_on_and_drawn_is_exported(file: str) -> None:
    """No rule and no panel waits for a metric that nobody has."""
    wanted = used((ROOT / "deploy" / file).read_text())
    assert wanted
    assert wanted <= exported()


def test_the_dashboard_names_its_source_and_no_panel_twice() -> None:
    """Each panel reads from the data source that is chosen, and has an id of its own."""
    panels = json.loads((ROOT / "deploy/grafana/mdevns.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_the_alerts_fire_when_they_should(arguments: list[str]) -> None:
    """Prometheus' own tool finds the rules well formed, and each fires in trouble and only then."""
    done = subprocess.run(
        [promtool(), *arguments], cwd=ALERTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
