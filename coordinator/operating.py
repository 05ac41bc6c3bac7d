"""What an operator asks of names that stand: remove, stop, undefine, start.

Each asks the host's agent by one transition, and waits for what it makes of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from coordinator.client import Result, in_doubt
from coordinator.errors import (
    HostDown,
    InUse,
    InvalidValue,
    MdevnsError,
    Moved,
    StoreError,
    TryAgain,
)
from coordinator.evicting import evicted_epoch
from coordinator.model import AfterRemoval, Claim, Removal, Unreadable
from coordinator.requests import ANY, Only, is_anothers
from coordinator.states import ClaimState
from coordinator.views import not_found, unreadable
from coordinator.waiting import await_gone, await_made

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from coordinator.claims import Claims, Hold
    from coordinator.client import Client
    from coordinator.model import Name
    from coordinator.transactions import Answer, Change
    from coordinator.views import Record

__all__ = ["remove", "start", "stop", "undefine"]

_ATTEMPTS = 5  # how often a claim that moved under us is read again before we say so


@dataclass(frozen=True, slots=True)
class _Act:
    """What is done to a claim: from which states, by which transition, and what is awaited.

    `reached` is whether that stands already, of the claim that was asked about (None: gone).
    """

    refused: Callable[[Claim], MdevnsError | None]
    change: Callable[[Claims, Claim, str], Change]
    awaited: Callable[..., Awaitable[None]]
    reached: Callable[[Claim | None], bool]
    keeps: bool = False  # whether a claim is left to show
    creates: bool = False  # whether the kernel is asked for a device

    @property
    def frees(self) -> bool:
        """Whether the name is free afterwards."""
        return self.reached(None)


async def remove(
    client: Client,
    names: Sequence[Name],
    *,
    force: bool = False,
    only: Only = ANY,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Remove devices and their claims; returns when they are gone or it is known why not.

    With `force` the host waits in the kernel for whoever has a device open. What `only` does not
    allow stays as it is, also when it takes the name meanwhile. `told` is called for each name
    as it ends; the results are in the order of `names`.
    """
    removal = Removal(AfterRemoval.FREE, force)
    act = _Act(
        _unless(ClaimState.ACTIVE, ClaimState.DEFINED),
        lambda claims, claim, now: claims.retire(claim, removal, now=now),
        await_gone,
        lambda now: now is None,
    )
    return await _Acting(client, act, only, told).run(names)


