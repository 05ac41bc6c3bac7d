"""Whether the namespace is consistent: names, claims and what the agents found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.model import (
    Claim,
    FindingKind,
    FindingValue,
    HoldValue,
    NameValue,
    ParentValue,
    RestoreValue,
    Unreadable,
    decode,
    is_name,
    read_claim,
)
from coordinator.records import UNKNOWN, damage
from coordinator.states import ClaimState
from coordinator.store import Range, pages, prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.keys import Keys
    from coordinator.store import KeyValue, RangeResult, Store

__all__ = ["Finding", "Report", "check"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that `check` has to tell. Faults make it fail; notes do not."""

    kind: str
    name: str | None
    host: str | None
    detail: str
    fault: bool = True


@dataclass(slots=True)
class Report:
    """What `check` found."""

    names: int = 0
    claims: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No fault was found."""
        return not any(finding.fault for finding in self.findings)


@dataclass(slots=True)
class _Offers:
    """What the parents offer, and what rests on it."""

    types: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    unknown: set[tuple[str, str]] = field(default_factory=set)
    models: dict[str, dict[tuple[str | None, str | None], str]] = field(default_factory=dict)
    defined: list[Claim] = field(default_factory=list)

    def add(self, host: str, parent: str, value: ParentValue) -> list[Finding]:
        """Take note of a parent; what is wrong with it."""
        if not value.usable:
            self.unknown.add((host, parent))
        self.types[host, parent] = {type_.type for type_ in value.types}
        for type_ in value.types:
            model = (type_.name, type_.device_api)
            self.models.setdefault(type_.type, {}).setdefault(model, f"{host}/{parent}")
        found = [
            Finding("trouble", None, host, f"{parent}: {text}", fault=False)
            for text in value.troubles
        ]
        if value.failures:
            detail = f"{parent}: it refused to create {value.failures} names in a row"
            found.append(Finding("refuses", None, host, detail, fault=False))
        return found

    def findings(self) -> Iterator[Finding]:
        """Definitions that cannot be started, and types that are not the same everywhere."""
        for claim in self.defined:
            place = (claim.host, claim.parent)
            if place not in self.unknown and claim.type not in self.types.get(place, ()):
                has = f"does not offer {claim.type}" if place in self.types else "is not there"
                detail = f"defined on {claim.parent}, which {has}; mdevns move or undefine it"
                yield Finding("not-offered", claim.name, claim.host, detail, fault=False)
        for type_, models in self.models.items():
            if len(models) > 1:
                told = ", ".join(
                    f"{name or api} on {where}" for (name, api), where in models.items()
                )
                detail = f"the type {type_} is {len(models)} models: {told}; name the host"
                yield Finding("type-differs", None, None, detail, fault=False)


async def check(store: Store, keys: Keys) -> Report:
    """Whether names, claims and what agents found agree, and each record can be read.

    All at one revision, and every key under the cluster's prefix. Holds an entry for each name
    in memory.
    """
    report = Report()
    names: dict[str, KeyValue] = {}
    claimed: set[str] = set()
    revision = 0
    async for page in pages(store, prefix(keys.names)):
        revision = page.revision
        names |= {kv.key.removeprefix(keys.names): kv for kv in page.kvs}
    report.names = len(names)
    offers = _Offers()
    whole = prefix(keys.hosts)
    async for page in pages(store, Range(whole.key, whole.end, revision=revision)):
        for kv in page.kvs:
            if (name := _check_key(keys, kv, names, report, offers)) is not None:
                claimed.add(name)
    report.findings += offers.findings()
    report.findings += _hold(await store.range(Range(keys.hold, revision=revision)))
    report.findings += await _elsewhere(store, keys, revision)
    unclaimed = (_unclaimed(keys, name, kv) for name, kv in names.items() if name not in claimed)
    report.findings += [finding for finding in unclaimed if finding is not None]
    return report


async def _elsewhere(store: Store, keys: Keys, revision: int) -> list[Finding]:
    """The records that are neither names nor a host's and cannot be read, or that nobody knows."""
    whole, hosts, names = (prefix(key) for key in (keys.root, keys.hosts, keys.names))
    found: list[Finding] = []
    for start, end in ((whole.key, hosts.key), (hosts.end, names.key), (names.end, whole.end)):
        async for page in pages(store, Range(start, end, revision=revision)):
            found += [one for kv in page.kvs if (one := _damage(keys, kv)) is not None]
    return found


def _damage(keys: Keys, kv: KeyValue, name: str | None = None) -> Finding | None:
    """The fault of a record that cannot be read as what its key says that it is."""
    record = damage(keys, kv)
    if record is None:
        return None
    kind = "unknown-key" if record.why == UNKNOWN else "unreadable"
    return Finding(kind, name, keys.host_of(kv.key), f"{kv.key}: {record.why}")


