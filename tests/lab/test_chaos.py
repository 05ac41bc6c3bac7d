"""Chaos on real kernels, in the short: people at work while agents, members and machines fail.

The same outsider looks as in tests/chaos: at the guests' sysfs, whose inode numbers are not given
twice in a boot, and at etcd's keys.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import grpc
import pytest

from deploy.lab.errors import GuestError
from deploy.lab.mdev import BUS
from tests.chaos.checker import Checker, Device
from tests.chaos.history import Verb, read
from tests.chaos.judge import untold
from tests.chaos.orders import Orders, Process
from tests.chaos.schedule import Injected
from tests.lab.hosts import Host
from tests.support import truth
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coordinator.embedded import EmbeddedCluster
    from tests.cli.driver import Cli
    from tests.lab.conftest import Guests
    from tests.lab.hosts import Records
    from tests.support.truth import Truth

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

TTL = 12  # seconds that a session lasts
PACE = 0.4  # seconds between two requests of one process
WORK = 3.0  # seconds of it between two faults
BACK = 180.0  # seconds, for a busy machine: guests without KVM boot and import slowly
_LOOK = f'cd {BUS} && for name in *-*; do echo "$(stat -L -c %i "$name") $name"; done'


class SeenDevice:
    """A device on a guest, known again by its inode number."""

    def __init__(self, on: Host, name: str, inode: str) -> None:
        self.host, self.name, self._on, self._inode = on.name, name, on, inode

    @property
    def lives(self) -> bool:
        """Whether that very device is still there; a guest without power has none."""
        try:
            found = self._on.guest.run("stat", "-L", "-c", "%i", f"{BUS}/{self.name}")
        except (GuestError, OSError):
            return False
        return found.stdout.strip() == self._inode


def see(hosts: list[Host]) -> Iterator[Device]:
    """The devices of all guests that answer."""
    for host in hosts:
        with suppress(GuestError, OSError):
            for line in host.guest.run("sh", "-c", _LOOK).stdout.splitlines():
                inode, _, name = line.partition(" ")
                if inode:  # else it was gone meanwhile, or there is none
                    yield SeenDevice(host, name, inode)


class Chaos:
    """Faults one after the other, each with a return of everything."""

    def __init__(self, hosts: list[Host], members: EmbeddedCluster, cluster: str) -> None:
        self.hosts, self.members, self.cluster = hosts, members, cluster
        self.injected: list[Injected] = []

    def look(self) -> Truth | None:
        """Etcd's keys, as the first member tells that can."""
        for endpoint in self.members.endpoints:
            with suppress(grpc.RpcError):
                return truth.look(endpoint, self.cluster, {})
        return None

    def befalls(self, kind: str, inject: Callable[[], None], off: Host | None = None) -> None:
        """Inject a fault, which mends itself, and wait until everybody is served."""
        names = frozenset({off.name} if off else ())
        one = Injected(kind, "", frozenset(), names, sets_back=False, begun=time.monotonic())
        self.injected.append(one)
        inject()
        one.lifted = time.monotonic()
        wait_until(self.is_well, BACK)
        one.back = time.monotonic()

    def amid(self) -> str:
        """What has befallen it last."""
        return self.injected[-1].kind if self.injected else "at the beginning"

    def is_well(self) -> bool:
        """Whether all hosts are seen with all their parents."""
        seen = self.look()
        everybody = {host.name for host in self.hosts}
        return (
            seen is not None
            and all(seen.parents[name] for name in seen.sessions)
            and (seen.sessions.keys() == everybody)
        )

    def end(self) -> Truth | None:
        """All that is true, once nothing is under way."""
        seen = self.look()
        if seen is not None:
            seen.devices = {
                host.name: {name: parent for name, (parent, _) in host.devices().items()}
                for host in self.hosts
            }
        return seen


