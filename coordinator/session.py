"""An agent's sign of life and its host's epoch: enrolment, keepalive, and being fenced.

The epoch is a random instance id that every enrolment writes and that every transaction of
the agent compares by value. So a zombie (evicted while it was paused, a second agent) can
write nothing more to the store, whatever its clock says. The session only says "seen".
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed

from coordinator.errors import MdevnsError, NotAllowed, StoreError
from coordinator.model import (
    HoldValue,
    IdentityValue,
    MachineValue,
    RestoreValue,
    SessionValue,
    Unreadable,
    decode,
    encode,
)
from coordinator.store import Put, Txn, absent, get, unchanged, valued
from coordinator.transactions import settle

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from coordinator.clock import Clock
    from coordinator.keys import Keys
    from coordinator.store import Compare, KeyValue, Op, Store

__all__ = ["Enroller", "Session"]


class _AnotherBoot(MdevnsError):
    """The host's session is alive and of another boot: it may be a clone of this machine."""


class _Raced(MdevnsError):
    """The epoch or the machine's record changed between reading and writing them."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """What the store says about a host at enrolment."""

    epoch: KeyValue | None
    session: KeyValue | None
    identity: KeyValue | None
    machine: KeyValue | None
    hold: KeyValue | None
    revision: int


class Session:
    """An enrolled agent. `deadline` is when, at the latest, etcd may think it gone.

    It counts on CLOCK_BOOTTIME from before the keepalive was sent, so it is never too late.
    `restore` is the restore that was under way when it enrolled.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        host: str,
        instance: str,
        lease: int,
        deadline: float,
        restore: RestoreValue | None = None,
    ) -> None:
        self._store, self._clock = store, clock
        self.host, self.instance, self.lease = host, instance, lease
        self.deadline, self.restore = deadline, restore
        self.began = clock.boottime()
        """When it was made, on CLOCK_BOOTTIME."""

    @property
    def alive(self) -> bool:
        """Whether etcd certainly still has the session."""
        return self._clock.boottime() < self.deadline

    async def keep(self, ttl: int) -> None:
        """Keep the session alive, three times a `ttl`; returns when it is lost.

        A store that does not answer is asked again: the session may live on, or lapse.
        """
        while True:
            await asyncio.sleep(ttl / 3)
            sent = self._clock.boottime()
            try:
                left = await self._store.keep_alive(self.lease)
            except StoreError:
                continue  # its own backoff has passed, and the deadline tells the rest
            if left <= 0:
                return
            self.deadline = sent + left


