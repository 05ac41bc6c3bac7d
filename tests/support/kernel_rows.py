"""What the kernel answers, row by row, as kernel-reference.md has it: data and its player.

`ROWS` are the tables "Create" and "Remove". `play` runs a row against a `Driver`: the
simulated kernel in the unit tests, sysfs with the sample drivers inside QEMU in the lab. A
row begins and ends with no device; the driver sees to it.

Results are a byte count, or the name of an errno.
"""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ROWS", "Driver", "Handle", "Place", "Row", "play"]

N1 = "11111111-2222-4333-8444-5555555555a1"
N2 = "11111111-2222-4333-8444-5555555555a2"
NIL = "00000000-0000-0000-0000-000000000000"
FULL = "ffffffff-ffff-ffff-ffff-ffffffffffff"


@dataclass(frozen=True)
class Place:
    """A type of a parent."""

    parent: str
    type: str


class Handle(Protocol):
    """An open `create` or `remove`."""

    def write(self, data: bytes) -> int: ...
    def close(self) -> None: ...


class Driver(Protocol):
    """What a row needs of a kernel.

    `single` and `double` are types of one parent whose driver counts (mtty-1 and mtty-2: from
    one pool, one costs twice the other); `core` is of another parent, for which the mdev core
    counts (mdpy). `can_be_slow`: a create can be caught while it is under way.
    """

    single: Place
    double: Place
    core: Place
    can_be_slow: bool

    def open_create(self, place: Place) -> Handle: ...
    def open_remove(self, name: str) -> Handle: ...
    def on_bus(self, name: str) -> bool: ...
    def in_parent(self, place: Place, name: str) -> bool: ...
    def type_of(self, name: str) -> str | None: ...
    def available(self, place: Place) -> int: ...
    def hold(self, name: str) -> None: ...
    def let_go(self, name: str) -> None: ...
    def unregister(self, place: Place) -> None: ...
    def make_slow(self, place: Place) -> None: ...
    def unprivileged(self) -> Driver: ...


def outcome(call: Callable[[], int]) -> int | str:
    """A byte count or an errno's name."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def write(open_: Callable[[], Handle], data: bytes) -> int:
    """Open, write once, close."""
    handle = open_()
    try:
        return handle.write(data)
    finally:
        handle.close()


@dataclass
class Stage:
    """A row in the middle of its steps."""

    driver: Driver
    handles: dict[str, Handle] = field(default_factory=dict)
    background: dict[str, tuple[threading.Thread, list[int | str]]] = field(default_factory=dict)
    at_start: dict[str, int] = field(default_factory=dict)

    def place(self, which: str) -> Place:
        """`single`, `double`, `core`, `no type` or `no parent`."""
        single: Place = self.driver.single
        odd = {
            "no type": Place(single.parent, "nothing-1"),
            "no parent": Place("0000:ff:ff.7", single.type),
        }
        return odd[which] if which in odd else getattr(self.driver, which)

    def start(self, key: str, call: Callable[[], int]) -> None:
        """Run a call in a thread of its own, as it may block."""
        results: list[int | str] = []
        thread = threading.Thread(target=lambda: results.append(outcome(call)), daemon=True)
        self.background[key] = (thread, results)
        thread.start()


class Step(Protocol):
    """One line of a row."""

    def do(self, stage: Stage) -> None: ...


@dataclass(frozen=True)
class Create:
    """Write to `create`."""

    place: str
    data: bytes
    result: int | str

    def do(self, stage: Stage) -> None:
        place = stage.place(self.place)
        got = outcome(lambda: write(lambda: stage.driver.open_create(place), self.data))
        assert got == self.result, self


@dataclass(frozen=True)
class Remove:
    """Write to `remove`."""

    name: str
    data: bytes
    result: int | str

    def do(self, stage: Stage) -> None:
        got = outcome(lambda: write(lambda: stage.driver.open_remove(self.name), self.data))
        assert got == self.result, self


@dataclass(frozen=True)
class Open:
    """Open `create` of a place, or `remove` of a device, and keep it open."""

    key: str
    place: str | None = None
    name: str | None = None

    def do(self, stage: Stage) -> None:
        if self.name is not None:
            stage.handles[self.key] = stage.driver.open_remove(self.name)
        else:
            stage.handles[self.key] = stage.driver.open_create(stage.place(self.place or ""))


@dataclass(frozen=True)
class Write:
    """Write through what was opened before."""

    key: str
    data: bytes
    result: int | str

    def do(self, stage: Stage) -> None:
        got = outcome(lambda: stage.handles[self.key].write(self.data))
        assert got == self.result, self


@dataclass(frozen=True)
class Exhaust:
    """Create devices until none is available."""

    place: str
    leave: int = 0

    def do(self, stage: Stage) -> None:
        place = stage.place(self.place)
        for n in range(stage.driver.available(place) - self.leave):
            name = f"eeeeeeee-0000-4000-8000-{n:012x}"
            assert write(lambda: stage.driver.open_create(place), name.encode()) == 36
        assert stage.driver.available(place) == self.leave


@dataclass(frozen=True)
class Sees:
    """What sysfs shows of a name."""

    name: str
    bus: bool
    place: str = "single"
    directory: bool | None = None
    type_: bool | None = None

    def do(self, stage: Stage) -> None:
        place = stage.place(self.place)
        assert stage.driver.on_bus(self.name) is self.bus, self
        if self.directory is not None:
            assert stage.driver.in_parent(place, self.name) is self.directory, self
        if self.type_ is not None:
            assert stage.driver.type_of(self.name) == (place.type if self.type_ else None), self


@dataclass(frozen=True)
class Counted:
    """How many fewer are available than at the row's start."""

    place: str
    fewer: int

    def do(self, stage: Stage) -> None:
        now = stage.driver.available(stage.place(self.place))
        assert stage.at_start[self.place] - now == self.fewer, (self, now)


