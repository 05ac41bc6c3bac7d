"""The states of a claim and every transition between them, as data.

Everything that decides which transition exists stands in `TRANSITIONS`; a pair that is
missing there is an error wherever it is tried. The picture in docs/protocol.md and the tests
are made from this table. Run `python -m coordinator.states` to print it.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["TRANSITIONS", "Actor", "ClaimEvent", "ClaimState", "Transition", "transition"]


class ClaimState(StrEnum):
    """What a claim says about its device. A name without a claim is free (`None`)."""

    RESERVED = "reserved"  # no device, and none was begun; hangs on a lease
    CREATING = "creating"  # a device may exist; durable
    ACTIVE = "active"  # the device exists; durable
    REMOVING = "removing"  # a device may exist still; durable
    DEFINED = "defined"  # no device was begun in this state; durable

    @property
    def is_wanted(self) -> bool:
        """Whether its device is there or on its way, as a create asks for."""
        return self in (ClaimState.RESERVED, ClaimState.CREATING, ClaimState.ACTIVE)


class ClaimEvent(StrEnum):
    """What moves a claim on."""

    RESERVE = "reserve"
    BIND = "bind"  # a reservation without a host becomes one with a host
    RENEW = "renew"
    CLAIM = "claim"
    BEGIN = "begin"
    ACTIVATE = "activate"
    UNDO = "undo"
    ABORT = "abort"
    LOSE = "lose"
    RETIRE = "retire"
    RESTORE = "restore"
    RELEASE = "release"
    STOP = "stop"
    CANCEL = "cancel"
    EXPIRE = "expire"
    DEFINE = "define"
    MOVE = "move"
    AMEND = "amend"  # what is kept of it changes: persistence, autostart, attributes
    ADOPT = "adopt"
    RECALL = "recall"  # what a store that was lost held of this host, from its journal
    YIELD = "yield"  # to a device of that name, which another host has, after a restore
    EVICT = "evict"


class Actor(StrEnum):
    """Who may make a transition."""

    AGENT = "agent"  # the agent of the claim's own host, fenced by its epoch
    OPERATOR = "operator"  # any process that reaches the store
    TIME = "time"  # etcd, when a lease expires


class Transition(msgspec.Struct, frozen=True):
    """Where an event leads, and who may cause it.

    `to` has two entries where the claim's persistence decides. `during_hold` says whether it
    is made while a restored store is being reconciled (the `hold` key is present).
    """

    to: frozenset[ClaimState | None]
    by: frozenset[Actor]
    during_hold: bool = False


_R, _C, _A, _M, _D = (
    ClaimState.RESERVED,
    ClaimState.CREATING,
    ClaimState.ACTIVE,
    ClaimState.REMOVING,
    ClaimState.DEFINED,
)
_FREE = None
_E = ClaimEvent
_AGENT, _OPERATOR, _TIME = Actor.AGENT, Actor.OPERATOR, Actor.TIME

_ROWS: tuple[
    tuple[ClaimState | None, ClaimEvent, tuple[ClaimState | None, ...], tuple[Actor, ...]], ...
] = (
    (_FREE, _E.RESERVE, (_R,), (_OPERATOR,)),
    (_FREE, _E.CLAIM, (_C,), (_AGENT,)),
    (_FREE, _E.ADOPT, (_A,), (_AGENT,)),
    (_FREE, _E.RECALL, (_A, _D), (_AGENT,)),
    (_R, _E.BIND, (_R,), (_OPERATOR,)),
    (_R, _E.RENEW, (_R,), (_OPERATOR,)),
    (_R, _E.BEGIN, (_C,), (_AGENT,)),
    (_R, _E.CANCEL, (_FREE,), (_OPERATOR, _AGENT)),
    (_R, _E.EXPIRE, (_FREE,), (_TIME,)),
    (_R, _E.DEFINE, (_D,), (_OPERATOR,)),
    (_R, _E.ADOPT, (_A,), (_AGENT,)),
    (_R, _E.RECALL, (_A,), (_AGENT,)),
    (_C, _E.BEGIN, (_C,), (_AGENT,)),
    (_C, _E.ACTIVATE, (_A,), (_AGENT,)),
    (_C, _E.UNDO, (_M,), (_AGENT,)),
    (_C, _E.ABORT, (_FREE, _D), (_AGENT,)),
    (_C, _E.ADOPT, (_A,), (_AGENT,)),
    (_A, _E.BEGIN, (_C,), (_AGENT,)),
    (_A, _E.RETIRE, (_M,), (_OPERATOR,)),
    (_A, _E.LOSE, (_FREE, _D), (_AGENT,)),
    (_A, _E.ADOPT, (_A,), (_AGENT,)),
    (_A, _E.AMEND, (_A,), (_OPERATOR, _AGENT)),
    (_M, _E.RESTORE, (_A,), (_AGENT,)),
    (_M, _E.RELEASE, (_FREE,), (_AGENT,)),
    (_M, _E.STOP, (_D,), (_AGENT,)),
    (_M, _E.ADOPT, (_A,), (_AGENT,)),
    (_D, _E.BEGIN, (_C,), (_AGENT, _OPERATOR)),
    (_D, _E.RETIRE, (_M,), (_OPERATOR,)),
    (_D, _E.MOVE, (_D,), (_OPERATOR,)),
    (_D, _E.ADOPT, (_A,), (_AGENT,)),
    (_D, _E.AMEND, (_D,), (_OPERATOR, _AGENT)),
    *((state, _E.YIELD, (_FREE,), (_OPERATOR,)) for state in (_R, _C, _A, _M, _D)),
    *((state, _E.EVICT, (_FREE, _D), (_OPERATOR,)) for state in (_R, _C, _A, _M, _D)),
)

# While a restored store is being reconciled agents only take note of what exists: a removal
# that the store was set back to is over when the device is there. An operator makes way for
# what exists.
_DURING_HOLD = frozenset({_E.ADOPT, _E.RECALL, _E.ACTIVATE, _E.RESTORE, _E.YIELD})

TRANSITIONS: Mapping[tuple[ClaimState | None, ClaimEvent], Transition] = MappingProxyType(
    {
        (source, event): Transition(frozenset(to), frozenset(by), event in _DURING_HOLD)
        for source, event, to, by in _ROWS
    }
)


def transition(source: ClaimState | None, event: ClaimEvent) -> Transition:
    """The transition that `event` makes from `source`.

    Raises:
        LookupError: there is none; whoever asks has a defect.
    """
    try:
        return TRANSITIONS[source, event]
    except KeyError:
        raise LookupError(f"no transition {event} from {source or 'free'}") from None


def _mermaid() -> Iterator[str]:
    yield "stateDiagram-v2"
    for (source, event), row in TRANSITIONS.items():
        for target in sorted(row.to, key=str):
            yield f"    {source or '[*]'} --> {target or '[*]'}: {event}"


if __name__ == "__main__":
    print("\n".join(_mermaid()))  # noqa: T201 - printing is what it is run for
