"""Importing is all or nothing: whatever is killed, lost or late, and whoever is in the way."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.check import check
from coordinator.client import Client
from coordinator.errors import InUse, InvalidValue, MdevnsError, NameTaken, NotEmpty, Unreachable
from coordinator.exporting import Imported, line_of, read
from coordinator.importing import Importer
from coordinator.model import Claim, HoldValue, Removal, decode
from coordinator.store import Delete, Put, Txn, prefix
from coordinator.transactions import transaction
from tests.support.desk import HOST, OTHER, PARENT, TYPE, Desk, name, wish
from tests.support.faulty import Fate, FaultyStore
from tests.support.virtual_time import pass_time, run_virtual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.store import Store

MANY = 300  # so many take three commits
LAPSED = 60.0  # seconds after which nobody who is gone counts as alive

HEADER = json.dumps({"mdevns": 1, "cluster": "test", "revision": 9, "at": "t"})


@pytest.fixture
def desk() -> Desk:
    return Desk()


def line(number: int, **other: Any) -> str:
    """A line of an export."""
    fields = {"name": name(number), "host": HOST, "parent": PARENT, "type": TYPE, "state": "active"}
    more = {"persistent": True, "autostart": False, "adopted": False, "attrs": [["a", "b"]]}
    rest = {"request": "r", "since": "t", "revision": 7, "error": None, "first": False}
    own = {"removal": None, "boot_id": "b1", "created": "t", "asked_by": "me"}
    return json.dumps({**fields, **more, **rest, **own, **other})


def numbered(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(f"f line {number}", text) for number, text in enumerate(lines, 1)]


def an_export(lines: list[str]) -> list[Imported]:
    end = json.dumps({"claims": len(lines), "reservations": 0})
    return read(numbered([HEADER, *lines, end]))


def many() -> list[Imported]:
    return an_export([line(number) for number in range(MANY)])


def run(
    desk: Desk, claims: list[Imported], store: Store | None = None, *, patience: float = 5
) -> None:
    """One import, from its begin to its end."""

    async def importing() -> None:
        client = Client(
            store or desk.store, desk.keys, desk.clock, desk.rng, patience=patience, asked_by="me"
        )
        try:
            await Importer(client).run(claims)
        finally:
            await client.close()

    run_virtual(importing(), desk.core)


def standing(desk: Desk) -> set[str]:
    """All keys but the audit's."""
    kvs = desk.core.range(prefix(desk.keys.root)).kvs
    return {kv.key for kv in kvs if not kv.key.startswith(desk.keys.audits)}


def whole(desk: Desk, claims: list[Imported]) -> set[str]:
    """The keys of these claims, and no other."""
    keys = desk.keys
    return {
        key for each in claims for key in (keys.name(each.name), keys.claim(each.host, each.name))
    }


def of_kind(desk: Desk, txn: Txn) -> str:
    """What step of an import a transaction is."""
    puts = {op.key: op for op in _all(txn) if isinstance(op, Put)}
    if desk.keys.importer in puts:
        return "take"
    if desk.keys.hold in puts:
        return "keep"
    if any(key.startswith(desk.keys.names) for key in puts):
        return "batch"
    deletes = {op.key for op in _all(txn) if isinstance(op, Delete)}
    return "finish" if desk.keys.hold in deletes else "take back"


def _all(txn: Txn) -> list[Any]:
    return [one for op in txn.success for one in (_all(op) if isinstance(op, Txn) else [op])]


def failing(
    desk: Desk, step: str, nth: int, fate: Fate, *, then: Fate = Fate.DELIVER
) -> FaultyStore:
    """A store in which the n-th transaction of a step has a fate, and all after it another."""
    seen = 0
    fallen = False

    def decide(txn: Txn) -> Fate:
        nonlocal seen, fallen
        if fallen:
            return then
        if of_kind(desk, txn) == step:
            seen += 1
            fallen = seen == nth
        return fate if fallen else Fate.DELIVER

    return FaultyStore(desk.store, decide)


