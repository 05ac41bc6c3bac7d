"""Where a claim's time goes between its caller and the stub: each part timed alone."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from agent.metered import MeteredStore
from agent.metrics import Metrics
from coordinator.batch import GroupCommit
from coordinator.etcd.messages import txn_request, txn_result
from coordinator.transactions import transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from coordinator.store import Store, Txn, TxnResult
    from coordinator.transactions import Change, Guard
    from tests.bench.asking import Asker

__all__ = ["shares"]

_TIMES, _ROUNDS = 100, 9


class _Answered(MeteredStore):
    """Answers a transaction with what another one was answered, at once."""

    def __init__(self, inner: Store, result: TxnResult) -> None:
        super().__init__(inner, Metrics())
        self._result = result

    async def txn(self, txn: Txn) -> TxnResult:
        del txn
        return self._result


async def shares(
    by: Asker, guards: Sequence[Guard], change: Callable[[], Change], raw: float
) -> list[str]:
    """What the parts of one claim take, as multiples of `raw` seconds, in words."""
    one = change()
    txn = transaction(guards, [one])
    reply = await by.raw.txn(txn_request(txn))
    answered = _Answered(by.store, txn_result(reply, reply.header.revision))
    commit = GroupCommit(answered, patience=None, rng=by.client.rng)
    metered = MeteredStore(answered, Metrics())

    async def made() -> None:
        change()

    async def in_messages() -> None:
        txn_request(txn)
        txn_result(reply, reply.header.revision)

    parts = {
        "the change and its values": await _least(made),
        "protobuf messages": await _least(in_messages),
        "group commit (a future, a task, two turns of the loop)": await _least(
            lambda: commit.change(tuple(guards), one)
        ),
        "metrics": await _least(lambda: metered.txn(txn)),
    }
    await commit.close()
    said = ", ".join(f"{what} {seconds / raw:.2f}" for what, seconds in parts.items())
    rest = (
        "the store's deadline and history, and that nothing is warm when a turn of the loop comes"
    )
    return [f"of one raw transaction: {said}; the rest is {rest}"]


async def _least(once: Callable[[], Awaitable[object]]) -> float:
    """Seconds that one takes, in the quietest of some rounds."""
    rounds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(_TIMES):
            await once()
        rounds.append((time.perf_counter() - began) / _TIMES)
    return statistics.median(sorted(rounds)[: _ROUNDS // 2])
