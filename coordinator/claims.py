"""The life of a claim: each transition is one `Change`, built here and nowhere else.

What happens when two hosts ask for one name? Both send `reserve` (or `claim`, or `adopt`).
Each compares that `names/<uuid>` does not exist and puts it together with its claim. etcd
orders the two in its log: the first is applied; the second finds the name there, its else
branch brings back who holds it, and it is refused as NameTaken. No lock, no clock, one commit.

A transition of a claim compares the revision at which name and claim were both written, and
writes (or deletes) both, always: they share one revision, and no lease stays on one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from coordinator.errors import (
    Fenced,
    Holder,
    HostDown,
    Moved,
    NameTaken,
    NotFound,
    StoreReadOnly,
)
from coordinator.model import (
    AfterRemoval,
    Claim,
    ClaimValue,
    LastError,
    Maker,
    Name,
    NameValue,
    OutcomeValue,
    Removal,
    RestoreValue,
    Unreadable,
    decode,
    encode,
    read_claim,
)
from coordinator.states import ClaimEvent, ClaimState, transition
from coordinator.store import Delete, Put, absent, get, present, unchanged, valued
from coordinator.transactions import Answer, Change, Guard

if TYPE_CHECKING:
    from coordinator.keys import Keys
    from coordinator.model import Wish
    from coordinator.store import Compare, KeyValue

__all__ = ["UNTOLD", "Claims", "Failure", "Hold", "answers"]


UNTOLD = "taken"
"""The state of a holder of which a refusal brought the host and no more: its claim is elsewhere."""


class Hold(msgspec.Struct, frozen=True):
    """A reservation without a host: the name alone, on a lease."""

    name: Name
    request: str
    revision: int
    lease: int = 0

    @property
    def holder(self) -> Holder:
        """Who it is held by, for a refusal."""
        return Holder(None, None, ClaimState.RESERVED.value)


class Failure(msgspec.Struct, frozen=True):
    """Why a request failed, told to whoever waits for it; `lease` bounds how long it stays.

    `attribute` is the vendor attribute that was refused, where it was one.
    """

    error: LastError
    lease: int
    attribute: str | None = None


class Claims:
    """The transitions, for one cluster. Pure: it reads no clock and talks to nobody."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        # One for all: whoever asks under it has it looked up among the guards in use.
        self._no_hold = Guard(
            absent(keys.hold),
            StoreReadOnly,
            "the store",
            "it is reconciled after a restore, or imported into; only what exists is noted",
            "try again when that is finished; see: mdevns check",
            told=_told_of_hold,
        )

    # Taking a free name.

    def reserve(
        self, name: Name, request: str, wish: Wish, *, lease: int, now: str, by: str | None
    ) -> Change:
        """free → reserved: for a host that shall make it.

        Refused as NameTaken when anybody else has it. The same request again is answered
        with what stands, so that a lost answer does no harm.
        """
        value = _wished(wish, ClaimState.RESERVED, request, now, by)
        return self._take(ClaimEvent.RESERVE, name, request, wish.host, value, lease=lease)

    def hold(self, name: Name, request: str, *, lease: int) -> Change:
        """free → reserved: for no host. Refused, and asked for again, as `reserve`."""
        return self._take(ClaimEvent.RESERVE, name, request, None, None, lease=lease)

    def claim(
        self,
        name: Name,
        request: str,
        wish: Wish,
        *,
        boot_id: str,
        now: str,
        by: str | None,
        maker: Maker | None = None,
    ) -> Change:
        """free → creating: by a caller on the host itself, whose agent may then write to `create`.

        With a `maker` that process writes, and nobody else for as long as it lives.
        It is durable from its first moment. A copy that arrives after its refusal was
        answered could take a name nobody waits for, so whoever saw an unknown outcome and
        then a refusal enrols again, which fences the late copy.
        """
        value = _wished(wish, ClaimState.CREATING, request, now, by)
        value = msgspec.structs.replace(value, boot_id=boot_id, first=True, maker=maker)
        return self._take(ClaimEvent.CLAIM, name, request, wish.host, value)

    def adopt_free(
        self,
        name: Name,
        request: str,
        *,
        host: str,
        parent: str,
        type_: str,
        boot_id: str,
        now: str,
    ) -> Change:
        """free → active: claim the name of a device that somebody else made."""
        value = ClaimValue(
            state=ClaimState.ACTIVE,
            parent=parent,
            type=type_,
            adopted=True,
            request=request,
            boot_id=boot_id,
            since=now,
            created=now,
        )
        return self._take(ClaimEvent.ADOPT, name, request, host, value)

    def recall(self, name: Name, host: str, value: ClaimValue) -> Change:
        """free → active or defined: what the host's journal knows and the store has lost."""
        assert value.state in transition(None, ClaimEvent.RECALL).to
        return self._take(ClaimEvent.RECALL, name, value.request, host, value)

    def recall_over(
        self, claim: Claim, value: ClaimValue, *, failure: Failure | None = None
    ) -> Change:
        """reserved → active: the device is one that the store has lost, and the journal knows.

        The reservation came in since, or is what the store was set back to. With a `failure`
        its request is failed in the same transaction: it is not the one that made the device.
        """
        return self._move(ClaimEvent.RECALL, claim, value, failure=failure)

    def put_back(self, name: Name, host: str, value: ClaimValue) -> Change:
        """A claim as an import brings it back: no transition, and only under the import's hold.

        Refused as Moved when anybody else has the name.
        """
        keys = (self._keys.name(name), self._keys.claim(host, name))
        return self._write(name, host, value, when=tuple(map(absent, keys)))

    # A reservation.

    def bind(self, hold: Hold, wish: Wish, *, lease: int, now: str, by: str | None) -> Change:
        """A reservation without a host becomes that of a host, which then makes the device."""
        transition(ClaimState.RESERVED, ClaimEvent.BIND)
        value = _wished(wish, ClaimState.RESERVED, hold.request, now, by)
        return self._write(
            hold.name,
            wish.host,
            value,
            when=(
                unchanged(self._keys.name(hold.name), hold.revision),
                absent(self._keys.claim(wish.host, hold.name)),
            ),
            lease=lease,
        )

    def renew(self, held: Claim | Hold, *, lease: int) -> Change:
        """reserved → reserved, under a newer lease. The old one may hold other names: left."""
        transition(_state(held), ClaimEvent.RENEW)
        if isinstance(held, Claim):
            return self._move(ClaimEvent.RENEW, held, held.value(), lease=lease)
        return self._rehold(held, lease)

    def define(
        self, hold: Hold, wish: Wish, *, now: str, by: str | None, boot_id: str | None = None
    ) -> Change:
        """A reservation without a host → defined: a persistent name, with no device begun.

        Not of a reservation with a host: its agent may begin it at any moment. With the host's
        `boot_id` autostart begins with its next boot, without it at once.
        """
        transition(ClaimState.RESERVED, ClaimEvent.DEFINE)
        value = _wished(wish, ClaimState.DEFINED, hold.request, now, by)
        value = msgspec.structs.replace(value, boot_id=boot_id)
        return self._write(
            hold.name,
            wish.host,
            value,
            when=(
                unchanged(self._keys.name(hold.name), hold.revision),
                absent(self._keys.claim(wish.host, hold.name)),
            ),
        )

    def cancel(self, held: Claim | Hold, failure: Failure | None = None) -> Change:
        """reserved → free: no device was begun. `failure` tells whoever waits for it."""
        return self._free(ClaimEvent.CANCEL, held, failure)

    # The host's agent, around the kernel's write.

    def begin(
        self,
        claim: Claim,
        *,
        boot_id: str,
        now: str,
        error: LastError | None = None,
        maker: Maker | None = None,
    ) -> Change:
        """reserved, creating, defined or active → creating: from here on a device may exist.

        An active one was lost with an earlier boot, and is to start by itself: losing it and
        beginning it are one commit.
        Detaches the reservation's lease. Beginning again moves the revision, so that every
        write to `create` follows a begin of its own enrolment (design 5, rule 1). `error` is
        why the write before it did not do, for `show`; `maker` as for `claim`.
        """
        again = claim.state is ClaimState.CREATING
        value = msgspec.structs.replace(
            claim.value(),
            state=ClaimState.CREATING,
            first=claim.first or claim.state is ClaimState.RESERVED,
            adopted=False,
            boot_id=boot_id,
            error=error,
            since=claim.since if again else now,
            maker=maker,
        )
        return self._move(ClaimEvent.BEGIN, claim, value)

    def activate(self, claim: Claim, *, boot_id: str, now: str) -> Change:
        """creating → active: the device was seen, and its attributes are written."""
        value = _entered(claim, ClaimState.ACTIVE, now, first=False, boot_id=boot_id, error=None)
        return self._move(ClaimEvent.ACTIVATE, claim, value)

    def undo(self, claim: Claim, failure: Failure, *, now: str) -> Change:
        """creating → removing: the device is there but an attribute failed; take it back."""
        then = AfterRemoval.DEFINED if claim.outlives_its_device else AfterRemoval.FREE
        value = _entered(
            claim, ClaimState.REMOVING, now, removal=Removal(then), error=failure.error
        )
        return self._move(ClaimEvent.UNDO, claim, value, failure=failure)

    def abort(self, claim: Claim, failure: Failure, *, now: str) -> Change:
        """creating → free or defined: the kernel refused, and the device was seen absent.

        A persistent name is defined again if it has been before; a create that never had its
        device leaves nothing, and can be placed elsewhere.
        """
        if not claim.outlives_its_device:
            return self._free(ClaimEvent.ABORT, claim, failure)
        value = _entered(claim, ClaimState.DEFINED, now, error=failure.error)
        return self._move(ClaimEvent.ABORT, claim, value, failure=failure)

    def lose(self, claim: Claim, *, now: str) -> Change:
        """active → free or defined: the device was seen absent.

        The boot id stays the one in which it was last seen: a loss within this boot is not
        started again by autostart, a reboot is.
        """
        if not claim.persistent:
            return self._free(ClaimEvent.LOSE, claim)
        return self._move(
            ClaimEvent.LOSE, claim, _entered(claim, ClaimState.DEFINED, now, adopted=False)
        )

    def adopt_over(
        self,
        claim: Claim,
        *,
        parent: str,
        type_: str,
        boot_id: str,
        now: str,
        failure: Failure | None = None,
    ) -> Change:
        """Any state → active: what is there is not what was asked for, or not made by us.

        With a `failure` the request that the claim stood for is failed in the same
        transaction, and what it wished is dropped: the device is somebody else's.
        """
        value = _entered(
            claim,
            ClaimState.ACTIVE,
            now,
            parent=parent,
            type=type_,
            adopted=True,
            first=False,
            removal=None,
            boot_id=boot_id,
            error=failure.error if failure else None,
        )
        if failure:
            value = msgspec.structs.replace(value, attrs=(), persistent=False, autostart=False)
        return self._move(ClaimEvent.ADOPT, claim, value, failure=failure)

    def restore(self, claim: Claim, error: LastError, *, now: str) -> Change:
        """removing → active: it could not be removed, and is as it was."""
        value = _entered(claim, ClaimState.ACTIVE, now, removal=None, error=error)
        return self._move(ClaimEvent.RESTORE, claim, value)

    def release(self, claim: Claim, *, boot_id: str, now: str) -> Change:
        """removing → free, or defined when it was only stopped: the device was seen absent."""
        if claim.removal is None or claim.removal.then is AfterRemoval.FREE:
            return self._free(ClaimEvent.RELEASE, claim)
        value = _entered(
            claim,
            ClaimState.DEFINED,
            now,
            removal=None,
            adopted=False,
            first=False,
            boot_id=boot_id,
        )
        return self._move(ClaimEvent.STOP, claim, value)

    # An operator.

    def retire(
        self,
        claim: Claim,
        removal: Removal,
        *,
        now: str,
        maker: Maker | None = None,
        boot_id: str | None = None,
    ) -> Change:
        """active or defined → removing: its host's agent shall remove the device.

        With a `maker` that process does, in the boot of `boot_id`, and nobody else for as long
        as it lives.
        """
        value = _entered(claim, ClaimState.REMOVING, now, removal=removal, error=None, maker=maker)
        value = msgspec.structs.replace(value, boot_id=boot_id or claim.boot_id)
        return self._move(ClaimEvent.RETIRE, claim, value)

    def amend(
        self,
        claim: Claim,
        *,
        persistent: bool,
        autostart: bool,
        attrs: tuple[tuple[str, str], ...],
        boot_id: str | None = None,
    ) -> Change:
        """active or defined → the same: what is kept of it changes. A defined one is persistent.

        With the host's `boot_id` a defined one begins by itself with the next boot at the
        earliest.
        """
        assert persistent or claim.state is not ClaimState.DEFINED
        stamped = boot_id if claim.state is ClaimState.DEFINED else None
        value = msgspec.structs.replace(
            claim.value(),
            persistent=persistent,
            autostart=persistent and autostart,
            attrs=attrs,
            boot_id=stamped or claim.boot_id,
        )
        return self._move(ClaimEvent.AMEND, claim, value)

    def start(self, claim: Claim, *, now: str) -> Change:
        """defined → creating: its host's agent shall make the device, beginning again itself."""
        return self._move(
            ClaimEvent.BEGIN, claim, _entered(claim, ClaimState.CREATING, now, error=None)
        )

    def move(self, claim: Claim, wish: Wish, *, now: str) -> Change:
        """defined → defined, on another host: one commit, in which the name is never free.

        No device was begun in this state, so nothing of it can be left on the old host.
        """
        assert ClaimState.DEFINED in transition(claim.state, ClaimEvent.MOVE).to
        if wish.host == claim.host:
            value = _entered(
                claim, ClaimState.DEFINED, now, parent=wish.parent, boot_id=None, error=None
            )
            return self._move(ClaimEvent.MOVE, claim, value)
        value = _entered(
            claim, ClaimState.DEFINED, now, parent=wish.parent, boot_id=None, error=None
        )
        return self._write(
            claim.name,
            wish.host,
            value,
            when=(*self._both_unchanged(claim), absent(self._keys.claim(wish.host, claim.name))),
            extra=(Delete(self._keys.claim(claim.host, claim.name)),),
        )

    def rename(self, claim: Claim, host: str) -> Change:
        """Any state → the same, under the new name of the same host.

        Only under `in_force` of the epoch that the rename itself has written: no agent serves
        either name then, and the machine that has the device is the one that takes the claim on.
        """
        return self._write(
            claim.name,
            host,
            claim.value(),
            when=(*self._both_unchanged(claim), absent(self._keys.claim(host, claim.name))),
            lease=claim.lease,
            extra=(Delete(self._keys.claim(claim.host, claim.name)),),
        )

    def give_way(self, held: Claim | Hold) -> Change:
        """Any state → free, for a device of that name that another host has after a restore.

        Only under the restore's hold, and where no device can be behind what is given up: none
        was begun in its state, its host's agent has seen it absent at this very revision, or its
        host was evicted under that hold.
        """
        return self._free(ClaimEvent.YIELD, held)

    def evict(self, claim: Claim, *, definitions: bool, now: str) -> Change:
        """Any state → free, or defined when persistent, of a host that is fenced off.

        Only under `in_force` of the epoch that the evict itself has written. With
        `definitions` persistent names are given up too.
        """
        if definitions or not claim.persistent:
            return self._free(ClaimEvent.EVICT, claim)
        value = _entered(
            claim, ClaimState.DEFINED, now, removal=None, adopted=False, first=False, boot_id=None
        )
        return self._move(ClaimEvent.EVICT, claim, value)

    # Guards: what a commit compares besides its names.

    def in_force(self, host: str, instance: str) -> Guard:
        """The agent `instance` is the host's newest: no later enrolment or evict."""
        return Guard(
            valued(self._keys.epoch(host), instance.encode()),
            Fenced,
            f"host {host}",
            "a newer agent or an evict took over",
            "this agent enrols again",
        )

    def no_hold(self) -> Guard:
        """No restored store is being reconciled."""
        return self._no_hold

    def restoring(self, hold: KeyValue) -> Guard:
        """The restore whose `hold` this is goes on."""
        return Guard(
            valued(self._keys.hold, hold.value),
            Fenced,
            "the restore",
            "its hold is gone: it was finished meanwhile",
            "see: mdevns check",
        )

    def known(self, host: str) -> Guard:
        """The host enrolled and was not forgotten since. It need not be reachable."""
        return Guard(
            present(self._keys.identity(host)),
            NotFound,
            f"host {host}",
            "no such host",
            "see: mdevns hosts",
        )

    def enrolled(self, host: str) -> Guard:
        """The host has an agent that lives."""
        return Guard(
            present(self._keys.session(host)),
            HostDown,
            f"host {host}",
            "its agent cannot be reached, so nobody can do it now",
            "see: mdevns hosts",
        )

    # The one shape of all of them.

    def _take(
        self,
        event: ClaimEvent,
        name: Name,
        request: str,
        host: str | None,
        value: ClaimValue | None,
        *,
        lease: int = 0,
    ) -> Change:
        transition(None, event)
        key = self._keys.name(name)
        puts = [Put(key, encode(NameValue(host=host, request=request)), lease)]
        keys = [key]
        if host is not None and value is not None:
            keys.append(self._keys.claim(host, name))
            puts.append(Put(keys[1], encode(value), lease))

        def done(revision: int) -> Answer:
            return Answer(revision, _made(name, host, value, revision, lease))

        def refused(found: tuple[KeyValue | None, ...], _: int) -> Answer:
            return _taken_or_ours(name, host, value, request, found)

        return Change(
            name, tuple(map(absent, keys)), tuple(puts), tuple(map(get, keys)), done, refused
        )

    def _move(
        self,
        event: ClaimEvent,
        claim: Claim,
        value: ClaimValue,
        *,
        lease: int = 0,
        failure: Failure | None = None,
    ) -> Change:
        assert value.state in transition(claim.state, event).to
        when = self._both_unchanged(claim)
        extra = self._told(claim, failure)
        return self._write(claim.name, claim.host, value, when=when, lease=lease, extra=extra)

    def _write(
        self,
        name: Name,
        host: str,
        value: ClaimValue,
        *,
        when: tuple[Compare, ...],
        lease: int = 0,
        extra: tuple[Put | Delete, ...] = (),
    ) -> Change:
        name_key, claim_key = self._keys.name(name), self._keys.claim(host, name)
        wanted = encode(value)
        name_value = encode(NameValue(host=host, request=value.request))

        def done(revision: int) -> Answer:
            return Answer(revision, _made(name, host, value, revision, lease))

        def refused(found: tuple[KeyValue | None, ...], _: int) -> Answer:
            kv = found[1]
            if kv is not None and kv.value == wanted and kv.lease == lease:
                return done(kv.mod_revision)  # an earlier copy of this very transaction
            return Answer(0, error=Moved(name, _holder(found)))

        puts = (Put(name_key, name_value, lease), Put(claim_key, wanted, lease), *extra)
        return Change(name, when, puts, (get(name_key), get(claim_key)), done, refused)

    def _rehold(self, hold: Hold, lease: int) -> Change:
        key = self._keys.name(hold.name)
        wanted = encode(NameValue(host=None, request=hold.request))

        def refused(found: tuple[KeyValue | None, ...], _: int) -> Answer:
            (kv,) = found
            if kv is not None and kv.value == wanted and kv.lease == lease:
                return Answer(kv.mod_revision)
            return Answer(0, error=Moved(hold.name, _holder(found)))

        return Change(
            hold.name,
            (unchanged(key, hold.revision),),
            (Put(key, wanted, lease),),
            (get(key),),
            Answer,
            refused,
        )

    def _free(
        self, event: ClaimEvent, held: Claim | Hold, failure: Failure | None = None
    ) -> Change:
        assert None in transition(_state(held), event).to
        keys = [self._keys.name(held.name)]
        if isinstance(held, Claim):
            keys.append(self._keys.claim(held.host, held.name))

        def refused(found: tuple[KeyValue | None, ...], revision: int) -> Answer:
            kv = found[-1]
            if kv is None:
                return Answer(revision)
            if kv.create_revision > held.revision:  # gone, and taken anew since
                anew = read_claim(kv) if isinstance(held, Claim) else None
                return Answer(kv.mod_revision, anew if isinstance(anew, Claim) else None)
            return Answer(0, error=Moved(held.name, _holder(found)))

        return Change(
            held.name,
            tuple(unchanged(key, held.revision) for key in keys),
            (*map(Delete, keys), *(self._told(held, failure) if isinstance(held, Claim) else ())),
            tuple(map(get, keys)),
            Answer,
            refused,
        )

    def _both_unchanged(self, claim: Claim) -> tuple[Compare, ...]:
        return (
            unchanged(self._keys.name(claim.name), claim.revision),
            unchanged(self._keys.claim(claim.host, claim.name), claim.revision),
        )

    def _told(self, claim: Claim, failure: Failure | None) -> tuple[Put, ...]:
        if failure is None:
            return ()
        value = OutcomeValue(
            errno=failure.error.errno,
            attribute=failure.attribute,
            text=failure.error.text,
            host=claim.host,
            parent=claim.parent,
            at=failure.error.at,
        )
        return (Put(self._keys.outcome(claim.request, claim.name), encode(value), failure.lease),)


