"""Two hosts race for the same thousand names while etcd's leader is killed, twice."""

from __future__ import annotations

import asyncio
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.creating import Ask, create
from coordinator.errors import MdevnsError, NameTaken, OutcomeUnknown
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Name, random_name
from coordinator.sequences import batched
from tests.support import truth
from tests.support.agents import TYPE, AgentProcess, SimulatedHost
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from coordinator.client import Result
    from tests.cluster.etcd_containers import Cluster

NAMES = 1000
HOSTS = ("gpu01", "gpu02")
PARENTS, ROOM = 8, NAMES // 8  # whichever host wins more: one alone could take them all
LATENCY = 0.02  # seconds for which the driver makes a device
AT_ONCE, A_REQUEST = 6, 20  # so many requests of so many names does a racer have under way
KILLS = (200, 1100)  # after so many of the 2,000 answers the leader is killed
PATIENCE = 60.0  # seconds, longer than any election
RACED, SETTLED = 120.0, 60.0


@dataclass
class Race:
    """What was asked, what was answered, and what befell the store meanwhile."""

    seed: int
    answers: dict[tuple[str, Name], Result] = field(default_factory=dict)
    raised: list[tuple[str, MdevnsError]] = field(default_factory=list)
    killed: list[tuple[int, int]] = field(default_factory=list)

    def told(self, host: str, result: Result) -> None:
        """An answer came."""
        assert (host, result.name) not in self.answers, f"{host} was told twice: {result}"
        self.answers[host, result.name] = result

    def of(self, name: Name) -> dict[str, Result]:
        """The answers to all who asked for a name."""
        return {host: self.answers[host, name] for host in HOSTS if (host, name) in self.answers}

    def story(self) -> str:
        """What was done, for a failure."""
        kinds: dict[str, int] = {}
        for (host, _), result in list(self.answers.items()):
            kind = "done" if result.error is None else type(result.error).__name__
            kinds[f"{host} {kind}"] = kinds.get(f"{host} {kind}", 0) + 1
        kills = ", ".join(f"etcd{member} after {count} answers" for member, count in self.killed)
        return f"seed {self.seed}; leaders killed: {kills}; answers: {dict(sorted(kinds.items()))}"


