"""The words of which rows are made. A step does one thing to a subject and gives its answer.

Answers are JSON: a count of bytes or devices, the name of an errno, "done", or what was seen. A
step never judges: what it answered is held to `expect` by whoever plays the row.

A type's name says its parent: mtty-1 is mtty's.
"""

from __future__ import annotations

import errno
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent.sysfs import OpenFile

    from .subject import Subject

__all__ = ["KERNELS", "Answer", "ByKernel", "Row", "Section", "Step", "play"]

SIMULATED = "simulated"
KERNELS = (SIMULATED, "6.1", "6.12")
DONE, UNDER_WAY, TOO_LATE = "done", "under way", "not in time"
NOTHING, EVERYTHING = "nothing", "everything"
_ALL = "bus type listed directory remove"
_DEADLINE = 20.0  # seconds for what is to come about in the background
_LOOK = 0.005  # seconds between two looks

Answer = int | str | list[str]


@dataclass(frozen=True)
class ByKernel:
    """An answer that is not the same on every kernel."""

    other: Answer
    but: Mapping[str, Answer]


Expected = Answer | ByKernel


def expected(expect: Expected, kernel: str) -> Answer:
    """What is expected of one kernel."""
    return expect.but.get(kernel, expect.other) if isinstance(expect, ByKernel) else expect


def outcome(call: Callable[[], int | str | None]) -> int | str:
    """What a call gives, or its errno's name."""
    try:
        result = call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return DONE if result is None else result


def until(condition: Callable[[], object]) -> bool:
    """Look until a condition holds; false when it does not within the deadline."""
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


class Call:
    """A call in a thread of its own, as it may sleep in the kernel."""

    def __init__(self, call: Callable[[], int | str | None]) -> None:
        self._result: int | str | None = None
        self._thread = threading.Thread(target=self._run, args=[call], daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], int | str | None]) -> None:
        self._result = outcome(call)

    def now(self) -> int | str:
        """What it gave, or that it is under way."""
        return UNDER_WAY if self._thread.is_alive() or self._result is None else self._result

    def ended(self) -> int | str:
        """What it gives; waits for it."""
        self._thread.join(_DEADLINE)
        return TOO_LATE if self.now() == UNDER_WAY else self.now()


@dataclass
class Stage:
    """A row in the middle of its steps."""

    subject: Subject
    files: dict[str, OpenFile] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    closing: ExitStack = field(default_factory=ExitStack)


