"""Etcd is restored from an older snapshot, or lost: docs/operations.md is followed line by line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from coordinator.embedded import EmbeddedEtcd
from tests.cli.driver import Cli
from tests.support import truth
from tests.support.agents import TYPE, AgentProcess, SimulatedHost
from tests.support.etcd_servers import etcdctl
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from tests.cli.driver import Done

    Completed = subprocess.CompletedProcess[str]

pytestmark = pytest.mark.etcd

ROOT = Path(__file__).parents[2]
DEADLINE = 90.0  # seconds
HOSTS = ("gpu01", "gpu02", "gpu03")
_STOP = (
    "stop every member; keep clients away: start it with --listen-client-urls="
    "https://127.0.0.1:2379 alone, or block port 2379 for other machines"
)
_LOSE = "start every member with an empty data directory; keep clients away, as above"
_LET_IN = (
    "let clients reach etcd: every member with its --listen-client-urls of step 2; "
    "start the agents that do not run"
)
_ENDPOINTS = re.compile(r"export MDEVNS_ENDPOINTS=(\S+) ETCDCTL_ENDPOINTS=\1(?: +#.*)?")
UNSAFE = ["--unsafe-no-fsync"]


def runbook(after: str) -> list[str]:
    """The lines of the code that follows a sentence of the document."""
    text = (ROOT / "docs/operations.md").read_text()
    block = re.search(re.escape(after) + r"[^\n]*\n\n((?:    [^\n]+\n)+)", text)
    assert block is not None, after
    return [line[4:] for line in block[1].splitlines()]


@dataclass
class Disaster:
    """An etcd and three hosts whose agents reach it over ways that can be cut."""

    directory: Path
    cluster: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.etcd = stack.enter_context(EmbeddedEtcd(self.directory / "etcd", extra=UNSAFE))
            self.way = stack.enter_context(Proxy([self.etcd.endpoint]))
            self.hosts = {
                name: SimulatedHost(self.directory / name, name, types={TYPE: 64}).init()
                for name in HOSTS
            }
            self.agents = {
                name: stack.enter_context(AgentProcess(host, self.way.endpoints, self.cluster))
                for name, host in self.hosts.items()
            }
            for agent in self.agents.values():
                agent.start(wait=False)
            for agent in self.agents.values():
                agent.wait_enrolled()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    # What people do.

    def run(self, *args: str) -> Done:
        """What the command answers."""
        return Cli(self.etcd.endpoint, self.cluster).run(*args)

    def ok(self, *args: str) -> str:
        """What it answers when all goes well."""
        done = self.run(*args)
        assert done.code == 0, done
        return done.out

    def create(self, host: str, *more: str, name: str | None = None) -> str:
        """A device on a host."""
        named = [name] if name else []
        out = self.ok("create", *named, "--type", TYPE, "--host", host, "-o", "name", *more)
        return out.strip()

    def define(self, host: str, *more: str) -> str:
        """A persistent name without a device."""
        parent = min(p.name for p in (self._sys(host) / "class/mdev_bus").iterdir())
        place = ("--type", TYPE, "--host", host, "--parent", parent)
        return self.ok("define", *place, "-o", "name", *more).strip()

    def _sys(self, host: str) -> Path:
        return self.hosts[host].directory / "sys"

    def look(self) -> truth.Truth:
        """What is true now, in etcd and in the kernels."""
        places = {name: host.directory for name, host in self.hosts.items()}
        return truth.look(self.etcd.endpoint, self.cluster, places)

    def devices(self) -> dict[str, dict[str, str]]:
        """What the kernels have."""
        return self.look().devices

    # What the document says.

    def follow(self, lines: list[str], **variables: str) -> dict[str, Completed]:
        """Do what each line says, and return what each command answered."""
        acts: dict[str, Callable[[], None]] = {
            _STOP: self._stop,
            "on every member, each with its own name and address:": lambda: None,
            "start every member, with its data in $DATA": self.etcd.restart,
            _LOSE: self._lose,
            _LET_IN: self._let_in,
        }
        answers = {}
        for line in lines:
            if line.startswith("# "):
                acts[line.removeprefix("# ")]()
            elif not _ENDPOINTS.fullmatch(line):  # here each command has them from the start
                answers[line] = self._shell(line, variables)
        return answers

    def _stop(self) -> None:
        self.way.hold()
        self.etcd.stop()
        shutil.move(self.etcd.log.parent / "data", self.directory / "lost")

    def _lose(self) -> None:
        self._stop()
        self.etcd.restart()

    def _let_in(self) -> None:
        self.way.break_off()
        for agent in self.agents.values():
            if not agent.running:
                agent.start(wait=False)

    def _shell(self, line: str, variables: dict[str, str]) -> Completed:
        programs = self.directory / "bin"
        programs.mkdir(exist_ok=True)
        mdevns = programs / "mdevns"
        mdevns.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
        mdevns.chmod(0o755)
        environment = Cli(self.etcd.endpoint, self.cluster).environment(**variables)
        path = os.pathsep.join([str(programs), str(etcdctl().parent), os.environ["PATH"]])
        return subprocess.run(
            ["bash", "-c", line],
            env={**environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    def save(self) -> Path:
        """A snapshot, as the document says."""
        said = re.search(r"(etcdctl snapshot save) FILE", (ROOT / "docs/operations.md").read_text())
        assert said is not None
        file = self.directory / "snapshot.db"
        environment = {"ETCDCTL_ENDPOINTS": self.etcd.endpoint, "ETCDCTL_API": "3"}
        done = self._shell(f"{said[1]} {file}", environment)
        assert done.returncode == 0, done
        return file

    def variables(self, snapshot: Path) -> dict[str, str]:
        """What the document's variables are here."""
        arguments = Path(f"/proc/{self.etcd.pid}/cmdline").read_text().split("\0")
        flags = dict(one.split("=", 1) for one in arguments if "=" in one)
        return {
            "SNAPSHOT": str(snapshot),
            "DATA": str(self.etcd.log.parent / "data"),
            "MEMBER": flags["--name"],
            "MEMBERS": flags["--initial-cluster"],
            "PEER": flags["--initial-advertise-peer-urls"],
            "TOKEN": uuid.uuid4().hex,
        }


