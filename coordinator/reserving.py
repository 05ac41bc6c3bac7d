"""Reservations: a name held on a lease with no host yet; renewed, and given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from coordinator.claims import Hold
from coordinator.client import Result
from coordinator.errors import InUse, MdevnsError, Moved, TryAgain
from coordinator.model import Claim, Unreadable
from coordinator.requests import ANY, Only, check_count, is_anothers
from coordinator.states import ClaimState
from coordinator.transactions import Answer
from coordinator.views import not_found, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.client import Client
    from coordinator.model import Name
    from coordinator.transactions import Change
    from coordinator.views import Record

__all__ = ["release", "renew", "reserve"]

_ATTEMPTS = 5  # how often a reservation that moved under us is read again before we say so


async def reserve(
    client: Client, names: Sequence[Name], *, request: str, ttl: int, count: int | None = None
) -> list[Result]:
    """Hold names for `ttl` seconds, in one commit for 126 of them.

    The same request for the same name again is answered as the first was. `count`: the names
    follow from the request, which asks for so many.

    Raises:
        AskedOtherwise: the same request holds names of another count.
    """
    if count is not None:
        await check_count(client.store, client.keys, request, count)
    lease = await client.leases.get(ttl)
    changes = [client.claims.hold(name, request, lease=lease) for name in names]
    answers = await client.commit(changes)
    return [
        await client.result(name, answer, Hold(name, request, answer.revision, lease))
        for name, answer in zip(names, answers, strict=True)
    ]


async def renew(client: Client, name: Name, *, ttl: int, only: Only = ANY) -> Result:
    """Hold a reservation for `ttl` seconds from now on, under a newer lease."""
    lease = await client.leases.get(ttl)
    held, answer = await _on_reservation(
        client, name, lambda held: client.claims.renew(held, lease=lease), only
    )
    if isinstance(held, Hold):
        return await client.result(name, answer, Hold(name, held.request, answer.revision, lease))
    return await client.result(name, answer, answer.claim)


async def release(client: Client, name: Name, *, only: Only = ANY) -> Result:
    """Give a reservation back.

    Another reservation that takes the name meanwhile stays: the one that was read is gone.
    """
    held, answer = await _on_reservation(client, name, client.claims.cancel, only)
    if isinstance(answer.error, _Replaced):
        return Result(name, was=answer.error.seen)
    result = await client.result(name, answer, None)
    return result if result.error or isinstance(held, Unreadable) else replace(result, was=held)


class _Replaced(Moved):
    """The reservation that was read is gone, and the name is another one's."""

    def __init__(self, seen: Claim | Hold, now: Claim | Hold) -> None:
        super().__init__(now.name, now.holder)
        self.seen = seen


async def _on_reservation(
    client: Client, name: Name, build: Callable[[Claim | Hold], Change], only: Only
) -> tuple[Record | None, Answer]:
    """Read it, change it; and again when it moved between the two.

    What is found after a doubt may be what came of it.
    """
    record, answer = None, Answer(0)
    seen: Claim | Hold | None = None
    for _ in range(_ATTEMPTS):
        record = await client.views.find(name)
        if isinstance(record, Claim | Hold):
            if seen is not None and is_anothers(seen, record):
                return record, Answer(0, error=_Replaced(seen, record))
            unasked = only.refusal(record)
            if unasked is not None:
                return record, Answer(0, error=unasked, doubted=answer.doubted)
            seen = seen or record
        error = _no_reservation(name, record)
        if error is not None or not isinstance(record, Claim | Hold):
            return record, Answer(0, error=error, doubted=answer.doubted)
        before = answer
        (answer,) = await client.commit([build(record)])
        if answer.error is not None and before.doubted:
            answer = replace(answer, doubted=True)
        if not isinstance(answer.error, Moved):
            break
    return record, answer


def _no_reservation(name: Name, held: Record | None) -> MdevnsError | None:
    """Why it is none, if it is none."""
    if held is None:
        return not_found(name)
    if isinstance(held, Unreadable):
        return unreadable(name, held)
    if isinstance(held, Hold) or held.state is ClaimState.RESERVED:
        return None
    if held.state in (ClaimState.CREATING, ClaimState.REMOVING):
        why = f"is past being reserved: {held.holder}"
        return TryAgain(
            held.name, why, f"see: mdevns show {held.name}", name=held.name, holder=held.holder
        )
    return InUse(
        held.name,
        f"is no reservation but held by {held.holder}",
        f"to remove it: mdevns remove {held.name}",
        name=held.name,
        holder=held.holder,
    )
