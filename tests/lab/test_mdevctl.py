"""mdevctl's users are covered: the real mdevctl 1.2 of Debian 12 and 1.4 of Debian 13.

The callout and the notifier are installed by the command, in each guest. What is asserted is read
from etcd's keys and from the guests' sysfs.
"""

from __future__ import annotations

import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from deploy.lab.errors import GuestError
from deploy.lab.guest import wait_for
from deploy.lab.tidy import tidy
from tests.lab.conftest import has_failed
from tests.lab.hosts import DEADLINE, Host, Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from coordinator.embedded import EmbeddedCluster
    from deploy.lab.guest import Guest, Result
    from tests.lab.conftest import Guests

pytestmark = pytest.mark.lab

BASES = {"1.2.0": "/etc/mdevctl.d", "1.4.0": "/usr/lib/mdevctl"}
PARENT, TYPE = "mtty", "mtty-2"


@dataclass(frozen=True)
class Tool:
    """mdevctl on one host."""

    host: Host
    version: str

    def run(self, *args: str) -> Result:
        """Run it."""
        return self.host.guest.run("mdevctl", *args)

    def ok(self, *args: str) -> None:
        """Run it; it does what it is asked and has nothing to say."""
        done = self.run(*args)
        assert (done.rc, done.stderr) == (0, ""), done

    @property
    def callout(self) -> str:
        """Where ours is."""
        return f"{BASES[self.version]}/scripts.d/callouts/00-mdevns"

    def definition(self, name: str) -> str:
        """Where it keeps a definition."""
        return f"/etc/mdevctl.d/{PARENT}/{name}"


@pytest.fixture(scope="module")
def installed(guests: Guests, records: Records) -> Iterator[dict[str, Tool]]:
    """mdevctl on a guest of each Debian, by version, with ours installed and an agent running."""
    found = {}
    for guest in guests[:2]:
        version = guest.run("mdevctl", "--version", check=True).stdout.split()[1]
        found[version] = Tool(Host(guest, records), version)
    assert set(found) == set(BASES)
    _begin(found)
    yield found
    assert [tool.host.complaints() for tool in found.values()] == [[], []]


def _begin(tools: dict[str, Tool]) -> None:
    guests = [tool.host.guest for tool in tools.values()]
    for _, done in _each(guests, "install"):
        assert done.rc == 20, done  # the agent is not there yet, and that alone is told
        assert "no agent listens there" in done.stdout
    for tool in tools.values():
        tool.host.start()
    for tool in tools.values():
        tool.host.wait_enrolled()
    for _, status in _each(guests, "status"):
        assert (status.rc, status.stdout.splitlines()[-1]) == (0, "in place")


@pytest.fixture
def tools(
    installed: dict[str, Tool], records: Records, request: pytest.FixtureRequest
) -> Iterator[dict[str, Tool]]:
    """The two, with nothing on them; each test has to leave them so."""
    if not all(tool.host.alive() for tool in installed.values()):
        _start_over(installed, records)
    yield installed
    left = _left(installed, records)
    if left or has_failed(request.node):
        _start_over(installed, records)
    assert not left


def _left(tools: dict[str, Tool], records: Records) -> dict[str, object]:
    """What is on the hosts or taken, by where; a host that does not answer is one such."""
    left: dict[str, object] = {"names": records.names()}
    for tool in tools.values():
        try:
            left[tool.host.name] = {key: what for key, what in tool.host.left().items() if what}
        except GuestError as error:
            left[tool.host.name] = str(error)
    return {where: what for where, what in left.items() if what}


def _start_over(tools: dict[str, Tool], records: Records) -> None:
    for tool in tools.values():
        tidy(tool.host.guest)
    records.erase()
    _begin(tools)


def _each(guests: Sequence[Guest], act: str) -> list[tuple[Guest, Result]]:
    """`mdevns mdevctl` in several guests at the same time."""
    with ThreadPoolExecutor(len(guests)) as pool:
        results = pool.map(lambda guest: guest.mdevns("mdevctl", act), guests)
        return list(zip(guests, results, strict=True))


