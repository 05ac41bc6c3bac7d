"""What parents offer: a driver that hangs, refuses or talks nonsense harms its parent alone."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.offers import Offers
from agent.simulated import SimulatedBus

if TYPE_CHECKING:
    from pathlib import Path

P0, P1, P2 = "0000:3b:00.0", "0000:3c:00.0", "0000:3d:00.0"


@pytest.fixture
def bus(tmp_path: Path) -> SimulatedBus:
    simulated.init(tmp_path / "host", 3, {"mtty-1": 4})
    return SimulatedBus(tmp_path / "host")


def file_of(bus: SimulatedBus, parent: str, file: str = "available_instances") -> Path:
    """A file that the parent's driver answers."""
    return bus.root / "sys/class/mdev_bus" / parent / "mdev_supported_types/mtty-1" / file


def counts(offers: object) -> dict[str, list[int]]:
    """How many instances of each type each parent has left."""
    assert isinstance(offers, dict)
    return {parent: [t.available for t in offer.types] for parent, offer in offers.items()}


async def test_a_driver_that_hangs_keeps_no_other_from_being_read(bus: SimulatedBus) -> None:
    """Its parent is not usable, has one reader and no more, and is read when that returns."""
    file = file_of(bus, P1)
    file.unlink()
    os.mkfifo(file)  # to open it is to wait for a writer, as a driver lets its reader wait
    offers = Offers(bus, patience=0.2)
    for _ in range(2):
        read = await offers.read()
        async with asyncio.timeout(60.0):
            # On a busy machine the others' drivers may be slow, too, for once.
            while counts(read) != {P0: [4], P1: [], P2: [4]}:
                read = await offers.read()
        assert not read[P1].usable
        assert "has not returned" in read[P1].troubles[0]
        assert list(offers._hanging) == [P1]
    reader = offers._hanging[P1]
    writer = os.open(file, os.O_WRONLY)
    os.write(writer, b"3\n")
    os.close(writer)
    await reader
    file.unlink()
    file.write_text("3\n")
    assert counts(await offers.read()) == {P0: [4], P1: [3], P2: [4]}


@pytest.mark.parametrize(
    ("says", "trouble"),
    [
        (b"many\n", "no number: 'many'"),
        (b"-1\n", "no number"),
        (b"\xff\xfe", "no number"),
        ("\u0663".encode(), "no number"),
        (b"9" * 70_000, "no number"),
        (b"4294967295\n", "4294967295 instances are no count"),
    ],
)
async def test_a_count_that_is_none_is_told_and_taken_as_none(
    bus: SimulatedBus, says: bytes, trouble: str
) -> None:
    """The type stays offered, with no instance left; the other parents are as they were."""
    file_of(bus, P0).write_bytes(says)
    read = await Offers(bus).read()
    assert counts(read) == {P0: [0], P1: [4], P2: [4]}
    assert read[P0].usable
    assert trouble in read[P0].troubles[0]


async def test_what_a_driver_describes_fits_a_record(bus: SimulatedBus) -> None:
    """Whatever bytes and however many, a text is some characters."""
    file_of(bus, P0, "description").write_bytes(b"\xff" + b"x" * 60_000)
    (type_,) = (await Offers(bus).read())[P0].types
    assert type_.description is not None
    assert len(type_.description) == 200


async def test_a_file_that_cannot_be_read_is_told(bus: SimulatedBus) -> None:
    """An error of the read is no count, and names the file."""
    file = file_of(bus, P0)
    file.unlink()
    file.mkdir()  # to read it is EISDIR
    read = await Offers(bus).read()
    assert counts(read)[P0] == [0]
    assert "available_instances cannot be read" in read[P0].troubles[0]


async def test_types_and_parents_of_impossible_names_are_not_offered(bus: SimulatedBus) -> None:
    """What no key and no command line can have is left out, and the type is told."""
    types = bus.root / "sys/class/mdev_bus" / P0 / "mdev_supported_types"
    (types / "two words").mkdir()
    (types / "two words/available_instances").write_text("1\n")
    (bus.root / "sys/class/mdev_bus" / os.fsdecode(b"odd\xff")).symlink_to("/nowhere")
    read = await Offers(bus).read()
    assert counts(read) == {P0: [4], P1: [4], P2: [4]}
    assert "'two words' is no name of a type" in read[P0].troubles


async def test_a_device_of_the_nil_uuid_is_told(bus: SimulatedBus) -> None:
    """The kernel takes the nil UUID; the instance is gone, and no name says why."""
    simulated.create(bus.root, P0, "mtty-1", "00000000-0000-0000-0000-000000000000")
    read = await Offers(bus).read()
    assert counts(read)[P0] == [3]
    assert "nil UUID" in read[P0].troubles[0]
