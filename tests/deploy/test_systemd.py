"""The unit that systemd runs the agent by, and what the agent tells systemd."""

from __future__ import annotations

import shutil
import socket
import subprocess
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.health import Facts, verdict
from agent.notify import Notifier
from coordinator.memory import MemoryEtcd
from tests.support.agents import AgentProcess, SimulatedHost
from tests.support.desk import ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.embedded import EmbeddedEtcd

UNIT = Path(__file__).parents[2] / "deploy/systemd/mdevns-agent.service"
EXPOSURE = 28  # tenths, as systemd-analyze counts it: it may fall, and not rise

WELL = verdict(Facts(since_beat=0.0, session_left=9.0, listed=True, since_look=0.0))
ALONE = verdict(Facts(since_beat=0.0, session_left=None, listed=False, since_look=None))


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Ask systemd about a unit, as files alone tell."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("there is no systemd-analyze; install systemd")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Every line of it is known, and nothing in it is contradictory."""
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert "/opt/mdevns/current/bin/mdevns" in text
    # It is not installed here; any program will do for one that is there.
    unit.write_text(text.replace("/opt/mdevns/current/bin/mdevns", "/bin/true"))
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_vfio_is_loaded_before_the_agent() -> None:
    """systemd resolves `char-vfio*` at the start: vfio that is loaded later could not be probed."""
    lines = UNIT.read_text().splitlines()
    assert "DeviceAllow=char-vfio* rw" in lines
    for ordering in ("Wants=", "After="):
        named = [line.removeprefix(ordering) for line in lines if line.startswith(ordering)]
        assert "modprobe@vfio.service" in " ".join(named).split()


def test_the_unit_stays_hardened() -> None:
    """What an agent that was taken over could reach is no more than it was."""
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", UNIT)
    assert done.returncode == 0, done.stdout


# What the agent says.


class Manager:
    """The end of the socket where a service manager listens."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(30)

    def hear(self) -> set[str]:
        """The lines of the next message."""
        return set(self._socket.recv(4096).decode().split("\n"))

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    """A service manager, and the address that it gives to its services."""
    address = str(tmp_path / "notify")
    with closing(Manager(address)) as listening:
        yield listening, address


def test_an_agent_that_serves_is_ready(manager: tuple[Manager, str]) -> None:
    """Readiness is said once, the watchdog is fed each time, and the status when it changes."""
    listening, address = manager
    notifier = Notifier(ManualClock(MemoryEtcd()), {"NOTIFY_SOCKET": address})
    notifier.beat(ALONE)
    assert listening.hear() == {
        "WATCHDOG=1",
        f"STATUS=waiting: {'; '.join(ALONE.reasons)}",
    }
    notifier.beat(WELL)
    assert listening.hear() == {"WATCHDOG=1", "READY=1", "STATUS=serving"}
    notifier.beat(WELL)
    assert listening.hear() == {"WATCHDOG=1"}
    notifier.stopping()
    assert "STOPPING=1" in listening.hear()


def test_a_boot_does_not_wait_for_a_store_that_is_away(manager: tuple[Manager, str]) -> None:
    """After twenty seconds an agent is ready although it still waits, and says for what."""
    listening, address = manager
    core = MemoryEtcd()
    notifier = Notifier(ManualClock(core), {"NOTIFY_SOCKET": address})
    for seconds, ready in ((0.0, False), (19.0, False), (2.0, True)):
        core.advance(seconds)
        notifier.beat(ALONE)
        assert ("READY=1" in listening.hear()) == ready


def test_what_was_not_heard_is_said_again(tmp_path: Path) -> None:
    """Readiness that nobody took is told when somebody listens."""
    address = str(tmp_path / "late")
    notifier = Notifier(ManualClock(MemoryEtcd()), {"NOTIFY_SOCKET": address})
    notifier.beat(WELL)
    with closing(Manager(address)) as listening:
        notifier.beat(WELL)
        assert listening.hear() == {"WATCHDOG=1", "READY=1", "STATUS=serving"}


def test_without_a_manager_nothing_is_said(tmp_path: Path) -> None:
    """An agent in a terminal, and one whose manager is gone, serve all the same."""
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        Notifier(ManualClock(MemoryEtcd()), environment).beat(WELL)


def test_an_abstract_address_is_understood() -> None:
    """A manager may listen where there is no file."""
    with closing(Manager("\0mdevns-test-notify")) as listening:
        Notifier(ManualClock(MemoryEtcd()), {"NOTIFY_SOCKET": "@mdevns-test-notify"}).beat(WELL)
        assert "READY=1" in listening.hear()


@pytest.mark.etcd
def test_the_real_agent_tells_its_manager(
    etcd: EmbeddedEtcd,
    tmp_path: Path,
    manager: tuple[Manager, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From its start to its stop: ready when it serves, fed while it does, stopping at the end."""
    listening, address = manager
    host = SimulatedHost(tmp_path / "gpu01", "gpu01", parents=1).init()
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with AgentProcess(host, [etcd.endpoint], uuid.uuid4().hex) as agent:
        agent.start()
        while "READY=1" not in listening.hear():
            pass
        assert "WATCHDOG=1" in listening.hear()
        agent.terminate()
        while "STOPPING=1" not in listening.hear():
            pass
