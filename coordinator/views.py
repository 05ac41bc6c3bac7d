"""Looking: names, hosts and parents. Writes nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from coordinator.claims import Hold
from coordinator.errors import Holder, MdevnsError, NotFound
from coordinator.keys import last_part
from coordinator.model import (
    Claim,
    IdentityValue,
    MachineValue,
    Name,
    NameValue,
    ParentValue,
    SessionValue,
    Unreadable,
    decode,
    read_claim,
)
from coordinator.sequences import batched
from coordinator.states import ClaimState
from coordinator.store import (
    MAX_TXN_OPS,
    Range,
    RangeResult,
    Txn,
    get,
    pages,
    prefix,
    prefix_end,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from coordinator.keys import Keys
    from coordinator.store import KeyValue, Store

__all__ = [
    "HostView",
    "ParentView",
    "Record",
    "Views",
    "no_such_host",
    "not_found",
    "parent_views",
    "reads_of",
    "unreadable",
]

_WITH_DEVICE = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
_AT_ONCE = 16  # hosts whose claims are counted side by side

Record = Claim | Hold | Unreadable
"""What a name can be held by."""


class HostView(msgspec.Struct, frozen=True):
    """A host: whether its agent is seen, and how many claims it has in which state.

    `free` is how many devices more its parents say they have room for: of each parent the
    type that it has most instances of, since its types share one pool.
    """

    host: str
    session: SessionValue | None
    claims: Mapping[str, int]
    free: int
    identity: IdentityValue | None
    epoch: str | None
    troubles: tuple[str, ...] = ()
    """What its agent found wrong with its parents, in words."""

    @property
    def alive(self) -> bool:
        """Whether its agent has a session. Without one nothing is lost: it is only not seen."""
        return self.session is not None

    @property
    def used(self) -> int:
        """How many devices it has, or may have."""
        return sum(self.claims.get(state, 0) for state in _WITH_DEVICE)


class _Standing(msgspec.Struct, frozen=True):
    """What a host's own records say."""

    session: SessionValue | None
    identity: IdentityValue | None
    epoch: str | None
    free: int
    troubles: tuple[str, ...]


class ParentView(msgspec.Struct, frozen=True):
    """A parent of a host and its types; `alive` is its host's."""

    host: str
    parent: str
    alive: bool
    value: ParentValue

    @property
    def usable(self) -> bool:
        """Whether devices can be created there now."""
        return self.alive and self.value.usable


