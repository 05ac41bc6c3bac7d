"""Transactions of the model: the real transitions, applied by the in-memory store.

Each is built by `coordinator.claims`, applied by `coordinator.memory` to a store that holds the
cell, and what comes of it is brought back to the few revisions that a cell may have.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from coordinator.claims import Claims, Failure, Hold
from coordinator.errors import MdevnsError
from coordinator.memory import Granted, MemoryEtcd, Snapshot
from coordinator.model import (
    AfterRemoval,
    Claim,
    LastError,
    NameValue,
    Removal,
    Wish,
    decode,
    read_claim,
)
from coordinator.states import ClaimEvent, ClaimState, transition
from coordinator.store import Delete, KeyValue, Put, get
from coordinator.transactions import Answer, Change, Guard, answers, transaction
from tests.model.parts import (
    BEFORE,
    CREATED,
    CURRENT,
    GONE,
    HOSTS,
    KEYS,
    LEASE,
    MOVED,
    NAME,
    NOW,
    OTHER_LEASE,
    PARENT,
    TIME,
    TYPE,
    Cell,
    Recipe,
    Rules,
    Violation,
)

if TYPE_CHECKING:
    from coordinator.model import ClaimValue

__all__ = [
    "Committed",
    "age",
    "aged",
    "begun",
    "commit",
    "hold_of",
    "rebooted",
    "recipe_event",
    "record",
]

_CLAIMS = Claims(KEYS)
_HOLD = KeyValue(KEYS.hold, b"{}", 1, 1, 1)
_AT = 40  # the store's revision when a transaction arrives
_EXISTS = {"EEXIST", "eexist"}  # the latter is what a world without that rule calls it
_FAILURES = {"abort", "undo", "refuse", "fail and adopt"}


class Committed(NamedTuple):
    """What a transaction did.

    `touched` is, for each host, MOVED or GONE where its claim was moved on or freed, else 0.
    """

    cell: Cell
    touched: tuple[int, int]
    answer: Answer | None
    refused: MdevnsError | None = None


@cache
def record(cell: Cell, host: int) -> Claim | None:
    """The claim of a host, as it stands."""
    kv = cell.claims[host]
    claim = None if kv is None else read_claim(kv)
    assert claim is None or isinstance(claim, Claim)
    return claim


@cache
def hold_of(cell: Cell) -> Hold | None:
    """The reservation without a host, if that is what the name is."""
    if cell.name is None:
        return None
    value = decode(cell.name, NameValue)
    assert isinstance(value, NameValue)
    return Hold(NAME, value.request, CURRENT, LEASE) if value.host is None else None


def age(claim: Claim, touched: int) -> Claim:
    """What was read of a claim, after that has been moved on or freed. What is gone stays so."""
    if not touched or claim.revision in (GONE, touched):
        return claim
    return msgspec.structs.replace(claim, revision=touched)


def aged(recipe: Recipe, touched: tuple[int, int]) -> Recipe:
    """A recipe whose claim has been moved on or freed since."""
    claim = recipe.claim
    if claim is None or not touched[HOSTS.index(claim.host)]:
        return recipe
    return recipe._replace(claim=age(claim, touched[HOSTS.index(claim.host)]))


def rebooted(cell: Cell, host: int) -> Cell:
    """The same when the host has another boot: what was of this one is of an earlier one."""
    kv = cell.claims[host]
    claim = record(cell, host)
    if kv is None or claim is None or claim.boot_id != NOW:
        return cell
    value = msgspec.json.encode(msgspec.structs.replace(claim.value(), boot_id=BEFORE))
    claims = list(cell.claims)
    claims[host] = msgspec.structs.replace(kv, value=value)
    return cell._replace(claims=(claims[0], claims[1]))


# --- what a recipe is made into


def recipe_event(recipe: Recipe) -> tuple[ClaimState | None, ClaimEvent]:
    """The transition that an agent's recipe makes."""
    source = None if recipe.claim is None else recipe.claim.state
    return source, _EVENTS[recipe.what]