@pytest.fixture(params=sorted(BASES))
def mdevctl(tools: dict[str, Tool], request: pytest.FixtureRequest) -> Tool:
    """One of the two."""
    tool = tools[request.param]
    assert tool.host.alive()
    return tool


@pytest.fixture
def elsewhere(tools: dict[str, Tool], mdevctl: Tool) -> Tool:
    """The other one."""
    (other,) = (tool for tool in tools.values() if tool != mdevctl)
    return other


@pytest.fixture
def name() -> str:
    """A name nobody has used."""
    return str(uuid.uuid4())


def start(name: str) -> tuple[str, ...]:
    """Ask mdevctl for a transient device."""
    return ("start", "-u", name, "-p", PARENT, "-t", TYPE)


def kept(records: Records, mdevctl: Tool, name: str) -> tuple[str, bool, bool] | None:
    """A claim's state, persistence and autostart."""
    claim = records.claims(mdevctl.host.name).get(name)
    if claim is None:
        return None
    return tuple(claim.value.get(key) for key in ("state", "persistent", "autostart"))


def wait_for_state(records: Records, mdevctl: Tool, name: str, state: str | None) -> None:
    """Wait, for as long as the agent is given, until the claim is in a state; None: gone."""
    wait_for(
        lambda: records.state(mdevctl.host.name, name) == state,
        what=f"the claim to be {state or 'gone'}",
        timeout=DEADLINE,
    )


def assert_nothing_left(records: Records, *tools: Tool) -> None:
    """Nothing is on the hosts and no name is taken."""
    assert [tool.host.mdev.devices() for tool in tools] == [[] for _ in tools]
    assert records.names() == {}


def test_a_name_is_taken_once_in_the_cluster(
    records: Records, mdevctl: Tool, elsewhere: Tool, name: str
) -> None:
    """A start of a name that another host has is refused with who has it, and makes nothing."""
    mdevctl.ok(*start(name))
    assert records.state(mdevctl.host.name, name) == "active"
    assert mdevctl.run("list").stdout.startswith(f"{name} {PARENT} {TYPE}")
    for args in (start(name), ("define", "-u", name, "-p", PARENT, "-t", TYPE)):
        refused = elsewhere.run(*args)
        assert refused.rc == 1
        assert f"EEXIST: {name}: held by {mdevctl.host.name}" in refused.stderr
    assert elsewhere.host.mdev.devices() == []
    assert not elsewhere.host.guest.exists(elsewhere.definition(name))
    # A start of what is there fails after its callout, and that frees nothing.
    again = mdevctl.run(*start(name))
    assert again.rc == 1
    assert (mdevctl.host.mdev.devices(), records.state(mdevctl.host.name, name)) == (
        [name],
        "active",
    )
    mdevctl.ok("stop", "-u", name)
    assert_nothing_left(records, mdevctl, elsewhere)
    elsewhere.ok(*start(name))
    elsewhere.ok("stop", "-u", name)
    assert_nothing_left(records, mdevctl, elsewhere)


def test_a_definition_is_claimed_and_given_back(records: Records, mdevctl: Tool, name: str) -> None:
    """What mdevctl defines, starts, modifies, stops and undefines is so in the namespace."""
    mdevctl.ok("define", "-u", name, "-p", PARENT, "-t", TYPE)
    assert kept(records, mdevctl, name) == ("defined", True, False)
    mdevctl.ok("start", "-u", name)
    assert kept(records, mdevctl, name) == ("active", True, False)
    mdevctl.ok("modify", "-u", name, "--auto")
    assert kept(records, mdevctl, name) == ("active", True, True)
    mdevctl.ok("stop", "-u", name)
    assert kept(records, mdevctl, name) == ("defined", True, True)
    assert mdevctl.host.mdev.devices() == []
    mdevctl.ok("undefine", "-u", name)
    assert not mdevctl.host.guest.exists(mdevctl.definition(name))
    assert_nothing_left(records, mdevctl)