class Views:
    """Reads of one cluster, linearizable."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys

    async def find(self, name: Name) -> Record | None:
        """What holds a name, or None when it is free."""
        return (await self.find_all([name]))[name]

    async def find_all(self, names: Sequence[Name]) -> dict[Name, Record | None]:
        """What holds each of `names`. Two reads for up to 128 of them."""
        found: dict[Name, Record | None] = {}
        for some in batched(names, MAX_TXN_OPS):
            taken = await self._gets([self._keys.name(name) for name in some])
            found |= await self._followed(dict(zip(some, taken, strict=True)))
        return found

    async def holder(self, name: Name) -> Holder | None:
        """Who holds a name, with parent and state; None when it is free."""
        record = await self.find(name)
        if isinstance(record, Unreadable):
            return Holder(self._keys.host_of(record.key), None, "unreadable")
        return record.holder if record is not None else None

    async def records(
        self,
        *,
        host: str | None = None,
        state: str | None = None,
        type_: str | None = None,
        revision: int = 0,
    ) -> AsyncIterator[Record]:
        """All names and what holds them, in the order of names, in constant memory.

        All at one revision; 0 is the newest.
        """
        whole = prefix(self._keys.names if host is None else self._keys.claims(host))
        at = Range(whole.key, whole.end, revision=revision)
        records = self._list_host(at) if host is not None else self._list_all(at)
        async for record in records:
            if _matches(record, state, type_):
                yield record

    async def hosts(self) -> list[str]:
        """All enrolled hosts, in order."""
        hosts = []
        async for page in pages(self._store, prefix(self._keys.machines)):
            values = (decode(kv, MachineValue) for kv in page.kvs)
            hosts += [value.host for value in values if isinstance(value, MachineValue)]
        return sorted(hosts)

    async def known_hosts(self) -> list[str]:
        """All hosts that enrolled, and those of which only claims or an identity exist, in order.

        An import brings claims of hosts that never enrolled in this store, and a damaged machine
        record hides a host that did. Costs one read for each 128 enrolled hosts, and two for each
        host without a machine record.
        """
        enrolled = await self.hosts()
        return sorted({*enrolled, *await self._unlisted(enrolled)})

    async def is_known(self, host: str) -> bool:
        """Whether a host has an identity or a claim."""
        return any(read.kvs for read in await self._read(_evidence(self._keys, host)))

    async def _unlisted(self, listed: Sequence[str]) -> list[str]:
        """Hosts between the `listed` that have a claim or an identity; a forgotten one has none."""
        keys, found = self._keys, list[str]()
        gaps = _gaps(keys, listed)
        while gaps:
            firsts = await self._read(
                [Range(gap.key, gap.end, limit=1, keys_only=True) for gap in gaps]
            )
            left = []
            for gap, read in zip(gaps, firsts, strict=True):
                if read.first is None:
                    continue
                host = keys.host_of(read.first.key)
                if host is not None:
                    found.append(host)
                after = read.first.key + "\0" if host is None else prefix_end(keys.of_host(host))
                left.append(Range(after, gap.end))
            gaps = left
        reads = [read for host in found for read in _evidence(keys, host)]
        answers = iter(await self._read(reads))
        return [host for host in found if any([next(answers).kvs, next(answers).kvs])]

    async def unreachable(self, hosts: Sequence[str]) -> list[str]:
        """Those of `hosts` whose agent has no session."""
        sessions = await self._gets([self._keys.session(host) for host in hosts])
        return [host for host, seen in zip(hosts, sessions, strict=True) if seen is None]

    async def host_views(self) -> list[HostView]:
        """All known hosts with their sessions and the number of their claims by state."""
        hosts = await self.known_hosts()
        standing = await self._standing(hosts)
        counts: list[dict[str, int]] = []
        for some in batched(hosts, _AT_ONCE):
            counts += await asyncio.gather(*(self._count(host) for host in some))
        return [
            HostView(host, own.session, count, own.free, own.identity, own.epoch, own.troubles)
            for host, own, count in zip(hosts, standing, counts, strict=True)
        ]

    async def revision(self) -> int:
        """The newest revision."""
        return (await self._store.range(get(self._keys.hold))).revision

    async def hold(self) -> KeyValue | None:
        """What holds the namespace, so that nothing new is taken: a restore or an import."""
        return (await self._store.range(get(self._keys.hold))).first

    async def enrolled(self, host: str) -> None:
        """Look whether a host has ever enrolled.

        Raises:
            NotFound: it has not.
        """
        if (await self._store.range(get(self._keys.identity(host)))).first is None:
            raise no_such_host(host)

    async def parents(self, hosts: Sequence[str] | None = None) -> list[ParentView]:
        """The parents of `hosts`, or of all known ones, in the order of host and parent."""
        wanted = await self.known_hosts() if hosts is None else list(hosts)
        views: list[ParentView] = []
        for some in batched(wanted, MAX_TXN_OPS // 2):
            ranges = [
                read
                for host in some
                for read in (get(self._keys.session(host)), prefix(self._keys.parents(host)))
            ]
            answers = iter(await self._read(ranges))
            for host in some:
                session, parents = next(answers), next(answers)
                views += parent_views(host, alive=session.first is not None, kvs=parents.kvs)
        return views

    async def parents_of(self, hosts: Sequence[str]) -> dict[str, list[ParentView] | None]:
        """The parents of each of `hosts`; None of one that never enrolled."""
        found: dict[str, list[ParentView] | None] = {}
        for some in batched(hosts, MAX_TXN_OPS // 3):
            reads = [read for host in some for read in reads_of(self._keys, host)]
            answers = iter(await self._read(reads))
            for host in some:
                identity, session, parents = next(answers), next(answers), next(answers)
                views = parent_views(host, alive=session.first is not None, kvs=parents.kvs)
                found[host] = None if identity.first is None else views
        return found

    async def used(self, hosts: Iterable[str]) -> Counter[tuple[str, str]]:
        """How many devices each parent of `hosts` has, or may have, by host and parent."""
        used: Counter[tuple[str, str]] = Counter()
        for host in hosts:
            async for record in self._list_host(prefix(self._keys.claims(host))):
                if isinstance(record, Claim) and record.state in _WITH_DEVICE:
                    used[host, record.parent] += 1
        return used

    async def _gets(self, keys: Iterable[str]) -> list[KeyValue | None]:
        return [answer.first for answer in await self._read([get(key) for key in keys])]

    async def _read(self, ranges: Sequence[Range]) -> list[RangeResult]:
        """Many reads at one revision, in one request for each 128 of them."""
        answers: list[RangeResult] = []
        for some in batched(ranges, MAX_TXN_OPS):
            answers += (await self._store.txn(Txn(success=some))).ranges()
        return answers

    async def _standing(self, hosts: Sequence[str]) -> list[_Standing]:
        keys = self._keys
        standing: list[_Standing] = []
        for some in batched(hosts, MAX_TXN_OPS // 4):
            reads = [
                read
                for host in some
                for read in (
                    get(keys.session(host)),
                    get(keys.identity(host)),
                    get(keys.epoch(host)),
                    prefix(keys.parents(host)),
                )
            ]
            answers = iter(await self._read(reads))
            standing += [_stands(host, answers) for host in some]
        return standing

    async def _count(self, host: str) -> dict[str, int]:
        counts: Counter[str] = Counter(dict.fromkeys((state.value for state in ClaimState), 0))
        async for record in self._list_host(prefix(self._keys.claims(host))):
            counts["unreadable" if isinstance(record, Unreadable) else _state(record)] += 1
        return dict(counts)

    async def _list_host(self, claims: Range) -> AsyncIterator[Record]:
        async for page in pages(self._store, claims):
            for kv in page.kvs:
                yield read_claim(kv)

    async def _list_all(self, names: Range) -> AsyncIterator[Record]:
        async for page in pages(self._store, names):
            for kvs in batched(page.kvs, MAX_TXN_OPS):
                taken = {Name(last_part(kv.key)): kv for kv in kvs}
                for record in (await self._followed(taken, page.revision)).values():
                    if record is not None:
                        yield record

    async def _followed(
        self, taken: Mapping[Name, KeyValue | None], revision: int = 0
    ) -> dict[Name, Record | None]:
        """Follow each name to its claim. A name that moved between the two reads is read again."""
        records: dict[Name, Record | None] = {}
        claims: dict[Name, str] = {}
        for name, kv in taken.items():
            records[name], host = _held(name, kv)
            if host is not None:
                claims[name] = self._keys.claim(host, name)
        reads = await self._read([Range(key, revision=revision) for key in claims.values()])
        for (name, key), read in zip(claims.items(), reads, strict=True):
            if read.first is not None:
                records[name] = read_claim(read.first)
                continue
            again = None if revision else (await self._gets([self._keys.name(name)]))[0]
            known = taken[name]
            if again is not None and known is not None and again != known:
                records |= await self._followed({name: again})
            elif revision or again is not None:
                records[name] = Unreadable(key, "the name is taken and has no claim", 0)
        return records


def _state(record: Claim | Hold) -> str:
    return record.state.value if isinstance(record, Claim) else ClaimState.RESERVED.value


def _matches(record: Record, state: str | None, type_: str | None) -> bool:
    if isinstance(record, Unreadable):
        return state is None and type_ is None
    if state is not None and _state(record) != state:
        return False
    return type_ is None or (isinstance(record, Claim) and record.type == type_)


def _session(kv: KeyValue | None) -> SessionValue | None:
    if kv is None:
        return None
    value = decode(kv, SessionValue)
    # A session that cannot be read is one of a newer agent: it is alive all the same.
    return (
        SessionValue(instance="", boot_id="", version="?")
        if isinstance(value, Unreadable)
        else value
    )


def _stands(host: str, answers: Iterator[RangeResult]) -> _Standing:
    session, identity, epoch, parents = (next(answers) for _ in range(4))
    machine = None if identity.first is None else decode(identity.first, IdentityValue)
    views = parent_views(host, alive=True, kvs=parents.kvs)
    return _Standing(
        _session(session.first),
        machine if isinstance(machine, IdentityValue) else None,
        epoch.first.value.decode(errors="replace") if epoch.first else None,
        sum(max((t.room for t in v.value.types), default=0) for v in views if v.usable),
        tuple(f"{view.parent}: {text}" for view in views for text in view.value.troubles),
    )


def _held(name: Name, kv: KeyValue | None) -> tuple[Record | None, str | None]:
    """What a name's own record says: a hold, something unreadable, or the host to ask."""
    if kv is None:
        return None, None
    value = decode(kv, NameValue)
    if isinstance(value, Unreadable):
        return value, None
    if value.host is None:
        return Hold(name, value.request, kv.mod_revision, kv.lease), None
    return None, value.host


