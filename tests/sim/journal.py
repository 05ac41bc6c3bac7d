"""A journal in memory: what it holds is on the disk when `write` returns, all or none.

Held to what the real one does with the same changes by test_journal.py.
"""

from __future__ import annotations

from dataclasses import replace

from agent.journal import Changes, JournalFailed, Kept

__all__ = ["Disk", "MemoryJournal"]


class Disk:
    """What outlives the agent and the boot. `broken`: nothing can be written."""

    def __init__(self) -> None:
        self.kept = Kept()
        self.broken = False


class MemoryJournal:
    """`agent.journal.Journal` on a `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def read(self) -> Kept:
        """All that it holds."""
        kept = self._disk.kept
        return Kept(
            kept.revision,
            dict(kept.claims),
            dict(kept.lost),
            dict(kept.permits),
            set(kept.unsure),
            list(kept.instances),
            set(kept.reverted),
        )

    def write(self, changes: Changes) -> None:
        """Take changes down."""
        if self._disk.broken:
            raise JournalFailed("journal", "it was decided so")
        kept = self._disk.kept
        claims, lost = kept.claims, kept.lost
        for name, claim in changes.claims.items():
            kept.unsure.discard(name)
            kept.reverted.discard(name)
            lost.pop(name, None)
            claims.pop(name, None)
            if claim is not None:
                claims[name] = claim
        for name, is_lost in changes.lost.items():
            source, target = (claims, lost) if is_lost else (lost, claims)
            if name in source:
                target[name] = source.pop(name)
        kept.unsure.update(changes.unsure & (claims.keys() | lost.keys()))
        kept.reverted.update(changes.reverted & (claims.keys() | lost.keys()))
        for name, permit in changes.permits.items():
            kept.permits.pop(name, None)
            if permit is not None:
                kept.permits[name] = permit
        kept.instances.extend(changes.instances)
        if changes.revision is not None:
            self._disk.kept = replace(kept, revision=changes.revision)

    def close(self) -> None:
        """Nothing to let go of."""