_EVENTS = {
    "begin": ClaimEvent.BEGIN,
    "configure": ClaimEvent.ACTIVATE,
    "abort": ClaimEvent.ABORT,
    "undo": ClaimEvent.UNDO,
    "refuse": ClaimEvent.CANCEL,
    "lose": ClaimEvent.LOSE,
    "release": ClaimEvent.RELEASE,
    "restore": ClaimEvent.RESTORE,
    "adopt over": ClaimEvent.ADOPT,
    "fail and adopt": ClaimEvent.ADOPT,
    "adopt": ClaimEvent.ADOPT,
    "recall": ClaimEvent.RECALL,
    "recall over": ClaimEvent.RECALL,
    "claim": ClaimEvent.CLAIM,
}


def _wish(recipe: Recipe) -> Wish:
    return Wish(
        host=HOSTS[recipe.host],
        parent=PARENT,
        type=TYPE,
        persistent=recipe.wish != "transient",
        autostart=recipe.wish == "autostart",
    )


def _agents(recipe: Recipe) -> Change:  # noqa: PLR0911 - one transition an action
    """The change of an agent's recipe."""
    claim, what = recipe.claim, recipe.what
    if claim is None or what == "recall over":
        return _taking(recipe)
    decision = recipe.decision
    error = LastError(decision.errno or "", "", TIME) if decision else LastError("", "", TIME)
    failure = Failure(error, lease=0)
    match what:
        case "begin":
            return _CLAIMS.begin(claim, boot_id=recipe.boot, now=TIME)
        case "configure":
            return _CLAIMS.activate(claim, boot_id=recipe.boot, now=TIME)
        case "abort":
            return _CLAIMS.abort(claim, failure, now=TIME)
        case "undo":
            return _CLAIMS.undo(claim, failure, now=TIME)
        case "refuse":
            return _CLAIMS.cancel(claim, failure)
        case "lose":
            return _CLAIMS.lose(claim, now=TIME)
        case "release":
            return _CLAIMS.release(claim, boot_id=recipe.boot, now=TIME)
        case "restore":
            return _CLAIMS.restore(claim, error, now=TIME)
        case _:
            failed = failure if what == "fail and adopt" else None
            return _CLAIMS.adopt_over(
                claim, parent=PARENT, type_=TYPE, boot_id=recipe.boot, now=TIME, failure=failed
            )


def _taking(recipe: Recipe) -> Change:
    host, claim, told = HOSTS[recipe.host], recipe.claim, recipe.decision
    if claim is not None and recipe.value is not None:
        failure = Failure(LastError(told.errno or "", "", TIME), lease=0) if told else None
        return _CLAIMS.recall_over(claim, recipe.value, failure=failure)
    if recipe.what == "recall":
        assert recipe.value is not None
        return _CLAIMS.recall(NAME, host, recipe.value)
    if recipe.what == "claim":
        return _CLAIMS.claim(NAME, "c", _wish(recipe), boot_id=recipe.boot, now=TIME, by=None)
    return _CLAIMS.adopt_free(
        NAME, "a", host=host, parent=PARENT, type_=TYPE, boot_id=recipe.boot, now=TIME
    )


