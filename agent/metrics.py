"""What an agent counts and measures, for Prometheus.

Labels are bounded: hosts, parents, types, states, errnos, and never names. What is counted is
counted as it happens; what is a state is read when somebody scrapes, in another thread, from
values that are replaced whole. docs/metrics.md lists all of it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import GaugeMetricFamily

from agent.certificates import Expiries
from coordinator import __version__
from coordinator.credentials import Credentials
from coordinator.errors import Fenced, Moved, OutcomeUnknown, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Mapping

    from agent.health import Vitals
    from agent.workers import Answer, Order
    from coordinator.clock import Clock
    from coordinator.states import ClaimEvent

__all__ = ["Metrics", "Snapshot"]

T = TypeVar("T")

_NONE = Credentials()

_STORE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_WRITE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What an agent knew when it last looked at all of its names. Times in seconds."""

    claims: Mapping[str, int] = field(default_factory=dict)
    findings: Mapping[str, int] = field(default_factory=dict)
    troubles: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    devices: int = 0
    in_flight: int = 0
    oldest_write: float | None = None
    """Since when the oldest of them is under way, in the clock's boottime."""
    watch_lag: float = 0.0


class Metrics:
    """All metrics of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.snapshot = Snapshot()
        self._transitions = Counter(
            "mdevns_transitions",
            "Transitions of claims, by what became of them",
            ["transition", "outcome"],
            registry=self.registry,
        )
        self._store_seconds = Histogram(
            "mdevns_store_seconds",
            "How long calls to etcd took that were answered, in seconds",
            ["call"],
            buckets=_STORE_SECONDS,
            registry=self.registry,
        )
        self._store_seconds_of = cache(self._store_seconds.labels)
        self._store_failures = Counter(
            "mdevns_store_failures",
            "Calls to etcd that were not answered, or refused, by errno",
            ["call", "errno"],
            registry=self.registry,
        )
        self._write_seconds = Histogram(
            "mdevns_kernel_write_seconds",
            "How long writes to the kernel took, in seconds; errno is empty where all went well",
            ["parent", "type", "write", "errno"],
            buckets=_WRITE_SECONDS,
            registry=self.registry,
        )
        self._scan_seconds = Histogram(
            "mdevns_scan_seconds",
            "How long scans of the bus took, in seconds",
            registry=self.registry,
        )
        self._scan_failures = Counter(
            "mdevns_scan_failures", "Scans of the bus that failed", registry=self.registry
        )
        self._enrolments = Counter(
            "mdevns_enrolments", "Enrolments of this agent", registry=self.registry
        )
        info = Info("mdevns_build", "The version of this agent", registry=self.registry)
        info.info({"version": __version__})

    def show(self, vitals: Vitals, clock: Clock, credentials: Credentials = _NONE) -> None:
        """Show the state of the agent as well, as it is when somebody scrapes."""
        self.registry.register(_State(self, vitals, clock))
        self.registry.register(_Certificates(credentials))

    def enrolled(self) -> None:
        """The agent has enrolled."""
        self._enrolments.inc()

    def wrote(self, order: Order, answer: Answer) -> None:
        """A worker has answered an order."""
        if answer.begun:
            errno = (answer.errno or "") if answer.known else "unknown"
            labels = (order.parent, order.type, order.kind.value, errno)
            self._write_seconds.labels(*labels).observe(answer.seconds)

    def moved(self, event: ClaimEvent, error: Exception | None) -> None:
        """A transition was made, or refused."""
        self._transitions.labels(event.value, _outcome(error)).inc()

    async def asked(self, call: str, answer: Awaitable[T]) -> T:
        """The answer to a call to the store, which is measured."""
        began = perf_counter()
        try:
            told = await answer
        except StoreError as error:
            self._store_failures.labels(call, error.errno).inc()
            raise
        self._store_seconds_of(call).observe(perf_counter() - began)
        return told

    @contextmanager
    def scanning(self) -> Iterator[None]:
        """Around a scan of the bus, in whichever thread."""
        with self._scan_failures.count_exceptions(OSError), self._scan_seconds.time():
            yield


def _outcome(error: Exception | None) -> str:
    match error:
        case None:
            return "made"
        case Moved():
            return "moved"
        case Fenced():
            return "fenced"
        case OutcomeUnknown():
            return "unknown"
        case StoreError():
            return "failed"
    return "refused"


class _State:
    """The gauges: what the agent is like at the moment of a scrape."""

    def __init__(self, metrics: Metrics, vitals: Vitals, clock: Clock) -> None:
        self._metrics, self._vitals, self._clock = metrics, vitals, clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges. Without an enrolment there are only those that say so."""
        session = self._vitals.session
        yield _gauge("mdevns_enrolled", "Whether the agent is enrolled", float(session is not None))
        if session is None:
            return
        yield _gauge(
            "mdevns_restoring",
            "Whether a restore is under way, so that nothing is begun",
            float(self._vitals.restore is not None),
        )
        yield _gauge(
            "mdevns_namespace_frozen",
            "Whether a restore or an import freezes the namespace",
            float(self._vitals.frozen or self._vitals.restore is not None),
        )
        now, seen = self._clock.boottime(), self._metrics.snapshot
        yield _gauge(
            "mdevns_session_age_seconds", "Seconds since the agent enrolled", now - session.began
        )
        yield _gauge(
            "mdevns_session_left_seconds",
            "Seconds until the session is lost unless etcd answers",
            session.deadline - now,
        )
        yield _gauges("mdevns_claims", "Claims of this host", "state", seen.claims)
        yield _gauges("mdevns_findings", "Devices that are not ours", "kind", seen.findings)
        yield _gauges(
            "mdevns_parent_troubles", "What is wrong with a parent", "parent", seen.troubles
        )
        yield _gauges(
            "mdevns_parent_create_failures",
            "Names whose create a parent refused since the last that it took",
            "parent",
            seen.failures,
        )
        yield _gauge("mdevns_devices", "Devices that the kernel shows", seen.devices)
        yield _gauge(
            "mdevns_kernel_writes_in_flight", "Writes to the kernel under way", seen.in_flight
        )
        yield _gauge(
            "mdevns_kernel_write_oldest_seconds",
            "Seconds since the oldest write to the kernel that is under way was first seen",
            0.0 if seen.oldest_write is None else now - seen.oldest_write,
        )
        yield _gauge(
            "mdevns_watch_lag_seconds",
            "Since when the watch has not told the oldest change of our own",
            seen.watch_lag,
        )


class _Certificates:
    """Until when certificates are good; an expired one keeps an agent from enrolling."""

    def __init__(self, credentials: Credentials) -> None:
        self._expiries = Expiries(credentials)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A gauge for each certificate that is configured."""
        yield _gauges(
            "mdevns_certificate_expiry_timestamp_seconds",
            "When a certificate of this agent expires, in seconds since 1970",
            "setting",
            dict(self._expiries.all()),
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