STEPS = [("take", 1), ("keep", 1), ("batch", 1), ("batch", 2), ("batch", 3), ("finish", 1)]


def test_all_is_there_and_nothing_else(desk: Desk) -> None:
    """Each claim is as it was, name and claim in one revision, and the audit says who did it."""
    claims = many()
    run(desk, claims)
    assert standing(desk) == whole(desk, claims)
    for each in claims:
        _, claim = desk.records(each.name)
        assert claim is not None
        assert (claim.host, claim.value(), claim.lease) == (HOST, each.value, 0)
    (act,) = desk.core.range(prefix(desk.keys.audits)).kvs
    assert json.loads(act.value)["what"] == "import"


async def test_what_was_exported_is_imported_as_it_was(desk: Desk) -> None:
    """A claim in any state comes back with all that its record had, but its revision."""
    first = await desk.creating(name(1))
    active = await desk.active(name(2), wish(OTHER, persistent=True))
    away = await desk.made(
        desk.claims.retire(await desk.active(name(3)), Removal(force=True), now="t2")
    )
    claims = [first, active, away]
    lines = [json.dumps(line_of(one), default=_plain) for one in claims]
    again = an_export(lines)
    assert [(one.name, one.host, one.value) for one in again] == [
        (one.name, one.host, one.value()) for one in claims
    ]


def _plain(value: Any) -> Any:
    return {field: getattr(value, field) for field in value.__struct_fields__}


@pytest.mark.parametrize(("step", "nth"), STEPS)
@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.DROP])
def test_a_lost_answer_is_asked_for_again(desk: Desk, step: str, nth: int, fate: Fate) -> None:
    """Whichever answer is lost, applied or not, all is imported once."""
    claims = many()
    run(desk, claims, failing(desk, step, nth, fate))
    assert standing(desk) == whole(desk, claims)
    assert len(desk.core.range(prefix(desk.keys.audits)).kvs) == 1


@pytest.mark.parametrize(("step", "nth"), STEPS)
@pytest.mark.parametrize("fate", [Fate.LOSE_ANSWER, Fate.DROP, Fate.DELAY])
def test_an_import_that_is_killed_is_taken_back_by_the_next(
    desk: Desk, step: str, nth: int, fate: Fate
) -> None:
    """Nothing of it is in force, `check` says so, and the next is whole whatever arrives late."""
    store = failing(desk, step, nth, fate, then=Fate.UNREACHABLE)
    with pytest.raises(MdevnsError):
        run(desk, many(), store, patience=0.1)
    if (step, fate) == ("finish", Fate.LOSE_ANSWER):
        assert standing(desk) == whole(desk, many())
        return
    held = desk.kv(desk.keys.hold) is not None
    assert held or not standing(desk)
    desk.core.advance(LAPSED)
    stays = desk.kv(desk.keys.hold) is not None
    report = asyncio.run(check(desk.store, desk.keys))
    assert [one.kind for one in report.findings] == (["hold"] if stays else [])
    assert report.ok != stays
    others = an_export([line(number, host=OTHER) for number in range(1, 200)])
    if (step, fate) == ("finish", Fate.DELAY):
        asyncio.run(store.release_late())  # it was finished after all, and late
        assert standing(desk) == whole(desk, many())
        return
    run(desk, others)
    asyncio.run(store.release_late())
    assert standing(desk) == whole(desk, others)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_batch_that_fails_takes_all_back(desk: Desk, nth: int) -> None:
    """When the store refuses one, what the others wrote goes, and the hold."""
    with pytest.raises(Unreachable):
        run(desk, many(), failing(desk, "batch", nth, Fate.UNREACHABLE))
    assert standing(desk) == set()


