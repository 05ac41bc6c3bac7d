"""Whole stories on three real kernels: crashes at every step, reboots, devices made by others.

Three guests are three hosts of one cluster, whose etcd is outside. What is asserted is read from
etcd's keys, from the guests' sysfs, and from the events that their kernels sent.
"""

from __future__ import annotations

import json
import signal
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from deploy.lab.guest import wait_for
from deploy.lab.kernel import SAMPLES
from deploy.lab.tidy import tidy
from tests.cli.driver import Cli, ended, one_line
from tests.lab.conftest import has_failed
from tests.lab.hosts import DEADLINE, Host, Records

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator

    from tests.lab.conftest import Guests

pytestmark = pytest.mark.lab

Trio = tuple[Host, Host, Host]

HELD_MS = 600_000
MADE = ["add", "bind"]
GONE = ["unbind", "remove"]


@pytest.fixture(scope="module")
def trio(guests: Guests, records: Records) -> Iterator[Trio]:
    """The three guests as hosts, with their agents running; none of these may log an error.

    That of gpu02 looks at its kernel once an hour, so all it learns it has from events. That of
    gpu03 is given up soon after it went without a word, so its successor waits for no more.
    """
    gpu01 = Host(guests[0], records)
    gpu02 = Host(guests[1], records, "--rescan", "3600")
    gpu03 = Host(guests[2], records, "--session-ttl", "30")
    trio = gpu01, gpu02, gpu03
    _begin(trio)
    yield trio
    assert [host.complaints() for host in trio] == [[], [], []]


def _begin(trio: Trio) -> None:
    for host in trio:
        host.start()
    for host in trio:
        host.wait_enrolled()


@pytest.fixture
def hosts(trio: Trio, records: Records, request: pytest.FixtureRequest) -> Iterator[Trio]:
    """The three hosts, with nothing on them; each test has to leave them so."""
    if not all(host.alive() for host in trio):
        _start_over(trio, records)
    yield trio
    left = {host.name: left for host in trio if any((left := host.left()).values())}
    if left or records.names() or has_failed(request.node):
        _start_over(trio, records)
    assert not left


def _start_over(trio: Trio, records: Records) -> None:
    for host in trio:
        tidy(host.guest)  # what an agent has noted of a store that is emptied now goes too
    records.erase()
    _begin(trio)


def some(count: int) -> list[str]:
    """So many names nobody has used."""
    return [str(uuid.uuid4()) for _ in range(count)]


def asked(cli: Cli, *lines: dict[str, object], wait: bool = True) -> None:
    """Ask for devices, each by its line, in one command."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    cli.ok("create", "--from", "-", *(() if wait else ("--no-wait",)), stdin=text)


def wish(name: str, host: Host, parent: str, kind: str, **more: object) -> dict[str, object]:
    """One device to ask for."""
    return {"name": name, "type": kind, "host": host.name, "parent": parent, **more}


def where(host: Host, parent: str, kind: str) -> tuple[str, ...]:
    """The options that say where, and of what type."""
    return "--host", host.name, "--parent", parent, "--type", kind


@contextmanager
def waiting(cli: Cli, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is ended in the end."""
    with cli.start(*args) as process:
        try:
            yield process
        finally:
            process.kill()


def mdevctl_start(host: Host, name: str) -> None:
    """Have mdevctl make a device that it keeps no definition of."""
    host.guest.run("mdevctl", "start", "-u", name, "-p", "mtty", "-t", "mtty-2", check=True)


def test_three_hosts_and_two_drivers(hosts: Trio, cli: Cli, records: Records) -> None:
    """One command makes devices of two drivers on three hosts, each where it was to be."""
    places = [
        (host, parent, kind)
        for host in hosts
        for parent, kind in (("mtty", "mtty-1"), ("mdpy", "mdpy-hd"), ("mtty", "mtty-2"))
    ]
    wanted = dict(zip(some(len(places)), places, strict=True))
    asked(cli, *(wish(name, *place) for name, place in wanted.items()))
    for host in hosts:
        here = {n: (parent, kind) for n, (on, parent, kind) in wanted.items() if on is host}
        assert host.devices() == here
        claims = records.claims(host.name)
        assert {n: (c.value["parent"], c.value["type"]) for n, c in claims.items()} == here
        assert records.states(host.name) == dict.fromkeys(here, "active")
    assert {n: r.value["host"] for n, r in records.names().items()} == {
        name: host.name for name, (host, _, _) in wanted.items()
    }
    cli.ok("remove", *wanted)
    assert records.names() == {}


