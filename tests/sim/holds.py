"""The promises around a restore: what its hold forbids, and what stands when it has ended.

What had no hold over it yet is told apart, and counted: an operator's `create` may be faster than
the first agent that meets a store set back, which is why `restore begin` comes first; and a host
that the restored store does not know is not waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from coordinator.model import RestoreValue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.store import KeyValue
    from tests.sim.invariants import Invariants
    from tests.sim.machine import SimWorker

__all__ = ["Holds"]

_restore = msgspec.json.Decoder(RestoreValue).decode


class Holds:
    """The hold of a restore, as it stands; `restoring` is what it says."""

    def __init__(self, world: Invariants) -> None:
        self._world = world
        self.restoring: RestoreValue | None = None
        self._is_kept = False  # whether it hangs on no lease
        self._stood = False  # whether one has, since the store was set back
        self._revision = 0  # of the latest
        self._since = -1.0
        self._known: set[tuple[str, int]] = set()  # the generations of agents that know of it
        self._forgotten: set[tuple[str, str, int]] = set()  # devices that a restore forgot
        self._excused: set[tuple[str, str, int]] = set()
        self._of_the_snapshot: RestoreValue | None = None

    def set_back(self, hold: KeyValue | None) -> None:
        """The store was set back: claims and names are what it has now, and so is the hold."""
        self.restoring, self._stood = None, False
        self._known.clear()
        if hold is not None:
            self._changed(hold)
        self._of_the_snapshot = self.restoring
        for host, name, token in self._devices():
            if (host, name) not in self._world.claims:
                self._forgotten.add((host, name, token))

    def committed(self, part: Sequence[str], kv: KeyValue | None) -> None:
        """The hold was, or what an agent tells of it."""
        if part[0] == "hold":
            self._changed(kv)
        elif kv is not None:  # so it knows
            self._known.add((part[1], self._world.generation(part[1])))

    def _changed(self, kv: KeyValue | None) -> None:
        before, was_kept = self.restoring, self._is_kept
        self._is_kept = kv is not None and not kv.lease
        self.restoring = None if kv is None else _restore(kv.value)
        if kv is None:
            if before is not None and before == self._of_the_snapshot:
                self._world.counts["finished by the words of a snapshot: nobody began anew"] += 1
                self._excused.update(self._devices())
            elif before is not None and was_kept:  # else its beginning was cut off
                self._ended()
        elif before is None or before.restore != self.restoring.restore:  # type: ignore[union-attr]  # it is one
            self._stood, self._revision = True, kv.mod_revision
            self._since = self._world.now
            self._known.clear()

    def check_write(self, host: str, name: str, write: str, worker: SimWorker) -> None:
        """An agent that knows of it makes and removes nothing."""
        if self.restoring is None:
            return
        if worker.enrolling > self._since or (host, worker.generation) in self._known:
            self._world.broken(f"{write} of {name} is written on {host}, which knows of the hold")
        else:
            self._world.counts["a write of an agent that has not heard of the hold"] += 1

    def may_be_two(self, other: str, name: str, token: int, claim: KeyValue | None) -> bool:
        """Whether a name can be made although another host has a device of it."""
        device = (other, name, token)
        if device in self._excused:
            self._world.counts["made twice: a host that the restored store did not know"] += 1
            return True
        early = not self._stood or (claim is not None and claim.mod_revision < self._revision)
        if device in self._forgotten and early:
            self._world.counts["made twice: begun before anybody held the restored store"] += 1
            return True
        return False

    def _devices(self) -> list[tuple[str, str, int]]:
        """What is ours and lives."""
        world = self._world
        found = []
        for host, name in world.made():
            device = world.ours(host, name)
            if device is not None:
                found.append((host, name, device["token"]))
        return found

    def _ended(self) -> None:
        """Each device has its claim, or is in conflict with one on the host that holds it."""
        world = self._world
        for host, name, token in self._devices():
            if (host, name) in world.claims:
                self._forgotten.discard((host, name, token))
                continue
            # Whoever evicts a host that has told nothing says that nothing of it lives.
            if not world.is_known(host) or world.epochs.get(host, b"").startswith(b"evict"):
                self._excused.add((host, name, token))
                continue
            holder = world.holder(name)
            if holder is None or not world.has_device(holder, name):
                world.broken(f"the hold is gone, and {name} on {host} is held by {holder}")