def _check_key(
    keys: Keys, kv: KeyValue, names: dict[str, KeyValue], report: Report, offers: _Offers
) -> str | None:
    """Look at one record of a host; returns the name that it is the claim of, if it is one."""
    host, _, rest = kv.key.removeprefix(keys.hosts).partition("/")
    kind, _, last = rest.partition("/")
    if kind == "claims" and last and "/" not in last:
        report.claims += 1
        findings = _check_claim(host, last, kv, names.get(last))
        report.findings += findings
        claim = read_claim(kv)
        if isinstance(claim, Claim) and claim.state is ClaimState.DEFINED:
            offers.defined.append(claim)
        return None if any(f.kind == "claim-without-name" for f in findings) else last
    damaged = _damage(keys, kv, last if kind == "findings" else None)
    if damaged is not None:
        report.findings.append(damaged)
        if kind == "parents":
            offers.unknown.add((host, last))  # what it offers is not known
    elif kind == "findings":
        report.findings.append(_agents_finding(host, last, kv))
    elif kind == "parents":
        value = decode(kv, ParentValue)
        if isinstance(value, ParentValue):
            report.findings += offers.add(host, last, value)
    return None


def _check_claim(host: str, name: str, kv: KeyValue, name_kv: KeyValue | None) -> list[Finding]:
    claim = read_claim(kv)
    if isinstance(claim, Unreadable):
        return [Finding("unreadable", name, host, claim.why)]
    if name_kv is None:
        return [Finding("claim-without-name", name, host, f"{claim.state} on {claim.parent}")]
    taken = decode(name_kv, NameValue)
    if isinstance(taken, Unreadable):
        return [Finding("unreadable", name, host, f"{name_kv.key}: {taken.why}")]
    if taken.host != host:
        detail = f"the name is held by {taken.host or 'a reservation without a host'}"
        return [Finding("claim-without-name", name, host, detail)]
    findings = []
    if (name_kv.mod_revision, name_kv.lease) != (kv.mod_revision, kv.lease):
        detail = "name and claim were written at different revisions or hang on different leases"
        findings.append(Finding("split", name, host, detail))
    elif claim.state is ClaimState.RESERVED and not claim.lease:
        findings.append(_lasting(name, host))
    if claim.adopted:
        findings.append(
            Finding("adopted", name, host, f"{claim.state} on {claim.parent}", fault=False)
        )
    return findings


def _hold(read: RangeResult) -> list[Finding]:
    """What holds everybody up, if something does."""
    if read.first is None:
        return []
    restore = decode(read.first, RestoreValue)
    if isinstance(restore, RestoreValue):
        detail = (
            f"a restore is under way since {restore.at}, by {restore.begun_by} ({restore.why}), "
            "and nothing is taken, begun or freed: mdevns restore finish"
        )
        return [Finding("hold", None, None, detail, fault=False)]
    hold = decode(read.first, HoldValue)
    if isinstance(hold, Unreadable):
        return [Finding("hold", None, None, f"it cannot be read: {hold.why}")]
    detail = (
        f"an import by {hold.who or 'nobody known'} since {hold.at} is not finished, and no name "
        "can be taken: let it end, or import again, which takes back what it wrote"
    )
    return [Finding("hold", None, None, detail)]


def _lasting(name: str, host: str | None) -> Finding:
    """The fault of a reservation that never lapses: only a lease ends one that nobody takes."""
    detail = "a reservation without a lease, which never lapses: mdevns release it"
    return Finding("no-lease", name, host, detail)


def _unclaimed(keys: Keys, name: str, kv: KeyValue) -> Finding | None:
    """The fault of a name for which no claim was met, if it is one."""
    damaged = _damage(keys, kv, name)
    if damaged is not None:
        return damaged
    if not is_name(name):
        return Finding("unreadable", name, None, f"{kv.key}: the key does not end in a name")
    value = decode(kv, NameValue)
    if isinstance(value, Unreadable):
        return Finding("unreadable", name, None, f"{kv.key}: {value.why}")
    if value.host is None:  # a reservation without a host is a name alone
        return None if kv.lease else _lasting(name, None)
    return Finding("name-without-claim", name, value.host, f"request {value.request}")


def _agents_finding(host: str, name: str, kv: KeyValue) -> Finding:
    value = decode(kv, FindingValue)
    if isinstance(value, Unreadable):
        return Finding("unreadable", name, host, f"{kv.key}: {value.why}")
    return Finding(
        value.kind.value, name, host, value.detail, fault=value.kind is FindingKind.CONFLICT
    )
