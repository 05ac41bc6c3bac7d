"""The promises of design 2, held against every commit and every write to a kernel.

It reads what was committed and what the kernels have, and shares no decision with the program:
only the keys' spelling and the values' shape.

A device is *ours* when a worker made it, or when it was adopted: claimed while it stood. An
operator who evicts a host that is not fenced disowns what that host has (they said that nothing
of it lives), and so the residual that docs/protocol.md names is told apart, and counted.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from agent.simulated_memory import COMING, LINGERING
from coordinator.model import ClaimValue, NameValue
from coordinator.states import ClaimState
from tests.sim.history import History
from tests.sim.holds import Holds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.simulated_memory import DeviceRecord
    from coordinator.keys import Keys
    from coordinator.store import KeyValue
    from tests.sim.cluster import Cluster
    from tests.sim.machine import SimWorker

__all__ = ["Invariants"]

_DURING_HOLD = (ClaimState.ACTIVE, ClaimState.DEFINED)
_DURABLE = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)
_claim = msgspec.json.Decoder(ClaimValue).decode
_name = msgspec.json.Decoder(NameValue).decode


class Invariants:
    """What stands, and what was broken."""

    def __init__(
        self, cluster: Cluster, keys: Keys, hosts: dict[str, Any], halt: Callable[[], None]
    ) -> None:
        """`halt` is called when a promise was broken."""
        self._halt = halt
        self._cluster, self._keys, self._hosts = cluster, keys, hosts
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.names: dict[str, tuple[KeyValue, NameValue]] = {}
        self.claims: dict[tuple[str, str], tuple[KeyValue, ClaimValue]] = {}
        self.epochs: dict[str, bytes] = {}
        self.sessions: set[str] = set()
        self._ours: dict[tuple[str, str], int] = {}  # by host and name: the device's token
        self._disowned: set[tuple[str, str, int]] = set()
        self.evicted: dict[str, float] = {}
        self.restored = -1.0
        self.was_active: set[tuple[str, str]] = set()  # name and request
        self.answered: set[tuple[str, str]] = set()
        """Names and requests that were answered for good: nothing takes the name for them again."""
        self.history = History(keys, cluster.time)
        self.holds = Holds(self)
        self._lost: dict[tuple[str, str], int] = {}  # what a restore forgot: the device's token

    def check_history(self) -> None:
        """What everybody was told of a name can have happened in one order."""
        for untrue in self.history.check():
            self.broken(f"told what cannot be: {untrue}")

    def broken(self, what: str) -> None:
        """A promise was broken."""
        self.violations.append(what)
        self._halt()

    # What was committed.

    def committed(self, changes: Sequence[Any]) -> None:
        """Look at the changes of one revision, and at what stands after it."""
        touched: dict[str, None] = {}
        freed: list[tuple[str, str]] = []
        for change in changes:
            key = change.event.kv.key
            kv = None if change.event.deleted else change.event.kv
            part = key[len(self._keys.root) :].split("/")
            match part:
                case ["names", name]:
                    self.history.changed(name, change.before, kv, asker=self._cluster.asker)
                    self._put_name(name, kv)
                    touched[name] = None
                case ["hosts", host, "claims", name]:
                    self._check_sender(host, name, kv)
                    if self._put_claim(host, name, kv):
                        freed.append((host, name))
                    touched[name] = None
                case ["hosts", host, "epoch"]:
                    self._put_epoch(host, kv)
                case ["hold"] | ["hosts", _, "restored"]:
                    self.holds.committed(part, kv)
                case ["hosts", host, "session"]:
                    (self.sessions.discard if kv is None else self.sessions.add)(host)
        for name in touched:
            self._check_name(name)
        for host, name in freed:
            self._check_freed(host, name)

    def _check_sender(self, host: str, name: str, kv: KeyValue | None) -> None:
        """An agent that was fenced writes nothing, and during a hold nobody gives up or begins."""
        sender = self._cluster.sender
        if sender is None:
            return
        if sender != (host, self.epochs.get(host)):
            self.broken(f"{name} was moved on {host} by an agent that was fenced")
        if self.is_restoring and (kv is None or _claim(kv.value).state not in _DURING_HOLD):
            self.broken(f"{name} was moved on {host} while the store is held")

    def _put_name(self, name: str, kv: KeyValue | None) -> None:
        if kv is None:
            self.names.pop(name, None)
            return
        value = _name(kv.value)
        taken = name not in self.names and self._cluster.sender is None
        if taken and self.is_restoring:
            self.broken(f"{name} was taken for {value.request} while the store is held")
        if taken and (name, value.request) in self.answered:
            self.broken(f"{name} was taken for {value.request}, which was answered before")
        self.names[name] = (kv, value)
        for key in [key for key in self._lost if key[1] == name and key[0] != value.host]:
            del self._lost[key]  # somebody else was faster

    def _put_claim(self, host: str, name: str, kv: KeyValue | None) -> bool:
        """Take note; whether it was durable and is not any more."""
        before = self.claims.get((host, name))
        was_durable = before is not None and before[1].state in _DURABLE
        if kv is None:
            self.claims.pop((host, name), None)
            return was_durable
        value = _claim(kv.value)
        self.claims[host, name] = (kv, value)
        if value.state is ClaimState.ACTIVE:
            if before is None:
                self._check_recalled(host, name, value)
            self._own(host, name)
            self.was_active.add((name, value.request))
        return was_durable and value.state not in _DURABLE

    def _check_recalled(self, host: str, name: str, value: ClaimValue) -> None:
        """What a restored store has lost is put back as it was, not as somebody else's device."""
        lost, device = self._lost.pop((host, name), None), self.ours(host, name)
        if value.adopted and device is not None and device["token"] == lost:
            self.broken(f"{name} on {host} was lost by a restore, and adopted instead of recalled")

    def _own(self, host: str, name: str) -> None:
        record = self._hosts[host].kernel.device(name)
        # One that is coming is made by hand, since ours was there a moment ago.
        if record is not None and record["phase"] != COMING:
            self._ours[host, name] = record["token"]
            self._disowned.discard((host, name, record["token"]))

    def _put_epoch(self, host: str, kv: KeyValue | None) -> None:
        if kv is None:
            self.epochs.pop(host, None)
            return
        if self._cluster.sender is not None:
            self._cluster.wrote_epoch = kv.value
        if kv.value.startswith(b"evict"):
            self.evicted[host] = self._cluster.now
            self.counts["evicted"] += 1
            if host in self.sessions:
                self.broken(f"{host} was evicted while it had a session")
        self.epochs[host] = kv.value

    def _check_name(self, name: str) -> None:
        """Promise 1: one claim, and name and claim are one."""
        holders = [host for host in self._hosts if (host, name) in self.claims]
        taken = self.names.get(name)
        host = taken[1].host if taken else None
        if holders != ([host] if host is not None else []):
            self.broken(f"{name} is held by {host} and claimed by {holders}")
            return
        if taken is None:
            return
        if host is None:
            if not taken[0].lease:
                self.broken(f"{name} is reserved without a lease")
            return
        kv, value = self.claims[host, name]
        if (kv.mod_revision, kv.lease) != (taken[0].mod_revision, taken[0].lease):
            self.broken(f"{name} and its claim on {host} are of two revisions or leases")
        if bool(kv.lease) != (value.state is ClaimState.RESERVED):
            self.broken(f"{name} is {value.state} on {host} with lease {kv.lease}")

    def _check_freed(self, host: str, name: str) -> None:
        """Promise 1: what may stand behind a claim was seen absent, or its host is fenced."""
        device = self.ours(host, name)
        if device is None:
            return
        if self.epochs.get(host, b"").startswith(b"evict"):
            self._disowned.add((host, name, device["token"]))
            self.counts["disowned by an evict that was not true"] += 1
            return
        self.broken(f"{name} was given up on {host} while its device is {device['phase']}")

    def restore(self) -> None:
        """The store was set back: what stands is what it has now."""
        self.check_history()
        self.restored = self._cluster.now
        for (host, name), (_, value) in self.claims.items():
            device = self.ours(host, name)
            if self._cluster._keys.get(self._keys.name(name)) is not None:
                continue
            is_plain = value.state is ClaimState.ACTIVE and not value.adopted and not value.attrs
            if device is not None and is_plain:
                self._lost[host, name] = device["token"]
        for lost in [key for key in self._lost if self._cluster._keys.get(self._keys.name(key[1]))]:
            del self._lost[lost]  # an earlier restore's: this one knows the name again
        self.names.clear()
        self.claims.clear()
        self.epochs.clear()
        self.sessions.clear()
        for kv in self._cluster._keys:
            match kv.key[len(self._keys.root) :].split("/"):
                case ["names", name]:
                    self.names[name] = (kv, _name(kv.value))
                case ["hosts", host, "claims", name]:
                    self.claims[host, name] = (kv, _claim(kv.value))
                case ["hosts", host, "epoch"]:
                    self.epochs[host] = kv.value
                case ["hosts", host, "session"]:
                    self.sessions.add(host)
        self.holds.set_back(self._cluster._keys.get(self._keys.hold))
        self.history.restart({name: kv for name, (kv, _) in self.names.items()})

    # What the kernels have, and who holds it.

    @property
    def is_restoring(self) -> bool:
        """Whether the hold of a restore stands."""
        return self.holds.restoring is not None

    @property
    def now(self) -> float:
        """The time."""
        return self._cluster.time()

    def is_known(self, host: str) -> bool:
        """Whether the store knows a host."""
        return self._cluster._keys.get(self._keys.identity(host)) is not None

    def holder(self, name: str) -> str | None:
        """The host that holds a name."""
        return self.names[name][1].host if name in self.names else None

    def has_device(self, host: str, name: str) -> bool:
        """Whether a host has a device of a name, whosesoever."""
        return self._hosts[host].kernel.device(name) is not None

    def generation(self, host: str) -> int:
        """The generation of a host's workers; 0: none is in force."""
        generation: int = self._hosts[host].locks.generation
        return generation

    def made(self) -> list[tuple[str, str]]:
        """The hosts and names of which a device was ours."""
        return list(self._ours)

    def ours(self, host: str, name: str) -> DeviceRecord | None:
        """The device of a name on a host, if it is ours and was not disowned."""
        token = self._ours.get((host, name))
        if token is None:
            return None
        record = self._hosts[host].kernel.state["devices"].get(name)
        if record is None or record["token"] != token or record["phase"] == LINGERING:
            return None
        if record["phase"] == COMING and record["errno"]:
            return None  # a phantom: the driver refuses it
        return None if (host, name, token) in self._disowned else record

    def created(self, host: str, name: str, record: DeviceRecord, worker: SimWorker) -> None:
        """A worker's create has begun."""
        self._ours[host, name] = record["token"]
        self.holds.check_write(host, name, "create", worker)
        if not self._is_held(host, name, ClaimState.CREATING, worker, "create"):
            self._disowned.add((host, name, record["token"]))
            return
        for other in self._hosts:
            device = self.ours(other, name)
            if other == host or device is None:
                continue
            claim = self.claims.get((host, name))
            if not self.holds.may_be_two(other, name, device["token"], claim and claim[0]):
                self.broken(f"{name} is made on {host} and {other} has it")

    def removed(self, host: str, name: str, record: DeviceRecord, worker: SimWorker) -> None:
        """A worker's remove is about to be written."""
        if record["phase"] == COMING:
            self.broken(f"a remove of {name} on {host} is written before its create has returned")
        self.holds.check_write(host, name, "remove", worker)
        if not self._is_held(host, name, ClaimState.REMOVING, worker, "remove"):
            return
        if self._ours.get((host, name)) != record["token"]:
            self.counts["foreign device removed behind its claim"] += 1

    def _is_held(
        self, host: str, name: str, state: ClaimState, worker: SimWorker, write: str
    ) -> bool:
        """Promise 1: no write without the claim, but for the residual that is documented."""
        standing = self.claims.get((host, name))
        if standing is not None and standing[1].state is state:
            return True
        enrolling = worker.enrolling  # since when its enrolment is, at the earliest
        if self.restored >= enrolling:
            self.counts["a write of an enrolment that had not heard of the restore"] += 1
        elif self.evicted.get(host, -1.0) >= enrolling:
            if self.evicted[host] >= worker.checked:
                self.counts["residual: evicted between the last check and the write"] += 1
            elif self._hosts[host].lease_was_lost:
                self.counts["evicted after etcd itself had revoked its lease"] += 1
            else:
                self.broken(f"{write} of {name} on {host} after an evict that its check missed")
        else:
            now = standing[1].state if standing else "nothing"
            self.broken(f"{write} of {name} is written on {host}, whose claim is {now}")
        return False