def test_a_post_failure_frees_nothing(records: Records, mdevctl: Tool, name: str) -> None:
    """What a callout says of a failure is not believed: the kernel has the device."""
    mdevctl.ok(*start(name))
    words = ("-t", TYPE, "-e", "post", "-a", "start", "-s", "failure", "-u", name, "-p", PARENT)
    mdevctl.host.guest.run(mdevctl.callout, *words, stdin="{}", check=True)
    assert records.state(mdevctl.host.name, name) == "active"
    mdevctl.ok("stop", "-u", name)
    assert_nothing_left(records, mdevctl)


@contextmanager
def edited(mdevctl: Tool, text: str) -> Iterator[None]:
    """Inside, the callout is another program."""
    guest, before = mdevctl.host.guest, mdevctl.host.guest.read(mdevctl.callout)
    write = ("sh", "-c", f"cat > {mdevctl.callout}")
    guest.run(*write, stdin=text, check=True)
    try:
        yield
    finally:
        guest.run(*write, stdin=before, check=True)


def killed(mdevctl: Tool) -> AbstractContextManager[None]:
    """Inside, the callout is killed by a signal before it can say anything."""
    return edited(mdevctl, "#!/bin/sh\nkill -9 $$\n")


def hurried(mdevctl: Tool) -> AbstractContextManager[None]:
    """Inside, the callout waits no longer for an agent than a test does."""
    text = mdevctl.host.guest.read(mdevctl.callout)
    for patience in ("ANSWERED_IN = 30.0", "BOOTED_IN = 120.0"):
        assert patience in text
        text = text.replace(patience, f"{patience.split()[0]} = 2.0")
    return edited(mdevctl, text)


def test_what_goes_past_the_callout_is_noticed(
    records: Records, mdevctl: Tool, elsewhere: Tool, name: str
) -> None:
    """mdevctl goes on when a callout is killed; in 2 s the device is adopted, or is a conflict."""
    with killed(mdevctl):
        assert mdevctl.run(*start(name)).rc == 0
    wait_for_state(records, mdevctl, name, "active")
    assert records.claims(mdevctl.host.name)[name].value["adopted"]
    with killed(elsewhere):
        assert elsewhere.run(*start(name)).rc == 0
    wait_for(
        lambda: name in records.findings(elsewhere.host.name),
        what="the conflict to be reported",
        timeout=DEADLINE,
    )
    assert records.findings(elsewhere.host.name)[name].value["kind"] == "conflict"
    assert elsewhere.host.mdev.devices() == [name]
    elsewhere.host.mdev.remove(name)
    mdevctl.ok("stop", "-u", name)
    wait_for(
        lambda: not records.findings(elsewhere.host.name), what="no conflict", timeout=DEADLINE
    )
    assert_nothing_left(records, mdevctl, elsewhere)


def test_definitions_of_before_are_taken_over(records: Records, mdevctl: Tool, name: str) -> None:
    """What mdevctl had defined and started without us is a persistent name, and is written back."""
    guest = mdevctl.host.guest
    with killed(mdevctl):
        mdevctl.run("define", "-u", name, "-p", PARENT, "-t", TYPE)
        mdevctl.run("start", "-u", name)
    wait_for_state(records, mdevctl, name, "active")
    text = guest.read(mdevctl.definition(name))
    here = ("--host", mdevctl.host.name, "--cluster", records.cluster)
    taken = guest.mdevns("import", "mdevctl", *here)
    assert taken.rc == 0, taken
    assert kept(records, mdevctl, name) == ("active", True, False)
    guest.run("rm", mdevctl.definition(name), check=True)
    written = guest.mdevns("export", "mdevctl", *here)
    assert written.rc == 0, written
    assert guest.read(mdevctl.definition(name)) == text
    mdevctl.ok("stop", "-u", name)
    mdevctl.ok("undefine", "-u", name)
    assert_nothing_left(records, mdevctl)