def _operators(recipe: Recipe) -> Change:  # noqa: C901, PLR0911, PLR0912 - one request a line
    """The change of an operator's recipe."""
    claim, wish = recipe.claim, _wish(recipe)
    hold = Hold(NAME, "r", CURRENT, LEASE)
    held: Claim | Hold = claim or hold
    match recipe.what:
        case "reserve":
            if recipe.wish == "hold":
                return _CLAIMS.hold(NAME, "r", lease=OTHER_LEASE)
            return _CLAIMS.reserve(NAME, "r", wish, lease=OTHER_LEASE, now=TIME, by=None)
        case "bind":
            return _CLAIMS.bind(hold, wish, lease=OTHER_LEASE, now=TIME, by=None)
        case "define":
            return _CLAIMS.define(hold, wish, now=TIME, by=None)
        case "renew":
            return _CLAIMS.renew(held, lease=OTHER_LEASE)
        case "cancel":
            return _CLAIMS.cancel(held)
    assert claim is not None
    match recipe.what:
        case "remove":
            return _CLAIMS.retire(claim, Removal(AfterRemoval.FREE), now=TIME)
        case "stop":
            return _CLAIMS.retire(claim, Removal(AfterRemoval.DEFINED), now=TIME)
        case "start":
            return _CLAIMS.start(claim, now=TIME)
        case "move":
            return _CLAIMS.move(claim, wish, now=TIME)
        case "amend":
            autostart = not claim.autostart
            return _CLAIMS.amend(claim, persistent=True, autostart=autostart, attrs=())
        case "evict":
            return _CLAIMS.evict(claim, definitions=False, now=TIME)
        case _:
            return _CLAIMS.give_way(claim)


def _guards(recipe: Recipe, rules: Rules, *, agent: bool) -> tuple[Guard, ...]:
    host = HOSTS[recipe.host]
    in_force, no_hold = _CLAIMS.in_force(host, "me"), _CLAIMS.no_hold()
    if agent:
        during_hold = transition(*recipe_event(recipe)).during_hold or not rules.hold
        mine = (in_force,) if rules.epoch_compares else ()
        return mine if during_hold else (*mine, no_hold)
    match recipe.what:
        case "evict":
            return (in_force, no_hold) if rules.evict_compares else (no_hold,)
        case "yield":
            return (_CLAIMS.restoring(_HOLD),)
        case "remove" | "stop" | "start":
            return (no_hold, _CLAIMS.enrolled(host))
        case _:
            return (no_hold,)


# --- how it is applied


@cache
def commit(
    cell: Cell,
    recipe: Recipe,
    rules: Rules,
    *,
    agent: bool,
    force: bool = False,
    session: bool = True,
    hold: bool = False,
) -> Committed:
    """Apply a recipe. `force`, `session`, `hold`: what else stands, of the recipe's host."""
    change = (_agents if agent else _operators)(recipe)
    if not rules.both_keys:
        change = msgspec.structs.replace(
            change, then=tuple(op for op in change.then if not _is_name_put(op))
        )
    if not rules.detached and recipe.what == "begin" and cell.name and cell.name.lease:
        change = msgspec.structs.replace(change, then=tuple(_on_lease(op) for op in change.then))
    guards = _guards(recipe, rules, agent=agent)
    etcd = _store(cell, HOSTS[recipe.host], force=force, session=session, hold=hold)
    try:
        (answer,) = answers(guards, [change], etcd.txn(transaction(guards, [change])))
    except MdevnsError as error:
        return Committed(cell, (0, 0), None, error)
    after = _cell(etcd)
    touched = _touched(cell, etcd)
    if recipe.what in _FAILURES and after != cell:
        _check_outcome(recipe, etcd)
    if answer.claim is not None:
        current = msgspec.structs.replace(answer.claim, revision=CURRENT, lease=_lease(answer))
        answer = msgspec.structs.replace(answer, claim=current)
    return Committed(after, touched, answer)


def _lease(answer: Answer) -> int:
    return LEASE if answer.claim is not None and answer.claim.lease else 0


def _is_name_put(op: Put | Delete) -> bool:
    return isinstance(op, Put) and op.key == KEYS.name(NAME)


def _on_lease(op: Put | Delete) -> Put | Delete:
    return msgspec.structs.replace(op, lease=LEASE) if isinstance(op, Put) else op