def test_a_full_pool_and_its_driver_unloaded(hosts: Trio, cli: Cli, records: Records) -> None:
    """A driver's 24 are made at once; unloaded while it makes the last, it takes all names."""
    gpu01 = hosts[0]
    here = where(gpu01, "mtty", "mtty-1")
    made = cli.ok("create", *here, "--count", "24", "-o", "name").names
    assert gpu01.devices() == dict.fromkeys(made, ("mtty", "mtty-1"))
    assert gpu01.mdev.available("mtty", "mtty-1") == 0
    assert records.states("gpu01") == dict.fromkeys(made, "active")
    cli.ok("remove", made[0])
    (last,) = some(1)
    gpu01.mdev.delay_creates(HELD_MS)
    with waiting(cli, "create", last, *here) as asking:
        wait_for(lambda: last in gpu01.mdev.devices(), what="the driver to create")
        unload = gpu01.guest.spawn("modprobe", "--remove", "mtty")
        going = "/sys/module/mtty/initstate"
        wait_for(lambda: gpu01.guest.read(going).strip() == "going", what="the driver to go")
        assert sorted(gpu01.mdev.devices()) == sorted([*made[1:], last])
        gpu01.mdev.delay_creates(0)
        assert unload.wait() == 0
        ended(asking)  # made or not: it was gone in the moment in which it was there
    assert gpu01.mdev.devices() == []
    wait_for(lambda: not records.names(), what="the names to be free", timeout=DEADLINE)
    assert records.claims("gpu01") == {}
    gpu01.guest.run("modprobe", "mtty", check=True)
    wait_for(lambda: sorted(records.parents("gpu01")) == sorted(SAMPLES), what="the parent")


def test_killed_at_every_step(hosts: Trio, cli: Cli, records: Records) -> None:
    """Whatever step SIGKILL finds creates and removes at, the next agent finishes it, once."""
    host = hosts[1]
    host.listen()
    wished, begun, made, retired, going, gone = some(6)
    mtty, mbochs = ("mtty", "mtty-1"), ("mbochs", "mbochs-small")
    asked(
        cli,
        wish(going, host, *mtty),
        wish(gone, host, *mtty),
        wish(retired, host, *mbochs),
    )
    with (
        host.held(going) as using,
        host.held(gone) as letting_go,
        waiting(cli, "remove", "--force", going, gone) as forced,
    ):
        wait_for(lambda: list(host.devices()) == [retired], what="the kernel to remove")
        host.mdev.delay_creates(HELD_MS)
        asked(cli, wish(made, host, *mtty), wait=False)
        wait_for(lambda: made in host.devices(), what="the driver to create")
        with host.orders_held() as orders, waiting(cli, "remove", retired) as remove:
            asked(cli, wish(begun, host, *mbochs), wait=False)
            records.wait_for(host.name, {begun: "creating", retired: "removing"})
            host.agent.kill(signal.SIGSTOP)
            asked(cli, wish(wished, host, "mdpy", "mdpy-hd"), wait=False)
            host.mdev.delay_creates(0)
            letting_go.kill()
            wait_for(lambda: host.in_flight() == [going], what="the others' writes to return")
            host.kill()
            orders.kill()
            # What was ordered and had not begun never does, though nothing holds it any more.
            wait_for(lambda: len(host.workers()) == 1, what="the others to end")
            assert host.devices() == {made: mtty, retired: mbochs}
            assert records.states(host.name) == {
                wished: "reserved",
                begun: "creating",
                made: "creating",
                retired: "removing",
                going: "removing",
                gone: "removing",
            }
            host.begin()
            assert ended(remove).code == 0
        active = dict.fromkeys((wished, begun, made), "active")
        records.wait_for(host.name, {**active, gone: None})
        assert records.states(host.name) == {**active, going: "removing"}
        assert host.in_flight() == [going]
        using.kill()
        assert ended(forced).code == 0
    assert records.states(host.name) == active
    assert host.devices() == {wished: ("mdpy", "mdpy-hd"), begun: mbochs, made: mtty}
    cli.ok("remove", *active)
    for name in active:
        assert host.events(name) == MADE + GONE
    for name in (retired, going, gone):
        assert host.events(name) == MADE + GONE


