"""What the demo plays on: an etcd, simulated hosts with their agents, and real commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agent import simulated
from agent.locks import names_in_flight
from cli.ending import deferred
from coordinator.embedded import NOT_FOR_PRODUCTION, EmbeddedEtcd, wait_until
from coordinator.errors import MdevnsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["HOSTS", "PARENTS", "TYPE", "Deviation", "Stage", "staged"]

HOSTS = ("gpu01", "gpu02", "gpu03")
TYPE, PARENTS, CAPACITY = "nvidia-35", 4, 16
LATENCY = 0.1  # seconds that a driver takes for a device
PATIENCE = 20.0  # seconds for what takes a fraction of one on a quiet machine
END = 25.0  # seconds between SIGTERM and SIGKILL; an agent lets the kernel finish first
_OURS = re.compile("MDEVNS_(?!TEST_)")  # in the environment, but for what marks a test's processes
_MDEVNS = (sys.executable, "-m", "cli")


class Deviation(MdevnsError):
    """A step did not do what it says."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__("demo", f"expected {expected}, saw {seen}")


@dataclass(slots=True)
class Host:
    """A simulated host and its agent."""

    name: str
    directory: Path
    session_ttl: int = 10
    agent: subprocess.Popen[str] | None = None

    @property
    def bus(self) -> Path:
        """Where the host's kernel shows its devices."""
        return self.directory / "sys/bus/mdev/devices"

    def devices(self) -> set[str]:
        """The devices that the host's kernel has."""
        return {path.name for path in self.bus.iterdir()}

    def parent_of(self, name: str) -> str | None:
        """The parent of a device, None when it is not there."""
        device = self.bus / name
        return device.resolve().parent.name if device.exists() else None


