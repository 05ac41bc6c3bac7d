"""Persistent names: defined without a device, and moved from host to host while they have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.claims import Hold
from coordinator.client import Client, Result, in_doubt
from coordinator.errors import (
    AskedOtherwise,
    InUse,
    InvalidValue,
    MdevnsError,
    Moved,
    NameTaken,
    NoCapacity,
    NotAllowed,
    NotFound,
    TryAgain,
)
from coordinator.model import Claim, Name, SessionValue, Unreadable, Wish, decode
from coordinator.placement import Candidate, Strategy, place
from coordinator.requests import ANY, Only, is_anothers
from coordinator.reserving import reserve
from coordinator.states import ClaimState
from coordinator.store import get
from coordinator.views import no_such_host, not_found, unreadable

if TYPE_CHECKING:
    from coordinator.views import Record

__all__ = ["define", "move", "take_over"]

_ATTEMPTS = 5  # how often a claim that moved under us is read again before we say so
_TTL = 60  # seconds for which a name is held between its two transactions


async def define(
    client: Client,
    name: Name,
    wish: Wish,
    *,
    request: str,
    boot_id: str | None = None,
    reported: bool = True,
) -> Result:
    """Take a name for a persistent device of a host, without creating the device.

    The host need not be reachable. With its `boot_id` autostart begins with its next boot,
    without it at once. `reported`: the host's last report must have the parent, and the parent
    the type; mdevctl's definitions may precede both.

    The name is first reserved without a host, on a lease, so a lost answer leaves nothing. The
    second commit compares the revision of that, and that the host is known: a host that is
    forgotten meanwhile gets no claim.

    Raises:
        NotFound: the host never enrolled, or reports no such parent or type.
    """
    try:
        if reported:
            await _check_target(client, wish.host, wish.parent, wish.type)
        else:
            await client.views.enrolled(wish.host)
    except NotFound:
        again = await _repeated(client, name, wish, request)
        if again is None:
            raise
        return again
    (held,) = await reserve(client, [name], request=request, ttl=_TTL)
    if not isinstance(held.record, Hold):
        again = None
        if isinstance(held.error, NameTaken):
            again = await _repeated(client, name, wish, request)
        return again or held
    change = client.claims.define(
        held.record, wish, now=client.clock.now(), by=client.asked_by, boot_id=boot_id
    )
    (answer,) = await client.commit([change], client.claims.known(wish.host))
    return await client.result(name, answer, answer.claim)


async def _repeated(client: Client, name: Name, wish: Wish, request: str) -> Result | None:
    """The answer to a define whose request has defined the name before; None: it has not."""
    try:
        claim = await client.views.find(name)
    except NotAllowed:  # a host may not read the claim of another
        return None
    if not isinstance(claim, Claim) or claim.request != request or claim.adopted:
        return None
    fields = ("host", "parent", "type", "attrs", "persistent", "autostart")
    if all(getattr(claim, field) == getattr(wish, field) for field in fields):
        return Result(name, claim)
    why = f"asked for {name} otherwise: {claim.type} on {claim.holder}"
    return Result(name, error=AskedOtherwise(name, request, why, claim.holder))


async def _check_target(client: Client, host: str, parent: str, type_: str) -> None:
    """Check that a host's last report has a parent, and the parent a type.

    Raises:
        NotFound: the host never enrolled, or reports no such parent or type.
    """
    views = (await client.views.parents_of([host]))[host]
    if views is None:
        raise no_such_host(host)
    offered = next((view.value.types for view in views if view.parent == parent), None)
    if offered is None:
        why = f"host {host} reports no such parent"
        raise NotFound(f"parent {parent}", why, f"see: mdevns parents --host {host}")
    if all(offer.type != type_ for offer in offered):
        why = f"parent {parent} of host {host} does not offer it"
        raise NotFound(f"type {type_}", why, f"see: mdevns parents --host {host}")


async def take_over(client: Client, name: Name, wish: Wish, *, request: str) -> Result:
    """Have a name persist on its host as `wish` says, with or without a device; as `define` else.

    A name that is this host's already, with that parent and type, is kept from now on, with the
    attributes and the autostart that are wished; so a device that was adopted comes back as one
    that was defined. Whatever else holds the name keeps it. What is to start by itself does so
    with the host's next boot, as mdevctl has it.
    """
    result, boot_id, doubted = Result(name), await _boot(client, wish.host), False
    for _ in range(_ATTEMPTS):
        try:
            record = await client.views.find(name)
        except NotAllowed:  # a host may not read the claim of another, and is told who has it
            record = None
        if record is None:
            return await define(
                client, name, wish, request=request, boot_id=boot_id, reported=False
            )
        error = _not_ours(name, record, wish)
        if error is not None or not isinstance(record, Claim):
            return _refused(name, error, doubted=doubted)
        if (record.persistent, record.autostart, record.attrs) == (
            True,
            wish.autostart,
            wish.attrs,
        ):
            return Result(name, record)
        change = client.claims.amend(
            record,
            persistent=True,
            autostart=wish.autostart,
            attrs=wish.attrs,
            boot_id=boot_id,
        )
        (answer,) = await client.commit([change])
        result, doubted = await client.result(name, answer, answer.claim), answer.doubted or doubted
        if not isinstance(answer.error, Moved):
            break
    return _refused(name, result.error, doubted=doubted) if result.error else result


def _refused(name: Name, error: MdevnsError | None, *, doubted: bool) -> Result:
    return Result(name, error=in_doubt(name, error) if error and doubted else error)


async def _boot(client: Client, host: str) -> str | None:
    """The boot in which a host's agent is alive; None: none is."""
    kv = (await client.store.range(get(client.keys.session(host)))).first
    session = None if kv is None else decode(kv, SessionValue)
    return session.boot_id if isinstance(session, SessionValue) else None


