"""A remove, from the asking side: ask the host's agent, wait until the name is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.client import Result
from coordinator.errors import MdevnsError, Moved, TryAgain
from coordinator.model import AfterRemoval, Claim, Removal, Unreadable
from coordinator.states import ClaimState
from coordinator.views import not_found, unreadable
from coordinator.waiting import await_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from coordinator.client import Client
    from coordinator.model import Name
    from coordinator.transactions import Answer
    from coordinator.views import Record

__all__ = ["remove"]

_ATTEMPTS = 5  # how often a claim that moved under us is read again before we say so


async def remove(
    client: Client,
    names: Sequence[Name],
    *,
    force: bool = False,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Remove devices and their claims; returns when they are gone or it is known why not.

    With `force` the host waits in the kernel for whoever has a device open. `told` is called
    for each name as it ends; the results are in the order of `names`.
    """
    return await _Removing(client, Removal(AfterRemoval.FREE, force), told).run(names)


class _Removing:
    """One `remove`: what has ended."""

    def __init__(self, client: Client, removal: Removal, told: Callable[[Result], None]) -> None:
        self._client, self._removal, self._told = client, removal, told
        self._done: dict[Name, Result] = {}

    async def run(self, names: Sequence[Name]) -> list[Result]:
        names = list(dict.fromkeys(names))
        retired, moved = await self._retire(names)
        for _ in range(_ATTEMPTS - 1):
            if not moved:
                break
            more, moved = await self._retire(list(moved))
            retired += more
        for name, error in moved.items():
            self._end(Result(name, error=error))
        client = self._client
        await await_gone(client.store, client.keys, retired, self._ended)
        return [self._done[name] for name in names]

    def _end(self, result: Result) -> None:
        self._done[result.name] = result
        self._told(result)

    def _ended(self, claim: Claim, error: MdevnsError | None) -> None:
        self._end(Result(claim.name, error=error))

    async def _retire(self, names: Sequence[Name]) -> tuple[list[Claim], dict[Name, MdevnsError]]:
        """Ask the hosts' agents. Returns what is being removed, and what moved under us."""
        retired: list[Claim] = []
        moved: dict[Name, MdevnsError] = {}
        for claims in self._by_host(await self._client.views.find_all(names)):
            for claim, answer in zip(claims, await self._ask(claims), strict=True):
                result = await self._client.result(claim.name, answer, answer.claim)
                if isinstance(result.error, Moved):
                    moved[claim.name] = result.error
                elif isinstance(result.record, Claim):
                    retired.append(result.record)
                else:
                    self._end(result)
        return retired, moved

    def _by_host(self, records: dict[Name, Record | None]) -> list[list[Claim]]:
        """The claims that can be removed, by host; the others end, with the reason."""
        by_host: dict[str, list[Claim]] = {}
        for name, record in records.items():
            error = _not_removable(name, record)
            if error is not None:
                self._end(Result(name, error=error))
            elif isinstance(record, Claim):
                by_host.setdefault(record.host, []).append(record)
        return list(by_host.values())

    async def _ask(self, claims: Sequence[Claim]) -> list[Answer]:
        """Retire claims of one host, whose agent must be alive to do anything about it."""
        client, now = self._client, self._client.clock.now()
        changes = [client.claims.retire(claim, self._removal, now=now) for claim in claims]
        return await client.commit(changes, client.claims.enrolled(claims[0].host))


def _not_removable(name: Name, record: Record | None) -> MdevnsError | None:
    if record is None:
        return not_found(name)
    if isinstance(record, Unreadable):
        return unreadable(name, record)
    if isinstance(record, Claim) and record.state in (ClaimState.ACTIVE, ClaimState.DEFINED):
        return None
    holder = record.holder
    if holder.state == ClaimState.RESERVED:
        hint = f"to give it back: mdevns release {name}"
    else:
        hint = f"try again, or see: mdevns show {name}"
    doing = (
        "being removed" if holder.state == ClaimState.REMOVING else "a placeholder, not a device"
    )
    return TryAgain(name, f"is {doing}: {holder}", hint, name=name, holder=holder)