@pytest.mark.long
def test_two_hosts_race_for_a_thousand_names_while_the_leader_is_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Each name ends with one claim and one device, and each loser is told by whom it is held."""
    namespace = uuid.uuid4().hex
    race = Race(seed=random.SystemRandom().getrandbits(32))
    rng = random.Random(race.seed)
    names = [random_name(rng.getrandbits(128)) for _ in range(NAMES)]
    with ExitStack() as stack:
        hosts = [
            SimulatedHost(tmp_path / name, name, PARENTS, {TYPE: ROOM}, LATENCY).init()
            for name in HOSTS
        ]
        agents = [AgentProcess(host, cluster.endpoints, namespace) for host in hosts]
        for agent in agents:
            stack.enter_context(agent).start(wait=False)
        for agent in agents:
            agent.wait_enrolled()
        with ThreadPoolExecutor(1) as pool:
            racing = pool.submit(asyncio.run, _run(race, names, cluster, namespace))
            _kill_leaders(race, cluster, racing)
            racing.result()
        directories = {host.name: host.directory for host in hosts}
        seen = truth.settled(cluster.endpoints[0], namespace, directories, SETTLED)
        print(race.story())  # noqa: T201 - shown when the test fails, or with -s
        seen.assert_sound(race.story())
        _assert_told_the_truth(race, names, seen)
        for agent in agents:
            assert agent.terminate() == 0, agent.tail()
            assert not agent.defects(), agent.tail()


def _kill_leaders(race: Race, cluster: Cluster, racing: Future[None]) -> None:
    """Kill the leader in the midst of it and start it again, once for each of `KILLS`.

    From the main thread: a member that is a local process ends with the thread that started it.
    """
    for count in KILLS:
        wait_until(lambda count=count: racing.done() or len(race.answers) >= count, RACED)  # type: ignore[misc]  # mypy knows no defaults of lambdas
        leader = cluster.leader()
        race.killed.append((leader, len(race.answers)))
        cluster.kill(leader)
        assert cluster.leader() != leader, race.story()
        cluster.start(leader)


def _assert_told_the_truth(race: Race, names: Sequence[Name], seen: truth.Truth) -> None:
    """Everybody was answered, nobody untruly, and the count is exact."""
    story = race.story()
    assert not race.raised, f"{race.raised}; {story}"
    wrong = [line for name in names for line in _untrue(race, name, seen)]
    assert not wrong, "\n".join([*wrong[:50], story])
    devices = sum(len(devices) for devices in seen.devices.values())
    counts = (len(seen.names), len(seen.claims), devices)
    assert counts == (NAMES, NAMES, NAMES), f"names, claims, devices: {counts}; {story}"
    assert seen.states == {"active": NAMES}, f"{seen.states}; {story}"
    assert len(race.killed) == len(KILLS), story


def _untrue(race: Race, name: Name, seen: truth.Truth) -> Iterator[str]:
    """What was answered about a name and is not so."""
    answers = race.of(name)
    if len(answers) < len(HOSTS):
        yield f"{name}: only {list(answers)} were answered"
    for host, result in answers.items():
        error = result.error
        if error is None:
            yield from _not_made(name, host, seen)
        elif isinstance(error, NameTaken):
            yield from _not_held(name, host, error, seen)
        elif not isinstance(error, OutcomeUnknown):  # which says of itself that it does not know
            yield f"{name}: {host} was told {error.line}"


def _not_made(name: Name, host: str, seen: truth.Truth) -> Iterator[str]:
    """What is wrong with the answer that a host has the device."""
    claim, hosts = seen.claim(name), seen.hosts_with(name)
    if claim is None or (claim.host, claim.state) != (host, "active"):
        yield f"{name}: {host} was told that it has it, but {claim}"
    if hosts != [host]:
        yield f"{name}: {host} was told that it has it, but the devices are on {hosts}"


def _not_held(name: Name, host: str, error: NameTaken, seen: truth.Truth) -> Iterator[str]:
    """What is wrong with the answer that somebody else has the name."""
    claim, holder = seen.claim(name), error.holder
    if (error.errno, error.exit_code) != ("EEXIST", 4):
        yield f"{name}: {host} was told {error.errno}, exit {error.exit_code}"
    if (
        claim is None
        or holder is None
        or claim.host == host
        or (holder.host, holder.parent) != (claim.host, claim.parent)
    ):
        yield f"{name}: {host} was told that it is held by {holder}, but {claim}"


async def _run(race: Race, names: Sequence[Name], cluster: Cluster, namespace: str) -> None:
    """Let two racers ask, each for all names and for its own host."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(_client(cluster, namespace, race.seed + index))
            for index in range(len(HOSTS))
        ]
        async with asyncio.TaskGroup() as group:
            for host, client in zip(HOSTS, clients, strict=True):
                group.create_task(_racer(race, client, host, names))


@asynccontextmanager
async def _client(cluster: Cluster, namespace: str, seed: int) -> AsyncIterator[Client]:
    store = EtcdStore(cluster.endpoints)
    rng = random.Random(seed)
    client = Client(store, Keys(namespace), SystemClock(), rng, patience=PATIENCE)
    try:
        yield client
    finally:
        await client.close()
        await store.close()


async def _racer(race: Race, client: Client, host: str, names: Sequence[Name]) -> None:
    """Ask for all names, in an order of one's own, some requests side by side."""
    order = list(names)
    random.Random(f"{race.seed} {host}").shuffle(order)
    requests = batched(order, A_REQUEST)

    async def ask() -> None:
        for some in requests:
            request = uuid.uuid4().hex
            asks = [Ask(name=name, request=request, type=TYPE, host=host) for name in some]
            try:
                await create(client, asks, ttl=60, told=lambda result: race.told(host, result))
            except MdevnsError as error:
                race.raised.append((host, error))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(ask())