@dataclass(frozen=True)
class Hold:
    """A VM opens the device."""

    name: str

    def do(self, stage: Stage) -> None:
        stage.driver.hold(self.name)


@dataclass(frozen=True)
class LetGo:
    """The VM closes it."""

    name: str

    def do(self, stage: Stage) -> None:
        stage.driver.let_go(self.name)


@dataclass(frozen=True)
class Unregister:
    """The parent's driver is unloaded."""

    place: str

    def do(self, stage: Stage) -> None:
        stage.driver.unregister(stage.place(self.place))


@dataclass(frozen=True)
class MakeSlow:
    """Creates of this parent take long from here on, and are in sysfs meanwhile."""

    place: str

    def do(self, stage: Stage) -> None:
        stage.driver.make_slow(stage.place(self.place))


@dataclass(frozen=True)
class StartCreate:
    """A create in the background, until it is seen on the bus."""

    place: str
    name: str

    def do(self, stage: Stage) -> None:
        place = stage.place(self.place)
        call = lambda: write(lambda: stage.driver.open_create(place), self.name.encode())  # noqa: E731 - read once
        stage.start(self.name, call)
        wait_until(lambda: stage.driver.on_bus(self.name), 20)


@dataclass(frozen=True)
class StartRemove:
    """A remove in the background, until its link on the bus is gone."""

    name: str

    def do(self, stage: Stage) -> None:
        stage.start(self.name, lambda: write(lambda: stage.driver.open_remove(self.name), b"1"))
        wait_until(lambda: not stage.driver.on_bus(self.name), 20)


@dataclass(frozen=True)
class StillRuns:
    """The call in the background has not returned."""

    name: str

    def do(self, stage: Stage) -> None:
        assert stage.background[self.name][0].is_alive(), self


@dataclass(frozen=True)
class Returns:
    """The call in the background returns."""

    name: str
    result: int | str

    def do(self, stage: Stage) -> None:
        thread, results = stage.background[self.name]
        thread.join(20)
        assert results == [self.result], self


