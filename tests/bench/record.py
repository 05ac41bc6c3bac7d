"""For the record: what a claim takes up in etcd, and how many of them fit.

Names go the way that a create from elsewhere does: reserved for a host, begun, and active.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from coordinator.model import Wish
from tests.bench.asking import asker, new_names
from tests.bench.filling import PARENTS, TYPE, boot_id, host_name, parent_name
from tests.bench.served import metrics
from tests.bench.turns import Turn, figure
from tests.support.rawetcd import compact, defragment, revision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.client import Client
    from coordinator.model import Claim
    from coordinator.transactions import Answer
    from tests.bench.figures import Figure, Stage

__all__ = ["measure"]

_TOGETHER = 126  # names in one transaction
_TTL = 600  # seconds
_QUOTA = 2 << 30  # bytes, etcd's default (etcd: --quota-backend-bytes)
_SIZE = "etcd_mvcc_db_total_size_in_bytes"  # what the quota counts


async def measure(stage: Stage) -> list[Figure]:
    """Claim so many names, and look what etcd has for them."""
    count = stage.size(20, 4)
    empty = _on_disk(stage.endpoint)
    async with asker(stage) as by:
        first = revision(stage.endpoint)
        (alone,) = await _claim(by.client, 0, 1)
        revisions = revision(stage.endpoint) - first
        bulks = [await _claim(by.client, host, _TOGETHER) for host in range(1, count + 1)]
        pages = [page async for page in by.raw.pages(by.keys.root.encode())]
    whole = _size(stage.endpoint) - empty
    kept = _on_disk(stage.endpoint) - empty
    found = [len(kv.key) + len(kv.value) for page in pages for kv in page.kvs]
    claims = [alone, *(claim for bulk in bulks for claim in bulk)]
    assert len(found) == 2 * len(claims)
    plain = sum(found) / len(claims)
    each = kept / len(claims)
    notes = (
        (
            f"{each:,.0f} bytes on disk a claim, compacted and defragmented, for {plain:.0f} bytes "
            f"of keys and values; {whole / len(claims):,.0f} before, with its history"
        ),
        (
            f"{len(found) // len(claims)} keys; {revisions} revisions to be active when it is made "
            f"alone, {revisions / _TOGETHER:.3f} among {_TOGETHER}"
        ),
        f"{_QUOTA / each:,.0f} names fit the default quota of 2 GiB",
    )
    return [figure(stage.line, "bytes on disk", [Turn([each], [plain])], notes=notes)]


async def _claim(client: Client, host: int, count: int) -> list[Claim]:
    """Names of a host, reserved, begun and active; each of that in one transaction."""
    lease, now, request = await client.leases.get(_TTL), client.clock.now(), secrets.token_hex(16)
    claims, boot = client.claims, boot_id(host)
    wishes = [
        Wish(host=host_name(host), parent=parent_name(number % PARENTS), type=TYPE)
        for number in range(count)
    ]
    held = _made(
        await client.commit(
            [
                claims.reserve(
                    name,
                    request,
                    wish,
                    lease=lease,
                    now=now,
                    by=client.asked_by,
                )
                for name, wish in zip(new_names(), wishes, strict=False)
            ]
        )
    )
    begun = _made(
        await client.commit(
            [claims.begin(claim, boot_id=boot, now=now, error=None) for claim in held]
        )
    )
    return _made(
        await client.commit([claims.activate(claim, boot_id=boot, now=now) for claim in begun])
    )


def _made(answers: Sequence[Answer]) -> list[Claim]:
    made = []
    for answer in answers:
        claim = answer.made()
        assert claim is not None
        made.append(claim)
    return made


def _on_disk(endpoint: str) -> int:
    """Bytes that are stored, compacted and defragmented."""
    if (newest := revision(endpoint)) > 1:
        compact(endpoint, newest)
    defragment(endpoint)
    return _size(endpoint)


def _size(endpoint: str) -> int:
    return int(metrics(endpoint)[_SIZE])
