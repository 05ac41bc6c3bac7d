"""Names in etcd as an agent leaves them, put there raw: what a line measures over."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import TYPE_CHECKING, Any

from etcd3 import etcdrpc

from coordinator.model import ClaimValue, NameValue, encode, random_name
from coordinator.sequences import batched
from coordinator.states import ClaimState
from tests.bench.raw import nested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from coordinator.keys import Keys
    from coordinator.model import Name
    from tests.bench.raw import Raw

__all__ = ["PARENTS", "TYPE", "boot_id", "fill", "host_name", "names_of", "parent_name", "puts"]

PARENTS = 8
TYPE = "nvidia-35"
_BOOT_BEFORE = "0b7e2f4c-8a51-4a3e-9d0f-5d8c0b6e7a11"
_WHEN = "2026-01-01T00:00:00.000000Z"
# 60 transactions of 64 puts in one: etcd takes 128 operations of both together (etcd:
# api/v3rpc/key.go, checkTxnRequest), and 1.5 MiB a request. Half again as fast as 126 pairs.
_INNER, _OUTER = 32, 60  # names
_IN_FLIGHT = 2  # transactions


def host_name(number: int) -> str:
    """The number-th host."""
    return f"gpu{number:05d}"


def parent_name(number: int) -> str:
    """The parent of a host's number-th device; of each so many."""
    return f"0000:{0x3B + number % PARENTS:02x}:00.0"


def names_of(host: int, count: int) -> list[Name]:
    """The names of a host's devices: random ones, the same each time."""
    rng = random.Random(host)
    return [random_name(rng.getrandbits(128)) for _ in range(count)]


def boot_id(host: int) -> str:
    """The first boot of a host in memory (`tests.sim.kernel`)."""
    return f"{host + 1:08x}-0000-4000-8000-{1:012x}"


def _claim(number: int, boot: str, *, request: str, persistent: bool) -> bytes:
    value = ClaimValue(
        state=ClaimState.ACTIVE,
        parent=parent_name(number),
        type=TYPE,
        persistent=persistent,
        autostart=persistent,
        request=request,
        boot_id=boot,
        since=_WHEN,
        created=_WHEN,
        asked_by="root@orchestrator",
    )
    return encode(value)


def puts(
    keys: Keys, host: int, count: int, *, boot: str = _BOOT_BEFORE, persistent: bool = False
) -> Iterator[tuple[tuple[bytes, bytes], tuple[bytes, bytes]]]:
    """Key and value of the name and of the claim, for each of so many of a host's."""
    request = str(uuid.UUID(int=random.Random(f"request {host}").getrandbits(128), version=4))
    label = host_name(host)
    name_value = encode(NameValue(host=label, request=request))
    claims = [
        _claim(number, boot, request=request, persistent=persistent) for number in range(PARENTS)
    ]
    name_prefix, claim_prefix = keys.names.encode(), keys.claims(label).encode()
    for number, name in enumerate(names_of(host, count)):
        plain = name.encode()
        yield (
            (name_prefix + plain, name_value),
            (claim_prefix + plain, claims[number % PARENTS]),
        )


async def fill(
    raw: Raw,
    keys: Keys,
    hosts: Iterable[int],
    count: int,
    *,
    boot: Callable[[int], str] = lambda _: _BOOT_BEFORE,
    persistent: bool = False,
) -> None:
    """Put so many names for each of these hosts, active in a `boot`, as fast as it goes."""
    pairs = (
        pair
        for host in hosts
        for pair in puts(keys, host, count, boot=boot(host), persistent=persistent)
    )
    under_way: set[asyncio.Task[Any]] = set()
    for some in batched(pairs, _OUTER * _INNER):
        if len(under_way) == _IN_FLIGHT:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        request = nested([_putting(each) for each in batched(some, _INNER)])
        under_way.add(asyncio.create_task(raw.txn(request)))
    await asyncio.gather(*under_way)


def _putting(pairs: Iterable[tuple[tuple[bytes, bytes], ...]]) -> Any:
    puts = [
        etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=value))
        for pair in pairs
        for key, value in pair
    ]
    return etcdrpc.TxnRequest(success=puts)
