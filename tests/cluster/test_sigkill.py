"""A hundred SIGKILLs of agents at random moments of a busy spell of creates and removes."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.creating import Ask, create
from coordinator.errors import HostDown, MdevnsError, NameTaken, NotFound, TryAgain
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Name, random_name
from coordinator.operating import remove
from tests.support import truth
from tests.support.agents import TYPE, AgentProcess, SimulatedHost
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from coordinator.client import Result
    from coordinator.embedded import EmbeddedEtcd

KILLS = 100
HOSTS = ("gpu01", "gpu02")
LATENCY = 0.03  # seconds for which the driver makes a device
NAMES = 96  # so many are created and removed side by side
OVER, SETTLED = 300.0, 60.0  # seconds, for a busy machine


@dataclass
class Spell:
    """A busy spell: who was asked for what, what was answered, and when agents were killed."""

    seed: int
    namespace: str = field(default_factory=lambda: uuid.uuid4().hex)
    over: bool = False
    kills: dict[str, int] = field(default_factory=dict)
    amid: Counter[str] = field(default_factory=Counter)
    """How many of the kills left a claim in which state, or a worker at its write."""
    answers: Counter[str] = field(default_factory=Counter)
    expected: dict[Name, str | None] = field(default_factory=dict)
    """The host on which a name must be, None where it must be free; unknown ones are missing."""
    untrue: list[str] = field(default_factory=list)

    def rng(self, of: str) -> random.Random:
        """A source of randomness that only the seed and its use decide."""
        return random.Random(f"{self.seed} {of}")

    def note(self, what: str, error: MdevnsError | None) -> None:
        """Count an answer."""
        self.answers[f"{what} {'done' if error is None else type(error).__name__}"] += 1

    def killed(self, agent: AgentProcess) -> None:
        """An agent was killed and is not started again yet: what did it leave?"""
        host = agent.host.name
        self.kills[host] = self.kills.get(host, 0) + 1
        seen = truth.look(agent.endpoints[0], self.namespace, {host: agent.host.directory})
        left = {
            claim.state for claims in seen.claims.values() for claim in claims if claim.host == host
        }
        self.amid.update(left | ({"a worker"} if agent.host.workers() else set()))

    def story(self) -> str:
        """What was done, for a failure."""
        answers = dict(sorted(self.answers.items()))
        return (
            f"seed {self.seed}; agents killed: {self.kills}; answers: {answers}; "
            f"kills that left so: {dict(self.amid)}"
        )


@pytest.mark.long
def test_a_hundred_kills_of_agents_leave_nothing_wrong(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """After the last restart names, claims and devices agree, and whoever was answered has it."""
    given = os.environ.get("MDEVNS_TEST_SEED")
    spell = Spell(seed=int(given) if given else random.SystemRandom().getrandbits(32))
    print(spell.story())  # noqa: T201 - shown when the test fails: how to repeat it
    with ExitStack() as stack:
        hosts = [SimulatedHost(tmp_path / name, name, 4, {TYPE: 32}, LATENCY) for name in HOSTS]
        agents = [AgentProcess(host.init(), [etcd.endpoint], spell.namespace) for host in hosts]
        for agent in agents:
            stack.enter_context(agent).start(wait=False)
        for agent in agents:
            agent.wait_enrolled()
        directories = {host.name: host.directory for host in hosts}
        try:
            asyncio.run(_run(spell, agents, etcd.endpoint))
        except TimeoutError:
            truth.look(etcd.endpoint, spell.namespace, directories).assert_sound(spell.story())
            raise
        seen = truth.settled(etcd.endpoint, spell.namespace, directories, SETTLED)
        print(spell.story(), seen.states)  # noqa: T201 - shown when the test fails, or with -s
        seen.assert_sound(spell.story())
        wrong = [*spell.untrue, *_unkept(spell, seen)]
        assert not wrong, "\n".join([*wrong, spell.story()])
        assert sum(spell.kills.values()) == KILLS, spell.story()
        # They were in the midst of it; a hundred kills of an idle agent would prove nothing.
        assert min(spell.amid["creating"], spell.amid["removing"]) > KILLS // 5, spell.story()
        for agent in agents:
            assert agent.terminate() == 0, agent.tail()
            assert not agent.defects(), "\n".join(agent.defects()[:10])


def _unkept(spell: Spell, seen: truth.Truth) -> Iterator[str]:
    """What was answered and is not so."""
    for name, host in spell.expected.items():
        claim, hosts = seen.claim(name), seen.hosts_with(name)
        if host is None and (claim is not None or hosts):
            yield f"{name}: its remove was answered, but {claim} and devices on {hosts}"
        if host is not None and (claim is None or claim.host != host or hosts != [host]):
            yield f"{name}: its create on {host} was answered, but {claim} and devices on {hosts}"


async def _run(spell: Spell, agents: Sequence[AgentProcess], endpoint: str) -> None:
    store = EtcdStore([endpoint])
    rng = spell.rng("client")
    client = Client(store, Keys(spell.namespace), SystemClock(), rng, patience=60)
    try:
        async with asyncio.timeout(OVER), asyncio.TaskGroup() as group:
            for number in range(NAMES):
                group.create_task(_life(spell, client, spell.rng(f"name {number}")))
            async with asyncio.TaskGroup() as killers:
                for agent in agents:
                    killers.create_task(_killer(spell, agent))
            spell.over = True
    finally:
        await client.close()
        await store.close()


# Those who ask.


async def _life(spell: Spell, client: Client, rng: random.Random) -> None:
    """Create a name on any host, remove it, and so on, one thing after the other."""
    name = random_name(rng.getrandbits(128))
    while not spell.over:
        host = rng.choice(HOSTS)
        made = await _create(client, name, host)
        spell.note("create", made.error)
        spell.expected.pop(name, None)
        if made.error is None:
            spell.expected[name] = host
            await _ask_elsewhere(spell, client, name, host)
            if rng.random() < 0.1:
                return  # one that is to stay
        elif not isinstance(made.error, HostDown | NameTaken | TryAgain):
            spell.untrue.append(f"{name}: a create on {host} was told {made.error.line}")
        while not await _remove(spell, client, name) and not spell.over:
            await _after(rng.uniform(0.1, 0.5))  # its host is down, or not through with it


async def _create(client: Client, name: Name, host: str) -> Result:
    ask = Ask(name=name, request=uuid.uuid4().hex, type=TYPE, host=host)
    (made,) = await create(client, [ask], ttl=60)
    return made


async def _ask_elsewhere(spell: Spell, client: Client, name: Name, host: str) -> None:
    """While it is ours, everybody else is refused, and told by whom it is held."""
    (other,) = [each for each in HOSTS if each != host]
    refused = await _create(client, name, other)
    spell.note("create elsewhere", refused.error)
    error = refused.error
    if isinstance(error, HostDown):  # said before the name was looked at
        return
    if not isinstance(error, NameTaken) or error.holder is None or error.holder.host != host:
        spell.untrue.append(f"{name} on {host}: {other} was told {error and error.line}")


async def _remove(spell: Spell, client: Client, name: Name) -> bool:
    """Whether the name is free now, because of us or before."""
    (removed,) = await remove(client, [name])
    spell.note("remove", removed.error)
    if removed.error is None or isinstance(removed.error, NotFound):
        if spell.expected.get(name) is not None and removed.error is not None:
            spell.untrue.append(f"{name}: it was created, and nobody removed it, but is gone")
        spell.expected[name] = None
        return True
    spell.expected.pop(name, None)
    if not isinstance(removed.error, HostDown | TryAgain):
        spell.untrue.append(f"{name}: a remove was told {removed.error.line}")
    return False


# Those who kill.


async def _killer(spell: Spell, agent: AgentProcess) -> None:
    """Kill an agent, start it again, and so on, each time after a random piece of its work.

    Now and then it is killed in the midst of its start, and now and then let live for longer
    than the second for which an agent looks at a device that it has not made before it
    removes that.
    """
    rng = spell.rng(agent.host.name)
    for number in range(KILLS // len(HOSTS)):
        if number % 8 == 3:
            await _after(rng.uniform(0.0, 0.8))
        else:
            await wait_until_async(lambda: agent.enrolled, 60)
            if number % 8 == 7:
                await _after(rng.uniform(2.2, 3.0))
            elif number % 2:
                await _after(rng.uniform(0.0, 0.6))
            else:
                await _after_work(agent, 1 + rng.randrange(1, 25))
        agent.kill()
        spell.killed(agent)
        agent.start(wait=False)
    await wait_until_async(lambda: agent.enrolled, 60)


async def _after(seconds: float) -> None:
    """Until a timer goes off."""
    gone = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, gone.set)
    await gone.wait()


async def _after_work(agent: AgentProcess, lines: int) -> None:
    """Until the agent has logged so many lines, or has nothing to do for a while."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.0
    await wait_until_async(lambda: len(agent.lines()) >= lines or loop.time() > end)