class Step(ABC):
    """One thing that is done, and what is expected of it."""

    expect: Expected

    @abstractmethod
    def do(self, stage: Stage) -> Answer:
        """Do it; gives the answer."""

    @abstractmethod
    def __str__(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """One row: what is claimed of the kernel in a sentence, and the steps that show it."""

    id: str
    claim: str
    steps: tuple[Step, ...]

    def expected(self, kernel: str) -> list[Answer]:
        """The answers of its steps on one kernel."""
        return [expected(step.expect, kernel) for step in self.steps]


@dataclass(frozen=True)
class Section:
    """Rows of one kind."""

    title: str
    rows: Sequence[Row]


def play(row: Row, subject: Subject) -> list[Answer]:
    """Do a row's steps, one after the other; gives their answers."""
    stage = Stage(subject)
    with stage.closing:
        return [step.do(stage) for step in row.steps]


# -- what is written


def _written(open_: Callable[[], OpenFile], text: str) -> int | str:
    def write() -> int:
        with open_() as file:
            return file.write(text.encode())

    return outcome(write)


@dataclass(frozen=True)
class Create(Step):
    """Write to a type's `create`: the count of bytes, or an errno."""

    type: str
    text: str
    expect: Expected = 36

    def do(self, stage: Stage) -> Answer:
        """Open, write once, close."""
        return _written(lambda: stage.subject.open_create(self.type), self.text)

    def __str__(self) -> str:
        return f"create {self.type} {shown(self.text)}"


@dataclass(frozen=True)
class Remove(Step):
    """Write to a device's `remove`: the count of bytes, or an errno."""

    name: str
    expect: Expected = 1
    text: str = "1"

    def do(self, stage: Stage) -> Answer:
        """Open, write once, close."""
        return _written(lambda: stage.subject.open_remove(self.name), self.text)

    def __str__(self) -> str:
        written = "" if self.text == "1" else f" by {shown(self.text)}"
        return f"remove {shown(self.name)}{written}"


@dataclass(frozen=True)
class OpenCreate(Step):
    """Open a type's `create` and keep it open."""

    type: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Open it until the row ends."""
        file = stage.closing.enter_context(stage.subject.open_create(self.type))
        stage.files[self.type] = file
        return DONE

    def __str__(self) -> str:
        return f"open create of {self.type}"


@dataclass(frozen=True)
class OpenRemove(Step):
    """Open a device's `remove` and keep it open."""

    name: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Open it until the row ends."""
        file = stage.closing.enter_context(stage.subject.open_remove(self.name))
        stage.files[self.name] = file
        return DONE

    def __str__(self) -> str:
        return f"open remove of {shown(self.name)}"


@dataclass(frozen=True)
class Write(Step):
    """Write through what was opened before, a type's `create` or a name's `remove`."""

    opened: str
    text: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """One write."""
        return outcome(lambda: stage.files[self.opened].write(self.text.encode()))

    def __str__(self) -> str:
        return f"write {shown(self.text)} there"


@dataclass(frozen=True)
class Unprivileged(Step):
    """The same, not as root."""

    step: Step
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Do it as nobody."""
        with stage.subject.unprivileged():
            return self.step.do(stage)

    def __str__(self) -> str:
        return f"not as root: {self.step}"


@dataclass(frozen=True)
class Fill(Step):
    """Create devices of a type until so many are available; how many were made."""

    type: str
    expect: Expected
    leaving: int = 0

    def do(self, stage: Stage) -> Answer:
        """Create them; an errno when one fails."""
        count = stage.subject.available(self.type) - self.leaving
        for n in range(count):
            answer = _written(
                lambda: stage.subject.open_create(self.type),
                f"eeeeeeee-0000-4000-8000-{n:012x}",
            )
            if answer != 36:
                return answer
        return count

    def __str__(self) -> str:
        return f"fill {self.type}" + (f" but {self.leaving}" if self.leaving else "")


@dataclass(frozen=True)
class Race(Step):
    """Many threads create one name at once; how often each answer came."""

    type: str
    name: str
    threads: int
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Start them all, wait for them all."""
        calls = [
            Call(lambda: _written(lambda: stage.subject.open_create(self.type), self.name))
            for _ in range(self.threads)
        ]
        counts = Counter(str(call.ended()) for call in calls)
        return [f"{count} x {answer}" for answer, count in sorted(counts.items())]

    def __str__(self) -> str:
        return f"{self.threads} threads create {self.type} {shown(self.name)}"


# -- what takes its time


@dataclass(frozen=True)
class BeginCreate(Step):
    """A create in the background, until its device is on the bus and counted."""

    type: str
    name: str
    expect: Expected = UNDER_WAY

    def do(self, stage: Stage) -> Answer:
        """Start it."""
        room = stage.subject.available(self.type)
        call = Call(lambda: _written(lambda: stage.subject.open_create(self.type), self.name))
        stage.calls[self.name] = call
        seen = until(lambda: self._is_begun(stage, room) or call.now() != UNDER_WAY)
        return call.now() if seen else TOO_LATE

    def _is_begun(self, stage: Stage, room: int) -> bool:
        """Whether the driver is at it: it is asked, and counts, a moment after the bus shows it."""
        on_the_bus = "bus" in stage.subject.shows(self.type, self.name)
        return on_the_bus and stage.subject.available(self.type) < room

    def __str__(self) -> str:
        return f"begin: create {self.type} {shown(self.name)}"


@dataclass(frozen=True)
class BeginRemove(Step):
    """A remove in the background, until the device is off the bus."""

    type: str
    name: str
    expect: Expected = UNDER_WAY

    def do(self, stage: Stage) -> Answer:
        """Start it."""
        call = Call(lambda: _written(lambda: stage.subject.open_remove(self.name), "1"))
        stage.calls[self.name] = call
        gone = until(lambda: not self._shows(stage) or call.now() != UNDER_WAY)
        return call.now() if gone else TOO_LATE

    def _shows(self, stage: Stage) -> bool:
        return "bus" in stage.subject.shows(self.type, self.name)

    def __str__(self) -> str:
        return f"begin: remove {shown(self.name)}"


@dataclass(frozen=True)
class Now(Step):
    """What became of what was begun, at this moment."""

    name: str
    expect: Expected = UNDER_WAY

    def do(self, stage: Stage) -> Answer:
        """Look; does not wait."""
        return stage.calls[self.name].now()

    def __str__(self) -> str:
        return f"{_begun(self.name)} meanwhile"


@dataclass(frozen=True)
class Ends(Step):
    """What that which was begun gives in the end."""

    name: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Wait for it."""
        return stage.calls[self.name].ended()

    def __str__(self) -> str:
        return f"{_begun(self.name)} ends"


@dataclass(frozen=True)
class Slow(Step):
    """The driver takes long for creates from here on."""

    parent: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Make it slow."""
        return outcome(lambda: stage.subject.make_slow(self.parent))

    def __str__(self) -> str:
        return f"{self.parent} is slow"


@dataclass(frozen=True)
class Finish(Step):
    """The driver is done with the create of a name that is under way."""

    name: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Let the driver be done."""
        return outcome(lambda: stage.subject.finish(self.name))

    def __str__(self) -> str:
        return f"the driver is done with {shown(self.name)}"


@dataclass(frozen=True)
class Hold(Step):
    """A VM opens the device."""

    name: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Open group and device."""
        return outcome(lambda: stage.subject.hold(self.name))

    def __str__(self) -> str:
        return f"hold {shown(self.name)}"


@dataclass(frozen=True)
class HoldGroup(Step):
    """Somebody opens the device's group, and not the device."""

    name: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Open the group."""
        return outcome(lambda: stage.subject.hold_group(self.name))

    def __str__(self) -> str:
        return f"open group of {shown(self.name)}"


@dataclass(frozen=True)
class LetGo(Step):
    """The VM, or whoever it was, closes what it has open."""

    name: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Close it."""
        return outcome(lambda: stage.subject.let_go(self.name))

    def __str__(self) -> str:
        return f"let go of {shown(self.name)}"


@dataclass(frozen=True)
class BeginUnload(Step):
    """An unload in the background, until it sleeps in the kernel."""

    parent: str
    expect: Expected = UNDER_WAY

    def do(self, stage: Stage) -> Answer:
        """Start it."""
        call = Call(lambda: stage.subject.unload(self.parent))
        stage.calls[self.parent] = call
        sleeps = until(lambda: self._sleeps(stage) or call.now() != UNDER_WAY)
        return call.now() if sleeps else TOO_LATE

    def _sleeps(self, stage: Stage) -> bool:
        return stage.subject.unload_sleeps(self.parent)

    def __str__(self) -> str:
        return f"begin: unload {self.parent}"


@dataclass(frozen=True)
class Load(Step):
    """A parent's driver is loaded."""

    parent: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Load it."""
        return outcome(lambda: stage.subject.load(self.parent))

    def __str__(self) -> str:
        return f"load {self.parent}"


@dataclass(frozen=True)
class Unload(Step):
    """A parent's driver is unloaded."""

    parent: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Unload it."""
        return outcome(lambda: stage.subject.unload(self.parent))

    def __str__(self) -> str:
        return f"unload {self.parent}"


# -- what is seen


@dataclass(frozen=True)
class Shows(Step):
    """Where in sysfs a name is found.

    `bus`: on the bus; `type`: its `mdev_type`; `listed`: among its type's `devices`; `directory`:
    in its parent's; `remove`: its `remove`. All five: `everything`.
    """

    type: str
    name: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Look."""
        places = " ".join(stage.subject.shows(self.type, self.name))
        return {"": NOTHING, _ALL: EVERYTHING}.get(places, places)

    def __str__(self) -> str:
        return f"sysfs shows of {shown(self.name)}"


@dataclass(frozen=True)
class Left(Step):
    """A type's available instances."""

    type: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Read them."""
        return stage.subject.available(self.type)

    def __str__(self) -> str:
        return f"available {self.type}"


@dataclass(frozen=True)
class Types(Step):
    """What a parent offers: type, available instances, device API and, where it has one, name."""

    parent: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Read them, by the bus."""
        return stage.subject.types(self.parent)

    def __str__(self) -> str:
        return f"{self.parent} offers"


@dataclass(frozen=True)
class Parents(Step):
    """The parents that a scan meets."""

    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Scan."""
        return stage.subject.parents()

    def __str__(self) -> str:
        return "scan for parents"


@dataclass(frozen=True)
class Scan(Step):
    """What a scan makes of a name: its presence, and its type and parent where it is met."""

    name: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Scan."""
        return stage.subject.scan(self.name)

    def __str__(self) -> str:
        return f"scan for {shown(self.name)}"


@dataclass(frozen=True)
class Busy(Step):
    """Whether the bus finds a device in use."""

    name: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Have the bus look."""
        return "busy" if stage.subject.bus.busy(self.name) else "free"

    def __str__(self) -> str:
        return f"the bus finds {shown(self.name)}"


@dataclass(frozen=True)
class OpenGroup(Step):
    """Open a device's group and close it again at once."""

    name: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Open its node."""
        return outcome(lambda: stage.subject.open_group(self.name))

    def __str__(self) -> str:
        return f"open group of {shown(self.name)} for a moment"


@dataclass(frozen=True)
class BusRemove(Step):
    """The bus removes a device that was seen as a type."""

    name: str
    type: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Have the bus do it."""
        return outcome(lambda: stage.subject.bus.remove(self.name, self.type))

    def __str__(self) -> str:
        return f"the bus removes {shown(self.name)}, seen as {self.type}"


@dataclass(frozen=True)
class Attribute(Step):
    """The bus writes an attribute of a device."""

    name: str
    attribute: str
    text: str
    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Have the bus do it."""
        bus = stage.subject.bus
        return outcome(lambda: bus.write_attribute(self.name, self.attribute, self.text))

    def __str__(self) -> str:
        return f"write {shown(self.text)} to {shown(self.name)}'s {self.attribute}"


@dataclass(frozen=True)
class Listen(Step):
    """Take down the kernel's events from here on."""

    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Begin to listen, until the row ends."""
        stage.closing.enter_context(stage.subject.listening())
        return DONE

    def __str__(self) -> str:
        return "listen"


@dataclass(frozen=True)
class Events(Step):
    """The events of one subsystem since the last look: of mdev, parents among them, or vfio-dev."""

    expect: Expected
    of: str = "mdev"

    def do(self, stage: Stage) -> Answer:
        """Read what has come; waits for as many as are expected, as a write may be under way."""
        wanted, told = expected(self.expect, stage.subject.kernel), list[str]()
        assert isinstance(wanted, list)

        def all_came() -> bool:
            told.extend(stage.subject.events(self.of))
            return len(told) >= len(wanted)

        until(all_came)
        return told

    def __str__(self) -> str:
        return "events" if self.of == "mdev" else f"events of {self.of}"


@dataclass(frozen=True)
class Watch(Step):
    """Have the bus watch from here on."""

    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Begin to watch, until the row ends."""
        stage.closing.enter_context(stage.subject.watching())
        return DONE

    def __str__(self) -> str:
        return "the bus watches"


@dataclass(frozen=True)
class Hints(Step):
    """The names in the bus's hints since the last look; nobody: who knows what changed."""

    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Drain them."""
        return stage.subject.hints()

    def __str__(self) -> str:
        return "hints"


# -- through the workers


@dataclass(frozen=True)
class Employ(Step):
    """Have workers from here on."""

    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Be ready to order, until the row ends."""
        stage.closing.enter_context(stage.subject.employing())
        return DONE

    def __str__(self) -> str:
        return "employ workers"


@dataclass(frozen=True)
class Order(Step):
    """A worker creates or removes a device."""

    kind: str
    type: str
    name: str
    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Order it, and wait for the answer."""
        return stage.subject.order(self.kind, self.type, self.name)

    def __str__(self) -> str:
        return f"order: {self.kind} {self.type} {shown(self.name)}"


@dataclass(frozen=True)
class BeginOrder(Step):
    """The same in the background, until the device is on the bus, or off it."""

    kind: str
    type: str
    name: str
    expect: Expected = UNDER_WAY

    def do(self, stage: Stage) -> Answer:
        """Order it."""
        call = Call(lambda: stage.subject.order(self.kind, self.type, self.name))
        stage.calls[self.name] = call
        begun = until(lambda: self._is_begun(stage) or call.now() != UNDER_WAY)
        return call.now() if begun else TOO_LATE

    def _is_begun(self, stage: Stage) -> bool:
        shows = "bus" in stage.subject.shows(self.type, self.name)
        return shows == (self.kind == "create")

    def __str__(self) -> str:
        return f"begin: order {self.kind} {self.type} {shown(self.name)}"


@dataclass(frozen=True)
class KillWorkers(Step):
    """SIGKILL all workers."""

    expect: Expected = DONE

    def do(self, stage: Stage) -> Answer:
        """Kill them."""
        return outcome(stage.subject.kill_workers)

    def __str__(self) -> str:
        return "kill the workers"


@dataclass(frozen=True)
class InFlight(Step):
    """The names with a write under way, as the next agent would find them."""

    expect: Expected

    def do(self, stage: Stage) -> Answer:
        """Look; waits for what is expected, as a process may be just ending."""
        wanted = expected(self.expect, stage.subject.kernel)
        until(lambda: stage.subject.in_flight() == wanted)
        return stage.subject.in_flight()

    def __str__(self) -> str:
        return "in flight"


# -- how it is written down


def _begun(of: str) -> str:
    return f"{shown(of)}'s write" if of in LETTERS else f"{of}'s unload"


LETTERS = {
    "11111111-2222-4333-8444-5555555555a1": "A",
    "11111111-2222-4333-8444-5555555555a2": "B",
    "00000000-0000-0000-0000-000000000000": "nil",
    "ffffffff-ffff-ffff-ffff-ffffffffffff": "all-f",
}


def shown(text: str) -> str:
    """Text with names by their letters, and quoted when it is not just a name."""
    if text in LETTERS:
        return LETTERS[text]
    return '"' + lettered(text.encode("unicode_escape").decode()) + '"'


def lettered(text: str) -> str:
    """The same, not quoted."""
    for name, letter in LETTERS.items():
        text = text.replace(name, letter)
    return text
