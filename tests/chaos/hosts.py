"""A GPU host in a container: a simulated kernel, and an agent that is started again when it dies.

The container's first process does what systemd does on a real host: it starts the agent, again
whenever that ends, and takes care of workers that outlive it. So an agent is killed alone, a
host is paused or loses power as a whole, and anybody can look at its devices with `ls`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import simulated
from tests.chaos.members import LIFE, SECURE
from tests.support.agents import TYPE
from tests.support.containers import ROOT, mounted
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.support.tls import Authority

__all__ = ["TTL", "Host"]

TTL = 4  # seconds that a session lasts
PARENTS, ROOM = 4, 64
LATENCY = 0.05  # seconds for which a driver makes a device
_SOON = 30.0  # seconds, for a busy machine
_SUPERVISE = 'while :; do python -m cli agent "$@" >>"$LOG" 2>&1; sleep 0.3; done'


class Host:
    """One host. What Docker calls it begins with `prefix`; `close` takes it away."""

    def __init__(self, name: str, directory: Path, authority: Authority, prefix: str) -> None:
        self.name, self.directory = name, directory / name
        self.authority = authority
        self.log = directory / f"{name}.log"
        self._prefix = prefix
        self._container: Any = None

    def start(
        self,
        client: Any,
        image: str,
        *,
        network: str,
        endpoints: Sequence[str],
        cluster: str,
        labels: Mapping[str, str],
    ) -> None:
        """Make its kernel and its container, and let its agent begin."""
        simulated.init(self.directory, PARENTS, {TYPE: ROOM}, LATENCY)
        self.certify()
        tls = self.authority.cacert.parent
        volumes = {str(path): {"bind": str(path), "mode": "ro"} for path in [*mounted(), tls]}
        volumes[str(self.log.parent)] = {"bind": str(self.log.parent), "mode": "rw"}
        self._container = client.containers.create(
            image,
            ["bash", "-c", _SUPERVISE, "agent", *self._flags()],
            name=f"{self._prefix}-{self.name}",
            hostname=self.name,
            network=network,
            volumes=volumes,
            environment=self._environment(endpoints, cluster),
            working_dir=str(ROOT),
            labels=dict(labels),
        )
        self._container.start()

    def _flags(self) -> list[str]:
        return [
            *("--host", self.name, "--bus", f"sim:{self.directory}"),
            *("--session-ttl", str(TTL)),
        ]

    def _environment(self, endpoints: Sequence[str], cluster: str) -> dict[str, str]:
        programs = Path(sys.executable).parent
        return {
            "PATH": f"{programs}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LOG": str(self.log),
            "MDEVNS_CONFIG": os.devnull,
            "MDEVNS_ENDPOINTS": ",".join(endpoints),
            "MDEVNS_CLUSTER": cluster,
            "MDEVNS_CACERT": str(self.authority.cacert),
            "MDEVNS_CERT": str(self.authority.cacert.with_name(f"{self.name}.pem")),
            "MDEVNS_KEY": str(self.authority.cacert.with_name(f"{self.name}.key")),
        }

    def certify(self, until: datetime | None = None) -> None:
        """Put a new certificate of its agent in place; it is shown with the next connection."""
        self.authority.issue(self.name, until=until or datetime.now(UTC) + LIFE)

    def certify_for(self, seconds: float) -> None:
        """One that is good for so long only."""
        self.certify(datetime.now(UTC) + timedelta(seconds=seconds))

    def close(self) -> None:
        """Take its container away."""
        if self._container is not None:
            self._container.remove(force=True, v=True)

    # What befalls it.

    def kill_agent(self) -> None:
        """SIGKILL to the agent alone: what its workers have begun goes on."""
        os.kill(self._agent(), signal.SIGKILL)

    def stop_agent(self) -> None:
        """SIGSTOP to the agent alone: its workers go on."""
        os.kill(self._agent(), signal.SIGSTOP)

    def let_agent_go_on(self) -> None:
        """SIGCONT."""
        os.kill(self._agent(), signal.SIGCONT)

    def _agent(self) -> int:
        """The agent's process; waits for one that is just being started."""
        return wait_until(self._find_agent, _SOON)

    def _find_agent(self) -> int:
        first = self._pid()
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in map(int, children):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[1:4] == [b"-m", b"cli", b"agent"]:
                return pid
        return 0

    def _pid(self) -> int:
        self._container.reload()
        return int(self._container.attrs["State"]["Pid"])

    def pause(self) -> None:
        """Stop the time of all its processes."""
        self._container.pause()

    def unpause(self) -> None:
        """Let them go on."""
        self._container.unpause()

    def power_off(self) -> None:
        """All its processes end at once, and its devices are gone: the machine has no power."""
        self._container.kill()
        self._container.wait()
        simulated.reboot(self.directory)

    def power_on(self) -> None:
        """The machine boots."""
        self._container.start()

    def cut(self, *ways: str, member: str | None = None) -> None:
        """Lose what it says (`out`) or hears (`in`), of one member's address or all."""
        for way in ways:
            chain, port, end = ("OUTPUT", "--dport", "-d") if way == "out" else _INPUT
            only = [] if member is None else [end, member]
            self._iptables("-A", chain, "-p", "tcp", port, str(SECURE), *only, "-j", "DROP")

    def reset(self) -> None:
        """Break its connections to all members off; none is made until `connect`."""
        rule = ["-p", "tcp", "--dport", str(SECURE), "-j", "REJECT", "--reject-with", "tcp-reset"]
        self._iptables("-A", "OUTPUT", *rule)

    def connect(self) -> None:
        """Let all packets through again."""
        self._iptables("-F")

    def _iptables(self, *arguments: str) -> None:
        inside = ["nsenter", "--target", str(self._pid()), "--net", "iptables", "--wait"]
        subprocess.run([*inside, *arguments], check=True, capture_output=True, text=True)

    # What is seen of it from outside.

    def defects(self) -> list[str]:
        """Lines of its agent's log that tell of a defect of ours.

        That the store was set back is an error too, and none of ours: `restore` is a fault here.
        """
        lines = self.log.read_text(errors="replace").splitlines()
        wrong = [line for line in lines if "Traceback" in line or '"level": "error"' in line]
        return [line for line in wrong if '"event": "the store was set back"' not in line]


_INPUT = ("INPUT", "--sport", "-s")
