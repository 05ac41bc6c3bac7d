"""Three etcd members and three hosts with real agents, at which faults are aimed.

All that the tests of a stage ever asked for and were told is in one ledger, which is judged
after each of them: what one fault spoilt without a word, the next test finds.
"""

from __future__ import annotations

import random
import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from tests.cli.driver import Cli
from tests.cluster.etcd_containers import ContainerCluster
from tests.support import truth
from tests.support.agents import TYPE, AgentProcess, SimulatedHost
from tests.support.ledger import Ledger
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.workload import Work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from tests.cli.driver import Done

__all__ = ["BRIEF", "HOSTS", "QUOTA", "Stage"]

HOSTS = ("gpu01", "gpu02", "gpu03")
BRIEF = "gpu03"
"""The host whose session lapses soonest."""
QUOTA = 32 << 20  # bytes that a member may store
_TTL = {BRIEF: 8}  # seconds that a session lasts
_LONG_TTL = 60  # seconds, where nothing else is said: no busy machine ends it
_LATENCY = 0.02  # seconds for which a driver makes a device
_PARENTS, _ROOM = 4, 64
_SETTLED = 90.0  # seconds, for a busy machine


class Stage:
    """The cluster, its hosts, and what was asked of them; a context manager."""

    def __init__(self, image: str, directory: Path) -> None:
        self.cluster = ContainerCluster(image, flags=[f"--quota-backend-bytes={QUOTA}"])
        self.namespace = uuid.uuid4().hex
        self.ledger = Ledger()
        self.hosts = {
            name: SimulatedHost(directory / name, name, _PARENTS, {TYPE: _ROOM}, _LATENCY)
            for name in HOSTS
        }
        self.agents: dict[str, AgentProcess] = {}
        self.ways: dict[str, Proxy] = {}
        self.seed = random.SystemRandom().getrandbits(32)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.cluster)
            for name, host in self.hosts.items():
                way = self.ways[name] = stack.enter_context(Proxy(self.cluster.endpoints))
                agent = AgentProcess(
                    host.init(), way.endpoints, self.namespace, session=_TTL.get(name, _LONG_TTL)
                )
                self.agents[name] = stack.enter_context(agent)
                agent.start(wait=False)
            for agent in self.agents.values():
                agent.wait_enrolled()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def cli(self, *args: str) -> Done:
        """What the command answers somebody who knows all members and waits three seconds."""
        cli = Cli(",".join(self.cluster.endpoints), self.namespace)
        return cli.run("--timeout", "3", *args)

    def look(self) -> truth.Truth:
        """What is true now."""
        directories = {name: host.directory for name, host in self.hosts.items()}
        return truth.look(self.cluster.endpoints[0], self.namespace, directories)

    def has_session(self, host: str) -> bool:
        """Whether a host's agent is seen."""
        return host in self.look().sessions

    @contextmanager
    def at_work(self, *hosts: str) -> Iterator[Work]:
        """People at work on these hosts, or all, while a test breaks things.

        At the end all is mended, and goes on; when people are through, everything is judged.
        """
        self.seed += 1
        endpoints = self.cluster.endpoints
        work = Work(
            endpoints,
            self.namespace,
            hosts or HOSTS,
            self.ledger,
            seed=self.seed,
            anywhere=not hosts,
        )
        with work:
            try:
                work.succeeds(10)
                yield work
            finally:
                self._mend()
            work.succeeds(10)
        self.judge()

    def _mend(self) -> None:
        self.cluster.mend()
        for agent in self.agents.values():
            agent.go_on()
        for way in self.ways.values():
            way.let_go()

    def judge(self) -> None:
        """Wait until nothing is under way, and hold what was told and what stands to each other."""
        with suppress(AssertionError):  # what is not well is told below
            wait_until(self._is_well, _SETTLED)
        seen, story = self.look(), f"seed {self.seed}; {self.ledger.story()}"
        seen.assert_sound(story)
        assert not seen.under_way, f"{seen.states}; {story}"
        assert seen.sessions.keys() == set(HOSTS), f"{seen.sessions}; {story}"
        wrong = self.ledger.wrong(seen)
        assert not wrong, "\n".join([f"{len(wrong)} answers are untrue", *wrong, story])
        for agent in self.agents.values():
            assert not agent.defects(), "\n".join(agent.defects()[:10])

    def _is_well(self) -> bool:
        seen = self.look()
        return not seen.under_way and not seen.wrong() and seen.sessions.keys() == set(HOSTS)