def test_a_host_whose_usr_is_read_only_is_served(
    records: Records, tools: dict[str, Tool], name: str
) -> None:
    """Ours goes to /etc then, where mdevctl asks it, too; and to /usr/lib once that can be."""
    mdevctl = tools["1.4.0"]
    guest, scripts = mdevctl.host.guest, f"{BASES['1.4.0']}/scripts.d"
    guest.run("find", scripts, "-name", "00-mdevns", "-delete", check=True)
    guest.run("mount", "--bind", scripts, scripts, check=True)
    try:
        guest.run("mount", "-o", "remount,bind,ro", scripts, check=True)
        done = guest.mdevns("mdevctl", "install")
        assert done.rc == 0, done
        assert f"{scripts} is read-only" in done.stderr
        mdevctl.ok(*start(name))
        assert records.state(mdevctl.host.name, name) == "active"
        mdevctl.ok("stop", "-u", name)
    finally:
        guest.run("umount", scripts, check=True)
    done = guest.mdevns("mdevctl", "install")
    assert done.rc == 0, done
    assert guest.exists(mdevctl.callout)
    assert guest.run("find", "/etc/mdevctl.d/scripts.d", "-name", "00-mdevns").stdout == ""
    assert_nothing_left(records, mdevctl)


@pytest.fixture
def etcd_stopped(members: EmbeddedCluster) -> Iterator[Callable[[], None]]:
    """Stops all of etcd, which runs again afterwards; called again it starts it at once."""
    running = [True]

    def turn() -> None:
        for member in range(3):
            if running[0]:
                members.kill(member)
            else:
                members.start(member, wait=False)
        running[0] = not running[0]
        if running[0]:
            members.leader()

    yield turn
    if not running[0]:
        turn()


@pytest.fixture
def autostarting(tools: dict[str, Tool]) -> Iterator[Tool]:
    """mdevctl whose autostart runs: Debian's rule for udev calls it where it is not (measured)."""
    mdevctl = tools["1.2.0"]
    link = "/usr/sbin/mdevctl"
    mdevctl.host.guest.run("ln", "-sf", "/usr/bin/mdevctl", link, check=True)
    yield mdevctl
    mdevctl.host.guest.run("rm", link, check=True)


def test_autostart_comes_back_without_etcd(
    records: Records, autostarting: Tool, name: str, etcd_stopped: Callable[[], None]
) -> None:
    """Without an agent nothing is started; without etcd, after a reboot, what is this host's is."""
    mdevctl, host, guest = autostarting, autostarting.host, autostarting.host.guest
    stopped, new = str(uuid.uuid4()), str(uuid.uuid4())
    mdevctl.ok("define", "-u", name, "-p", PARENT, "-t", TYPE, "--auto")
    mdevctl.ok("start", "-u", name)
    mdevctl.ok("define", "-u", stopped, "-p", PARENT, "-t", TYPE)
    host.agent.kill(signal.SIGTERM)
    assert host.agent.wait() == 0
    with hurried(mdevctl):
        refused = mdevctl.run(*start(new))
    assert refused.rc == 1
    assert f"EHOSTDOWN: {new}: the agent of this host does not answer" in refused.stderr
    assert "systemctl status mdevns-agent" in refused.stderr
    etcd_stopped()
    guest.reboot()
    host.start(cut_off=True)
    # How long the four of udev's mdevctl may wait for the agent is the callout's to say.
    wait_for(lambda: host.mdev.devices() == [name], what="its device", timeout=DEADLINE)
    for args in (("start", "-u", stopped), start(new)):
        refused = mdevctl.run(*args)
        assert (refused.rc, "EHOSTUNREACH: " in refused.stderr) == (1, True), refused
    assert host.mdev.devices() == [name]
    etcd_stopped()
    wait_for(
        lambda: records.claims(host.name)[name].value["boot_id"] == guest.boot_id,
        what="the claim to be of this boot",
        timeout=DEADLINE,
    )
    assert records.states(host.name) == {name: "active", stopped: "defined"}
    for one in (name, stopped):
        mdevctl.run("stop", "-u", one)
        mdevctl.ok("undefine", "-u", one)
    assert_nothing_left(records, mdevctl)
