"""Taking names: one on the host itself, one as a reservation, 126 at once."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from agent.metered import MeteredStore
from agent.metrics import Metrics
from coordinator.batch import GroupCommit
from coordinator.model import Wish
from coordinator.reserving import reserve as reserve_names
from coordinator.store import Put, Txn
from tests.bench.asking import TTL, asker, new_names
from tests.bench.shares import shares
from tests.bench.turns import figure, one_by_one, p50, p99

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.model import Name
    from coordinator.transactions import Change
    from tests.bench.asking import Asker
    from tests.bench.figures import Figure, Stage

__all__ = ["AT_ONCE", "bulk", "claim", "reserve"]

AT_ONCE = 126
"""So many reservations fit one transaction."""

_WISH = Wish(host="gpu01", parent="0000:3b:00.0", type="nvidia-35")
_BOOT, _INSTANCE = "5d0f8f5c-3c0e-4c8e-9c2e-000000000001", "f" * 32
_REQUEST = "local-0123456789abcdef"


async def claim(stage: Stage) -> list[Figure]:
    """Claim, under the epoch and the absence of a hold, as the agent's enrolment does."""
    fresh = new_names()
    async with asker(stage) as by:
        claims, clock = by.client.claims, by.client.clock
        epoch = Put(by.keys.epoch(_WISH.host), _INSTANCE.encode())
        await by.store.txn(Txn(success=(epoch,)))
        metered = MeteredStore(by.store, Metrics())
        commit = GroupCommit(metered, patience=None, rng=by.client.rng)
        guards = (claims.in_force(_WISH.host, _INSTANCE), claims.no_hold())

        def change() -> Change:
            now = clock.now()
            return claims.claim(next(fresh), _REQUEST, _WISH, boot_id=_BOOT, now=now, by="bench")

        async def ours() -> None:
            (await commit.change(guards, change())).made()

        rounds, each = stage.size(10, 3), stage.size(400, 100)
        prepared = iter([by.apart(change()) for _ in range(rounds * each)])

        async def theirs() -> None:
            await by.raw.take(next(prepared))

        turns = await one_by_one(ours, theirs, rounds=rounds, each=each, seconds=stage.seconds)
        await commit.close()
        notes = await shares(stage, by, guards, change)
    return [
        figure(stage.line, "p50", turns, by=p50, must=1.15, notes=notes),
        figure(stage.line, "p99", turns, by=p99, must=1.3),
    ]


async def reserve(stage: Stage) -> list[Figure]:
    """Reservations one after the other, on leases that they share."""
    fresh = new_names()
    async with asker(stage) as by:
        rounds, each = stage.size(8, 3), stage.size(300, 60)
        lease = await by.raw.grant(TTL)
        prepared = iter([by.apart(_reservation(by, next(fresh))) for _ in range(rounds * each)])

        async def ours() -> None:
            await _reserved(by, [next(fresh)])

        async def theirs() -> None:
            await by.raw.take(next(prepared), lease)

        turns = await one_by_one(ours, theirs, rounds=rounds, each=each, seconds=stage.seconds)
    return [figure(stage.line, "p50", turns, must=1.15)]


async def bulk(stage: Stage) -> list[Figure]:
    """As many reservations as one transaction takes."""
    fresh = new_names()
    async with asker(stage) as by:
        rounds, each = stage.size(8, 3), stage.size(30, 8)
        lease = await by.raw.grant(TTL)
        prepared = iter(
            [
                [by.apart(_reservation(by, name)) for name in islice(fresh, AT_ONCE)]
                for _ in range(rounds * each)
            ]
        )

        async def ours() -> None:
            await _reserved(by, list(islice(fresh, AT_ONCE)))

        async def theirs() -> None:
            await by.raw.take_all(next(prepared), lease)

        turns = await one_by_one(ours, theirs, rounds=rounds, each=each, seconds=stage.seconds)
    return [figure(stage.line, "p50", turns, must=1.15)]


def _reservation(by: Asker, name: Name) -> Change:
    return by.client.claims.hold(name, _REQUEST, lease=1)


async def _reserved(by: Asker, names: Sequence[Name]) -> None:
    for result in await reserve_names(by.client, names, request=_REQUEST, ttl=TTL):
        assert result.error is None, result.error