@pytest.fixture
def work(members: EmbeddedCluster, cluster: str, tmp_path: Path) -> Iterator[list[Process]]:
    """Those who ask; none of them is left."""
    given = os.environ.get("MDEVNS_TEST_SEED")
    seed = int(given) if given else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails: how to repeat it
    (tmp_path / "pool").write_text("1")
    processes = [
        Process(
            Orders(
                role="operator",
                process=f"operator{number}",
                directory=str(tmp_path),
                endpoints=tuple(members.endpoints),
                cluster=cluster,
                tls=None,
                type="mtty-1",
                parent="mtty",
                hosts=("gpu01", "gpu02", "gpu03"),
                seed=seed,
                pace=PACE,
                pool_size=8,
            )
        )
        for number in range(3)
    ]
    with ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
            process.start()
        yield processes


@pytest.fixture
def chaos(guests: Guests, members: EmbeddedCluster, records: Records, cluster: str) -> Chaos:
    """Three guests with their agents."""
    hosts = [Host(guest, records, "--session-ttl", str(TTL)) for guest in guests]
    for host in hosts:
        host.start()
    chaos = Chaos(hosts, members, cluster)
    try:
        wait_until(chaos.is_well, BACK)
    except AssertionError as error:
        for host in hosts:
            error.add_note(f"agent of {host.name}:\n{host.log()}")
        raise
    return chaos


def test_a_small_chaos(chaos: Chaos, work: list[Process], cli: Cli, tmp_path: Path) -> None:
    """No name is on two kernels, no device unclaimed, no answer untrue, and all comes back."""
    checker = Checker(lambda _: see(chaos.hosts), chaos.look, lambda: False, chaos.amid)
    with checker:
        _faults(chaos, tmp_path)
        for process in work:
            process.ask_to_end()
        for process in work:
            process.stop()
        wait_until(lambda: (seen := chaos.end()) and not seen.under_way, BACK)
    assert checker.failed is None
    seen = chaos.end()
    assert seen is not None
    seen.assert_sound()
    assert cli.run("check").code == 0
    entries = read(sorted(tmp_path.glob("*.history")))
    wrong = checker.seen.violations + untold(entries, chaos.injected)
    assert not wrong, "\n".join(wrong)
    done = [each for each in entries if each.told is not None and each.told.code == 0]
    assert sum(each.asked.verb is Verb.CREATE for each in done) > 5, done
    assert checker.seen.looks_with_etcd > 10


def _faults(chaos: Chaos, directory: Path) -> None:
    """Each once, and people at work before, in the midst of it and after."""
    one, two, three = chaos.hosts

    def agent_killed() -> None:
        one.kill(workers=True)
        one.start()

    def member_killed() -> None:
        index = chaos.members.leader()
        chaos.members.kill(index)
        _work(directory)
        chaos.members.start(index)

    def power_lost() -> None:
        two.guest.power_loss()
        two.guest.boot()
        two.start()

    def cut_off() -> None:
        three.guest.cut_network()
        wait_until(lambda: (seen := chaos.look()) and three.name not in seen.sessions, BACK)
        three.guest.restore_network()

    _work(directory)
    for kind, inject, off in (
        ("agent killed", agent_killed, None),
        ("member killed", member_killed, None),
        ("host loses power", power_lost, two),
        ("agent cut off", cut_off, None),
    ):
        chaos.befalls(kind, inject, off)
        _work(directory)


def _work(directory: Path) -> None:
    """Let people go on to other names, and wait until they have asked some times more.

    Few requests a name keep few of unknown outcome together, which the judge has to try in
    every order.
    """
    pool = directory / "pool"
    fresh = directory / "pool.new"
    fresh.write_text(str(int(pool.read_text()) + 1))
    fresh.rename(pool)
    before = len(read(sorted(directory.glob("*.history"))))
    wait_until(
        lambda: len(read(sorted(directory.glob("*.history")))) > before + 3 * WORK / PACE, BACK
    )
