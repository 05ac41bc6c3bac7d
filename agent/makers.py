"""Who, besides the agent, writes to this host's kernel for a claim, and whether it still may.

mdevctl makes and removes devices itself. It says so before, through its callout, and its claim
names its process; for as long as that lives and has not said that its write has returned, the
agent waits (design 7). After it has, the agent looks, and follows a device that it sees. A claim
without a device it gives back only when the process has ended: a statement proves nothing about a
write, the end of its process does. What is said is lost with the agent, and only costs time.
"""

from __future__ import annotations

import asyncio
import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.journal import Permit
from coordinator.errors import NotFound
from coordinator.model import Maker

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.notes import Notes
    from coordinator.model import Claim, Name

__all__ = ["Lineage", "Makers", "Writing", "ended", "lineage", "living", "maker_of"]

_PROC = Path("/proc")
_DEAD = frozenset(b"ZXx")


def maker_of(pid: int, proc: Path = _PROC) -> Maker:
    """The process that has this pid now.

    Raises:
        NotFound: none has, or it is dead.
    """
    maker = living(pid, proc)
    if maker is None:
        why = "there is no such process"
        raise NotFound(f"pid {pid}", why, "name the one that writes to create", errno_name="ESRCH")
    return maker


async def ended(maker: Maker) -> None:
    """Wait until a process has ended."""
    try:
        fd = os.pidfd_open(maker.pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(fd, ended.set)
        if living(maker.pid) == maker:  # and not a later one of that pid
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


class Lineage(NamedTuple):
    """A process, and the pid of its parent."""

    process: Maker
    parent: int


def living(pid: int, proc: Path = _PROC) -> Maker | None:
    """The same; None: none has, or it is dead. One whose write hangs in the kernel lives."""
    found = lineage(pid, proc)
    return None if found is None else found.process


def lineage(pid: int, proc: Path = _PROC) -> Lineage | None:
    """The process that has this pid now, with its parent, of one moment; None as for `living`."""
    found = _stat(proc / str(pid))
    if found is None:
        return None
    state, *rest = found
    if state[0] in _DEAD and not _has_living_thread(proc / str(pid)):
        return None
    return Lineage(Maker(pid, int(rest[18])), int(rest[0]))


def _has_living_thread(process: Path) -> bool:
    """Whether a thread outlives the main one: killed, but its write still hangs in the kernel."""
    try:
        threads = list((process / "task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(stat[0][0] not in _DEAD for thread in threads if (stat := _stat(thread)) is not None)


def _stat(process: Path) -> list[bytes] | None:
    try:
        stat = (process / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything (proc(5)).
    return stat.rpartition(b")")[2].split()


class Writing(Enum):
    """Whether a process besides the agent writes to the kernel for a name."""

    ENDED = "no such process lives"
    RETURNED = "it lives, and says that its write has returned"
    UNDER_WAY = "it lives, and has said nothing"


class Makers:
    """What is known of them, for as long as the agent runs."""

    def __init__(self, notes: Notes, boot_id: Callable[[], str], proc: Path = _PROC) -> None:
        self._notes, self._boot_id, self._proc = notes, boot_id, proc
        self._through: dict[Name, Maker] = {}
        self._refused: dict[Name, Maker] = {}
        self._doubt()

    def _doubt(self) -> None:
        """Wait, where a permit cannot be read, for as long as its process can live at all.

        That is until the boot ends, and so does process 1: the permit is put in its name. No
        caller may speak for process 1, so nobody can say that the write has returned.
        """
        for name in sorted(self._notes.in_doubt):
            self.permit(name, maker_of(1, self._proc))

    def permit(self, name: Name, maker: Maker) -> None:
        """Note that a process may make a device under a claim of the journal."""
        self.expect(name)
        self._notes.permit(name, Permit(maker=maker, boot_id=self._boot_id()))

    def expect(self, name: Name) -> None:
        """A claim names its maker again: what was said before is about another write."""
        self._through.pop(name, None)
        self._refused.pop(name, None)

    def refuse(self, name: Name, maker: Maker) -> None:
        """Note that the process which a claim names never got leave to write."""
        self._refused[name] = maker

    def through(self, name: Name, claim: Claim | None, maker: Maker) -> bool:
        """A process says that its write has returned; whether it is the one that is waited for.

        What another one says, which got EEXIST from the kernel perhaps, is nothing about that.
        """
        permit = self._notes.permits.get(name)
        named = {permit and permit.maker, claim and claim.maker}
        if maker not in named:
            return False
        self._through[name] = maker
        return True

    def may_write(self, name: Name, claim: Claim | None) -> bool:
        """Whether one that may write to the kernel for a name lives, whatever it has said."""
        return self.writing(name, claim) is not Writing.ENDED

    def writing(self, name: Name, claim: Claim | None) -> Writing:
        """Whether one may be writing to the kernel for a name.

        To be asked before the look that a decision rests on: a maker that ended since that look
        may have made the device between the two.
        """
        permit = self._notes.permits.get(name)
        if permit is not None:
            if permit.boot_id == self._boot_id() and self._lives(permit.maker):
                return self._said(name, permit.maker)
            self._notes.permit(name, None)
        maker = None if claim is None else claim.maker
        if maker is None:
            self.expect(name)
            return Writing.ENDED
        if claim is not None and claim.boot_id != self._boot_id():
            return Writing.ENDED  # pids begin again with each boot
        if self._refused.get(name) == maker or not self._lives(maker):
            return Writing.ENDED
        return self._said(name, maker)

    def _said(self, name: Name, maker: Maker) -> Writing:
        return Writing.RETURNED if self._through.get(name) == maker else Writing.UNDER_WAY

    def _lives(self, maker: Maker) -> bool:
        return living(maker.pid, self._proc) == maker
