"""Devices made under one lock of the cluster, etcd3's own: what ours is measured against.

    python -m tests.bench.locked ENDPOINT CLUSTER PARENTS EACH LATENCY ACROSS

A thread for each parent makes its devices one after the other: with the lock it looks whether
the name is free and takes it; the driver, a pause, works under the lock too (ACROSS is 1) or
after it. Prints the seconds for all.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from threading import Event
from urllib.parse import urlsplit

import etcd3

from tests.bench.asking import new_names

_TTL = 60  # seconds that the lock's lease lives


def drive(latency: float) -> None:
    """What a driver does: it takes its time."""
    Event().wait(latency)


def make(
    client: etcd3.Etcd3Client, cluster: str, name: str, latency: float, *, across: bool
) -> None:
    """Make one device."""
    lock = client.lock(cluster, ttl=_TTL)
    assert lock.acquire(timeout=None)
    try:
        key = f"/locked/{cluster}/{name}"
        assert client.get(key)[0] is None
        client.put(key, "gpu01")
        if across:
            drive(latency)
    finally:
        lock.release()
    if not across:
        drive(latency)


def main(
    endpoint: str, cluster: str, parents: int, each: int, latency: float, *, across: bool
) -> None:
    """Make all, and say how long it took."""
    url, fresh = urlsplit(endpoint), new_names()
    options = {"grpc.enable_http_proxy": 0}.items()
    client = etcd3.client(url.hostname, url.port, grpc_options=options)
    one = partial(make, client, cluster, latency=latency, across=across)

    def make_some(names: list[str]) -> None:
        for name in names:
            one(name)

    shares: list[list[str]] = [list(islice(fresh, each)) for _ in range(parents)]
    began = time.perf_counter()
    with ThreadPoolExecutor(parents) as threads:
        list(threads.map(make_some, shares))
    print(time.perf_counter() - began, flush=True)  # noqa: T201 - this is what it is for
    client.close()


if __name__ == "__main__":
    where, whose, *numbers, is_across = sys.argv[1:]
    main(
        where,
        whose,
        int(numbers[0]),
        int(numbers[1]),
        float(numbers[2]),
        across=is_across == "1",
    )
