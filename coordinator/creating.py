"""A create, from the asking side: place, reserve for the host, wait for the device.

A request that does not name both host and parent and is refused by a kernel is placed elsewhere,
until no parent is left, or too many have refused it for other reasons than want of room.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coordinator.claims import Hold, answers
from coordinator.client import Result
from coordinator.errors import (
    AskedOtherwise,
    HostDown,
    LeaseGone,
    MdevnsError,
    NameTaken,
    NoCapacity,
    NotFound,
    Refused,
    StoreError,
    TryAgain,
)
from coordinator.model import Claim, Wish
from coordinator.placement import Candidate, Strategy, place
from coordinator.requests import check_count
from coordinator.transactions import Answer
from coordinator.views import no_such_host
from coordinator.waiting import await_made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from coordinator.client import Client
    from coordinator.feeds import Hearer
    from coordinator.model import Name
    from coordinator.transactions import Guard
    from coordinator.views import ParentView, Record

__all__ = ["Ask", "create"]

# `available` may be stale by a moment: so many parents that say 0 are asked all the same.
_ASK_THE_FULL = 8
# So many parents may refuse a create for other reasons: then it is the create's, and not theirs.
_ASK_THE_FAILING = 8
# A parent that refused so many names is asked last.
_FAILING = 2
# So many hosts are asked for a place before all are.
_SOME_HOSTS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One device that is asked for. Without host or parent it is placed."""

    name: Name
    request: str
    type: str
    host: str | None = None
    parent: str | None = None
    attrs: tuple[tuple[str, str], ...] = ()
    persistent: bool = False
    autostart: bool = False
    repeats: bool = False
    """Whether the caller chose the request's id, so an earlier run may hold the name."""
    count: int | None = None
    """Where the name follows from the request: of how many."""

    @property
    def is_placed(self) -> bool:
        """Whether there may be more than one place for it."""
        return self.host is None or self.parent is None

    def allows(self, claim: Claim) -> bool:
        """Whether a claim is where it may be."""
        return self.host in (None, claim.host) and self.parent in (None, claim.parent)

    def asks_for(self, claim: Claim) -> bool:
        """Whether a claim of the same request is what it asks for."""
        wish = self.at(Candidate(claim.host, claim.parent, 0))
        return answers(claim, wish) and self.allows(claim)

    def at(self, place: Candidate) -> Wish:
        """The wish for it at a place."""
        return Wish(
            host=place.host,
            parent=place.parent,
            type=self.type,
            attrs=self.attrs,
            persistent=self.persistent,
            autostart=self.autostart,
        )