class Stage:
    """The demo's cluster, and the means to tell its story."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self._endpoint, self._began = endpoint, time.monotonic()
        self._colour = sys.stdout.isatty()
        self._started: list[subprocess.Popen[str]] = []
        self.hosts = {name: Host(name, directory / name) for name in HOSTS}
        # It will be evicted, once its session has lapsed.
        self.hosts["gpu03"].session_ttl = 3

    # Telling.

    @property
    def seconds(self) -> float:
        """How long it has taken up to here."""
        return time.monotonic() - self._began

    def title(self, text: str) -> None:
        """Head a step."""
        self._print(f"\n{text}", "1")

    def say(self, text: str) -> None:
        """Say what happens, or what was seen to be so."""
        self._print(text, "2" if text.startswith("#") else "")

    def _print(self, text: str, style: str) -> None:
        sys.stdout.write(f"\x1b[{style}m{text}\x1b[0m\n" if self._colour and style else f"{text}\n")
        sys.stdout.flush()

    # Commands.

    def run(self, *args: str, expect: int = 0, only_count: bool = False) -> str:
        """Run a command and show it with all it says; returns that.

        With `only_count` its answer is long, so the number of its lines is shown instead, and
        what it says on stderr goes there, progress and all.

        Raises:
            Deviation: it exits with another code than `expect`.
        """
        self.show_command(*args)
        command = self._spawn(*args, stderr=None if only_count else subprocess.STDOUT)
        answer = command.communicate()[0].rstrip()
        self.say(f"({len(answer.splitlines())} lines)" if only_count else answer or "(no output)")
        self.exited(command.returncode, expect)
        return answer

    def show_command(self, *args: str) -> None:
        """Show a command as somebody would type it."""
        self._print(f"$ mdevns {shlex.join(args)}", "36")

    def exited(self, code: int, expect: int) -> None:
        """Raise Deviation when a command exited with another code than expected."""
        if code != expect:
            raise Deviation(f"exit code {expect}", f"{code}")
        if code:
            self.say(f"# exit code {code}")

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command whose answer comes later."""
        self.show_command(*args)
        return self._spawn(*args, stderr=subprocess.STDOUT)

    def ask(self, *args: str) -> Any:
        """What a command answers in JSON, without a word of it; None when it fails."""
        command = self._spawn(*args, "-o", "json", stderr=subprocess.DEVNULL)
        answer = command.communicate()[0]
        return json.loads(answer) if command.returncode == 0 else None

    def state(self, name: str) -> str | None:
        """The state of a name; None when nobody holds it."""
        claim = self.ask("show", name)
        return claim and str(claim["state"])

    def held_by(self, host: Host) -> list[str]:
        """The names that a host holds."""
        return [claim["name"] for claim in self.ask("list", "--host", host.name) or ()]

    def is_alive(self, host: Host) -> bool:
        """Whether the cluster sees the host's agent."""
        views = self.ask("hosts") or ()
        return any(view["host"] == host.name and view["session"] == "alive" for view in views)

    def _spawn(
        self,
        *args: str,
        stderr: IO[bytes] | int | None,
        stdout: IO[bytes] | int = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> subprocess.Popen[str]:
        with deferred():
            command = subprocess.Popen(  # noqa: S603 - our own commands, no shell
                (*_MDEVNS, *args),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=start_new_session,
            )
            self._started.append(command)
        return command

    @property
    def environment(self) -> dict[str, str]:
        """Ours, with nothing of this machine's own configuration."""
        others = {k: v for k, v in os.environ.items() if not _OURS.match(k)}
        return {**others, "MDEVNS_ENDPOINTS": self._endpoint, "MDEVNS_CONFIG": os.devnull}

    # What must be so.

    def must(self, true: bool, expected: str, seen: object) -> None:  # noqa: FBT001 - as assert
        """Raise Deviation unless it is so; say that it is."""
        if not true:
            raise Deviation(expected, str(seen))
        self.say(f"# {expected}: yes")

    def wait_for(self, condition: Callable[[], bool], expected: str) -> None:
        """Wait until it is so, or raise Deviation."""
        if not wait_until(condition, PATIENCE):
            raise Deviation(expected, f"nothing of it in {PATIENCE:g} s")

    # Hosts.

    def boot_agent(self, host: Host) -> None:
        """Start a host's agent; it is there when the cluster sees it."""
        with (host.directory / "agent.log").open("ab") as log:
            host.agent = self._spawn(
                *("agent", "--host", host.name, "--bus", f"sim:{host.directory}"),
                *("--session-ttl", str(host.session_ttl)),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop our agents ourselves
            )

    def wait_for_agents(self) -> None:
        """Wait until all agents are seen, and what their parents have."""

        def seen() -> bool:
            alive = {h["host"] for h in self.ask("hosts") or () if h["session"] == "alive"}
            parents = self.ask("parents") or ()
            return alive == set(HOSTS) and len(parents) == PARENTS * len(HOSTS)

        self.wait_for(seen, "all agents enrolled")

    def end_agent(self, host: Host, number: signal.Signals) -> None:
        """Send an agent a signal that ends it, and wait until it has."""
        if host.agent is None:
            return
        host.agent.send_signal(number)
        try:
            host.agent.wait(END)
        except subprocess.TimeoutExpired:
            host.agent.kill()
            host.agent.wait()

    def clear(self) -> None:
        """End all commands and agents, and wait for what these had begun in the kernel."""
        agents = [host.agent for host in self.hosts.values()]
        for command in self._started:
            if command not in agents and command.poll() is None:
                command.kill()
                command.wait()
        for host in self.hosts.values():
            if host.agent is not None:
                host.agent.terminate()
        for host in self.hosts.values():
            self.end_agent(host, signal.SIGTERM)
            run = host.directory / "run"
            wait_until(lambda run=run: not names_in_flight(run), END)  # type: ignore[misc]  # bound now

    def last_words(self) -> str:
        """The ends of the agents' logs, for a step that went wrong."""
        logs = [host.directory / "agent.log" for host in self.hosts.values()]
        ends = [log.read_text().splitlines()[-4:] for log in logs if log.exists()]
        return "\n".join(line for end in ends for line in end)

    def hand_over(self) -> None:
        """Say what can be typed now."""
        self.title("It all keeps running until Ctrl-C. In another terminal:")
        if shutil.which("mdevns") is None:
            self.say(f"  alias mdevns={shlex.quote(shlex.join(_MDEVNS))}")
        gpu01 = self.hosts["gpu01"]
        for line in (
            f"export MDEVNS_ENDPOINTS={self._endpoint}",
            "mdevns hosts",
            "mdevns list",
            f"mdevns create --type {TYPE} --host gpu01",
            f"ls {gpu01.bus}",
            f"mdevns sim hold {gpu01.directory} NAME   # a VM opens it; then: mdevns remove NAME",
        ):
            self.say(f"  {line}")


@contextmanager
def staged() -> Iterator[Stage]:
    """A cluster for the demo; nothing of it is left afterwards, whatever happens."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="mdevns-demo-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        etcd = stack.enter_context(EmbeddedEtcd())
        stage = Stage(directory, etcd.endpoint)
        stage.title("An etcd and three simulated hosts with their agents, on this machine alone")
        stage.say(f"# {NOT_FOR_PRODUCTION}")
        stack.callback(stage.clear)
        for host in stage.hosts.values():
            simulated.init(host.directory, PARENTS, {TYPE: CAPACITY}, LATENCY)
            stage.boot_agent(host)
        stage.wait_for_agents()
        try:
            yield stage
        except Deviation:
            stage.say(f"# the last that the agents said:\n{stage.last_words()}")
            raise