@dataclass(frozen=True)
class ManyCreate:
    """Threads create one name at once: one is answered its byte count, the others EEXIST."""

    place: str
    name: str
    threads: int

    def do(self, stage: Stage) -> None:
        place = stage.place(self.place)
        data = self.name.encode()
        for n in range(self.threads):
            stage.start(f"{n}", lambda: write(lambda: stage.driver.open_create(place), data))
        results = []
        for n in range(self.threads):
            thread, result = stage.background[f"{n}"]
            thread.join(20)
            results += result
        assert sorted(results, key=str) == [36, *["EEXIST"] * (self.threads - 1)]


@dataclass(frozen=True)
class Unprivileged:
    """The same step, not as root."""

    step: Step

    def do(self, stage: Stage) -> None:
        self.step.do(Stage(stage.driver.unprivileged()))


@dataclass(frozen=True)
class Row:
    """One row of the reference. `slow`: needs a driver that can be slow."""

    title: str
    steps: tuple[Step, ...]
    slow: bool = False


def _shape(title: str, data: bytes) -> Row:
    return Row(title, (Create("single", data, "EINVAL"), Counted("single", 0)))


def _b(name: str) -> bytes:
    return name.encode()


CREATE_ROWS = (
    Row("36 characters", (Create("single", _b(N1), 36), Sees(N1, bus=True, type_=True))),
    Row("36 and a newline", (Create("single", _b(N1) + b"\n", 37), Sees(N1, bus=True))),
    Row("same type again", (Create("single", _b(N1), 36), Create("single", _b(N1), "EEXIST"))),
    Row("another type", (Create("single", _b(N1), 36), Create("double", _b(N1), "EEXIST"))),
    Row("another parent", (Create("single", _b(N1), 36), Create("core", _b(N1), "EEXIST"))),
    Row(
        "a duplicate on an exhausted parent (driver counts)",
        (Create("core", _b(N1), 36), Exhaust("single"), Create("single", _b(N1), "EEXIST")),
    ),
    Row(
        "a duplicate on an exhausted parent (core counts)",
        (Create("single", _b(N1), 36), Exhaust("core"), Create("core", _b(N1), "EEXIST")),
    ),
    Row(
        "exhausted, the driver counts",
        (
            Exhaust("single"),
            Create("single", _b(N1), "ENOSPC"),
            Sees(N1, bus=False, directory=False),
        ),
    ),
    Row(
        "exhausted, the core counts",
        (Exhaust("core"), Create("core", _b(N1), "EUSERS"), Sees(N1, bus=False)),
    ),
    Row(
        "a double with one single left",
        (Exhaust("single", leave=1), Create("double", _b(N1), "ENOSPC"), Sees(N1, bus=False)),
    ),
    Row(
        "one pool for both types",
        (
            Create("double", _b(N1), 36),
            Counted("single", 2),
            Counted("double", 1),
            Create("single", _b(N2), 36),
            Counted("single", 3),
            Counted("double", 2),
        ),
    ),
    _shape("shorter than 36", _b(N1)[:35]),
    _shape("longer than 37", _b(N1) + b"ab"),
    _shape("CRLF", _b(N1) + b"\r\n"),
    _shape("braces", b"{" + _b(N1) + b"}"),
    _shape("32 hex digits", _b(N1.replace("-", ""))),
    _shape("a leading space", b" " + _b(N1)),
    _shape("not hex", b"g" + _b(N1)[1:]),
    _shape("a hyphen out of place", _b("1111111-12222-4333-8444-5555555555a1")),
    Row("any 37th byte", (Create("single", _b(N1) + b"x", 37), Sees(N1, bus=True))),
    Row("nil", (Create("single", _b(NIL), 36), Sees(NIL, bus=True))),
    Row("all f", (Create("single", _b(FULL), 36), Sees(FULL, bus=True))),
    Row(
        "upper case is folded",
        (
            Create("single", _b(N1.upper()), 36),
            Sees(N1, bus=True),
            Sees(N1.upper(), bus=False),
            Create("single", _b(N1), "EEXIST"),
            Remove(N1.upper(), b"1", "ENOENT"),
        ),
    ),
    Row("nothing", (Create("single", b"", 0), Counted("single", 0))),
    Row("unknown type", (Create("no type", _b(N1), "ENOENT"),)),
    Row("unknown parent", (Create("no parent", _b(N1), "ENOENT"),)),
    Row("not root", (Unprivileged(Create("single", _b(N1), "EACCES")), Sees(N1, bus=False))),
    Row(
        "parent unregistered, through a descriptor from before",
        (Open("c", place="core"), Unregister("core"), Write("c", _b(N1), "ENODEV")),
    ),
    Row("eight threads, one name", (ManyCreate("single", N1, 8), Counted("single", 1))),
    Row(
        "the name of a device whose remove is blocked",
        (
            Create("single", _b(N1), 36),
            Hold(N1),
            StartRemove(N1),
            Create("single", _b(N1), "EEXIST"),
            Create("core", _b(N1), "EEXIST"),
            LetGo(N1),
            Returns(N1, 1),
            Create("core", _b(N1), 36),
        ),
    ),
)


