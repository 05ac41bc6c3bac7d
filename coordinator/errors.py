"""Every error that mdevns reports, each with its errno name and its exit code.

    MdevnsError
    ├── Refused                 it was answered, and the answer is no
    │   ├── NotFound            ENOENT, ENODEV   3
    │   ├── NameTaken           EEXIST           4
    │   ├── AskedOtherwise      EEXIST           4   a repeat asks for something else
    │   ├── HeldByAnother       EEXIST           4   not what the caller may act on
    │   ├── ExistsOnHost        EEXIST           4   a device that is not ours has it
    │   ├── NotEmpty            EEXIST           4   an import meets names
    │   ├── InUse               EBUSY            5
    │   ├── TryAgain            EAGAIN           6   a placeholder is not a device
    │   │   └── Moved           EAGAIN           6   the claim changed meanwhile
    │   ├── NoCapacity          ENOSPC, EUSERS   7
    │   ├── InvalidValue        EINVAL           8
    │   ├── Fenced              ESTALE           9
    │   ├── NotAllowed          EACCES, EPERM   12
    │   ├── Misconfigured       EINVAL          13
    │   ├── KernelRefused       the kernel's    15
    │   └── HostDown            EHOSTDOWN       16
    ├── StoreError              the world failed
    │   ├── Unreachable         EHOSTUNREACH    10   nothing was done
    │   ├── OutcomeUnknown      ETIMEDOUT       11   it may have been done, now or later
    │   ├── StoreReadOnly       EROFS           14
    │   ├── LeaseGone           ESTALE           9   nothing was done
    │   ├── TooLarge            E2BIG            1   nothing was done
    │   ├── Compacted           ESTALE           9   a watch or read from too old a revision
    │   └── SetBack             ESTALE           9   another store than before, or an older one
    └── Interrupted             EINTR          130

An error is one line, `ERRNAME: what: why; what to do`. Exit codes are cli.md's contract.
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "AskedOtherwise",
    "Compacted",
    "ExistsOnHost",
    "Fenced",
    "HeldByAnother",
    "Holder",
    "HostDown",
    "InUse",
    "Interrupted",
    "InvalidValue",
    "KernelRefused",
    "LeaseGone",
    "MdevnsError",
    "Misconfigured",
    "Moved",
    "NameTaken",
    "NoCapacity",
    "NotAllowed",
    "NotEmpty",
    "NotFound",
    "OutcomeUnknown",
    "Refused",
    "SetBack",
    "StoreError",
    "StoreReadOnly",
    "TooLarge",
    "TryAgain",
    "Unreachable",
    "from_kernel",
]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a name: a host and parent, or a reservation that names neither."""

    host: str | None
    parent: str | None
    state: str

    def __str__(self) -> str:
        place = "/".join(part for part in (self.host, self.parent) if part)
        return f"{place or 'a reservation'} ({self.state})"


class MdevnsError(Exception):
    """An error with a line to print: what it is about, why, and what to do.

    `errno` is the errno's name (`EEXIST`), `exit_code` what the command ends with.
    """

    errno = "EIO"
    exit_code = 1

    def __init__(
        self,
        what: str,
        why: str,
        hint: str = "",
        *,
        errno_name: str | None = None,
        name: str | None = None,
        holder: Holder | None = None,
    ) -> None:
        self.what, self.why, self.hint = what, why, hint
        self.name, self.holder = name, holder
        if errno_name is not None:
            self.errno = errno_name
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """What, why and what to do, without the errno's name."""
        return f"{self.what}: {self.why}" + (f"; {self.hint}" if self.hint else "")

    @property
    def line(self) -> str:
        """The one line for stderr."""
        return f"{self.errno}: {self.message}"

    def as_json(self) -> dict[str, Any]:
        """The object that `-o json` prints on stderr."""
        return {
            "error": self.errno,
            "errno": getattr(errno, self.errno, None),
            "name": self.name,
            "holder": None if self.holder is None else asdict(self.holder),
            "message": self.message,
        }


class Refused(MdevnsError):
    """It was answered, and the answer is no. Nothing about it is unknown."""

    elsewhere = False
    """Whether a host or its kernel refused a create that another parent may take."""


class NotFound(Refused):
    """No such name, host, parent or type."""

    errno, exit_code = "ENOENT", 3


class NameTaken(Refused):
    """Somebody holds the name."""

    errno, exit_code = "EEXIST", 4

    def __init__(self, name: str, holder: Holder, request: str | None = None) -> None:
        super().__init__(
            name, f"held by {holder}", f"see: mdevns show {name}", name=name, holder=holder
        )
        self.request = request
        """The request that holds it, where the refusal tells."""


class AskedOtherwise(Refused):
    """A request repeats the id of another one, and asks for something else."""

    errno, exit_code = "EEXIST", 4

    def __init__(self, name: str, request: str, why: str, holder: Holder | None = None) -> None:
        hint = f"repeat it as it was, or use another id; see: mdevns show {name}"
        super().__init__(f"request {request}", why, hint, name=name, holder=holder)