def _told_of_hold(hold: KeyValue) -> tuple[str, str] | None:
    """Why a hold is there and what ends it, where it is a restore's."""
    value = decode(hold, RestoreValue)
    if isinstance(value, Unreadable):
        return None
    why = f"it is reconciled after a restore since {value.at} ({value.begun_by}: {value.why})"
    return f"{why}; only what exists is noted", "end it with: mdevns restore finish"


def _state(held: Claim | Hold) -> ClaimState:
    return held.state if isinstance(held, Claim) else ClaimState.RESERVED


def _wished(wish: Wish, state: ClaimState, request: str, now: str, by: str | None) -> ClaimValue:
    return ClaimValue(
        state=state,
        parent=wish.parent,
        type=wish.type,
        attrs=wish.attrs,
        persistent=wish.persistent,
        autostart=wish.autostart,
        request=request,
        since=now,
        created=now,
        asked_by=by,
    )


def _entered(claim: Claim, state: ClaimState, now: str, **changes: object) -> ClaimValue:
    # Whoever was to write to the kernel was so in the state that is left.
    changes = {"maker": None, **changes}
    return msgspec.structs.replace(claim.value(), state=state, since=now, **changes)


def _made(
    name: Name, host: str | None, value: ClaimValue | None, revision: int, lease: int
) -> Claim | None:
    if host is None or value is None:
        return None
    return Claim.of(name, host, value, revision, lease)


