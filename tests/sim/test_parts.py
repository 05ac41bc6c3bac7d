"""What is simulated in memory behaves as what it stands for."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from agent import simulated
from agent.journal import Changes, Journal, Permit
from agent.simulated import SimulatedBus
from coordinator.model import Claim, Maker, Name
from coordinator.states import ClaimState
from tests.sim.journal import Disk, MemoryJournal
from tests.sim.kernel import ATTRIBUTE, Kernel, SimBus
from tests.sim.loop import Process, SimLoop, Stuck

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = [Name(f"aaaaaaaa-0000-4000-8000-{number:012x}") for number in range(4)]
TYPES = {"small": 4, "large": 2}


def some_changes(rng: random.Random) -> Changes:
    """Changes as the agent's notes make them: of few names, so that they meet."""
    changes = Changes()
    for name in rng.sample(NAMES, 2):
        what = rng.randrange(7)
        if what == 0:
            changes.claims[name] = None
        elif what == 1:
            changes.claims[name] = a_claim(name, rng)
        elif what == 2:
            changes.lost[name] = rng.random() < 0.5
        elif what == 3:
            changes.unsure.add(name)
        elif what == 4:
            changes.reverted.add(name)
        elif what == 5:
            changes.permits[name] = Permit(maker=Maker(rng.randrange(9), 1), boot_id="b")
        else:
            changes.permits[name] = None
    changes.instances += [f"{rng.getrandbits(32):08x}"] * rng.randrange(2)
    changes.revision = rng.choice((None, rng.randrange(99)))
    return changes


def a_claim(name: Name, rng: random.Random) -> Claim:
    """A claim of a name."""
    return Claim(
        name=name,
        host="h",
        revision=rng.randrange(99),
        state=rng.choice(list(ClaimState)),
        parent="p",
        type="t",
        request="r",
        since="s",
        created="c",
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_journal_in_memory_holds_what_the_file_holds(tmp_path: Path, seed: int) -> None:
    """After any changes both read alike, and after being opened again, too."""
    rng, path, disk = random.Random(seed), tmp_path / "journal", Disk()
    for _ in range(12):
        file, memory = Journal(path), MemoryJournal(disk)
        for _ in range(rng.randrange(4)):
            changes = some_changes(rng)
            file.write(changes)
            memory.write(changes)
        assert memory.read() == file.read()
        file.close()


def said(call: Callable[[], object]) -> object:
    """What a call gives, or its errno."""
    try:
        call()
    except OSError as error:
        return error.errno
    return "done"


class Both:
    """The same host twice: in a directory, and in memory."""

    def __init__(self, directory: Path) -> None:
        attributes = {ATTRIBUTE: True}
        simulated.init(directory, 2, TYPES, attributes=attributes)
        self.directory, self.bus = directory, SimulatedBus(directory)
        self.kernel = Kernel(1, 2, TYPES["small"], lambda: 1000.0)
        self.memory = SimBus(self.kernel)
        self.parents = sorted(self.bus.parents())

    def seen(self) -> tuple[Any, Any]:
        """What either shows."""
        return self._shown(self.bus), self._shown(self.memory)

    def _shown(self, bus: Any) -> Any:
        scan = bus.scan()
        available = {
            parent: {each.type: each.available for each in types}
            for parent, types in bus.parents().items()
        }
        busy = [name for name in NAMES if bus.busy(name)]
        return dict(scan.devices), dict(scan.parents), scan.blind, available, busy

    def do(self, rng: random.Random) -> tuple[object, object]:
        """The same to both, and what either said."""
        name, parent = rng.choice(NAMES), rng.choice(self.parents)
        type_, what = rng.choice(("small", "large", "none")), rng.randrange(7)
        record = self.kernel.device(name)
        if what == 5 and record is not None and record["phase"] == "active":
            record["held"] = True
            simulated.hold(self.directory, name)
            return None, None
        if what == 6 and record is not None:
            self.kernel.let_go(name)
            simulated.let_go(self.directory, name)
            return None, None
        if what == 4:
            one = said(lambda: self.bus.write_attribute(name, ATTRIBUTE, "1"))
            return one, said(lambda: self.memory.write_attribute(name, ATTRIBUTE, "1"))
        if what == 3 and record is not None and record["held"]:
            return None, None  # it would wait
        if what == 3:
            one = said(lambda: self.bus.remove(name, type_))
            return one, said(lambda: self.memory.remove(name, type_))
        told = said(lambda: self.memory.create(parent, type_, name))
        under_way = self.memory.under_way
        if told == "done" and under_way is not None:  # a driver's refusal comes at its end
            told = under_way["errno"] or told
        return said(lambda: self.bus.create(parent, type_, name)), told


@pytest.mark.parametrize("seed", range(5))
def test_the_kernel_in_memory_answers_as_the_directory_does(tmp_path: Path, seed: int) -> None:
    """Creates, removes, attributes and devices in use: the same errnos, and the same is seen."""
    rng, both = random.Random(seed), Both(tmp_path / "host")
    for _ in range(60):
        one, other = both.do(rng)
        assert one == other
        one, other = both.seen()
        assert one == other


def test_a_process_that_is_killed_does_nothing_more() -> None:
    """Not even what stands in its `finally`."""
    loop, heard = SimLoop(random.Random(1)), []  # type: ignore[abstract]  # nobody asks for more

    async def work() -> None:
        try:
            await loop.pass_time(1.0)
            heard.append("woke")
        finally:
            heard.append("ended")

    killed, other = Process("killed"), Process("other")
    for process in (killed, other):
        loop.begin(process, lambda: loop.create_task(work()))
    loop.after(0.5, loop.kill, killed)
    with pytest.raises(Stuck):
        loop.run(1e9)
    assert heard == ["woke", "ended"]


def test_a_process_that_is_paused_goes_on_where_it_was() -> None:
    """Time goes on without it."""
    loop, heard = SimLoop(random.Random(1)), []  # type: ignore[abstract]  # nobody asks for more

    async def work() -> None:
        await loop.pass_time(1.0)
        heard.append(loop.time())

    process = Process("paused")
    begun = loop.time()
    loop.begin(process, lambda: loop.create_task(work()))
    loop.after(0.5, loop.pause, process)
    loop.after(7.0, loop.go_on, process)
    with pytest.raises(Stuck):
        loop.run(1e9)
    assert heard[0] - begun >= 7.0
