"""What an agent makes of a namespace that was imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from coordinator.client import Client
from coordinator.errors import NotEmpty
from coordinator.exporting import End, Header, Imported, line_of, read
from coordinator.importing import Importer
from coordinator.states import ClaimState
from tests.support.desk import HOST, NAME, Desk, name

if TYPE_CHECKING:
    from coordinator.model import Claim
    from tests.agent.host import Host

ACTIVE = ClaimState.ACTIVE


def through_a_file(*claims: Claim) -> list[Imported]:
    """Claims as they come back from an export."""
    header = Header(cluster="test", revision=1, at="t")
    end = End(claims=len(claims), reservations=0)
    objects = (header, *map(line_of, claims), end)
    return read(("a line", msgspec.json.encode(one).decode()) for one in objects)


async def import_into(desk: Desk, claims: list[Imported]) -> None:
    client = Client(desk.store, desk.keys, desk.clock, desk.rng, patience=5, asked_by="me")
    try:
        await Importer(client).run(claims)
    finally:
        await client.close()


async def with_a_device(host: Host) -> Claim:
    """A device that an agent made; then the agent ends, and the store is a new, empty one."""
    async with host.agent():
        await host.ask(host.wish(persistent=True))
        await host.wait(lambda: host.is_in(ACTIVE))
    claim = host.claim()
    assert claim is not None
    host.desk = Desk()
    host.store = host.desk.store
    return claim


async def test_an_agent_keeps_what_was_imported(host: Host) -> None:
    """Its devices are claimed as before, nothing is adopted or made anew, and it goes on."""
    before = await with_a_device(host)
    await import_into(host.desk, through_a_file(before))
    imported = host.claim()
    assert imported is not None
    assert imported.value() == before.value()
    async with host.agent():
        assert not (await host.finish()).left  # its journal knew a store that was further on
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.claim() == imported
        assert host.devices() == {NAME, name(2)}
        await host.retire()
        await host.wait(lambda: host.devices() == {name(2)})


async def test_an_agent_that_was_there_first_keeps_its_name(host: Host) -> None:
    """What its journal puts back makes the import fail as a whole, and its device stays claimed."""
    before = await with_a_device(host)
    other = through_a_file(before)[0]
    others = [msgspec.structs.replace(other, name=name(number)) for number in range(300, 600)]
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))
        recalled = host.claim()
        assert recalled is not None
        assert not recalled.adopted
        assert not (await host.finish()).left
        with pytest.raises(NotEmpty):
            await import_into(host.desk, [*others, other])
        assert host.claim() == recalled
        assert host.devices() == {NAME}
        assert host.desk.kv(host.desk.keys.claim(HOST, name(300))) is None