def test_a_late_batch_of_an_import_that_gave_up_is_void(desk: Desk) -> None:
    """It compares a hold that has another id by then."""
    store = failing(desk, "batch", 3, Fate.DELAY)
    store.decide = _until(store.decide, desk)
    with pytest.raises(MdevnsError):
        run(desk, many(), store, patience=0.1)
    assert [of_kind(desk, txn) for txn in store.late][:1] == ["batch"]
    asyncio.run(store.release_late())
    desk.core.advance(LAPSED)
    assert standing(desk) == set()


def _until(decide: Callable[[Txn], Fate], desk: Desk) -> Callable[[Txn], Fate]:
    """As `decide`, and once a batch was delayed no batch arrives any more."""
    delayed = False

    def both(txn: Txn) -> Fate:
        nonlocal delayed
        fate = decide(txn)
        delayed = delayed or fate is Fate.DELAY
        return (
            Fate.DROP
            if delayed and fate is Fate.DELIVER and of_kind(desk, txn) == "batch"
            else fate
        )

    return both


def test_a_namespace_with_a_name_is_left_alone(desk: Desk) -> None:
    """It is refused before anything is written."""
    asyncio.run(_reserved(desk))
    before = standing(desk)
    revision = desk.core.revision
    with pytest.raises(NotEmpty):
        run(desk, many())
    assert (standing(desk), desk.core.revision) == (before, revision)


async def _reserved(desk: Desk) -> Claim:
    return await desk.reserved(name(5))


def test_two_imports_do_not_mix(desk: Desk) -> None:
    """While one lives another is refused, and changes nothing."""
    claims = many()

    def decide(txn: Txn) -> Fate:
        if of_kind(desk, txn) == "batch" and not others:
            others.append(txn)
        return Fate.DELIVER

    others: list[Txn] = []

    async def both() -> None:
        client = [
            Client(store, desk.keys, desk.clock, desk.rng, patience=5, asked_by="me")
            for store in (FaultyStore(desk.store, decide), desk.store)
        ]
        first = asyncio.create_task(Importer(client[0]).run(claims))
        while not others:
            await pass_time(0)
        with pytest.raises((InUse, NotEmpty)):
            await Importer(client[1]).run(claims[:5])
        await first
        for each in client:
            await each.close()

    run_virtual(both(), desk.core)
    assert standing(desk) == whole(desk, claims)


def test_a_hold_of_another_kind_is_not_ours_to_lift(desk: Desk) -> None:
    """A store that is being restored is imported into by nobody."""
    desk.core.txn(Txn(success=(Put(desk.keys.hold, b"{}"),)))
    with pytest.raises(MdevnsError, match="restore"):
        run(desk, many())
    assert standing(desk) == {desk.keys.hold}


def test_a_name_that_an_agent_adopts_meanwhile_ends_it(desk: Desk) -> None:
    """The adopted name stays with its device, all others are taken back, and the line says who."""
    last = name(MANY - 1)

    def decide(txn: Txn) -> Fate:
        if of_kind(desk, txn) == "batch" and desk.kv(desk.keys.name(last)) is None:
            adopt = desk.claims.adopt_free(
                last, "a", host=OTHER, parent=PARENT, type_=TYPE, boot_id="b", now="t"
            )
            desk.core.txn(transaction((), [adopt]))
        return Fate.DELIVER

    with pytest.raises(NameTaken, match=OTHER):
        run(desk, many(), FaultyStore(desk.store, decide))
    desk.core.advance(LAPSED)
    assert standing(desk) == {desk.keys.name(last), desk.keys.claim(OTHER, last)}


def test_what_an_agent_has_seen_meanwhile_is_not_taken_back(desk: Desk) -> None:
    """A device stands behind it, so only its own host's agent may free it."""
    seen = name(3)
    claims = an_export([line(number, state="creating") for number in range(MANY)])

    def decide(_: Txn) -> Fate:
        claim = desk.records(seen)[1]
        if claim is not None and claim.state == "creating":
            active = desk.claims.activate(claim, boot_id="b", now="t")
            desk.core.txn(transaction((), [active]))
            return Fate.UNREACHABLE
        return Fate.DELIVER

    with pytest.raises(Unreachable):
        run(desk, claims, FaultyStore(desk.store, decide))
    desk.core.advance(LAPSED)
    assert standing(desk) == {desk.keys.name(seen), desk.keys.claim(HOST, seen)}


