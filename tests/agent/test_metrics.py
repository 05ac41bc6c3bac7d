"""What an agent tells Prometheus and whoever asks for its health, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from agent import simulated
from agent.exposition import MOST, serving
from agent.health import Vitals
from agent.metrics import Metrics
from coordinator.clock import SystemClock
from coordinator.embedded import free_ports
from coordinator.errors import Unreachable
from coordinator.model import HoldValue, Name, encode
from coordinator.store import Delete, Put, Txn
from tests.agent.host import SESSION, Host
from tests.support.desk import NAME, TYPE
from tests.support.tls import Authority
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coordinator.store import TxnResult

DEADLINE = 60.0  # seconds for what takes an instant
LONG = 3600.0  # seconds that a driver takes, unless it is let go
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
    with urlopen(url, timeout=DEADLINE) as answer:  # noqa: S310 - loopback
        return str(answer.read().decode())


async def until(page: Page, wanted: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """Scrape until samples have these values; all of them as they are then."""
    found: dict[tuple[str, ...], float] = {}
    async with asyncio.timeout(DEADLINE):
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
        assert 0 < found["mdevns_session_left_seconds",] <= SESSION
        await host.retire()
        await until(page, {("mdevns_devices",): 0.0, ("mdevns_kernel_writes_in_flight",): 0.0})
        host.bus.create(host.parents[0], TYPE, OTHER)
        await until(page, {("mdevns_claims", "active"): 1.0, ("mdevns_devices",): 1.0})


async def test_readiness_follows_the_store(host: Host) -> None:
    """Away, the agent lives, is not ready and counts the failures by errno; back, it is ready."""
    (port,) = free_ports(1)
    page, outage = Page(port), Outage(host.store)
    host.store = outage
    failed = ("mdevns_store_failures_total", "keep_alive", "EHOSTUNREACH")
    # A short session has signs of life that soon fail.
    async with host.agent(metrics=f"127.0.0.1:{port}", session=5), asyncio.timeout(DEADLINE):
        while await page.health("/readyz") != (200, []):
            pass
        outage.away = True
        while (answer := await page.health("/readyz"))[0] == 200:
            pass
        assert answer[0] == 503
        assert any("store" in reason or "enrolled" in reason for reason in answer[1])
        assert (await page.health("/healthz"))[0] == 200
        while not (await page.metrics()).get(failed):
            pass
        outage.away = False
        while await page.health("/readyz") != (200, []):
            pass


async def test_a_frozen_namespace_is_seen(host: Host) -> None:
    """An import that freezes the namespace is a gauge of each agent, and so is its end."""
    (port,) = free_ports(1)
    page, core, hold = Page(port), host.desk.core, host.desk.keys.hold
    value = encode(HoldValue(id="i", who="alice", at="t"))
    async with host.agent(metrics=f"127.0.0.1:{port}"):
        await until(page, {("mdevns_namespace_frozen",): 0.0})
        core.txn(Txn(success=(Put(hold, value),)))
        await host.ask()  # it is not begun, and so the agent looks why
        await until(page, {("mdevns_namespace_frozen",): 1.0, ("mdevns_restoring",): 0.0})
        core.txn(Txn(success=(Delete(hold),)))
        await until(page, {("mdevns_namespace_frozen",): 0.0})


async def test_the_oldest_write_that_is_under_way_has_an_age(tmp_path: Path) -> None:
    """The first write of all, too, which no counter has counted while it hangs."""
    host, (port,) = Host(tmp_path / "slow", latency=LONG), free_ports(1)
    page, oldest = Page(port), ("mdevns_kernel_write_oldest_seconds",)
    async with host.agent(metrics=f"127.0.0.1:{port}"):
        assert (await until(page, {("mdevns_kernel_writes_in_flight",): 0.0}))[oldest] == 0.0
        await host.ask()
        async with asyncio.timeout(DEADLINE):
            while not (found := await page.metrics())[oldest] > 1.0:
                pass
        assert not [key for key in found if key[0].startswith("mdevns_kernel_write_seconds")]
        simulated.let_go(host.directory, NAME)
        assert (await until(page, {("mdevns_claims", "active"): 1.0, oldest: 0.0}))[oldest] == 0.0


def test_when_certificates_expire_is_seen_before_an_enrolment(tmp_path: Path) -> None:
    """A renewed file is read again; one that is cut short or gone has no sample."""
    authority = Authority(tmp_path / "ca")
    until_ = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    credentials = authority.client(until=until_)
    metrics, clock = Metrics(), SystemClock()
    metrics.show(Vitals(clock), clock, credentials)

    def expiry(setting: str) -> float | None:
        name = "mdevns_certificate_expiry_timestamp_seconds"
        return metrics.registry.get_sample_value(name, {"setting": setting})

    assert expiry("cert") == until_.timestamp()
    assert (expiry("cacert") or 0.0) > until_.timestamp()
    authority.client(until=until_ + timedelta(days=1))
    assert expiry("cert") == (until_ + timedelta(days=1)).timestamp()
    assert credentials.cert is not None
    credentials.cert.write_bytes(credentials.cert.read_bytes()[:100])
    assert expiry("cert") is None
    credentials.cert.unlink()
    assert expiry("cert") is None


async def test_an_agent_works_while_its_metrics_port_is_taken(host: Host) -> None:
    """It warns, makes devices, and serves its metrics once the port is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken, capture_logs() as logs:
        port = taken.getsockname()[1]
        async with host.agent(metrics=f"127.0.0.1:{port}"):
            await host.ask()
            taken.close()
            await asyncio.to_thread(wait_until, lambda: _answers(port), DEADLINE)
            await until(Page(port), {("mdevns_claims", "active"): 1.0})
    warned = [entry for entry in logs if entry["event"] == "metrics cannot be served yet"]
    assert [(entry["log_level"], entry["why"]) for entry in warned] == [
        ("warning", "Address already in use")
    ]