class HeldByAnother(Refused):
    """What holds the name is not what the caller named by request or revision."""

    errno, exit_code = "EEXIST", 4

    def __init__(self, name: str, holder: Holder, request: str, revision: int) -> None:
        why = f"nothing was done; held by {holder}, request {request}, revision {revision}"
        super().__init__(name, why, f"see: mdevns show {name}", name=name, holder=holder)


class ExistsOnHost(Refused):
    """The kernel of the host has a device of that name which is not ours."""

    errno, exit_code = "EEXIST", 4


class NotEmpty(Refused):
    """There are names where none may be."""

    errno, exit_code = "EEXIST", 4


class InUse(Refused):
    """Something has the device open."""

    errno, exit_code = "EBUSY", 5


class TryAgain(Refused):
    """A placeholder is not a device: it is being created or removed."""

    errno, exit_code = "EAGAIN", 6


class Moved(TryAgain):
    """The claim is no longer as it was read: somebody else moved it. Read it again."""

    def __init__(self, name: str, holder: Holder | None) -> None:
        now = f"is now held by {holder}" if holder else "is gone"
        super().__init__(
            name, f"changed meanwhile and {now}", "try again", name=name, holder=holder
        )


class NoCapacity(Refused):
    """No parent has an instance of the type left."""

    errno, exit_code = "ENOSPC", 7


class InvalidValue(Refused):
    """Not a name, or a value that cannot be."""

    errno, exit_code = "EINVAL", 8


class Fenced(Refused):
    """A newer agent, an evict or a store that is being restored has taken over."""

    errno, exit_code = "ESTALE", 9


class NotAllowed(Refused):
    """Not permitted, by the machine or by etcd."""

    errno, exit_code = "EPERM", 12


class Misconfigured(Refused):
    """The configuration is unreadable, misspelt or unsafe.

    `setting` is the key whose value it is about, where there is one.
    """

    errno, exit_code = "EINVAL", 13

    def __init__(self, what: str, why: str, hint: str = "", *, setting: str | None = None) -> None:
        super().__init__(what, why, hint)
        self.setting = setting


class KernelRefused(Refused):
    """The driver or the kernel said no, with an errno of its own."""

    errno, exit_code = "EIO", 15


class HostDown(Refused):
    """The host is not reachable, so nobody can do it now."""

    errno, exit_code = "EHOSTDOWN", 16


class StoreError(MdevnsError):
    """etcd failed, or could not be asked."""


class Unreachable(StoreError):
    """The store cannot be reached or has no quorum; nothing was done."""

    errno, exit_code = "EHOSTUNREACH", 10


class OutcomeUnknown(StoreError):
    """It may have been done, now or later; only sending the very same again can tell."""

    errno, exit_code = "ETIMEDOUT", 11


class StoreReadOnly(StoreError):
    """The store's space is used up (NOSPACE), or it is corrupt; writes fail."""

    errno, exit_code = "EROFS", 14


class LeaseGone(StoreError):
    """A lease that a put named is gone; the whole transaction was refused."""

    errno, exit_code = "ESTALE", 9


class TooLarge(StoreError):
    """A request over etcd's limits (size or operations); the whole of it was refused."""

    errno, exit_code = "E2BIG", 1


class Compacted(StoreError):
    """The revision asked for is compacted away; list again and go on from there.

    `revision` is the oldest one that can still be read, 0 when etcd did not say.
    """

    errno, exit_code = "ESTALE", 9

    def __init__(self, what: str, revision: int = 0) -> None:
        super().__init__(what, "the revision asked for is compacted", "list again")
        self.revision = revision


class SetBack(StoreError):
    """The store is another one than before, or an older state of it.

    What was read of it is of no use: a revision may mean something else now. A write that was
    not answered before may have been done in the store as it was.
    """

    errno, exit_code = "ESTALE", 9

    def __init__(self, why: str) -> None:
        super().__init__(
            "etcd",
            why,
            "was it restored, or are endpoints of two clusters named? see: mdevns doctor",
        )


class Interrupted(MdevnsError):
    """Ctrl-C; the line says what was left behind."""

    errno, exit_code = "EINTR", 130


_BY_ERRNO: dict[str, type[Refused]] = {
    "ENOENT": NotFound,
    "ENODEV": NotFound,
    "EEXIST": ExistsOnHost,
    "EBUSY": InUse,
    "EAGAIN": TryAgain,
    "ENOSPC": NoCapacity,
    "EUSERS": NoCapacity,
    "EACCES": NotAllowed,
    "EPERM": NotAllowed,
    "EHOSTDOWN": HostDown,
}


def from_kernel(errno_name: str, name: str, why: str, *, attribute: bool = False) -> Refused:
    """The error for an errno with which a host answered a request for `name`.

    An errno without a class of its own, and any errno of a vendor attribute, is the driver's
    own refusal, exit 15.
    """
    kind = KernelRefused if attribute else _BY_ERRNO.get(errno_name, KernelRefused)
    error = kind(name, why, f"see: mdevns show {name}", errno_name=errno_name, name=name)
    # An attribute that a driver does not take is what was asked for; EEXIST is about the name.
    error.elsewhere = not attribute and errno_name != "EEXIST"
    return error