def _not_ours(name: Name, record: Record, wish: Wish) -> MdevnsError | None:
    """Why a name cannot be kept as wished, if it cannot."""
    if isinstance(record, Unreadable):
        return unreadable(name, record)
    if isinstance(record, Hold) or (record.host, record.parent) != (wish.host, wish.parent):
        return NameTaken(name, record.holder)
    if record.type != wish.type:
        why = f"is claimed as {record.type}, not {wish.type}: {record.holder}"
        hint = f"undefine it first: mdevns undefine {name}"
        return InvalidValue(name, why, hint, name=name, holder=record.holder)
    if record.state in (ClaimState.ACTIVE, ClaimState.DEFINED):
        return None
    why = f"is a placeholder: {record.holder}"
    return TryAgain(name, why, f"see: mdevns show {name}", name=name, holder=record.holder)


async def move(
    client: Client, name: Name, host: str, parent: str | None, *, only: Only = ANY
) -> Result:
    """Give a name without a device to another host, in one commit: it is never free.

    Without a parent the host's parent of the same name is taken where it offers the type,
    else the one with most room.

    Raises:
        NotFound: the host never enrolled, or reports no such parent, or not this type on it.
    """
    await client.views.enrolled(host)
    result, doubted = Result(name), False
    seen: Claim | Hold | None = None
    for _ in range(_ATTEMPTS):
        record = await client.views.find(name)
        if isinstance(record, Claim | Hold):
            if seen is not None and is_anothers(seen, record):
                return _refused(name, Moved(name, record.holder), doubted=doubted)
            unasked = only.refusal(record)
            if unasked is not None:
                return _refused(name, unasked, doubted=doubted)
            seen = seen or record
        error = _not_movable(name, record)
        if error is not None or not isinstance(record, Claim):
            return _refused(name, error, doubted=doubted)
        target = parent or await _parent(client, host, record)
        if isinstance(target, MdevnsError):
            return _refused(name, target, doubted=doubted)
        await _check_target(client, host, target, record.type)
        wish = Wish(host=host, parent=target, type=record.type)
        change = client.claims.move(record, wish, now=client.clock.now())
        (answer,) = await client.commit([change], client.claims.known(host))
        result, doubted = await client.result(name, answer, answer.claim), answer.doubted or doubted
        if not isinstance(answer.error, Moved):
            break
    return _refused(name, result.error, doubted=doubted) if result.error else result


def _not_movable(name: Name, record: Record | None) -> MdevnsError | None:
    if record is None:
        return not_found(name)
    if isinstance(record, Unreadable):
        return unreadable(name, record)
    if isinstance(record, Claim) and record.state is ClaimState.DEFINED:
        return None
    if isinstance(record, Claim) and record.state is ClaimState.ACTIVE:
        hint = (
            f"first: mdevns stop {name}"
            if record.persistent
            else f"it is transient: mdevns remove {name}"
        )
        return InUse(name, f"has a device: {record.holder}", hint, name=name, holder=record.holder)
    holder = record.holder
    return TryAgain(
        name, f"is not defined: {holder}", f"see: mdevns show {name}", name=name, holder=holder
    )


async def _parent(client: Client, host: str, claim: Claim) -> str | MdevnsError:
    """The parent of `host` that shall have it."""
    offering = [
        Candidate(view.host, view.parent, offer.available)
        for view in await client.views.parents([host])
        for offer in view.value.types
        if offer.type == claim.type
    ]
    if not offering:
        what = f"type {claim.type}"
        return NotFound(
            what, f"no parent of host {host} offers it", "see: mdevns types", name=claim.name
        )
    if any(one.parent == claim.parent for one in offering):
        return claim.parent
    (spot,) = place(offering, 1, Strategy.SPREAD)
    if spot is None:
        why = f"no parent of host {host} has room for it"
        return NoCapacity(f"type {claim.type}", why, "name one: --to HOST/PARENT", name=claim.name)
    return spot.parent