def _gaps(keys: Keys, listed: Iterable[str]) -> list[Range]:
    """What of the hosts' records belongs to none of the `listed`."""
    whole = prefix(keys.hosts)
    gaps, start = list[Range](), whole.key
    for of_host in sorted(map(keys.of_host, listed)):
        if start < of_host:
            gaps.append(Range(start, of_host))
        start = prefix_end(of_host)
    return [*gaps, Range(start, whole.end)]


def _evidence(keys: Keys, host: str) -> tuple[Range, Range]:
    """The reads that show whether a host is known: its identity, and any claim of it."""
    claims = prefix(keys.claims(host))
    return get(keys.identity(host)), Range(claims.key, claims.end, limit=1, keys_only=True)


def reads_of(keys: Keys, host: str) -> tuple[Range, Range, Range]:
    """The reads of a host's identity, of its session and of its parents."""
    return get(keys.identity(host)), get(keys.session(host)), prefix(keys.parents(host))


def parent_views(host: str, *, alive: bool, kvs: Iterable[KeyValue]) -> list[ParentView]:
    """What the records of a host's parents say; one that cannot be read takes no creates."""
    return [ParentView(host, last_part(kv.key), alive, _parent(kv)) for kv in kvs]


def _parent(kv: KeyValue) -> ParentValue:
    value = decode(kv, ParentValue)
    if isinstance(value, Unreadable):
        trouble = f"its record cannot be read: {value.why}"
        return ParentValue(types=(), usable=False, troubles=(trouble,))
    return value


def no_such_host(host: str) -> NotFound:
    """The error for a host that never enrolled."""
    return NotFound(f"host {host}", "no such host", "see: mdevns hosts")


def not_found(name: Name) -> MdevnsError:
    """The error for a name that nobody holds."""
    return NotFound(name, "nobody holds this name", "see: mdevns list", name=name)


def unreadable(name: Name, record: Unreadable) -> MdevnsError:
    """The error for a name whose record cannot be read: nothing is done about it."""
    return MdevnsError(
        name, f"its record cannot be read: {record.why}", "see: mdevns check", name=name
    )
