"""What goes over the local socket, as its document has it; `coordinator.model` is as strict.

A claim is shaped as the command line shapes it (cli.md, JSON).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from coordinator.model import LastError
from coordinator.states import ClaimState

__all__ = [
    "AttributeName",
    "AttributeValue",
    "ClaimJson",
    "ClaimsJson",
    "DeviceJson",
    "DevicesJson",
    "DoneJson",
    "ErrorJson",
    "HealthJson",
    "HolderJson",
    "Label",
    "MadeJson",
    "Pid",
    "ReleaseJson",
    "RequestId",
    "TakeJson",
    "Uuid",
]

_LABEL = "^[A-Za-z0-9][A-Za-z0-9._:@+!-]{0,127}$"
_PART = "[A-Za-z0-9_][A-Za-z0-9_.:-]*"
_NIL = "0{8}(-0{4}){3}-0{12}"

Uuid = Annotated[
    str,
    Meta(
        pattern=f"^(?!{_NIL})[0-9a-fA-F]{{8}}(-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}$",
        description="A name: a UUID of 36 characters, upper case folded, and not nil.",
    ),
]
Label = Annotated[str, Meta(pattern=_LABEL, description="A parent or a type.")]
RequestId = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
AttributeName = Annotated[str, Meta(pattern=f"^{_PART}(/{_PART})*$")]
AttributeValue = Annotated[
    str, Meta(pattern=r"^[^\u0000]*$", max_length=4095, description="One write: 4095 bytes.")
]
Pid = Annotated[int, Meta(ge=1, le=1 << 22, description="A process of this host (proc(5)).")]

_WAIT, _WAIT_MOST = 60.0, 600.0  # seconds for which a create is waited for


class ClaimJson(msgspec.Struct, frozen=True, kw_only=True):
    """A claim of this host."""

    name: str
    host: str
    parent: str
    type: str
    state: ClaimState
    persistent: bool
    autostart: bool
    adopted: bool
    attrs: tuple[tuple[str, str], ...]
    request: str
    since: str
    revision: int
    error: LastError | None


class ClaimsJson(msgspec.Struct, frozen=True, kw_only=True):
    """This host's claims; `source` is `store`, or `journal` while the store is away."""

    source: str
    claims: list[ClaimJson]


class DeviceJson(msgspec.Struct, frozen=True, kw_only=True):
    """A device that the kernel has; `presence` is `present` or `going`, `state` its claim's."""

    name: str
    parent: str
    type: str | None
    presence: str
    state: ClaimState | None


class DevicesJson(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel of this host has, looked at now."""

    devices: list[DeviceJson]


class HealthJson(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent is, and what is not well.

    `degraded` says what is wrong with single parents, while the others are served.
    """

    ok: bool
    reasons: tuple[str, ...]
    degraded: tuple[str, ...] = ()


class TakeJson(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device that is asked for.

    Without a `name` the agent takes the one that follows from the `request`, and without both a
    random one.

    `maker` is the pid of a process that makes the device itself, once it has the answer, and
    then says so (`made`); without it the agent does.
    """

    type: Label
    parent: Label
    name: Uuid | None = None
    attrs: list[tuple[AttributeName, AttributeValue]] = []
    persistent: bool = False
    autostart: bool = False
    request: RequestId | None = None
    maker: Pid | None = None
    wait: Annotated[float, Meta(ge=0, le=_WAIT_MOST)] = _WAIT


class ReleaseJson(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a device is given up. `force`: wait in the kernel for whoever has it open.

    With `request` or `revision` it is given up only if that request holds it, at that revision.
    """

    force: bool = False
    request: RequestId | None = None
    revision: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)] | None = None


class HolderJson(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a name."""

    host: str | None
    parent: str | None
    state: str


class MadeJson(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose write to the kernel has returned: the pid that was named as `maker`."""

    maker: Pid


class ErrorJson(msgspec.Struct, frozen=True, kw_only=True):
    """An error, as `-o json` of the command line prints it."""

    error: str
    errno: int | None
    name: str | None
    holder: HolderJson | None
    message: str


class DoneJson(msgspec.Struct, frozen=True, kw_only=True):
    """It was done, or may go on."""

    ok: bool = True
