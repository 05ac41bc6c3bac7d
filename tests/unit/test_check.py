"""What `check`, `audit` and `parents` say of records that cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.check import check
from coordinator.evicting import audit
from coordinator.model import AuditValue, NameValue, Unreadable, encode
from coordinator.store import Put, Txn
from tests.support.desk import HOST, NAME, PARENT, Desk
from tests.support.scene import TTL, Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.client import Client, Result
    from coordinator.keys import Keys

_DAMAGED: dict[str, tuple[Callable[[Keys], str], str | None, str | None]] = {
    "name": (lambda keys: keys.name(NAME), NAME, None),
    "claim": (lambda keys: keys.claim(HOST, NAME), NAME, HOST),
    "identity": (lambda keys: keys.identity(HOST), None, HOST),
    "session": (lambda keys: keys.session(HOST), None, HOST),
    "restored": (lambda keys: keys.restored(HOST), None, HOST),
    "parent": (lambda keys: keys.parent(HOST, PARENT), None, HOST),
    "finding": (lambda keys: keys.finding(HOST, NAME), NAME, HOST),
    "machine": (lambda keys: keys.machine("m"), None, None),
    "audit": (lambda keys: keys.audit("t", "1"), None, None),
    "outcome": (lambda keys: keys.outcome("r", NAME), None, None),
}


def put(desk: Desk, key: str, value: bytes, lease: int = 0) -> None:
    desk.core.txn(Txn(success=(Put(key, value, lease),)))


@pytest.mark.parametrize("what", _DAMAGED)
async def test_a_damaged_record_of_each_kind_is_a_fault(what: str) -> None:
    """Whatever key it has, the report names it and is not content."""
    desk = Desk()
    key_of, name, host = _DAMAGED[what]
    put(desk, key_of(desk.keys), b"\xff{")
    report = await check(desk.store, desk.keys)
    assert not report.ok
    assert [(one.kind, one.name, one.host) for one in report.findings] == [
        ("unreadable", name, host)
    ]


@pytest.mark.parametrize(
    "key",
    [
        "stray",
        "audit/a/b",
        "names/",
        "hosts/gpu01",
        "hosts/gpu01/stray",
        "hosts/gpu01/claims/",
        "hosts/gpu01/claims/a/b",
        "hosts//identity",
        "zzz/a",
    ],
)
async def test_a_key_that_nobody_knows_is_a_fault(key: str) -> None:
    """No reader of records comes by such a key, but for this one."""
    desk = Desk()
    put(desk, desk.keys.root + key, b"{}")
    report = await check(desk.store, desk.keys)
    assert [(one.kind, one.fault) for one in report.findings] == [("unknown-key", True)]


async def test_every_record_that_is_right_is_passed(keys_of_all: tuple[str, ...]) -> None:
    """The keys whose bytes mean nothing to `check` are no fault, whatever is in them."""
    desk = Desk()
    for key in keys_of_all:
        put(desk, key, b"any")
    assert (await check(desk.store, desk.keys)).findings == []


@pytest.fixture
def keys_of_all() -> tuple[str, ...]:
    keys: Keys = Desk().keys
    return (keys.epoch(HOST), keys.importer, keys.import_batch("i", 1), keys.spent("s"))


async def test_a_name_that_is_no_uuid_is_a_fault() -> None:
    """Such a record is none that a claim or a reservation can have."""
    desk = Desk()
    lease = desk.core.grant(TTL).id
    put(desk, desk.keys.name("gpu"), encode(NameValue(host=None, request="r")), lease)
    report = await check(desk.store, desk.keys)
    assert [(one.kind, one.name) for one in report.findings] == [("unreadable", "gpu")]


async def test_a_reservation_without_a_lease_is_a_fault() -> None:
    """Nothing would ever end it; with a lease it is well."""
    desk = Desk()
    value = encode(NameValue(host=None, request="r"))
    put(desk, desk.keys.name(NAME), value)
    report = await check(desk.store, desk.keys)
    assert [(one.kind, one.name, one.fault) for one in report.findings] == [
        ("no-lease", NAME, True)
    ]
    put(desk, desk.keys.name(NAME), value, desk.core.grant(TTL).id)
    assert (await check(desk.store, desk.keys)).ok


def test_the_audit_shows_what_it_cannot_read() -> None:
    """A damaged record is in its place between the others."""
    scene = Scene()
    keys = scene.desk.keys
    act = AuditValue(who="me", what="evict", host=HOST, why="it burnt", at="t")
    for number, value in enumerate((encode(act), b"\xff{", encode(act))):
        put(scene.desk, keys.audit("t", str(number)), value)

    async def acts(client: Client) -> list[Result]:
        first, damaged, last = await audit(client)
        assert first == last == act
        assert isinstance(damaged, Unreadable)
        assert damaged.key == keys.audit("t", "1")
        return []

    scene.run(acts)


def test_a_parent_whose_record_is_damaged_is_listed_and_takes_no_creates() -> None:
    """It does not vanish from the list, and what is wrong is said with it."""
    scene = Scene()
    scene.host(HOST, **{PARENT: 4})
    put(scene.desk, scene.desk.keys.parent(HOST, PARENT), b"\xff{")

    async def parents(client: Client) -> list[Result]:
        (view,) = await client.views.parents()
        assert (view.parent, view.usable) == (PARENT, False)
        assert "cannot be read" in view.value.troubles[0]
        return []

    scene.run(parents)


def test_a_damaged_machine_record_hides_no_parent() -> None:
    """The host is known by its identity, so its parents stay in the list."""
    scene = Scene()
    scene.host(HOST, **{PARENT: 4})
    put(scene.desk, scene.desk.keys.machine(f"m-{HOST}"), b"\xff{")

    async def parents(client: Client) -> list[Result]:
        (view,) = await client.views.parents()
        assert (view.host, view.parent) == (HOST, PARENT)
        return []

    scene.run(parents)
