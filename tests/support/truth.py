"""What is true, read from etcd's keys and the device directories without a line of what is tested.

It knows only what the design says of the layout: `names/<uuid>`, `hosts/<host>/claims/<uuid>`
and a sysfs in a directory. etcd is read at one revision, JSON by `json`, devices as `ls` would.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from etcd3 import etcdrpc

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["Claim", "Name", "Truth", "look", "settled"]

_DEADLINE = 60  # seconds
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
_UUID_LENGTH = 36


@dataclass(frozen=True)
class Claim:
    """A claim as its key and value say, and when and on which lease it was written."""

    host: str
    state: str
    parent: str
    request: str
    revision: int
    lease: int


@dataclass(frozen=True)
class Name:
    """A name as its key and value say: the host that has it, or none yet."""

    host: str | None
    request: str
    revision: int
    lease: int


@dataclass
class Truth:
    """All names, claims and devices of a cluster.

    `devices` has each name's parent, by host. `parents` and `available` are how many parents
    each host has told of, and what it has told that is left on them.
    """

    names: dict[str, Name] = field(default_factory=dict)
    claims: dict[str, list[Claim]] = field(default_factory=dict)
    parents: Counter[str] = field(default_factory=Counter)
    available: Counter[str] = field(default_factory=Counter)
    sessions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def states(self) -> Counter[str]:
        """How many claims are in each state."""
        return Counter(claim.state for claims in self.claims.values() for claim in claims)

    @property
    def under_way(self) -> bool:
        """Whether a claim is in a state that its host's agent moves on by itself."""
        return bool(self.states.keys() & {"reserved", "creating", "removing"})

    def claim(self, name: str) -> Claim | None:
        """The one claim of a name, None when there is none or more than one."""
        claims = self.claims.get(name, [])
        return claims[0] if len(claims) == 1 else None

    def hosts_with(self, name: str) -> list[str]:
        """The hosts whose kernel has a device of the name."""
        return [host for host, devices in self.devices.items() if name in devices]

    def wrong(self) -> list[str]:
        """Everything that contradicts what is promised, a line each; empty when all is well."""
        return sorted({*self._wrong_keys(), *self._wrong_devices()})

    def assert_sound(self, story: str = "") -> None:
        """Fail with everything that is wrong, and with what was done before."""
        wrong = self.wrong()
        assert not wrong, "\n".join([f"{len(wrong)} things are wrong", *wrong, story])

    def _wrong_keys(self) -> Iterator[str]:
        for name, taken in self.names.items():
            claims = self.claims.get(name, [])
            if taken.host is not None and not any(claim.host == taken.host for claim in claims):
                yield f"{name}: a name of {taken.host} without its claim"
            if taken.host is None and not taken.lease:
                yield f"{name}: a reservation without a host hangs on no lease"
        for name, claims in self.claims.items():
            if len(claims) > 1:
                yield f"{name}: claimed by {', '.join(claim.host for claim in claims)}"
            for claim in claims:
                yield from self._wrong_pair(name, claim)

    def _wrong_pair(self, name: str, claim: Claim) -> Iterator[str]:
        taken = self.names.get(name)
        if taken is None:
            yield f"{name}: a claim of {claim.host} ({claim.state}) without its name"
            return
        for what, of_name, of_claim in (
            ("host", taken.host, claim.host),
            ("request", taken.request, claim.request),
            ("revision", taken.revision, claim.revision),
            ("lease", taken.lease, claim.lease),
        ):
            if of_name != of_claim:
                yield f"{name}: {what} {of_name} in the name, {of_claim} in the claim"
        if (claim.state == "reserved") != bool(claim.lease):
            yield f"{name}: {claim.state} with lease {claim.lease:x}"

    def _wrong_devices(self) -> Iterator[str]:
        for host, devices in self.devices.items():
            for name, parent in devices.items():
                mine = [claim for claim in self.claims.get(name, []) if claim.host == host]
                if not mine:
                    yield f"{name}: a device on {host} without a claim of {host}"
                elif mine[0].parent != parent:
                    yield f"{name}: on {parent}, claimed on {mine[0].parent} of {host}"
        for name in {name for devices in self.devices.values() for name in devices}:
            if len(hosts := self.hosts_with(name)) > 1:
                yield f"{name}: a device on each of {', '.join(hosts)}"
        for name, claims in self.claims.items():
            for claim in claims:
                known = claim.host in self.devices
                if known and claim.state == "active" and name not in self.devices[claim.host]:
                    yield f"{name}: active on {claim.host}, which has no such device"


def look(endpoint: str, cluster: str, hosts: Mapping[str, Path]) -> Truth:
    """Read a cluster's keys through one member's quorum, and then the hosts' directories.

    What happens between the two reads can look wrong; whoever asserts lets things settle first.
    """
    truth = Truth()
    root = f"/mdevns/{cluster}/"
    for kv in _keys(endpoint, root):
        _sort(truth, kv.key.decode().removeprefix(root).split("/"), kv)
    truth.devices = {host: _devices(directory) for host, directory in hosts.items()}
    return truth


def settled(endpoint: str, cluster: str, hosts: Mapping[str, Path], deadline: float) -> Truth:
    """What is true once nothing is under way any more; waits `deadline` seconds for that."""
    seen: list[Truth] = []

    def nothing_under_way() -> bool:
        seen[:] = [look(endpoint, cluster, hosts)]
        return not seen[0].under_way

    try:
        wait_until(nothing_under_way, deadline)
    except AssertionError as error:
        raise AssertionError(f"{error}: {seen[0].states}") from None
    return seen[0]


def _keys(endpoint: str, root: str) -> Iterable[Any]:
    end = root[:-1] + chr(ord(root[-1]) + 1)
    request = etcdrpc.RangeRequest(key=root.encode(), range_end=end.encode())
    target = endpoint.removeprefix("http://")
    with grpc.insecure_channel(target, options=_OPTIONS) as channel:
        return list(etcdrpc.KVStub(channel).Range(request, timeout=_DEADLINE).kvs)


def _sort(truth: Truth, path: list[str], kv: Any) -> None:
    match path:
        case ["names", name]:
            value = json.loads(kv.value)
            truth.names[name] = Name(value["host"], value["request"], kv.mod_revision, kv.lease)
        case ["hosts", host, "claims", name]:
            value = json.loads(kv.value)
            state, parent, request = value["state"], value["parent"], value["request"]
            claim = Claim(host, state, parent, request, kv.mod_revision, kv.lease)
            truth.claims.setdefault(name, []).append(claim)
        case ["hosts", host, "parents", _]:
            truth.parents[host] += 1
            truth.available[host] += sum(
                type_["available"] for type_ in json.loads(kv.value)["types"]
            )
        case ["hosts", host, "session"]:
            truth.sessions[host] = json.loads(kv.value)["instance"]


def _devices(directory: Path) -> dict[str, str]:
    """Each device's parent: those on the bus, and those that only a parent's directory has."""
    bus = directory / "sys/bus/mdev/devices"
    found = {}
    for entry in bus.iterdir():
        with suppress(FileNotFoundError):  # it was removed since the directory was read
            found[entry.name] = entry.resolve().parent.name
    for parent in (directory / "sys/class/mdev_bus").iterdir():
        for entry in parent.resolve().iterdir():
            if len(entry.name) == _UUID_LENGTH and entry.name.count("-") == 4:
                found[entry.name] = parent.name
    return found
