"""What stands in etcd, as values: names, claims, sessions, parents and their JSON.

Every value is compact JSON with a `v` for its schema. A value that is damaged, has a field
nobody here knows, or a newer schema is not guessed at: reading it gives `Unreadable`, which
`check` reports and which stops nothing else.
"""

from __future__ import annotations

import re
import uuid
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import msgspec

from coordinator.errors import Holder, InvalidValue
from coordinator.keys import last_part
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from coordinator.store import KeyValue

__all__ = [
    "MOST_INSTANCES",
    "NIL",
    "SCHEMA",
    "AfterRemoval",
    "AuditValue",
    "Claim",
    "ClaimValue",
    "FindingKind",
    "FindingValue",
    "HoldValue",
    "IdentityValue",
    "LastError",
    "MachineValue",
    "Maker",
    "Name",
    "NameValue",
    "OutcomeValue",
    "ParentType",
    "ParentValue",
    "Removal",
    "RestoreValue",
    "RestoredValue",
    "SessionValue",
    "Unreadable",
    "Wish",
    "decode",
    "encode",
    "is_label",
    "is_name",
    "parse_attribute",
    "parse_label",
    "parse_name",
    "parse_request",
    "random_name",
    "read_claim",
]

SCHEMA = 1

Name = NewType("Name", str)
"""A UUID as 36 lower-case characters, never nil."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
NIL = "00000000-0000-0000-0000-000000000000"
"""The one UUID that the kernel takes and we do not: it is what a forgotten name looks like."""
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+!-]{0,127}")
_REQUEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*(/[A-Za-z0-9_][A-Za-z0-9_.:-]*)*")
MOST_INSTANCES = 65_535
"""No parent has room for more devices of a type: a larger count is none."""
_PAGE = 4096  # sysfs hands a driver at most one page a write (kernel: filesystems/sysfs.rst)


def parse_name(text: str) -> Name:
    """A name from what somebody typed; upper case is folded.

    Raises:
        InvalidValue: it is not a UUID in its 36-character form, or it is nil. The kernel
            takes some of these; this is stricter on purpose.
    """
    folded = text.lower()
    if not _UUID.fullmatch(folded):
        raise InvalidValue(text, "not a name", "a name is a UUID of 36 characters", name=text)
    if folded == NIL:
        raise InvalidValue(text, "the nil UUID is not a name", "choose another one", name=text)
    return Name(folded)


def is_name(text: str) -> bool:
    """Whether it is a name as it stands in a key."""
    return _UUID.fullmatch(text) is not None and text != NIL


def is_label(text: str) -> bool:
    """Whether it could be typed as the name of a host, a parent or a type."""
    return _LABEL.fullmatch(text) is not None


def random_name(bits: int) -> Name:
    """A version 4 UUID from 128 random `bits`, which the caller draws from its own source."""
    return Name(str(uuid.UUID(int=bits, version=4)))


def parse_label(text: str, what: str) -> str:
    """A host, parent, type or cluster, as it may stand in a key and in a path.

    Raises:
        InvalidValue: anything but letters, digits and . _ : @ + ! - , or over 128 characters.
    """
    if not _LABEL.fullmatch(text):
        raise InvalidValue(
            text or '""', f"not a {what}", "use letters, digits and . _ : @ + ! -, up to 128"
        )
    return text


def parse_request(text: str) -> str:
    """A request id.

    Raises:
        InvalidValue: anything but letters, digits and . _ : - , or over 64 characters.
    """
    if not _REQUEST.fullmatch(text):
        raise InvalidValue(
            text or '""', "not a request id", "use letters, digits and . _ : -, up to 64"
        )
    return text


def parse_attribute(text: str) -> tuple[str, str]:
    """A vendor attribute `K=V`; K is a path below the device's directory.

    Raises:
        InvalidValue: no `=`, a K that leaves the directory, or a V over a page (4096 bytes).
    """
    key, equals, value = text.partition("=")
    if not equals or not _ATTRIBUTE.fullmatch(key):
        raise InvalidValue(text, "not an attribute", "write it as NAME=VALUE")
    if len(value.encode()) >= _PAGE or "\0" in value:
        raise InvalidValue(key, "the value does not fit one write", "at most 4095 bytes, no NUL")
    return key, value


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value in etcd. A field that is not known is an error: to rewrite is to lose it."""

    v: int = SCHEMA