@pytest.fixture
def disaster(tmp_path: Path) -> Iterator[Disaster]:
    with Disaster(tmp_path) as running:
        yield running


def test_an_older_snapshot_is_restored_by_the_runbook(disaster: Disaster) -> None:
    """Every live device has its claim again, nothing is removed, and nothing new comes before."""
    kept = {host: disaster.create(host, "--persistent") for host in HOSTS}
    removed, elsewhere = disaster.create("gpu01"), disaster.create("gpu01")
    disaster.agents["gpu01"].kill()  # or it would start what is defined next
    moved = disaster.define("gpu01", "--autostart")
    snapshot = disaster.save()
    variables = disaster.variables(snapshot)

    disaster.ok("move", moved, "--to", "gpu02")
    wait_until(lambda: moved in disaster.devices()["gpu02"], DEADLINE)
    disaster.agents["gpu01"].start()
    disaster.ok("remove", removed)
    disaster.ok("remove", elsewhere)
    disaster.create("gpu03", name=elsewhere)
    new = {host: disaster.create(host, "--persistent") for host in HOSTS}
    defined = disaster.define("gpu02")
    disaster.ok("stop", kept["gpu02"])
    disaster.ok("remove", kept["gpu03"])
    twice = disaster.create("gpu03")
    parent = min(disaster.devices()["gpu03"].values())
    simulated.create(disaster.hosts["gpu02"].directory, parent, TYPE, twice)
    disaster.agents["gpu02"].kill()
    disaster.agents["gpu03"].kill()
    before = disaster.devices()

    lines = runbook("by which agents tell this etcd from the one before:")
    begin = lines.index("mdevns restore begin") + 1
    first = disaster.follow(lines[:begin], **variables)
    assert [done.returncode for done in first.values()] == [0, 0], first
    assert disaster.look().names.keys() == {*kept.values(), removed, elsewhere, moved}
    for host in HOSTS:
        refused = disaster.run("create", "--type", TYPE, "--host", host)
        assert refused.code == 14, refused
    then = disaster.follow(lines[begin:], **variables)
    finish, check = then.values()
    assert finish.returncode == 0, finish
    assert check.returncode == 20, check
    assert "conflict" in check.stdout
    assert twice in check.stdout

    wait_until(lambda: disaster.look().claim(removed) is None, DEADLINE)
    wait_until(lambda: disaster.look().states["defined"] == 3, DEADLINE)
    seen = disaster.look()
    assert seen.devices == before
    two = f"{twice}: a device on "
    assert [line for line in seen.wrong() if not line.startswith(two)] == []
    places = {name: (one.host, one.state) for name in seen.names if (one := seen.claim(name))}
    assert places == {
        kept["gpu01"]: ("gpu01", "active"),
        kept["gpu02"]: ("gpu02", "defined"),
        kept["gpu03"]: ("gpu03", "defined"),
        elsewhere: ("gpu03", "active"),
        moved: ("gpu02", "active"),
        defined: ("gpu02", "defined"),
        twice: (places[twice][0], "active"),
        **{name: (host, "active") for host, name in new.items()},
    }
    for name in (*new.values(), moved):
        claim = Cli(disaster.etcd.endpoint, disaster.cluster).read(
            f"/mdevns/{disaster.cluster}/hosts/{places[name][0]}/claims/{name}"
        )
        assert (claim["persistent"], claim["adopted"]) == (True, False), claim
    assert disaster.create("gpu01") in disaster.devices()["gpu01"]


def test_an_empty_etcd_is_filled_by_the_runbook(disaster: Disaster) -> None:
    """What kernels and journals know is claimed again, and nothing is taken before."""
    active = {host: disaster.create(host, "--persistent") for host in HOSTS}
    defined = disaster.define("gpu02")
    disaster.agents["gpu03"].kill()
    before = disaster.devices()
    lines = runbook("Without a snapshot, on an etcd that is empty:")
    begin = lines.index("mdevns restore begin") + 1
    (begun,) = disaster.follow(lines[:begin]).values()
    assert begun.returncode == 0, begun
    assert disaster.run("reserve").code == 14
    disaster._let_in()  # so that the store knows all hosts: it has none of them
    agents = disaster.agents.values()
    wait_until(lambda: all(one.events("told of the restore") for one in agents), DEADLINE)
    answers = disaster.follow(lines[begin:])
    assert [done.returncode for done in answers.values()] == [0, 0], answers
    seen = disaster.look()
    assert seen.devices == before
    assert seen.wrong() == []
    places = {name: (one.host, one.state) for name in seen.names if (one := seen.claim(name))}
    assert places == {
        defined: ("gpu02", "defined"),
        **{name: (host, "active") for host, name in active.items()},
    }
    assert disaster.create("gpu01") in disaster.devices()["gpu01"]