def _store(cell: Cell, host: str, *, force: bool, session: bool, hold: bool) -> MemoryEtcd:
    """A store that has a cell, and what stands besides."""
    kvs = [kv for kv in (cell.name, *cell.claims) if kv is not None]
    beside = [(KEYS.epoch(host), b"me" if force else b"another")]
    if session:
        beside.append((KEYS.session(host), b"{}"))
    kvs += [_HOLD] if hold else []
    kvs += [KeyValue(key, value, 1, 1, 1) for key, value in beside]
    leases = tuple((lease, Granted(60, 60.0)) for lease in (LEASE, OTHER_LEASE))
    etcd = MemoryEtcd()
    etcd.restore(Snapshot(_AT, 0, 0.0, 9, False, tuple(kvs), leases, ()))
    return etcd


def _raw(etcd: MemoryEtcd) -> tuple[KeyValue | None, ...]:
    keys = (KEYS.name(NAME), *(KEYS.claim(host, NAME) for host in HOSTS))
    return tuple(etcd.range(get(key)).first for key in keys)


def _cell(etcd: MemoryEtcd) -> Cell:
    """The cell that stands; name and claim must have been written together."""
    name, *claims = _raw(etcd)
    there = [kv for kv in claims if kv is not None]
    if len(there) > 1 or (there and name is None):
        raise Violation(f"claims without a name of their own: {[kv.key for kv in there]}")
    if name is not None:
        _check_pair(name, there)
    return Cell(*_canonical(name), tuple(claim for kv in claims for claim in _canonical(kv)))  # type: ignore[arg-type]  # two hosts, two claims


def _check_pair(name: KeyValue, claims: list[KeyValue]) -> None:
    value = decode(name, NameValue)
    assert isinstance(value, NameValue)
    if value.host is None:
        if claims or not name.lease:
            raise Violation("a reservation without a host has a claim, or no lease")
        return
    if not claims or claims[0].key != KEYS.claim(value.host, NAME):
        raise Violation(f"a name of {value.host} without its claim")
    (kv,) = claims
    if (name.mod_revision, name.lease) != (kv.mod_revision, kv.lease):
        raise Violation("name and claim were written apart, or hang on different leases")
    claim = read_claim(kv)
    assert isinstance(claim, Claim)
    if bool(kv.lease) != (claim.state is ClaimState.RESERVED):
        raise Violation(f"{claim.state} with lease {kv.lease}")
    if value.request != claim.request:
        raise Violation("name and claim are of different requests")


def _canonical(kv: KeyValue | None) -> tuple[KeyValue | None]:
    if kv is None:
        return (None,)
    lease = LEASE if kv.lease else 0
    return (KeyValue(kv.key, kv.value, CREATED, CURRENT, 1, lease),)


def _touched(before: Cell, etcd: MemoryEtcd) -> tuple[int, int]:
    """For each host, what becomes of what was read of its claim."""
    _, *after = _raw(etcd)
    touched = []
    for old, new in zip(before.claims, after, strict=True):
        moved = old is not None and (new is None or new.mod_revision != old.mod_revision)
        touched.append(0 if not moved else GONE if new is None else MOVED)
    return touched[0], touched[1]


def _check_outcome(recipe: Recipe, etcd: MemoryEtcd) -> None:
    """A request that fails is told, in the commit in which it does, and never for EEXIST alone."""
    assert recipe.claim is not None
    if etcd.range(get(KEYS.outcome(recipe.claim.request, NAME))).first is None:
        raise Violation(f"{recipe.what}: a request failed and nobody is told")
    if recipe.what == "abort" and recipe.decision and recipe.decision.errno in _EXISTS:
        raise Violation("a request was aborted because the name is there")


def begun(claim: Claim | None) -> Claim | None:
    """A claim that the journal keeps: it is more than a reservation."""
    return None if claim is None or claim.state is ClaimState.RESERVED else claim


def value_of(claim: Claim, boot: str | None) -> ClaimValue:
    """The value with which a lost claim is put back: active where it has a device."""
    state = ClaimState.DEFINED if boot is None else ClaimState.ACTIVE
    return claim.as_recalled(state, claim.boot_id if boot is None else boot, TIME)
