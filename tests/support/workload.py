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
_TIMEOUT, _PATIENCE = 3.0, 1.0  # seconds: short, so that some are told that it is not known
_BEGIN_WITHIN, _RESERVED = 6, 600  # seconds
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
    """A context in which people are at work on these hosts; at its end all know what stands.

    With `anywhere` some of what they ask for is placed, which may be on any host.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        namespace: str,
        hosts: Sequence[str],
        ledger: Ledger,
        *,
        seed: int,
        anywhere: bool,
    ) -> None:
        self._endpoints, self._namespace = list(endpoints), namespace
        self.hosts: list[str] = list(hosts)
        self.places = [*self.hosts, None] if anywhere else self.hosts
        self._ledger, self._seed = ledger, seed
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
        owed: list[_Name] = []  # whose host is away: other work goes on meanwhile
        while not self._over:
            one = _Name(self, client, rng)
            self._asking.add(one.name)
            if await one.is_to_stay() or await one.is_given_back():
                self._asking.discard(one.name)
            else:
                owed.append(one)
        for one in owed:
            while not await one.is_given_back():
                await _after(_PAUSE)
            self._asking.discard(one.name)

    def may_stay(self) -> bool:
        """Whether one more device may be left standing."""
        self._left -= 1
        return self._left >= 0

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
        self._gives_back: tuple[Verb, ...] = (Verb.REMOVE,)

    async def is_to_stay(self) -> bool:
        """Ask for it, now and then by a reservation first; whether a device is left standing."""
        if self._rng.random() < 0.25:
            self._gives_back = (Verb.REMOVE, Verb.RELEASE)
            if (await self._reserve()).code != Exit.DONE or self._rng.random() < 0.5:
                return False
        if (await self._create(self._rng.choice(self._work.places), self.request)).code:
            await _after(_PAUSE)
            return False
        if self._rng.random() < 0.3:
            await self._create(self._rng.choice(self._work.hosts), uuid.uuid4().hex)
        return self._rng.random() < 0.2 and self._work.may_stay()

    async def is_given_back(self) -> bool:
        """Ask for it to be gone: as a device, and as what is only reserved."""
        for verb in self._gives_back:
            if (await self._free(verb)).code in (Exit.DONE, Exit.NOT_FOUND):
                return True
        await _after(_PAUSE)
        return False

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

    async def _free(self, verb: Verb) -> Told:
        async def request() -> list[Result]:
            if verb is Verb.REMOVE:
                return await remove(self._client, [self.name])
            return [await reserving.release(self._client, self.name)]

        return await self._work.asks(Asked(verb, self.name), request)


async def _after(seconds: float) -> None:
    """Until a timer goes off."""
    gone = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, gone.set)
    await gone.wait()