class NameValue(_Value, frozen=True, kw_only=True):
    """`names/<uuid>`: taken, by which host (None: a reservation without one) and request."""

    host: str | None
    request: str


class AfterRemoval(StrEnum):
    """What follows `removing`."""

    FREE = "free"
    DEFINED = "defined"


class Removal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a claim is being removed. `force`: wait in the kernel for whoever has it open."""

    then: AfterRemoval = AfterRemoval.FREE
    force: bool = False


class LastError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the kernel or the agent last had to say against it; `at` is RFC 3339."""

    errno: str
    text: str
    at: str


class Maker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process of the host that writes to the kernel itself, as mdevctl does.

    `started` tells it from a later process of the same pid: clock ticks from the boot until it
    was started (proc(5), stat).
    """

    pid: int
    started: int


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for: a device of a type on a parent of a host."""

    host: str
    parent: str
    type: str
    attrs: tuple[tuple[str, str], ...] = ()
    persistent: bool = False
    autostart: bool = False


class ClaimValue(_Value, frozen=True, kw_only=True):
    """`hosts/<host>/claims/<uuid>`.

    `first` says that it is being created for the first time, so that a refusal leaves nothing,
    `boot_id` is the boot in which a device of it was last begun, seen or stopped; `since`
    when the state was entered, `created` when the name was claimed (RFC 3339, for people:
    nothing is decided by them); `asked_by` who asked. `maker` is who, other than the agent,
    makes or removes the device in this state: the agent waits for as long as it lives.
    """

    state: ClaimState
    parent: str
    type: str
    attrs: tuple[tuple[str, str], ...] = ()
    persistent: bool = False
    autostart: bool = False
    adopted: bool = False
    first: bool = False
    removal: Removal | None = None
    request: str
    boot_id: str | None = None
    error: LastError | None = None
    since: str
    created: str
    asked_by: str | None = None
    maker: Maker | None = None


_CLAIM_FIELDS = ClaimValue.__struct_fields__


class Claim(ClaimValue, frozen=True, kw_only=True):
    """A claim as read: its value, its key, and the revision that a transition compares."""

    name: Name
    host: str
    revision: int
    lease: int = 0

    def value(self) -> ClaimValue:
        """What of it stands in the store's value."""
        return ClaimValue(**{field: getattr(self, field) for field in _CLAIM_FIELDS})

    @property
    def outlives_its_device(self) -> bool:
        """Whether something of it stays when a request for it fails: it had been there before."""
        return self.persistent and not self.first

    def as_recalled(self, state: ClaimState, boot_id: str | None, now: str) -> ClaimValue:
        """The value with which a claim that a store has lost is put back in `state`."""
        return msgspec.structs.replace(
            self.value(),
            state=state,
            boot_id=boot_id,
            since=now,
            first=False,
            removal=None,
            error=None,
            maker=None,
        )

    @classmethod
    def of(cls, name: Name, host: str, value: ClaimValue, revision: int, lease: int = 0) -> Claim:
        """The claim of `name` on `host` as `value`, written at `revision`, makes it."""
        said: dict[str, Any] = msgspec.structs.asdict(value)
        return cls(name=name, host=host, revision=revision, lease=lease, **said)

    @property
    def holder(self) -> Holder:
        """Who it is held by, for a refusal."""
        return Holder(self.host, self.parent, self.state.value)


class SessionValue(_Value, frozen=True, kw_only=True):
    """`hosts/<host>/session`: the agent that lives now."""

    instance: str
    boot_id: str
    version: str


class IdentityValue(_Value, frozen=True, kw_only=True):
    """`hosts/<host>/identity`: the machine behind a host; the product UUID tells clones."""

    machine_id: str
    product_uuid: str | None = None


class MachineValue(_Value, frozen=True, kw_only=True):
    """`machines/<machine-id>`: the host that this machine is."""

    host: str


