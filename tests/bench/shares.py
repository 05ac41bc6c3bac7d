"""Where a claim's time goes between its caller and etcd: step by step, each a way of its own.

Parts timed alone and over and over are warm and take a tenth of what they take here, where the
process sleeps until etcd answers and other code has run meanwhile.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from agent.metered import MeteredStore
from agent.metrics import Metrics
from coordinator.batch import GroupCommit
from coordinator.etcd.messages import txn_request, txn_result
from coordinator.transactions import transaction
from tests.bench.turns import p50

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.transactions import Change, Guard
    from tests.bench.asking import Asker
    from tests.bench.figures import Stage
    from tests.bench.turns import Once

__all__ = ["shares"]


async def shares(
    stage: Stage, by: Asker, guards: tuple[Guard, ...], change: Callable[[], Change]
) -> list[str]:
    """What a claim takes up to each step, as multiples of one raw transaction, in words."""
    rounds, each = stage.size(5, 2), stage.size(60, 20)
    count = rounds * each
    raw = iter([by.apart(change()) for _ in range(count)])
    messages = iter([txn_request(transaction(guards, [change()])) for _ in range(count)])
    to_build, to_send = (
        iter([transaction(guards, [change()]) for _ in range(count)]) for _ in range(2)
    )
    to_gather, to_count = (iter([change() for _ in range(count)]) for _ in range(2))
    gathered = GroupCommit(by.store, patience=None, rng=by.client.rng)
    counted = GroupCommit(MeteredStore(by.store, Metrics()), patience=None, rng=by.client.rng)

    async def built_and_read() -> None:
        reply = await by.raw.txn(txn_request(next(to_build)))
        txn_result(reply, reply.header.revision)

    ways: dict[str, Once] = {
        "raw": lambda: by.raw.take(next(raw)),
        "our message, made before": lambda: by.raw.txn(next(messages)),
        "built and read by us": built_and_read,
        "through the store": lambda: by.store.txn(next(to_send)),
        "and group commit": lambda: gathered.change(guards, next(to_gather)),
        "and metrics": lambda: counted.change(guards, next(to_count)),
        "and the change made": lambda: counted.change(guards, change()),
    }
    found = await _side_by_side(ways, rounds=rounds, each=each)
    for commit in (gathered, counted):
        await commit.close()
    theirs = found.pop("raw")
    ratios = {
        way: p50([ours / bare for ours, bare in zip(times, theirs, strict=True)])
        for way, times in found.items()
    }
    said = ", ".join(f"{way} {ratio:.2f}" for way, ratio in ratios.items())
    return [f"of one raw transaction, up to each step: {said}"]


async def _side_by_side(ways: dict[str, Once], *, rounds: int, each: int) -> dict[str, list[float]]:
    """The middle one of `each` times that each way took in a round; always another way is next."""
    rng = random.Random(rounds)
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(each):
            for way in rng.sample(list(ways), len(ways)):
                began = time.perf_counter()
                await ways[way]()
                times[way].append(time.perf_counter() - began)
        for way, seconds in times.items():
            found[way].append(p50(seconds))
    return found
