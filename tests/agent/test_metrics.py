"""What an agent tells Prometheus and whoever asks for its health, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.exposition import serving
from agent.health import Vitals
from agent.metrics import Metrics
from coordinator.clock import SystemClock
from coordinator.embedded import free_ports
from coordinator.errors import Misconfigured, Unreachable
from coordinator.model import Name
from tests.support.desk import TYPE

if TYPE_CHECKING:
    from coordinator.store import Txn, TxnResult
    from tests.agent.host import Host

OTHER = Name("00000000-0000-4000-8000-0000000000ff")


class Outage:
    """A store in front of another one that can be away."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.away = inner, False

    async def txn(self, txn: Txn) -> TxnResult:
        """As the inner store, unless it is away."""
        self._check()
        return await self.inner.txn(txn)  # type: ignore[no-any-return]  # it is a Store

    async def keep_alive(self, lease: int) -> int:
        """As the inner store, unless it is away."""
        self._check()
        return await self.inner.keep_alive(lease)  # type: ignore[no-any-return]  # it is a Store

    def _check(self) -> None:
        if self.away:
            raise Unreachable("store", "it is away")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Page:
    """What an agent answers on a port."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """All samples: name, then label values in the order of the labels' names."""
        text = await asyncio.to_thread(_get, f"{self._root}/metrics")
        return {
            (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def health(self, path: str) -> tuple[int, list[str]]:
        """The status and the reasons."""
        try:
            answer = json.loads(await asyncio.to_thread(_get, self._root + path))
        except HTTPError as error:
            with error:
                return error.code, json.load(error)["reasons"]
        return 200, answer["reasons"]


def _get(url: str) -> str:
    with urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
        return str(answer.read().decode())


async def until(page: Page, wanted: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """Scrape until samples have these values; all of them as they are then."""
    found: dict[tuple[str, ...], float] = {}
    async with asyncio.timeout(20):
        while not wanted.items() <= found.items():
            found = await page.metrics()
    return found


async def test_what_an_agent_does_is_counted(host: Host) -> None:
    """A device made, removed, and one of somebody else are seen in states and counters."""
    (port,) = free_ports(1)
    page = Page(port)
    async with host.agent(metrics=f"127.0.0.1:{port}"):
        await host.ask()
        # The watch may tell of the claim before the answer that is counted is here.
        made = ("mdevns_transitions_total", "made", "activate")
        active = {("mdevns_claims", "active"): 1.0, ("mdevns_devices",): 1.0}
        found = await until(page, {**active, made: 1.0})
        assert found["mdevns_transitions_total", "made", "begin"] == 1.0
        assert found["mdevns_kernel_write_seconds_count", "", host.parents[0], TYPE, "create"] == 1
        assert found["mdevns_enrolments_total",] == 1.0
        assert found["mdevns_store_seconds_count", "txn"] >= 4
        assert 0 < found["mdevns_session_left_seconds",] <= 5
        await host.retire()
        await until(page, {("mdevns_devices",): 0.0, ("mdevns_kernel_writes_in_flight",): 0.0})
        host.bus.create(host.parents[0], TYPE, OTHER)
        await until(page, {("mdevns_claims", "active"): 1.0, ("mdevns_devices",): 1.0})


async def test_readiness_follows_the_store(host: Host) -> None:
    """Away, the agent lives, is not ready and counts the failures by errno; back, it is ready."""
    (port,) = free_ports(1)
    page, outage = Page(port), Outage(host.store)
    host.store = outage
    async with host.agent(metrics=f"127.0.0.1:{port}"), asyncio.timeout(60):
        while await page.health("/readyz") != (200, []):
            pass
        outage.away = True
        while (answer := await page.health("/readyz"))[0] == 200:
            pass
        assert answer[0] == 503
        assert any("store" in reason or "enrolled" in reason for reason in answer[1])
        assert (await page.health("/healthz"))[0] == 200
        assert (await page.metrics())["mdevns_store_failures_total", "keep_alive", "EHOSTUNREACH"]
        outage.away = False
        while await page.health("/readyz") != (200, []):
            pass


def test_a_port_that_is_taken_is_told() -> None:
    """An agent that cannot serve its metrics where it is to says so, and where that was set."""
    (port,) = free_ports(1)
    metrics, vitals = Metrics(), Vitals(SystemClock())
    with (
        serving(("127.0.0.1", port), metrics, vitals),
        pytest.raises(Misconfigured, match="in use") as caught,
        serving(("127.0.0.1", port), metrics, vitals),
    ):
        pass
    assert caught.value.setting == "agent.metrics"


async def test_other_paths_are_not_found(host: Host) -> None:
    """Who asks for something else is told what there is."""
    (port,) = free_ports(1)
    async with host.agent(metrics=f"127.0.0.1:{port}"):
        with pytest.raises(HTTPError, match="404") as caught:
            await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/")
        caught.value.close()