async def stop(
    client: Client,
    names: Sequence[Name],
    *,
    force: bool = False,
    only: Only = ANY,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Remove the devices of persistent names, which stay defined. See `remove`."""
    removal = Removal(AfterRemoval.DEFINED, force)

    def refused(claim: Claim) -> MdevnsError | None:
        if claim.state is ClaimState.ACTIVE and not claim.persistent:
            return _invalid(claim, "is transient: nothing of it would stay", "mdevns remove")
        if claim.state is ClaimState.DEFINED:
            return _invalid(claim, "is stopped already", "mdevns start")
        return _unless(ClaimState.ACTIVE)(claim)

    act = _Act(
        refused,
        lambda claims, claim, now: claims.retire(claim, removal, now=now),
        await_gone,
        lambda now: now is not None and now.state is ClaimState.DEFINED,
        keeps=True,
    )
    return await _Acting(client, act, only, told).run(names)


async def undefine(client: Client, name: Name, *, only: Only = ANY) -> Result:
    """Give a persistent name up that has no device; it is free afterwards."""

    def refused(claim: Claim) -> MdevnsError | None:
        if claim.state is ClaimState.ACTIVE:
            return InUse(
                claim.name,
                f"has a device on {claim.holder}",
                f"first: mdevns stop {claim.name}, or: mdevns remove {claim.name}",
                name=claim.name,
                holder=claim.holder,
            )
        return _unless(ClaimState.DEFINED)(claim)

    act = _Act(
        refused,
        lambda claims, claim, now: claims.retire(claim, Removal(), now=now),
        await_gone,
        lambda now: now is None,
    )
    (result,) = await _Acting(client, act, only, lambda _: None).run([name])
    return result


async def start(
    client: Client,
    names: Sequence[Name],
    *,
    only: Only = ANY,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Have the devices of defined names made; returns when they are, or it is known why not."""

    def refused(claim: Claim) -> MdevnsError | None:
        if claim.state is ClaimState.ACTIVE:
            return InUse(
                claim.name,
                f"has its device: {claim.holder}",
                name=claim.name,
                holder=claim.holder,
            )
        return _unless(ClaimState.DEFINED)(claim)

    act = _Act(
        refused,
        lambda claims, claim, now: claims.start(claim, now=now),
        await_made,
        lambda now: now is not None and now.state is ClaimState.ACTIVE,
        keeps=True,
        creates=True,
    )
    return await _Acting(client, act, only, told).run(names)


class _Acting:
    """One request for some names: what has ended."""

    def __init__(
        self, client: Client, act: _Act, only: Only, told: Callable[[Result], None]
    ) -> None:
        self._client, self._act, self._only, self._told = client, act, only, told
        self._asked: dict[Name, Claim] = {}
        self._doubted: set[Name] = set()
        self._done: dict[Name, Result] = {}

    async def run(self, names: Sequence[Name]) -> list[Result]:
        names = list(dict.fromkeys(names))
        asked, moved = await self._ask_all(names)
        for _ in range(_ATTEMPTS - 1):
            if not moved:
                break
            try:
                more, moved = await self._ask_all(list(moved))
            except StoreError:
                break  # each is told that it moved; what was asked for is waited for
            asked += more
        for name, error in moved.items():
            self._end(Result(name, error=error))
        client = self._client
        await self._act.awaited(client.store, client.keys, asked, self._ended)
        return [self._done[name] for name in names]

    def _end(self, result: Result) -> None:
        if result.error is not None and result.name in self._doubted:
            result = Result(result.name, error=in_doubt(result.name, result.error))
        if result.error is None:
            result = replace(result, was=self._asked.get(result.name))
        self._done[result.name] = result
        self._told(result)

    def _ended(self, claim: Claim, error: MdevnsError | None) -> None:
        kept = claim if self._act.keeps and error is None else None
        self._end(Result(claim.name, kept, error))

    async def _ask_all(self, names: Sequence[Name]) -> tuple[list[Claim], dict[Name, MdevnsError]]:
        """Ask the hosts' agents. Returns what was asked for, and what moved under us."""
        asked: list[Claim] = []
        moved: dict[Name, MdevnsError] = {}
        for found in self._by_host(await self._client.views.find_all(names)):
            claims = await self._on_usable_parents(found) if self._act.creates else found
            if not claims:
                continue
            self._asked |= {claim.name: claim for claim in claims if claim.name not in self._asked}
            for claim, answer in zip(claims, await self._ask(claims), strict=True):
                if answer.doubted:
                    self._doubted.add(claim.name)
                if isinstance(answer.error, Moved):
                    moved[claim.name] = answer.error
                elif answer.claim is not None and answer.error is None:
                    self._doubted.discard(claim.name)  # asked again, and now it is known
                    asked.append(answer.claim)
                else:
                    self._end(await self._client.result(claim.name, answer, answer.claim))
        return asked, moved

    async def _on_usable_parents(self, claims: list[Claim]) -> list[Claim]:
        """The claims of one host whose parents take creates now; the others end."""
        views = await self._client.views.parents([claims[0].host])
        troubles = {
            view.parent: "; ".join(view.value.troubles)
            for view in views
            if view.alive and not view.usable
        }
        for claim in claims:
            if claim.parent in troubles:
                why = f"cannot be used now: {troubles[claim.parent]}"
                what, hint = f"parent {claim.host}/{claim.parent}", "see: mdevns parents -o wide"
                self._end(Result(claim.name, error=HostDown(what, why, hint, name=claim.name)))
        return [claim for claim in claims if claim.parent not in troubles]

    def _by_host(self, records: dict[Name, Record | None]) -> list[list[Claim]]:
        """The claims to which it can be done, by host; the others end, with the reason."""
        by_host: dict[str, list[Claim]] = {}
        for name, record in records.items():
            if self._is_reached(name, record):
                kept = record if self._act.keeps and isinstance(record, Claim) else None
                self._end(Result(name, kept))
                continue
            error = self._refused(name, record)
            if error is not None:
                self._end(Result(name, error=error))
            elif isinstance(record, Claim):
                by_host.setdefault(record.host, []).append(record)
        return list(by_host.values())

    def _is_reached(self, name: Name, record: Record | None) -> bool:
        """Whether a claim that moved under us stands as was asked for.

        An answer was lost and the host was faster than we asked again; or somebody asked for
        the same. What has the name by another request is not what we were asked about.
        """
        if name not in self._asked or isinstance(record, Unreadable):
            return False
        if isinstance(record, Claim) and not self._is_anothers(record):
            return self._act.reached(record)
        return self._act.reached(None)

    def _is_anothers(self, claim: Claim) -> bool:
        """Whether it took the name after we had asked about the one before it."""
        asked = self._asked.get(claim.name)
        return asked is not None and is_anothers(asked, claim)

    def _refused(self, name: Name, record: Record | None) -> MdevnsError | None:
        if record is None:
            return not_found(name)
        if isinstance(record, Unreadable):
            return unreadable(name, record)
        if isinstance(record, Claim) and self._is_anothers(record):
            return Moved(name, record.holder)
        unasked = self._only.refusal(record)
        if unasked is not None:
            return unasked
        return self._act.refused(record) if isinstance(record, Claim) else _placeholder(record)

    async def _ask(self, claims: Sequence[Claim]) -> list[Answer]:
        """Ask for claims of one host, whose agent must be alive to do anything about it."""
        client, now, host = self._client, self._client.clock.now(), claims[0].host
        changes = [self._act.change(client.claims, claim, now) for claim in claims]
        answers = await client.commit(changes, client.claims.enrolled(host))
        if not self._act.frees or not any(isinstance(a.error, HostDown) for a in answers):
            return answers
        return await self._ask_fenced(host, claims, answers)

    async def _ask_fenced(
        self, host: str, claims: Sequence[Claim], answers: Sequence[Answer]
    ) -> list[Answer]:
        """Free the definitions of an evicted host without its agent.

        The operator's word that the host is fenced covers a device that was started by hand: of
        a host that was not evicted its agent must look first.
        """
        client, now = self._client, self._client.clock.now()
        epoch = await evicted_epoch(client, host)
        down = [
            place
            for place, (claim, answer) in enumerate(zip(claims, answers, strict=True))
            if claim.state is ClaimState.DEFINED and isinstance(answer.error, HostDown)
        ]
        if epoch is None or not down:
            return list(answers)
        changes = [client.claims.evict(claims[i], definitions=True, now=now) for i in down]
        guard = client.claims.in_force(host, epoch)
        freed = dict(zip(down, await client.commit(changes, guard), strict=True))
        return [freed.get(place, answer) for place, answer in enumerate(answers)]


def _unless(*states: ClaimState) -> Callable[[Claim], MdevnsError | None]:
    """Refuses a claim that is in none of `states`."""
    return lambda claim: None if claim.state in states else _other_state(claim)


def _other_state(claim: Claim) -> MdevnsError:
    if claim.state is ClaimState.ACTIVE:
        return _invalid(claim, "is active", "mdevns show")
    if claim.state is ClaimState.DEFINED:
        return _invalid(claim, "is defined, and has no device", "mdevns start")
    return _placeholder(claim)


def _invalid(claim: Claim, why: str, command: str) -> MdevnsError:
    hint = f"see: {command} {claim.name}"
    return InvalidValue(claim.name, why, hint, name=claim.name)


def _placeholder(record: Claim | Hold) -> MdevnsError:
    """What is reserved, being created or removed: it is no device, whatever is asked of it."""
    name, holder = record.name, record.holder
    if holder.state == ClaimState.RESERVED:
        hint = f"to give it back: mdevns release {name}"
    else:
        hint = f"try again, or see: mdevns show {name}"
    removing = holder.state == ClaimState.REMOVING
    doing = "being removed" if removing else "a placeholder, not a device"
    return TryAgain(name, f"is {doing}: {holder}", hint, name=name, holder=holder)
