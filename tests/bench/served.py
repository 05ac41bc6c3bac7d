"""An etcd of our own, and its word of what it was asked, of its size, and of the time it took."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

from coordinator.embedded import EmbeddedEtcd

__all__ = ["asked", "cpu_seconds", "metrics", "own_etcd"]

_METRIC = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_METHOD = re.compile(r'grpc_method="(\w+)"')
_STARTED = "grpc_server_started_total"


def own_etcd(*flags: str) -> EmbeddedEtcd:
    """An etcd with more flags, alone; with its defaults it takes up to a second to elect itself."""
    return EmbeddedEtcd(extra=("--heartbeat-interval=20", "--election-timeout=200", *flags))


def _read(endpoint: str) -> str:
    with urllib.request.urlopen(f"{endpoint}/metrics", timeout=10) as answer:  # noqa: S310 - our own, on loopback
        return str(answer.read().decode())


def metrics(endpoint: str) -> dict[str, float]:
    """Its metrics that have no labels."""
    found = (_METRIC.fullmatch(line) for line in _read(endpoint).splitlines())
    return {each[1]: float(each[3]) for each in found if each and each[2] is None}


def asked(endpoint: str) -> Counter[str]:
    """How many calls of each gRPC method it has served, streams counted once."""
    calls: Counter[str] = Counter()
    for line in _read(endpoint).splitlines():
        each = _METRIC.fullmatch(line)
        if each and each[1] == _STARTED and (method := _METHOD.search(each[2] or "")):
            calls[method[1]] += int(float(each[3]))
    return calls


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used in all its threads, to the nanosecond.

    What ended threads used is not in it; etcd's do not end.
    """
    nanoseconds = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9
