"""People at work in a cluster: they create, reserve, ask elsewhere and remove while things break.

Each asks for one name at a time, again while it is not known what stands, and the ledger keeps
what was answered. They run in a thread, so that a test can break things meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from coordinator import reserving
from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.creating import Ask, create
from coordinator.errors import MdevnsError
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import random_name
from coordinator.operating import remove
from tests.support.agents import TYPE
from tests.support.ledger import Asked, Exit, Told, Verb
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from concurrent.futures import Future
    from typing import Self

    from coordinator.client import Result
    from coordinator.model import Name
    from tests.support.ledger import Ledger

__all__ = ["Work"]

_PEOPLE = 8
_TIMEOUT, _PATIENCE = 4.0, 2.0  # seconds: short, so that some are told that it is not known
_BEGIN_WITHIN, _RESERVED = 8, 600  # seconds
_PAUSE = 0.1  # seconds before what did not go is asked again
_STAY = 12  # so many devices are left standing by each `Work`
_DEADLINE = 60.0  # seconds, for a busy machine


def _told(result: Result) -> Told:
    """An answer as the command line would give it."""
    if result.error is not None:
        return _refused(result.error)
    record = result.record
    return Told(Exit.DONE, host=record.holder.host if record else None)


def _refused(error: MdevnsError) -> Told:
    holder = error.holder
    host, state = (holder.host, holder.state) if holder else (None, None)
    return Told(error.exit_code, error.line, host, state)


class Work:
    """A context in which people are at work on these hosts; at its end all know what stands."""

    def __init__(
        self,
        endpoints: Sequence[str],
        namespace: str,
        hosts: Sequence[str],
        ledger: Ledger,
        seed: int,
    ) -> None:
        self._endpoints, self._namespace = list(endpoints), namespace
        self._hosts, self._ledger, self._seed = list(hosts), ledger, seed
        self._over = False
        self._asking: set[str] = set()
        self._left = _STAY
        self._pool = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def succeeds(self, count: int, *verbs: Verb) -> None:
        """Wait until so many more requests (of these verbs, or any) were answered as done."""
        enough = self._ledger.count(Exit.DONE, *verbs) + count
        self._until(lambda: self._ledger.count(Exit.DONE, *verbs) >= enough)

    def is_told(self, *codes: Exit) -> None:
        """Wait until somebody more was answered with one of these exit codes."""
        before = sum(self._ledger.count(code) for code in codes)
        self._until(lambda: sum(self._ledger.count(code) for code in codes) > before)

    def _until(self, condition: Callable[[], bool]) -> None:
        running = self._running
        assert running is not None
        try:
            wait_until(lambda: condition() or running.done(), _DEADLINE)
        except AssertionError as error:
            raise AssertionError(f"{error}; so far: {self._ledger.story()}") from None
        assert condition(), running.exception()

    def __enter__(self) -> Self:
        self._running = self._pool.submit(asyncio.run, self._run())
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        assert self._running is not None
        with self._pool:
            try:
                self._running.result(_DEADLINE)
            except TimeoutError:
                self._give_up()
                raise AssertionError(f"still not settled: {self._unsettled()}") from None

    def _give_up(self) -> None:
        loop, task = self._main
        loop.call_soon_threadsafe(task.cancel)

    def _unsettled(self) -> str:
        last = {name: self._ledger.history.get(name, [])[-2:] for name in self._asking}
        return "\n".join(f"{name}: {answers}" for name, answers in last.items())

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._main = asyncio.get_running_loop(), task
        rng = random.Random(self._seed)
        async with AsyncExitStack() as stack:
            clients = []
            # Each prefers another member, as users of a cluster do.
            for turn in range(len(self._endpoints)):
                endpoints = self._endpoints[turn:] + self._endpoints[:turn]
                clients.append(await stack.enter_async_context(self._client(endpoints, rng)))
            async with asyncio.TaskGroup() as group:
                for number in range(_PEOPLE):
                    client = clients[number % len(clients)]
                    group.create_task(self._live(client, random.Random(rng.getrandbits(64))))

    @asynccontextmanager
    async def _client(self, endpoints: Sequence[str], rng: random.Random) -> AsyncIterator[Client]:
        store = EtcdStore(endpoints, timeout=_TIMEOUT)
        client = Client(store, Keys(self._namespace), SystemClock(), rng, patience=_PATIENCE)
        try:
            yield client
        finally:
            await client.close()
            await store.close()

    async def _live(self, client: Client, rng: random.Random) -> None:
        while not self._over:
            one = _Name(self, client, rng)
            self._asking.add(one.name)
            await one.live()
            self._asking.discard(one.name)

    def may_stay(self) -> bool:
        """Whether one more device may be left standing."""
        self._left -= 1
        return self._left >= 0

    @property
    def hosts(self) -> list[str]:
        """The hosts that are asked for."""
        return self._hosts

    async def asks(self, asked: Asked, request: Callable[[], Awaitable[list[Result]]]) -> Told:
        """Ask, and once more as long as it is not known what stands."""
        while True:
            try:
                (result,) = await request()
                answer = _told(result)
            except MdevnsError as error:
                answer = _refused(error)
            self._ledger.told(asked, answer)
            if answer.code == Exit.DONE or self._ledger.is_settled(asked.name):
                return answer
            await _after(_PAUSE)


class _Name:
    """One name, and what somebody does with it from its first request to its last."""

    def __init__(self, work: Work, client: Client, rng: random.Random) -> None:
        self._work, self._client, self._rng = work, client, rng
        self.name: Name = random_name(rng.getrandbits(128))
        self.request = uuid.UUID(int=rng.getrandbits(128)).hex

    async def live(self) -> None:
        if self._rng.random() < 0.25:
            if (await self._reserve()).code != Exit.DONE:
                await _after(_PAUSE)
                return
            if self._rng.random() < 0.5:
                await self._until_free(Verb.RELEASE)
                return
        host = self._rng.choice([*self._work.hosts, None])
        if (await self._create(host, self.request)).code != Exit.DONE:
            await _after(_PAUSE)
        elif self._rng.random() < 0.3:
            await self._create(self._rng.choice(self._work.hosts), uuid.uuid4().hex)
        if self._rng.random() > 0.2 or not self._work.may_stay():
            await self._until_free(Verb.REMOVE)

    async def _reserve(self) -> Told:
        return await self._work.asks(
            Asked(Verb.RESERVE, self.name, self.request),
            lambda: reserving.reserve(
                self._client, [self.name], request=self.request, ttl=_RESERVED
            ),
        )

    async def _create(self, host: str | None, request: str) -> Told:
        ask = Ask(name=self.name, request=request, type=TYPE, host=host)
        return await self._work.asks(
            Asked(Verb.CREATE, self.name, request, host),
            lambda: create(self._client, [ask], ttl=_BEGIN_WITHIN),
        )

    async def _until_free(self, verb: Verb) -> None:
        """Ask until it is gone: its host may be away for long, or be making it still."""

        async def request() -> list[Result]:
            if verb is Verb.REMOVE:
                return await remove(self._client, [self.name])
            return [await reserving.release(self._client, self.name)]

        while (await self._work.asks(Asked(verb, self.name), request)).code not in (
            Exit.DONE,
            Exit.NOT_FOUND,
        ):
            await _after(_PAUSE)


async def _after(seconds: float) -> None:
    """Until a timer goes off."""
    gone = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, gone.set)
    await gone.wait()