class ParentType(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A type as a parent offers it; `available` is a hint, the kernel's answer counts."""

    type: str
    available: int
    device_api: str | None = None
    name: str | None = None
    description: str | None = None

    @property
    def room(self) -> int:
        """How many devices more it says that there is room for; a count that cannot be is none."""
        return self.available if 0 <= self.available <= MOST_INSTANCES else 0


class ParentValue(_Value, frozen=True, kw_only=True):
    """`hosts/<host>/parents/<parent>`, written when it changed.

    `troubles` are what the host's agent found wrong with it, in words, and few. One that is not
    `usable` takes no creates now: its driver or the bus says nothing, or lets writes hang.
    `failures` counts the different names whose create its driver refused since the last that it
    took, for other reasons than want of room.
    """

    types: tuple[ParentType, ...]
    usable: bool = True
    troubles: tuple[str, ...] = ()
    failures: int = 0


class OutcomeValue(_Value, frozen=True, kw_only=True):
    """`outcomes/<request>/<uuid>`: how a request failed, for whoever waits.

    `attribute` is the vendor attribute that the driver refused, where it was one.
    """

    errno: str
    attribute: str | None = None
    text: str
    host: str
    parent: str
    at: str


class HoldValue(_Value, frozen=True, kw_only=True):
    """`hold` while a namespace is imported: by whom (for people), and since when (RFC 3339)."""

    id: str
    who: str | None
    at: str


class RestoreValue(_Value, frozen=True, kw_only=True):
    """`hold` while a restored store is reconciled; it cannot be read as a `HoldValue`.

    `restore` is its id; `who` began it, or the agent of `host` did, which met a store that was
    set back; `why` in words, `at` when (RFC 3339). `imported` is the hold of an import that
    stood in the restored store: it is put back in the end, for the next import to take back.
    """

    restore: str
    who: str | None = None
    host: str | None = None
    why: str
    at: str
    imported: HoldValue | None = None

    @property
    def begun_by(self) -> str:
        """Who began it, for people."""
        return self.who or f"the agent of {self.host}"


class RestoredValue(_Value, frozen=True, kw_only=True):
    """`hosts/<host>/restored`: what the agent `instance` has to say of the restore `restore`.

    `waits` is why it is not done yet; None: all is noted that exists. `absent` are the names of
    its claims behind which a device might stand and was seen absent, each with the claim's
    revision.
    """

    restore: str
    instance: str
    at: str
    waits: str | None
    absent: dict[str, int] = {}


class AuditValue(_Value, frozen=True, kw_only=True):
    """`audit/<time>-<id>`: a forced act. Its order is that of create revisions, not of `at`.

    `host` is None for what was done to the whole namespace.
    """

    who: str | None
    what: str
    host: str | None
    why: str
    at: str


class FindingKind(StrEnum):
    """What a device is that its host has no claim for."""

    FOREIGN = "foreign"  # nobody holds the name, and it cannot be adopted
    CONFLICT = "conflict"  # another host, or a reservation, holds the name


class FindingValue(_Value, frozen=True, kw_only=True):
    """`hosts/<host>/findings/<uuid>`: a device that is not ours, and what stands against it."""

    kind: FindingKind
    parent: str
    type: str | None
    detail: str


class Unreadable(msgspec.Struct, frozen=True):
    """A record that this program cannot read, and why. Nothing is done about its name."""

    key: str
    why: str
    revision: int


V = TypeVar("V", bound=_Value)


class _Schema(msgspec.Struct):
    v: int


def encode(value: _Value) -> bytes:
    """Compact JSON. The same value gives the same bytes, which comparisons rely on."""
    return msgspec.json.encode(value)


def decode(kv: KeyValue, kind: type[V]) -> V | Unreadable:
    """Read a value of the kind that its key calls for. Never raises for what is stored."""
    try:
        schema = msgspec.json.decode(kv.value, type=_Schema).v
        if schema > SCHEMA:
            return Unreadable(kv.key, f"schema {schema} is newer than {SCHEMA}", kv.mod_revision)
        return msgspec.json.decode(kv.value, type=kind)
    except msgspec.MsgspecError as error:
        return Unreadable(kv.key, str(error), kv.mod_revision)
    except UnicodeDecodeError as error:
        return Unreadable(kv.key, f"not UTF-8: {error.reason}", kv.mod_revision)
    except RecursionError:
        return Unreadable(kv.key, "nested too deeply", kv.mod_revision)


def read_claim(kv: KeyValue) -> Claim | Unreadable:
    """Read a claim; its name and host stand in its key (`…/hosts/<host>/claims/<uuid>`)."""
    value = decode(kv, ClaimValue)
    if isinstance(value, Unreadable):
        return value
    name = last_part(kv.key)
    if not _UUID.fullmatch(name):
        return Unreadable(kv.key, "the key does not end in a name", kv.mod_revision)
    host = kv.key.split("/")[-3]
    return Claim.of(Name(name), host, value, kv.mod_revision, kv.lease)
