"""What runs in the foreground until it is told to end: etcd, demo; and simulated hosts."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.stage import Deviation, staged
from cli.story import STEPS
from coordinator.embedded import NOT_FOR_PRODUCTION
from tests.cli import driver
from tests.cli.driver import Cli, ended, in_process, one_line
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from subprocess import Popen

    from coordinator.embedded import EmbeddedEtcd

pytestmark = pytest.mark.etcd

NOWHERE = Cli(driver.NOWHERE, "x")


def first_line(process: Popen[str]) -> str:
    """The first line that a process answers."""
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_etcd_runs_until_it_is_told(number: int, tmp_path: Path) -> None:
    """It says where it is and once that it is not for production, and ends as it is told."""
    running = NOWHERE.start("etcd", "run", "--port", "0", TMPDIR=str(tmp_path))
    line = first_line(running)
    assert line.startswith("export MDEVNS_ENDPOINTS=http://127.0.0.1:")
    cli = Cli(line.partition("=")[2].strip(), "x")
    cli.ok("reserve", "--count", "2")
    running.send_signal(number)
    done = ended(running)
    assert (done.code, done.err) == (0, f"{NOT_FOR_PRODUCTION}\n")
    assert cli.run("list", "--timeout", "0.5").code == 10
    assert list(tmp_path.iterdir()) == []


def test_etcd_keeps_its_data_in_its_directory(tmp_path: Path) -> None:
    """What is written with --dir is there at the next run."""
    name = str(uuid.uuid4())
    for verb in ("reserve", "show"):
        running = NOWHERE.start("etcd", "run", "--port", "0", "--dir", str(tmp_path))
        endpoint = first_line(running).partition("=")[2].strip()
        Cli(endpoint, "x").ok(verb, name)
        running.send_signal(signal.SIGINT)
        assert ended(running).code == 0


def test_etcd_on_a_port_that_is_taken(etcd: EmbeddedEtcd) -> None:
    """A port that somebody has is an error of one line."""
    done = NOWHERE.run("etcd", "run", "--port", str(etcd.port))
    assert (done.code, done.out) == (10, "")
    assert f"port {etcd.port}" in one_line(done, "EHOSTUNREACH")


def test_an_etcd_that_dies_is_an_error(tmp_path: Path) -> None:
    """When its server ends by itself the command says so."""
    running = NOWHERE.start("etcd", "run", "--port", "0", "--dir", str(tmp_path))
    first_line(running)
    os.kill(child_of(running.pid), signal.SIGKILL)
    done = ended(running)
    assert done.code == 10
    assert "it ended by itself" in done.err


def child_of(pid: int) -> int:
    """The one process that a process has started."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_simulated_host_is_made_and_rebooted(tmp_path: Path) -> None:
    """`sim init` lays a host out as sysfs does, and `sim reboot` gives it another boot id."""
    host = str(tmp_path / "host")
    NOWHERE.ok("sim", "init", host, "--parents", "3", "--type", "a=4", "--type", "b=2")
    parents = tmp_path / "host/sys/class/mdev_bus"
    assert len(list(parents.iterdir())) == 3
    types = sorted(path.name for path in parents.glob("*/mdev_supported_types/*"))
    assert types == ["a"] * 3 + ["b"] * 3
    boot = tmp_path / "host/proc/sys/kernel/random/boot_id"
    before = boot.read_text()
    NOWHERE.ok("sim", "reboot", host)
    assert boot.read_text() != before


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["init", "DIR", "--type", "a"], 8, "TYPE=NUMBER"),
        (["init", "DIR", "--type", "a=x"], 8, "TYPE=NUMBER"),
        (["init", "DIR", "--type", "a/b=1"], 8, "not a type"),
        (["init", "DIR", "--parents", "0"], 8, "0"),
        (["init", "DIR", "--latency", "-1"], 8, "-1"),
        (["reboot", "DIR"], 3, "holds no simulated host"),
        (["hold", "DIR", str(uuid.UUID(int=1))], 3, "holds no simulated host"),
        (["let-go", "DIR", "x"], 8, "not a name"),
    ],
)
def test_a_simulated_host_that_cannot_be(
    tmp_path: Path, args: list[str], code: int, says: str
) -> None:
    """What a simulated host cannot have is said on one line, and nothing is made."""
    host = tmp_path / "host"
    done = in_process("sim", *(str(host) if arg == "DIR" else arg for arg in args))
    assert (done.code, done.out) == (code, "")
    assert says in one_line(done, "EINVAL" if code == 8 else "ENOENT")
    assert not host.exists()


def test_the_demo_does_what_it_says(tmp_path: Path) -> None:
    """The whole story comes to its end, and nothing of it is left."""
    done = NOWHERE.run("demo", TMPDIR=str(tmp_path))
    assert (done.code, done.err) == (0, ""), done.out + done.err
    assert f"All {len(STEPS)} steps did what they said" in done.out
    assert "\x1b" not in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_does_not_do_what_it_says_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """A deviation says what was expected and seen, and everything is gone all the same."""
    directories: list[Path] = []
    with pytest.raises(Deviation, match="expected exit code 4, saw 0"):
        _play_wrongly(directories)
    assert "the last that the agents said" in capfd.readouterr().out
    assert directories
    assert not any(directory.exists() for directory in directories)


def _play_wrongly(directories: list[Path]) -> None:
    with staged() as stage:
        directories += [host.directory for host in stage.hosts.values()]
        stage.run("hosts", expect=4)


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the story ends everything that it has started."""
    playing = NOWHERE.start("demo", TMPDIR=str(tmp_path))
    assert playing.stdout is not None
    for line in playing.stdout:
        if line.startswith("$ mdevns create --type"):
            break
    playing.send_signal(signal.SIGINT)
    done = ended(playing)
    assert done.code == 130
    assert "nothing was left behind" in one_line(done, "EINTR")
    wait_until(lambda: not list(tmp_path.iterdir()))