def _number(data: bytes) -> Row:
    steps = (
        Create("single", _b(N1), 36),
        Remove(N1, data, len(data)),
        Sees(N1, bus=False, directory=False),
        Counted("single", 0),
    )
    return Row(f"remove {data!r}", steps)


def _no_number(data: bytes, result: int | str) -> Row:
    steps = (Create("single", _b(N1), 36), Remove(N1, data, result), Sees(N1, bus=True))
    return Row(f"remove {data!r}", steps)


REMOVE_ROWS = (
    *(_number(data) for data in (b"1", b"2", b"0x1", b"1\n")),
    _no_number(b"0", 1),
    *(_no_number(data, "EINVAL") for data in (b"abc", b"-1", b" 1", b"1 ")),
    Row(
        "again",
        (Create("single", _b(N1), 36), Remove(N1, b"1", 1), Remove(N1, b"1", "ENOENT")),
    ),
    Row(
        "again, through a descriptor from before",
        (
            Create("single", _b(N1), 36),
            Open("r", name=N1),
            Remove(N1, b"1", 1),
            Write("r", b"1", "ENODEV"),
        ),
    ),
    Row(
        "while creating, which costs the device",
        (
            MakeSlow("single"),
            StartCreate("single", N1),
            Remove(N1, b"1", "EAGAIN"),
            StillRuns(N1),
            LetGo(N1),
            Returns(N1, 36),
            Sees(N1, bus=True, type_=True),
            Remove(N1, b"1", "ENOENT"),
            Create("single", _b(N1), "EEXIST"),
            Counted("single", 1),
        ),
        slow=True,
    ),
    Row(
        "while a VM holds it",
        (
            Create("single", _b(N1), 36),
            Hold(N1),
            StartRemove(N1),
            Sees(N1, bus=False, directory=True, type_=False),
            StillRuns(N1),
            Remove(N1, b"1", "ENOENT"),
            Create("single", _b(N1), "EEXIST"),
            Counted("single", 1),
            Create("single", _b(N2), 36),
            Remove(N2, b"1", 1),
            StillRuns(N1),
            LetGo(N1),
            Returns(N1, 1),
            Sees(N1, bus=False, directory=False),
            Counted("single", 0),
        ),
    ),
    Row(
        "its parent unloaded",
        (
            Create("core", _b(N1), 36),
            Create("single", _b(N2), 36),
            Unregister("core"),
            Sees(N1, bus=False, place="core", directory=False),
            Sees(N2, bus=True),
            Create("core", _b(N1), "ENOENT"),
        ),
    ),
)

ROWS = (*CREATE_ROWS, *REMOVE_ROWS)


def play(row: Row, driver: Driver) -> None:
    """Run the steps of a row; the first that answers otherwise fails it."""
    stage = Stage(driver)
    stage.at_start = {
        which: driver.available(stage.place(which)) for which in ("single", "double", "core")
    }
    try:
        for step in row.steps:
            step.do(stage)
    finally:
        for handle in stage.handles.values():
            handle.close()