def test_an_interrupt_takes_all_back(desk: Desk) -> None:
    """Ctrl-C in the middle leaves nothing."""
    task: list[asyncio.Task[None]] = []

    def decide(txn: Txn) -> Fate:
        if of_kind(desk, txn) == "batch" and desk.kv(desk.keys.name(name(0))) is not None:
            task[0].cancel()
        return Fate.DELIVER

    async def cancelled() -> None:
        store = FaultyStore(desk.store, decide)
        client = Client(store, desk.keys, desk.clock, desk.rng, patience=5, asked_by="me")
        task.append(asyncio.create_task(Importer(client).run(many())))
        await asyncio.wait(task)
        assert task[0].cancelled()
        await client.close()

    run_virtual(cancelled(), desk.core)
    desk.core.advance(LAPSED)
    assert standing(desk) == set()


END = json.dumps({"claims": 3, "reservations": 0})


@pytest.mark.parametrize(
    ("lines", "where", "says"),
    [
        ([HEADER, line(1), line(2)[:-1], line(3), END], "line 3", "truncated"),
        ([HEADER, line(1), line(2), line(1), END], "line 4", "twice"),
        ([HEADER, line(1), line(2, name="x"), END], "line 3", "not a name"),
        ([HEADER, line(1, host="a/b"), END], "line 2", "not a host name"),
        ([HEADER, line(1, parent=".."), END], "line 2", "not a parent"),
        ([HEADER, line(1, type=""), END], "line 2", "not a type"),
        ([HEADER, line(1, request="a b"), END], "line 2", "not a request id"),
        ([HEADER, line(1, attrs=[["../x", "1"]]), END], "line 2", "not an attribute"),
        ([HEADER, line(1, state="reserved"), END], "line 2", "lease is gone"),
        ([HEADER, line(1, state="removing"), END], "line 2", "goes with removing"),
        ([HEADER, line(1, state="gone"), END], "line 2", "gone"),
        ([HEADER, line(1, colour="red"), END], "line 2", "colour"),
        ([HEADER, line(1), '{"name": "x"}', END], "line 3", "missing"),
        ([HEADER, line(1), line(2), END], "line 4", "it says 3 claims, and there are 2"),
        ([HEADER, line(1), line(2), line(3), END, line(4)], "line 6", "after the last line"),
        ([HEADER, line(1), line(2), line(3)], "the export", "broke off"),
        ([HEADER.replace('"mdevns": 1', '"mdevns": 2'), END], "line 1", "newer"),
        ([line(1), END], "line 1", ""),
        ([], "the export", "broke off"),
    ],
)
def test_a_bad_line_is_named(lines: list[str], where: str, says: str) -> None:
    """Whatever is wrong, and wherever: the line says where and that nothing was imported."""
    with pytest.raises(InvalidValue) as raised:
        read(numbered(lines))
    assert where in raised.value.what
    assert says in raised.value.why
    assert raised.value.hint == "nothing was imported"
    assert raised.value.exit_code == 8


def test_a_hold_says_whose_it_is(desk: Desk) -> None:
    """What an import that was killed leaves says who began it, and when."""
    with pytest.raises(MdevnsError, match="not taken back"):
        run(desk, many(), failing(desk, "batch", 2, Fate.UNREACHABLE, then=Fate.UNREACHABLE))
    kv = desk.kv(desk.keys.hold)
    assert kv is not None
    hold = decode(kv, HoldValue)
    assert isinstance(hold, HoldValue)
    assert (hold.who, kv.lease) == ("me", 0)
