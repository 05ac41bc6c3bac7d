"""What a run of chaos is about: etcd members, hosts, those who ask, and what an outsider sees.

All of it is labelled as one run's, and gone when the context ends.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from tests.chaos.hosts import Host
from tests.chaos.members import Members
from tests.chaos.orders import Orders, Process
from tests.cli.driver import Cli, Done
from tests.cluster.etcd_containers import etcd_image
from tests.support import truth
from tests.support.agents import TYPE
from tests.support.containers import docker_client, empty_image
from tests.support.etcd_servers import newest_etcd
from tests.support.tls import Authority
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from tests.support.truth import Truth

__all__ = ["HOSTS", "LABEL", "Cluster", "missing"]

HOSTS = ("gpu01", "gpu02", "gpu03")
LABEL = "mdevns.chaos"
NAMESPACE = "chaos"
PARENT = "0000:3b:00.0"  # every host has one of this name
_BACK = 90.0  # seconds in which all is to be well again, on a busy machine
_CLI = "10"  # seconds for which a command that repairs waits for the store


def missing() -> list[str]:
    """What this machine lacks: packets are dropped and disks filled as root only."""
    programs = [one for one in ("nsenter", "iptables", "mount") if shutil.which(one) is None]
    return [*(["root's rights"] if os.geteuid() else []), *programs]


class Cluster:
    """A context manager. `directory` stays when it is `kept`; everything else is taken away."""

    def __init__(self, seed: int, say: Callable[[str], None], *, pace: float = 1.0) -> None:
        self.seed, self.say = seed, say
        self.token = f"chaos-{uuid.uuid4().hex[:8]}"
        self.labels = {LABEL: self.token}
        self.over, self.set_back = threading.Event(), threading.Event()
        """That the run is over; that the store was set back, and is not reconciled yet."""
        self.kept, self.namespace = False, NAMESPACE
        self._pace, self._pool = pace, 0
        self._snapshots: list[Path] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="mdevns-chaos-"))
            stack.callback(self._tidy)
            self.client: Any = stack.enter_context(docker_client())
            stack.callback(self._sweep)
            self._build(stack)
            self.await_well()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _build(self, stack: ExitStack) -> None:
        server = newest_etcd(self.say)
        self.server = str(server)
        image = stack.enter_context(etcd_image(lambda: server.binary))
        empty = stack.enter_context(empty_image())
        self.authority = Authority(self.directory / "tls")
        self.authority.issue("operator")
        self.members = Members(image, self.directory, self.authority, self.labels)
        stack.enter_context(self.members)
        self.hosts = {
            name: Host(name, self.directory, self.authority, self.token) for name in HOSTS
        }
        for host in self.hosts.values():
            stack.callback(host.close)
            host.start(
                self.client,
                empty,
                network=self.members.network,
                endpoints=self.members.inner_endpoints,
                cluster=NAMESPACE,
                labels=self.labels,
            )
        self.turn_pool()
        self.processes = list(self._workload())
        for process in self.processes:
            stack.callback(process.kill)

    def _workload(self) -> Iterator[Process]:
        for role, count, slower in (("operator", 3, 0.6), ("clerk", 1, 3.0), ("prober", 1, 1.5)):
            for number in range(count):
                yield Process(
                    Orders(
                        role=role,
                        process=f"{role}{number}",
                        directory=str(self.directory),
                        endpoints=tuple(self.members.secure_endpoints),
                        cluster=NAMESPACE,
                        tls=str(self.authority.cacert.parent),
                        type=TYPE,
                        parent=PARENT,
                        hosts=HOSTS,
                        seed=self.seed,
                        pace=self._pace * slower,
                    )
                )

    def _sweep(self) -> None:
        """Take away what of this run's is still there, when something else failed to."""
        ours = {"label": f"{LABEL}={self.token}"}
        for container in self.client.containers.list(all=True, filters=ours):
            container.remove(force=True, v=True)
        for network in self.client.networks.list(filters=ours):
            network.remove()

    def _tidy(self) -> None:
        if not self.kept:
            shutil.rmtree(self.directory, ignore_errors=True)

    def keep(self) -> None:
        """Leave the directory when all else goes, with what the members said."""
        self.kept = True
        for index, home in enumerate(self.members.homes):
            home.with_suffix(".log").write_bytes(self.members.log(index))

    # Those who ask.

    def start_work(self) -> None:
        """Let all begin who ask."""
        for process in self.processes:
            process.start()

    def stop_work(self) -> None:
        """Let all be answered what they have asked, and end."""
        for process in self.processes:
            process.ask_to_end()
        for process in self.processes:
            process.stop()

    def turn_pool(self, by: int = 1) -> None:
        """Let those who ask go on to other names."""
        self._pool += by
        fresh = self.directory / "pool.new"
        fresh.write_text(str(self._pool))
        fresh.rename(self.directory / "pool")

    def diaries(self) -> list[Path]:
        """What was asked and told."""
        return sorted(self.directory.glob("*.history"))

    # What an operator does.

    def cli(self, *words: str) -> Done:
        """The command, on this machine."""
        tls = self.authority.cacert.parent
        cli = Cli(",".join(self.members.secure_endpoints), NAMESPACE)
        shown = {"CACERT": "ca.pem", "CERT": "operator.pem", "KEY": "operator.key"}
        more = {f"MDEVNS_{key}": str(tls / file) for key, file in shown.items()}
        return cli.run("--timeout", _CLI, *words, **more)

    def ok(self, *words: str) -> Done:
        """A command that is to succeed."""
        done = self.cli(*words)
        assert done.code == 0, f"mdevns {' '.join(words)}: {done}"
        return done

    @property
    def snapshot(self) -> Path:
        """What was saved the time before the last, if there is such, and of this store."""
        return self._snapshots[0]

    def save(self, *, anew: bool = False) -> None:
        """Save a snapshot of etcd, from which it can be restored later; `anew`: the first."""
        file = self.directory / f"snapshot-{time.time():.3f}.db"
        self.members.save(file)
        for old in self._snapshots if anew else self._snapshots[:-1]:
            old.unlink()
        self._snapshots = [file] if anew else [*self._snapshots[-1:], file]

    # What is seen from outside.

    def look(self) -> Truth | None:
        """Names, claims and sessions at one revision; None: no member could tell just now."""
        for endpoint in self.members.answering():
            try:
                return truth.look(endpoint, NAMESPACE, {})
            except grpc.RpcError:
                continue
        return None

    def has_session(self, host: str) -> bool:
        """Whether a host's agent is seen."""
        seen = self.look()
        return seen is not None and host in seen.sessions

    def await_session(self, host: str, *, there: bool) -> None:
        """Wait until a host's agent is seen, or not any more."""
        wait_until(lambda: (seen := self.look()) and (host in seen.sessions) == there, _BACK)

    def is_well(self) -> bool:
        """Whether all members answer and all hosts are seen with all their parents."""
        if not self.members.all_answer() or (seen := self.look()) is None:
            return False
        return seen.sessions.keys() == set(HOSTS) and all(seen.parents[host] for host in HOSTS)

    def await_well(self) -> None:
        """Wait until that is so."""
        wait_until(self.is_well, _BACK)

    def granted(self, since: float) -> set[str]:
        """The hosts that have made a device for somebody who asked after a moment."""
        granted: dict[str, str] = {}
        found: set[str] = set()
        for file in self.directory.glob("prober*.history"):
            for line in file.read_text().split("\n")[:-1]:
                ((what, of),) = json.loads(line).items()
                if what == "asked" and of["verb"] == "create" and of["at"] > since:
                    granted[of["id"]] = of["host"]
                elif what == "told" and of["code"] == 0 and of["id"] in granted:
                    found.add(granted[of["id"]])
        return found

    def await_work(self, since: float) -> None:
        """Wait until every host has made a device for somebody who asked after a moment."""
        wait_until(lambda: self._is_at_work() and self.granted(since) >= set(HOSTS), _BACK)

    def _is_at_work(self) -> bool:
        """One of those who ask that ends by itself is a failure of the run."""
        for process in self.processes:
            assert not process.failed, process.failed
        return True

    def hold(self, seconds: float) -> None:
        """Let it be so for a while, or until all is over."""
        self.over.wait(seconds)

    def all_hosts(self) -> Sequence[Host]:
        """The hosts."""
        return list(self.hosts.values())