def _taken_or_ours(
    name: Name,
    host: str | None,
    value: ClaimValue | None,
    request: str,
    found: tuple[KeyValue | None, ...],
) -> Answer:
    kv = found[0]
    standing = None if kv is None else decode(kv, NameValue)
    if isinstance(standing, NameValue) and (standing.host, standing.request) == (host, request):
        if host is None and kv is not None:
            return Answer(kv.mod_revision)
        claim = None if found[1] is None else read_claim(found[1])
        if isinstance(claim, Claim) and value is not None and answers(claim, value):
            return Answer(claim.revision, claim)
    by = standing.request if isinstance(standing, NameValue) else None
    holder = _holder(found) or Holder(host, None, "unreadable")
    return Answer(0, error=NameTaken(name, holder, by))


def answers(claim: Claim, wanted: Wish | ClaimValue) -> bool:
    """Whether a claim of the same request is what was asked for, there or on its way.

    Not when it was adopted: then the request has failed, and the device is somebody else's.
    """
    return (
        claim.state.is_wanted
        and not claim.adopted
        and (claim.type, claim.attrs, claim.persistent, claim.autostart)
        == (wanted.type, wanted.attrs, wanted.persistent, wanted.autostart)
    )


def _holder(found: tuple[KeyValue | None, ...]) -> Holder | None:
    """Who has a name, from its record and (where it was read) its claim on the same host."""
    kv = found[0]
    if kv is None:
        return None
    standing = decode(kv, NameValue)
    if isinstance(standing, Unreadable):
        return Holder(None, None, "unreadable")
    claim = read_claim(found[1]) if len(found) > 1 and found[1] is not None else None
    if isinstance(claim, Claim) and claim.host == standing.host:
        return claim.holder
    state = ClaimState.RESERVED.value if standing.host is None else UNTOLD
    return Holder(standing.host, None, state)