@contextmanager
def stopped_while_the_kernel_removes(host: Host, cli: Cli, records: Records) -> Iterator[None]:
    """An agent ends and starts though a write hangs, which stays in flight, and serves others.

    Inside it is told to end, and gives the kernel its time; that is longer than most things take.
    """
    name, later = some(2)
    asked(cli, wish(name, host, "mtty", "mtty-1"))
    with host.held(name) as holder, waiting(cli, "remove", "--force", name) as asking:
        wait_for(lambda: host.devices() == {}, what="the kernel's remove to begin")
        host.agent.kill(signal.SIGTERM)
        yield
        assert host.agent.wait() == 0
        assert records.session(host.name) is None
        told_that_the_host_is_gone(asking)
        assert (host.in_flight(), records.states(host.name)) == ([name], {name: "removing"})
        host.begin()
        asked(cli, wish(later, host, "mtty", "mtty-1"))
        assert host.in_flight() == [name]
        assert records.states(host.name) == {name: "removing", later: "active"}
        holder.kill()
        records.wait_for(host.name, {name: None})
    assert list(host.devices()) == [later]
    cli.ok("remove", later)


def told_that_the_host_is_gone(process: subprocess.Popen[str]) -> None:
    """A command that waited for a host ends, and says so."""
    done = ended(process)
    assert done.code == 16
    one_line(done, "EHOSTDOWN")


def test_power_loss_beside_a_kernel_that_hangs(hosts: Trio, cli: Cli, records: Records) -> None:
    """Neither a loss of power nor a write that hangs keeps what was begun from being finished."""
    with stopped_while_the_kernel_removes(hosts[1], cli, records):
        lose_power(hosts[2], cli, records)


def lose_power(host: Host, cli: Cli, records: Records) -> None:
    """After a loss of power what was under way is finished, and what is to persist is kept."""
    mtty = ("mtty", "mtty-1")
    created, removed, free, kept, auto = some(5)
    asked(
        cli,
        wish(removed, host, *mtty),
        wish(free, host, *mtty),
        wish(kept, host, *mtty, persistent=True),
        wish(auto, host, "mtty", "mtty-2", autostart=True),
    )
    host.mdev.delay_creates(HELD_MS)
    with (
        host.held(removed),
        waiting(cli, "remove", "--force", removed) as remove,
        waiting(cli, "create", created, *where(host, *mtty)) as create,
    ):
        wait_for(lambda: created in host.devices(), what="the driver to create")
        wait_for(lambda: removed not in host.devices(), what="the kernel to remove")
        states = dict.fromkeys((free, kept, auto), "active")
        states |= {created: "creating", removed: "removing"}
        assert records.states(host.name) == states
        host.guest.power_loss()
        host.guest.boot()
        assert host.devices() == {}
        assert records.states(host.name) == states
        host.begin()
        told_that_the_host_is_gone(remove)
        told_that_the_host_is_gone(create)
    states = {created: "active", auto: "active", kept: "defined"}
    wait_for_boot(records, host, (created, auto))
    records.wait_for(host.name, {**states, removed: None, free: None})
    assert set(records.claims(host.name)) == set(states) <= set(records.names())
    assert host.devices() == {created: mtty, auto: ("mtty", "mtty-2")}
    cli.ok("remove", created, auto)
    cli.ok("undefine", kept)


def wait_for_boot(records: Records, host: Host, names: Iterable[str]) -> None:
    """Wait until the claims of these names are of this boot of their host."""
    boot_id = host.guest.boot_id

    def are() -> bool:
        claims = records.claims(host.name)
        return all(name in claims and claims[name].value["boot_id"] == boot_id for name in names)

    wait_for(are, what="the claims to be of this boot", timeout=DEADLINE)


