"""Names that follow from a request's id, so that a repeat of the request asks for the same ones.

Such a name is a UUID of version 8, its bits from the left:

    60  from the version 5 UUID, in a namespace of ours, of the text `CLUSTER/REQUEST`
    17  how many names the request asks for
    17  which of them it is, from 0
    28  more of that version 5 UUID

(version and variant take their places between). All names of a request begin alike, so a
request that is repeated with another count meets the names of its first run.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.errors import AskedOtherwise, HeldByAnother, MdevnsError
from coordinator.keys import last_part
from coordinator.model import Claim, Name, NameValue, decode
from coordinator.store import Range, Txn, prefix_end

if TYPE_CHECKING:
    from coordinator.claims import Hold
    from coordinator.keys import Keys
    from coordinator.store import KeyValue, Store

__all__ = ["ANY", "Only", "check_count", "is_anothers", "request_name"]

_NAMESPACE = uuid.UUID("6c1f6f0e-2b57-4d0c-9a2e-7d1f0b8e53a4")
_NUMBER, _REST = 17, 28  # bits
_MOST = 1 << _NUMBER


@dataclass(frozen=True, slots=True, kw_only=True)
class Only:
    """What an act is limited to: what a request holds, and a revision of it. None: any."""

    request: str | None = None
    revision: int | None = None

    def refusal(self, held: Claim | Hold) -> MdevnsError | None:
        """Why what stands is not acted on, if it is not.

        The act itself compares the revision of what is asked here, so a look suffices.
        """
        asked = (self.request or held.request, self.revision or held.revision)
        if asked == (held.request, held.revision):
            return None
        return HeldByAnother(held.name, held.holder, held.request, held.revision)


ANY = Only()


def is_anothers(seen: Claim | Hold, now: Claim | Hold) -> bool:
    """Whether somebody took the name after `seen` was read: it is not what was asked about."""
    if isinstance(seen, Claim) and isinstance(now, Claim) and seen.created != now.created:
        return True
    return seen.request != now.request


def request_name(cluster: str, request: str, index: int, count: int) -> Name:
    """The name of number `index` of the `count` that a request asks for.

    Raises:
        ValueError: more than 131,071 names.
    """
    if not 0 <= index < count < _MOST:
        raise ValueError(f"name {index} of {count}")
    start, rest = _hashed(cluster, request)
    return Name(start + _end((count << _NUMBER | index) << _REST | rest))


async def check_count(store: Store, keys: Keys, request: str, count: int) -> None:
    """Check that no name is held by the same request with another count.

    Raises:
        AskedOtherwise: there is such a name.
    """
    start = keys.name(_hashed(keys.cluster, request)[0])
    shift = _NUMBER + _REST
    # The last count has no name (`_MOST`), so that the next one after `count` fits.
    fewer = Range(start, start + _end(count << shift), limit=1)
    more = Range(start + _end(count + 1 << shift), prefix_end(start), limit=1)
    found = await store.txn(Txn(success=(fewer, more)))
    for read in found.ranges():
        if read.first is not None:
            _refuse(read.first, request, count)


def _refuse(kv: KeyValue, request: str, count: int) -> None:
    value = decode(kv, NameValue)
    if not isinstance(value, NameValue) or value.request != request:
        return
    name = Name(last_part(kv.key))
    number = int(name.replace("-", "")[16:], 16) >> (_NUMBER + _REST) & _MOST - 1
    raise AskedOtherwise(name, request, f"asked for {number} names, not {count}")


def _hashed(cluster: str, request: str) -> tuple[str, int]:
    """What all names of a request begin with, and the bits that they end with."""
    digits = uuid.uuid5(_NAMESPACE, f"{cluster}/{request}").hex
    rest = int(digits[-7:], 16)
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-", rest


def _end(bits: int) -> str:
    """The last 16 digits of a UUID, under its variant."""
    digits = f"{1 << 63 | bits:016x}"
    return f"{digits[:4]}-{digits[4:]}"