async def create(
    client: Client,
    asks: Sequence[Ask],
    *,
    ttl: int,
    wait: bool = True,
    strategy: Strategy = Strategy.SPREAD,
    told: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Claim a name for each of `asks` and (with `wait`) wait for its device.

    `told` is called for each as it ends; the results are in the order of `asks`. `ttl` in
    seconds is how long a host has to begin. One commit reserves 126 names.
    """
    return await _Creation(client, ttl, strategy, told).run(asks, wait=wait)


class _Creation:
    """One `create`: which parents turned out to be full, and what has ended."""

    def __init__(
        self, client: Client, ttl: int, strategy: Strategy, told: Callable[[Result], None]
    ) -> None:
        self._client, self._ttl, self._strategy, self._told = client, ttl, strategy, told
        self._full: set[tuple[str, str, str]] = set()
        self._failing: set[tuple[str, str, str]] = set()
        self._refusals: dict[Name, list[MdevnsError]] = {}
        self._guards: tuple[Guard, ...] = ()
        self._hearer: Hearer | None = None
        self._done: dict[Name, Result] = {}

    async def run(self, asks: Sequence[Ask], *, wait: bool) -> list[Result]:
        host = _the_one_host(asks)
        if host is not None:
            # Who is down reserves nothing. And of whom was alive then, a watch that stands by
            # then tells all.
            self._guards = (self._client.claims.enrolled(host),)
        with ExitStack() as stack:
            if host is not None and wait:
                names = [ask.name for ask in asks]
                self._hearer = stack.enter_context(self._client.feeds.hearing(host, names))
            await self._run(asks, wait=wait)
        return [self._done[ask.name] for ask in asks]

    async def _run(self, asks: Sequence[Ask], *, wait: bool) -> None:
        hearer, left = self._hearer, asks
        if any(ask.repeats for ask in asks):
            left = await self._repeat(asks, wait=wait)
        while left:
            placed = await self._placed(left)
            claimed = await self._claim(placed) if placed else []
            if not wait:
                for claim in claimed:
                    self._end(Result(claim.name, claim))
                return
            left = await self._await_devices(left, claimed, hearer)
            hearer = None  # it has told of these

    async def _repeat(self, asks: Sequence[Ask], *, wait: bool) -> list[Ask]:
        """End what an earlier run of the same request began; returns the asks that are left.

        It comes before any place is looked for: the earlier run may have taken the last one, or
        its host be down since.
        """
        client = self._client
        counts = {(ask.request, ask.count) for ask in asks if ask.count is not None}
        for request, count in sorted(counts):
            await check_count(client.store, client.keys, request, count)
        records = await client.views.find_all([ask.name for ask in asks if ask.repeats])
        left, standing = [], []
        for ask in asks:
            record = records.get(ask.name)
            if not isinstance(record, Claim) or not _is_of(record, ask):
                left.append(ask)
            elif ask.asks_for(record):
                standing.append(record)
            else:
                why = f"asked for {record.name} otherwise: {record.type} on {record.holder}"
                error = AskedOtherwise(ask.name, ask.request, why, record.holder)
                self._end(Result(ask.name, error=error))
        if not wait:
            for claim in standing:
                self._end(Result(claim.name, claim))
            return left
        return left + await self._await_devices(asks, standing, None)

    def _end(self, result: Result) -> None:
        self._done[result.name] = result
        self._told(result)

    # Where.

    async def _placed(self, asks: Sequence[Ask]) -> list[tuple[Ask, Wish]]:
        """A wish for each ask that can be placed; the others end, with the reason."""
        named = [ask for ask in asks if ask.host is not None]
        anywhere = [ask for ask in asks if ask.host is None]
        placed = await self._on_named_hosts(named) if named else []
        return placed + (await self._anywhere(anywhere) if anywhere else [])

    async def _on_named_hosts(self, asks: Sequence[Ask]) -> list[tuple[Ask, Wish]]:
        """Each on its host or nowhere; those on a host that never enrolled end too."""
        heard = None if self._hearer is None else self._hearer.parents()
        if heard is not None:
            placed, left = self._place(asks, heard)
            if not left:
                return placed  # else what was heard may be late: nobody is refused for that
        found = await self._parents_of(sorted({ask.host for ask in asks if ask.host is not None}))
        known = []
        for ask in asks:
            if ask.host is not None and found[ask.host] is None:
                self._end(Result(ask.name, error=no_such_host(ask.host)))
            else:
                known.append(ask)
        return self._among(known, [view for views in found.values() for view in views or ()])

    async def _parents_of(self, hosts: Sequence[str]) -> dict[str, list[ParentView] | None]:
        if self._hearer is not None:
            return {self._hearer.host: await self._hearer.read_parents()}
        return await self._client.views.parents_of(hosts)

    async def _anywhere(self, asks: Sequence[Ask]) -> list[tuple[Ask, Wish]]:
        """Among some hosts, and among all only for what these have no room for.

        In a large cluster any few hosts have some, and to read all costs what all is.
        """
        hosts = await self._client.views.hosts()
        if len(hosts) <= _SOME_HOSTS:
            return self._among(asks, await self._client.views.parents(hosts))
        some = sorted(self._client.rng.sample(hosts, _SOME_HOSTS))
        placed, left = self._place(asks, await self._client.views.parents(some))
        if not left:
            return placed
        return placed + self._among(left, await self._client.views.parents(hosts))

    def _among(self, asks: Sequence[Ask], parents: Sequence[ParentView]) -> list[tuple[Ask, Wish]]:
        """Among these parents or nowhere."""
        placed, left = self._place(asks, parents)
        why: dict[tuple[str, str | None, str | None], MdevnsError] = {}
        for ask in left:
            refusals = self._refusals.get(ask.name)
            if refusals:
                self._end(Result(ask.name, error=refusals[-1]))
                continue
            kind = ask.type, ask.host, ask.parent
            if kind not in why:  # a look at every parent
                why[kind] = _unplaced(ask, _fitting(parents, ask.host, ask.parent))
            self._end(Result(ask.name, error=_about(why[kind], ask.name)))
        return placed

    def _place(
        self, asks: Sequence[Ask], parents: Sequence[ParentView]
    ) -> tuple[list[tuple[Ask, Wish]], list[Ask]]:
        """A wish for each ask that has a place among `parents`, and those that have none."""
        groups: dict[tuple[str, str | None, str | None], list[Ask]] = {}
        for ask in asks:
            groups.setdefault((ask.type, ask.host, ask.parent), []).append(ask)
        placed: list[tuple[Ask, Wish]] = []
        left: list[Ask] = []
        for (type_, host, parent), group in groups.items():
            fitting = _fitting(parents, host, parent)
            spots = self._spots(fitting, type_, len(group), fixed=None not in (host, parent))
            for ask, spot in zip(group, spots, strict=True):
                if spot is None:
                    left.append(ask)
                else:
                    placed.append((ask, ask.at(spot)))
        return placed, left

    def _spots(
        self, parents: Iterable[ParentView], type_: str, count: int, *, fixed: bool
    ) -> list[Candidate | None]:
        tried = self._full | self._failing
        offers = [
            Candidate(view.host, view.parent, offer.room, failing=view.value.failures >= _FAILING)
            for view in parents
            if view.usable and (view.host, view.parent, type_) not in tried
            for offer in view.value.types
            if offer.type == type_
        ]
        if fixed:  # it was named, so the kernel is asked whatever the hint says
            return list(place((replace(c, available=count) for c in offers), count, self._strategy))
        spots = list(place(offers, count, self._strategy))
        short = spots.count(None)
        tries = max(0, _ASK_THE_FULL - len(self._full))
        full = [replace(c, available=1) for c in offers if c.available <= 0][:tries]
        return spots[: count - short] + list(place(full, short, self._strategy))

    # Claims.

    async def _claim(self, placed: Sequence[tuple[Ask, Wish]]) -> list[Claim]:
        """Reserve each name for its host; those that are refused end."""
        lease = await self._client.leases.get(self._ttl)
        reserved = await self._reserve(placed, lease)
        if any(isinstance(answer.error, LeaseGone) for answer in reserved):
            self._client.leases.forget()  # revoked early; nothing was put on it
            lease = await self._client.leases.get(self._ttl)
            reserved = await self._reserve(placed, lease)
        asked = list(zip(placed, reserved, strict=True))
        held = await self._holding(
            [a.name for (a, _), b in asked if isinstance(b.error, NameTaken)]
        )
        bound = await self._bind(asked, held, lease)
        claimed = []
        for (ask, wish), first in asked:
            answer = bound.get(ask.name) or self._if_mine(ask, wish, first, held.get(ask.name))
            result = await self._client.result(ask.name, answer, answer.claim)
            if isinstance(result.record, Claim):
                claimed.append(result.record)
            else:
                self._end(result)
        return claimed

    async def _holding(self, names: Sequence[Name]) -> Mapping[Name, Record | StoreError | None]:
        """What holds names that are taken, or why that cannot be read.

        It must not take the others' answers away: their names are reserved.
        """
        try:
            return await self._client.views.find_all(names)
        except StoreError as error:
            return dict.fromkeys(names, error)

    async def _reserve(self, placed: Sequence[tuple[Ask, Wish]], lease: int) -> list[Answer]:
        client, now = self._client, self._client.clock.now()
        changes = [
            client.claims.reserve(
                ask.name, ask.request, wish, lease=lease, now=now, by=client.asked_by
            )
            for ask, wish in placed
        ]
        return await client.commit(changes, *self._guards)

    async def _bind(
        self,
        asked: Sequence[tuple[tuple[Ask, Wish], Answer]],
        held: Mapping[Name, Record | StoreError | None],
        lease: int,
    ) -> dict[Name, Answer]:
        """Have the request's own reservations without a host become the host's, in few commits."""
        client, now = self._client, self._client.clock.now()
        changes = []
        for (ask, wish), first in asked:
            hold = held.get(ask.name)
            if first.claim is not None or not isinstance(first.error, NameTaken):
                continue
            if isinstance(hold, Hold) and hold.request == ask.request:
                bind = client.claims.bind(hold, wish, lease=lease, now=now, by=client.asked_by)
                changes.append(bind)
        if not changes:
            return {}
        bound = await client.commit(changes, *self._guards)
        return {change.name: answer for change, answer in zip(changes, bound, strict=True)}

    def _if_mine(
        self, ask: Ask, wish: Wish, answer: Answer, record: Record | StoreError | None
    ) -> Answer:
        """A name that is taken by the very same request is no conflict.

        A claim that an earlier attempt of the same request made elsewhere is this request's
        own, if it asks for the same, and for no other place.
        """
        if answer.claim is not None and not ask.allows(answer.claim):
            return Answer(0, error=NameTaken(ask.name, answer.claim.holder))
        if not isinstance(answer.error, NameTaken):
            return answer
        unseen = _unseen(ask, answer.error, record)
        if unseen is not None:
            return Answer(0, error=unseen, doubted=answer.doubted)
        same = isinstance(record, Claim | Hold) and record.request == ask.request
        if same and isinstance(record, Claim) and answers(record, wish) and ask.allows(record):
            return Answer(record.revision, record)
        if isinstance(record, Claim | Hold):
            return Answer(0, error=NameTaken(ask.name, record.holder))
        return answer

    async def _await_devices(
        self, asks: Sequence[Ask], claimed: Sequence[Claim], hearer: Hearer | None
    ) -> list[Ask]:
        """Wait for devices; returns the asks that were refused for want of room."""
        by_name = {ask.name: ask for ask in asks}
        again: list[Ask] = []

        def ended(claim: Claim, error: MdevnsError | None) -> None:
            ask = by_name[claim.name]
            if self._goes_elsewhere(ask, claim, error):
                again.append(ask)
            else:
                self._end(Result(claim.name, None if error else claim, error))

        await await_made(self._client.store, self._client.keys, claimed, ended, hearer)
        return again

    def _goes_elsewhere(self, ask: Ask, claim: Claim, error: MdevnsError | None) -> bool:
        """Whether a create that was refused at a place is tried at another."""
        if not (ask.is_placed and isinstance(error, Refused) and error.elsewhere):
            return False
        place_ = (claim.host, claim.parent, claim.type)
        refusals = self._refusals.setdefault(ask.name, [])
        if isinstance(error, NoCapacity):
            self._full.add(place_)
            if ask.parent is not None:
                refusals[:0] = [error]  # of a parent that was named the kernel's own errno is told
            return True
        self._failing.add(place_)
        refusals.append(error)
        return len(refusals) < _ASK_THE_FAILING


def _is_of(claim: Claim, ask: Ask) -> bool:
    """Whether a claim is of the same request, and not on its way out."""
    return claim.request == ask.request and claim.state.is_wanted and not claim.adopted


def _unseen(ask: Ask, refusal: NameTaken, record: Record | StoreError | None) -> MdevnsError | None:
    """What is told where it may be this very request that has the name, and nobody could see it."""
    if record is None and refusal.request == ask.request:
        why = "what this very request held is gone since"
        return TryAgain(ask.name, why, "ask again", name=ask.name)
    if isinstance(record, StoreError) and refusal.request in (None, ask.request):
        return record
    return None


def _the_one_host(asks: Sequence[Ask]) -> str | None:
    """The host that all of them name, if there is one."""
    hosts = {ask.host for ask in asks}
    return hosts.pop() if len(hosts) == 1 else None


def _fitting(
    parents: Iterable[ParentView], host: str | None, parent: str | None
) -> list[ParentView]:
    return [v for v in parents if host in (None, v.host) and parent in (None, v.parent)]


def _about(error: MdevnsError, name: Name) -> MdevnsError:
    """The error of `_unplaced`, of another name of the kind."""
    return type(error)(error.what, error.why, error.hint, errno_name=error.errno, name=name)


def _unplaced(ask: Ask, fitting: Sequence[ParentView]) -> MdevnsError:
    """Why there is no place for it: nothing of the kind, nobody there, or no room."""
    where = f"host {ask.host}" if ask.host else "the cluster"
    if not fitting and ask.parent is not None:
        why = f"there is no such parent on {where}"
        return NotFound(
            f"parent {ask.parent}", why, "see: mdevns parents", errno_name="ENODEV", name=ask.name
        )
    offering = [view for view in fitting if any(t.type == ask.type for t in view.value.types)]
    if not offering:
        why = f"no parent of {where} offers it"
        return NotFound(f"type {ask.type}", why, "see: mdevns types", name=ask.name)
    if any(view.alive for view in offering) and not any(view.usable for view in offering):
        unusable = next(view for view in offering if view.alive)
        trouble = "; ".join(unusable.value.troubles)
        why = f"cannot be used now: {trouble}"
        what = f"parent {unusable.host}/{unusable.parent}"
        return HostDown(what, why, "see: mdevns parents -o wide", name=ask.name)
    if not any(view.alive for view in offering):
        hosts = ", ".join(sorted({view.host for view in offering}))
        why = "cannot be reached, so nobody can make it now"
        return HostDown(f"host {hosts}", why, "see: mdevns hosts", name=ask.name)
    why = f"no parent of {where} has room for it"
    return NoCapacity(f"type {ask.type}", why, "see: mdevns parents", name=ask.name)