def test_reboot(hosts: Trio, cli: Cli, records: Records) -> None:
    """After a reboot autostart devices are where they were, persistent names kept, others free."""
    gpu01 = hosts[0]
    free, kept, auto, other = some(4)
    places = {auto: ("mdpy", "mdpy-hd"), other: ("mbochs", "mbochs-small")}
    asked(
        cli,
        wish(free, gpu01, "mtty", "mtty-1"),
        wish(kept, gpu01, "mtty", "mtty-1", persistent=True),
        *(wish(name, gpu01, *place, autostart=True) for name, place in places.items()),
    )
    before = records.claims("gpu01")
    gpu01.guest.reboot()
    assert records.session("gpu01") is None
    assert gpu01.devices() == {}
    assert records.claims("gpu01") == before
    gpu01.begin()
    states = {auto: "active", other: "active", kept: "defined"}
    wait_for_boot(records, gpu01, places)
    records.wait_for("gpu01", {**states, free: None})
    assert records.states("gpu01") == states
    assert sorted(records.names()) == sorted(states)
    assert gpu01.devices() == places
    claims = {name: claim.value for name, claim in records.claims("gpu01").items()}
    assert {name for name, claim in claims.items() if claim["autostart"]} == set(places)
    cli.ok("remove", *places)
    cli.ok("undefine", kept)


def test_devices_of_before(hosts: Trio, cli: Cli, records: Records) -> None:
    """What others made before an agent ever ran is claimed for its host, or is a conflict."""
    gpu02, gpu03 = hosts[1:]
    by_hand, by_mdevctl, elsewhere = some(3)
    asked(cli, wish(elsewhere, gpu02, "mtty", "mtty-1"))
    before = records.claims("gpu02")
    gpu03.kill()
    gpu03.guest.run("rm", "-rf", "/run/mdevns", "/var/lib/mdevns", check=True)
    gpu03.listen()
    for name in (by_hand, elsewhere):
        gpu03.mdev.create("mtty", "mtty-1", name)
    mdevctl_start(gpu03, by_mdevctl)
    gpu03.begin()
    records.wait_for("gpu03", {by_hand: "active", by_mdevctl: "active"})
    wait_for(lambda: elsewhere in records.findings("gpu03"), what="the conflict to be told")
    assert set(records.findings("gpu03")) == {elsewhere}
    finding = records.findings("gpu03")[elsewhere].value
    assert (finding["kind"], finding["parent"]) == ("conflict", "mtty")
    assert {claim.value["adopted"] for claim in records.claims("gpu03").values()} == {True}
    assert (elsewhere in records.claims("gpu03"), records.claims("gpu02")) == (False, before)
    for name in (by_hand, by_mdevctl, elsewhere):
        assert gpu03.events(name) == MADE
    gpu03.mdev.remove(elsewhere)
    cli.ok("remove", by_hand, by_mdevctl, elsewhere)


def test_heard_of(hosts: Trio, records: Records) -> None:
    """What others make and remove is claimed and freed as soon as the kernel tells of it."""
    gpu02 = hosts[1]
    by_hand, by_mdevctl = some(2)
    gpu02.mdev.create("mtty", "mtty-1", by_hand)
    mdevctl_start(gpu02, by_mdevctl)
    records.wait_for("gpu02", {by_hand: "active", by_mdevctl: "active"})
    gpu02.mdev.remove(by_hand)
    gpu02.guest.run("mdevctl", "stop", "-u", by_mdevctl, check=True)
    records.wait_for("gpu02", {by_hand: None, by_mdevctl: None})


def test_not_heard_of(hosts: Trio, records: Records) -> None:
    """What others make and remove is found by the clock when the kernel's events are lost."""
    gpu01 = hosts[0]
    (name,) = some(1)
    with gpu01.deaf():
        gpu01.mdev.create("mtty", "mtty-1", name)
        records.wait_for("gpu01", {name: "active"})
        gpu01.mdev.remove(name)
        records.wait_for("gpu01", {name: None})