@contextmanager
def served(**given: float) -> Iterator[int]:
    """The pages of an agent that does not run, on a port."""
    (port,) = free_ports(1)
    with serving(("127.0.0.1", port), Metrics(), Vitals(SystemClock()), **given):
        wait_until(lambda: _answers(port), DEADLINE)
        yield port


def _answers(port: int) -> bool:
    try:
        return "mdevns_build_info" in _get(f"http://127.0.0.1:{port}/metrics")
    except OSError:
        return False


def _ended(connection: socket.socket) -> bool:
    """Whether the server has let go of a connection."""
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_idle_connections_leave_room_for_a_scrape(capfd: pytest.CaptureFixture[str]) -> None:
    """Of many that send half a request the oldest are ended, and nothing is written of it."""
    threads = threading.active_count()
    with served() as port, ExitStack() as stack:
        idle = []
        for _ in range(10 * MOST):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with suppress(ConnectionError):  # it may be ended already
                connection.sendall(b"GET /metrics HTTP/1.1\r\n")
            connection.setblocking(False)
            idle.append(connection)
        assert _answers(port)
        assert threading.active_count() == threads + 1
        wait_until(lambda: sum(map(_ended, idle)) >= 9 * MOST, DEADLINE)
    assert capfd.readouterr().err == ""


def test_a_slow_request_ends_at_its_deadline(capfd: pytest.CaptureFixture[str]) -> None:
    """A request that arrives byte by byte has as long as any other."""
    with served(seconds=0.2) as port:
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.setblocking(False)

            def is_refused() -> bool:
                with suppress(ConnectionError, BlockingIOError):
                    slow.send(b"x")
                return _ended(slow)

            wait_until(is_refused, DEADLINE)
        assert _answers(port)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01 GET\r\n\r\n", b"400"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"HEAD /metrics HTTP/1.1\r\nAccept: text/plain;version=x\r\n\r\n", b"200"),
        (b"GET /metrics?name[]=up HTTP/1.0\r\n\r\n", b"200"),
        (b"x" * 100_000, None),
    ],
)
def test_what_is_no_scrape_is_answered_or_left(
    request_: bytes, status: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """An odd request has a status, a head without an end has none, and neither has a traceback."""
    with served() as port, socket.create_connection(("127.0.0.1", port)) as connection:
        answer = b""
        with suppress(ConnectionError):
            connection.sendall(request_)
            while piece := connection.recv(65536):
                answer += piece
        assert answer.split(b" ")[1:2] == ([] if status is None else [status])
    assert capfd.readouterr().err == ""


async def test_other_paths_are_not_found(host: Host) -> None:
    """Who asks for something else is told what there is."""
    (port,) = free_ports(1)
    async with host.agent(metrics=f"127.0.0.1:{port}"):
        with pytest.raises(HTTPError, match="404") as caught:
            await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/")
        caught.value.close()
