"""Whether etcd is fit for a namespace: what `doctor` makes of a survey. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

__all__ = [
    "Finding",
    "Level",
    "ServerReport",
    "Survey",
    "certificate_findings",
    "store_findings",
]


_SUPPORTED = (3, 4, 0)
# The first versions of each line that neither revoke nor renew leases wrongly (etcd's
# changelogs), and those that can lose committed writes when a member is killed under load.
_SOUND = ((3, 4, 38), (3, 5, 23), (3, 6, 5))
_LOSES_WRITES = ((3, 5, 0), (3, 5, 2))
# The first versions of each line that check roles inside nested transactions (CVE-2026-33343).
_CHECKS_NESTED = ((3, 4, 42), (3, 5, 28), (3, 6, 9))

_DEFAULT_QUOTA = 2 << 30  # bytes; etcd: --quota-backend-bytes
_MANY_REVISIONS = 10_000  # that a store has which nobody ever compacts
_SOON = timedelta(days=14)  # in which a certificate is to be renewed


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server. `why` says why it could not be asked; nothing else is known then.

    None is what it does not tell us: with authentication on it tells some of it to root alone.
    `leader` is 0 where it has none; `certificate` is the one that it shows, in DER.
    """

    endpoint: str
    why: str | None = None
    version: str | None = None
    cluster: int = 0
    member: int = 0
    leader: int | None = None
    size: int | None = None
    revision: int = 0
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """All servers that are configured, and what one of them said of the whole.

    `nested_roles`: whether it checks roles inside nested transactions, as all of ours are.
    None: it could not be asked, or not by us.
    """

    servers: tuple[ServerReport, ...]
    alarms: tuple[str, ...] | None = None
    members: int | None = None
    compacted: bool | None = None
    nested_roles: bool | None = None


class Level(StrEnum):
    """How bad it is: a note is none, and does not make `doctor` fail."""

    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that `doctor` has to tell of a subject: a server, a file, a host."""

    level: Level
    kind: str
    subject: str
    detail: str


def store_findings(survey: Survey) -> Iterator[Finding]:
    """What is wrong with etcd."""
    for server in survey.servers:
        yield from _server(server)
    yield from _whole(survey)


def _server(server: ServerReport) -> Iterator[Finding]:
    if server.why is not None:
        yield Finding(Level.FAULT, "unreachable", server.endpoint, server.why)
        return
    yield from _version(server)
    if server.leader == 0:
        why = "it has no leader: it is cut off, or there is no majority"
        yield Finding(Level.FAULT, "leader", server.endpoint, why)
    if server.size is not None and server.size > 0.8 * _DEFAULT_QUOTA:
        why = (
            f"{server.size / 2**30:.1f} GiB, near the default quota of 2 GiB: compact, defragment, "
            "or raise --quota-backend-bytes"
        )
        yield Finding(Level.WARNING, "space", server.endpoint, why)


def _version(server: ServerReport) -> Iterator[Finding]:
    if server.version is None:
        return
    version = tuple(int(number) for number in re.findall(r"\d+", server.version)[:3])
    sound = next((sound for sound in _SOUND if sound[:2] == version[:2]), None)
    if version < _SUPPORTED:
        why = f"etcd {server.version} is too old: 3.4 is the oldest that is supported"
        yield Finding(Level.FAULT, "version", server.endpoint, why)
    elif _LOSES_WRITES[0] <= version <= _LOSES_WRITES[1]:
        why = f"etcd {server.version} can lose committed writes when it is killed: upgrade"
        yield Finding(Level.WARNING, "version", server.endpoint, why)
    elif sound is not None and version < sound:
        newer = ".".join(map(str, sound))
        why = f"etcd {server.version} can revoke or renew leases wrongly: upgrade to {newer}"
        yield Finding(Level.WARNING, "version", server.endpoint, why)


def _whole(survey: Survey) -> Iterator[Finding]:
    answered = [server for server in survey.servers if server.why is None]
    clusters = {server.cluster for server in answered}
    if len(clusters) > 1:
        named = ", ".join(f"{server.endpoint} {server.cluster:x}" for server in answered)
        why = f"the endpoints are of {len(clusters)} clusters: {named}"
        yield Finding(Level.FAULT, "cluster", "endpoints", why)
    for alarm in survey.alarms or ():
        yield Finding(Level.FAULT, "alarm", "etcd", f"the alarm {alarm} is raised")
    if survey.nested_roles is False:
        newer = ", ".join(".".join(map(str, version)) for version in _CHECKS_NESTED)
        why = (
            "this etcd does not enforce roles: nested transactions evade them, and any user can "
            f"read and write everything (CVE-2026-33343): upgrade to {newer} or newer"
        )
        yield Finding(Level.FAULT, "roles", "etcd", why)
    if survey.members and survey.members > len(survey.servers):
        why = f"{len(survey.servers)} of {survey.members} members are named: name the others too"
        yield Finding(Level.WARNING, "endpoints", "endpoints", why)
    revision = max((server.revision for server in answered), default=0)
    if survey.compacted is False and revision > _MANY_REVISIONS:
        why = f"none of {revision} revisions was compacted: set --auto-compaction-retention"
        yield Finding(Level.WARNING, "compaction", "etcd", why)


def certificate_findings(subject: str, until: datetime, now: datetime) -> Iterator[Finding]:
    """What is wrong with a certificate that is good until a time."""
    when = f"{until:%Y-%m-%d %H:%M} UTC"
    if until <= now:
        yield Finding(Level.FAULT, "certificate", subject, f"it expired on {when}")
    elif until - now < _SOON:
        yield Finding(Level.WARNING, "certificate", subject, f"it expires on {when}")