class Enroller:
    """Enrols one host's agent, as often as need be.

    `ttl` in seconds is the session's; etcd's floor is 2. `told` hears what is waited for, and
    `found` the epoch that stands, before it is replaced, and the revision at which it does. Its
    answer is why the store was set back, if it was: then the very enrolment puts the hold of a
    restore, unless there is one. So nothing is done in it that the hold forbids, and a copy that
    comes late puts no hold either: it compares the epoch that it replaced.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: Clock,
        rng: random.Random,
        *,
        host: str,
        identity: IdentityValue,
        boot_id: str,
        version: str,
        ttl: int,
    ) -> None:
        self.told: Callable[[str], None] = lambda _: None
        self.found: Callable[[str | None, int], Awaitable[str | None]] = _nothing
        self._store, self._keys, self._clock, self._rng = store, keys, clock, rng
        self.host, self.ttl = host, ttl
        self._identity, self._boot_id, self._version = identity, boot_id, version

    async def enrol(self) -> Session:
        """Take over the host: write a new epoch and a session, in one transaction.

        A living session of this boot is our own crashed predecessor: taken over at once. One
        of another boot is waited for until it lapses: it may be a clone.

        Raises:
            NotAllowed: another machine is enrolled under this host name, or this machine
                under another one.
            StoreError: the store failed; as `settle`.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type((_AnotherBoot, _Raced)),
            wait=wait_fixed(self.ttl / 4),
            before_sleep=lambda state: self.told(str(state.outcome and state.outcome.exception())),
            reraise=True,
        )
        return await retrying(self._try)

    async def _try(self) -> Session:
        standing = await self._read()
        self._check_identity(standing)
        self._check_boot(standing)
        epoch = standing.epoch
        why = await self.found(
            None if epoch is None else epoch.value.decode(errors="replace"), standing.revision
        )
        asked = self._clock.boottime()
        lease = await self._store.grant(self.ttl)
        instance = f"{self._rng.getrandbits(128):032x}"
        txn = self._enrolment(standing, instance, lease.id, why)
        # Without end: an enrolment that is given up could be applied later and fence its
        # successor. The instance is random, so our own value in `epoch` is our own success.
        result = await settle(self._store, txn, patience=None, rng=self._rng)
        if not result.succeeded:
            epoch = result.ranges()[0].first
            if epoch is None or epoch.value != instance.encode():
                raise _Raced(self.host, "another enrolment was faster")
        hold = result.ranges()[-1].first
        restore = _restore(hold)
        if why is not None and restore is None and (hold is None or _import(hold) is not None):
            raise _Raced(self.host, "the hold changed meanwhile")
        return Session(
            self._store,
            self._clock,
            host=self.host,
            instance=instance,
            lease=lease.id,
            deadline=asked + lease.ttl,
            restore=restore,
        )

    async def _read(self) -> _Standing:
        keys = (
            self._keys.epoch(self.host),
            self._keys.session(self.host),
            self._keys.identity(self.host),
            self._keys.machine(self._identity.machine_id),
            self._keys.hold,
        )
        result = await self._store.txn(Txn(success=tuple(map(get, keys))))
        epoch, session, identity, machine, hold = (read.first for read in result.ranges())
        return _Standing(epoch, session, identity, machine, hold, result.revision)

    def _check_identity(self, standing: _Standing) -> None:
        if standing.identity is not None:
            known = decode(standing.identity, IdentityValue)
            differs = _difference(known, self._identity)
            if differs:
                raise NotAllowed(
                    f"host {self.host}",
                    f"another machine is enrolled under this name ({differs})",
                    "give this machine a name and machine-id of its own, or: mdevns hosts forget",
                )
        if standing.machine is not None:
            other = decode(standing.machine, MachineValue)
            if not isinstance(other, MachineValue) or other.host != self.host:
                host = "unreadable" if isinstance(other, Unreadable) else other.host
                raise NotAllowed(
                    f"machine {self._identity.machine_id}",
                    f"is enrolled as host {host} already",
                    f"start its agent as --host {host}; if it was renamed: mdevns hosts rename "
                    f"{host} {self.host} --reason TEXT; or give a clone its own machine-id",
                )

    def _known(self, standing: _Standing) -> IdentityValue:
        """What is known of this machine: a product UUID that was read once is kept."""
        if standing.identity is None or self._identity.product_uuid is not None:
            return self._identity
        known = decode(standing.identity, IdentityValue)
        return known if isinstance(known, IdentityValue) else self._identity

    def _check_boot(self, standing: _Standing) -> None:
        if standing.session is None:
            return
        session = decode(standing.session, SessionValue)
        if isinstance(session, Unreadable) or session.boot_id != self._boot_id:
            raise _AnotherBoot(self.host, "a session of another boot is alive")

    def _enrolment(self, standing: _Standing, instance: str, lease: int, why: str | None) -> Txn:
        epoch = self._keys.epoch(self.host)
        session = SessionValue(instance=instance, boot_id=self._boot_id, version=self._version)
        machine = self._keys.machine(self._identity.machine_id)
        return Txn(
            compares=(
                _as_read(epoch, standing.epoch),
                unchanged(self._keys.identity(self.host), _revision(standing.identity)),
                unchanged(machine, _revision(standing.machine)),
            ),
            success=(
                Put(epoch, instance.encode()),
                Put(self._keys.session(self.host), encode(session), lease),
                Put(self._keys.identity(self.host), encode(self._known(standing))),
                Put(machine, encode(MachineValue(host=self.host))),
                *self._hold(standing.hold, why),
                get(self._keys.hold),
            ),
            failure=(get(epoch), get(self._keys.hold)),
        )

    def _hold(self, standing: KeyValue | None, why: str | None) -> tuple[Op, ...]:
        """Put the hold of a restore where there is none; an import's is carried along."""
        if why is None or _restore(standing) is not None:
            return ()
        imported = _import(standing)
        if standing is not None and imported is None:
            return ()  # whatever it is, a newer version's perhaps: it holds, and is not ours
        value = RestoreValue(
            restore=f"{self._rng.getrandbits(128):032x}",
            host=self.host,
            why=why,
            at=self._clock.now(),
            # One that hangs on a lease still has nothing to be taken back.
            imported=None if standing is None or standing.lease else imported,
        )
        hold = self._keys.hold
        return (Txn((unchanged(hold, _revision(standing)),), (Put(hold, encode(value)),)),)


def _difference(known: IdentityValue | Unreadable, ours: IdentityValue) -> str:
    """In what two machines differ; a product UUID that could not be read says nothing."""
    if isinstance(known, Unreadable):
        return f"its identity cannot be read: {known.why}"
    if known.machine_id != ours.machine_id:
        return f"its machine-id is {known.machine_id}, ours {ours.machine_id}"
    both = None not in (known.product_uuid, ours.product_uuid)
    if both and known.product_uuid != ours.product_uuid:
        return f"its product UUID is {known.product_uuid}, ours {ours.product_uuid}"
    return ""


def _as_read(key: str, kv: KeyValue | None) -> Compare:
    return absent(key) if kv is None else valued(key, kv.value)


def _revision(kv: KeyValue | None) -> int:
    return 0 if kv is None else kv.mod_revision


def _restore(hold: KeyValue | None) -> RestoreValue | None:
    """The restore whose hold it is; None when it is none's."""
    value = None if hold is None else decode(hold, RestoreValue)
    return value if isinstance(value, RestoreValue) else None


def _import(hold: KeyValue | None) -> HoldValue | None:
    """The import's hold that it is; None when it is none's."""
    value = None if hold is None else decode(hold, HoldValue)
    return value if isinstance(value, HoldValue) else None


async def _nothing(_: str | None, __: int) -> None:
    """For who does not want to hear it."""
