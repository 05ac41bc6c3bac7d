"""Who, besides the agent, writes to this host's kernel for a claim, and whether it still may.

mdevctl makes and removes devices itself. It says so before, through its callout, and its claim
names its process; for as long as that lives and has not said that it is through, the agent waits
(design 7). What it says is lost with the agent; then the end of its process tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agent.journal import Permit
from coordinator.errors import NotFound
from coordinator.model import Maker

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.notes import Notes
    from coordinator.model import Claim, Name

__all__ = ["Makers", "living", "maker_of"]

_PROC = Path("/proc")
_DEAD = frozenset(b"ZXx")


def maker_of(pid: int) -> Maker:
    """The process that has this pid now.

    Raises:
        NotFound: none has, or it is dead.
    """
    maker = living(pid)
    if maker is None:
        why = "there is no such process"
        raise NotFound(f"pid {pid}", why, "name the one that writes to create", errno_name="ESRCH")
    return maker


def living(pid: int, proc: Path = _PROC) -> Maker | None:
    """The same; None: none has, or it is dead. One whose write hangs in the kernel lives."""
    try:
        stat = (proc / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything (proc(5)).
    state, *rest = stat.rpartition(b")")[2].split()
    return None if state[0] in _DEAD else Maker(pid, int(rest[18]))


class Makers:
    """What is known of them, for as long as the agent runs."""

    def __init__(self, notes: Notes, boot_id: Callable[[], str], proc: Path = _PROC) -> None:
        self._notes, self._boot_id, self._proc = notes, boot_id, proc
        self._through: dict[Name, Maker] = {}

    def permit(self, name: Name, maker: Maker) -> None:
        """Note that a process may make a device under a claim of the journal."""
        self._notes.permit(name, Permit(maker=maker, boot_id=self._boot_id()))

    def expect(self, name: Name) -> None:
        """A claim names its maker anew: what one has said before was of another write."""
        self._through.pop(name, None)

    def through(self, name: Name, claim: Claim | None, pid: int) -> bool:
        """A process says that its write has returned; whether it is the one that is waited for.

        What another one says, which got EEXIST from the kernel perhaps, is nothing about that.
        """
        permit = self._notes.permits.get(name)
        if permit is not None and permit.maker.pid == pid:
            self._notes.permit(name, None)
            return True
        if claim is None or claim.maker is None or claim.maker.pid != pid:
            return False
        self._through[name] = claim.maker
        return True

    def may_write(self, name: Name, claim: Claim | None) -> bool:
        """Whether one may be writing to the kernel for a name.

        To be asked before the look that a decision rests on: a maker that ended since that look
        may have made the device between the two.
        """
        permit = self._notes.permits.get(name)
        if permit is not None:
            if permit.boot_id == self._boot_id() and self._lives(permit.maker):
                return True
            self._notes.permit(name, None)
        maker = None if claim is None else claim.maker
        if maker is None:
            self._through.pop(name, None)
            return False
        if claim is not None and claim.boot_id != self._boot_id():
            return False  # pids begin anew with each boot
        return self._through.get(name) != maker and self._lives(maker)

    def _lives(self, maker: Maker) -> bool:
        return living(maker.pid, self._proc) == maker
