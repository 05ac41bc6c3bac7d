"""A process of the workload: people and programs who ask for the same names, all over the cluster.

`python -m tests.chaos.operators ORDERS`: an operator with the library, a clerk with the command
line, or a prober who asks each host for a new name again and again.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
from typing import TYPE_CHECKING

from coordinator import defining, operating, reserving
from coordinator.claims import Hold
from coordinator.client import Client, Result
from coordinator.clock import SystemClock
from coordinator.creating import Ask, create
from coordinator.errors import MdevnsError, NotFound, SetBack
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import Claim, Name, Wish, random_name
from tests.chaos.clerk import Clerk
from tests.chaos.history import Diary, Told, Verb
from tests.chaos.orders import Orders, pool_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.chaos.history import Asked

__all__ = ["main"]

_TIMEOUT, _PATIENCE = 3.0, 2.0  # seconds: short, so that some are told that it is not known
_BEGIN_WITHIN, _RESERVED = 6, 8  # seconds
# What somebody asks for who has seen in which state a name is; None: it is free.
_SENSIBLE = {
    None: (Verb.CREATE, Verb.CREATE, Verb.RESERVE, Verb.DEFINE),
    "reserved": (Verb.RELEASE,),
    "active": (Verb.REMOVE, Verb.STOP, Verb.STOP, Verb.CREATE),
    "defined": (Verb.START, Verb.START, Verb.MOVE, Verb.UNDEFINE, Verb.REMOVE),
}
_BLINDLY = 0.4  # how often somebody asks without having looked


class Operator:
    """One who asks with the library, one request after the other."""

    def __init__(self, orders: Orders, diary: Diary, rng: random.Random) -> None:
        self.orders, self.diary, self.rng = orders, diary, rng
        self._client = self._connect()

    def _connect(self) -> Client:
        endpoints = list(self.orders.endpoints)
        self.rng.shuffle(endpoints)  # each prefers another member
        self._store = EtcdStore(endpoints, _TIMEOUT, self.rng, self.orders.credentials)
        keys = Keys(self.orders.cluster)
        return Client(self._store, keys, SystemClock(), self.rng, patience=_PATIENCE)

    async def close(self) -> None:
        """Stop asking."""
        await self._client.close()
        await self._store.close()

    async def asks(self, verb: Verb, name: str, host: str | None) -> Told:
        """Ask, and note what is told."""
        asked = self.diary.asks(verb, name, uuid.UUID(int=self.rng.getrandbits(128)).hex, host)
        try:
            told = _told(asked, await self._ask(asked))
        except SetBack as error:  # all that is read before is void: begin anew
            told = _refused(asked, error)
            await self.close()
            self._client = self._connect()
        except MdevnsError as error:
            told = _refused(asked, error)
        self.diary.told(told)
        return told

    async def _ask(self, asked: Asked) -> Result:
        client, name = self._client, Name(asked.name)
        match asked.verb:
            case Verb.CREATE:
                ask = Ask(
                    name=name,
                    request=asked.request,
                    type=self.orders.type,
                    host=asked.host,
                    persistent=self.rng.random() < 0.5,
                )
                return (await create(client, [ask], ttl=_BEGIN_WITHIN))[0]
            case Verb.RESERVE:
                request, ttl = asked.request, _RESERVED
                return (await reserving.reserve(client, [name], request=request, ttl=ttl))[0]
            case Verb.DEFINE:
                parent, type_ = self.orders.parent, self.orders.type
                wish = Wish(host=asked.host or "", parent=parent, type=type_, persistent=True)
                return await defining.define(client, name, wish, request=asked.request)
            case Verb.MOVE:
                return await defining.move(client, name, asked.host or "", None)
            case Verb.SHOW:
                return await self._shown(name)
        return await _SIMPLE[asked.verb](client, name)

    async def _shown(self, name: Name) -> Result:
        record = await self._client.views.find(name)
        if not isinstance(record, Claim | Hold):
            return Result(name, error=NotFound(name, "no such name"))
        return Result(name, record)


async def _remove(client: Client, name: Name) -> Result:
    return (await operating.remove(client, [name]))[0]


async def _stop(client: Client, name: Name) -> Result:
    return (await operating.stop(client, [name]))[0]


async def _start(client: Client, name: Name) -> Result:
    return (await operating.start(client, [name]))[0]


_SIMPLE: dict[Verb, Callable[[Client, Name], Awaitable[Result]]] = {
    Verb.REMOVE: _remove,
    Verb.STOP: _stop,
    Verb.START: _start,
    Verb.RELEASE: reserving.release,
    Verb.UNDEFINE: operating.undefine,
}


def _told(asked: Asked, result: Result) -> Told:
    if result.error is not None:
        return _refused(asked, result.error)
    record = result.record
    if record is None:
        return Told(id=asked.id, code=0, at=time.monotonic())
    holder = record.holder
    return Told(
        id=asked.id,
        code=0,
        at=time.monotonic(),
        held=True,
        host=holder.host or "",
        request=record.request,
        state=holder.state,
    )


def _refused(asked: Asked, error: MdevnsError) -> Told:
    holder = error.holder
    return Told(
        id=asked.id,
        code=error.exit_code,
        at=time.monotonic(),
        held=holder is not None,
        host=holder.host if holder else None,
        state=holder.state if holder else None,
        line=error.line,
    )


async def _operate(orders: Orders, asker: Operator | Clerk, over: asyncio.Event) -> None:
    """Ask this and that for the names of the pool, and give back what is of the one before it."""
    rng, left = asker.rng, set[int]()
    while not over.is_set():
        begun = time.monotonic()
        pool = orders.pool
        old = pool - 2
        names = pool_names(orders.seed, pool, orders.pool_size)
        if old > 0 and old not in left:
            left.add(old)
            await _give_back(orders, asker, old, over)
        name = rng.choice(names)
        verb = await _verb(asker, name)
        await asker.asks(verb, name, _host(orders, verb, rng))
        await _until(over, begun + orders.pace * rng.uniform(0.5, 1.5))


async def _verb(asker: Operator | Clerk, name: str) -> Verb:
    """What to ask for: anything, or what goes well with what stands, as long as that stays."""
    if asker.rng.random() < _BLINDLY:
        return asker.rng.choice(list(Verb))
    shown = await asker.asks(Verb.SHOW, name, None)
    return asker.rng.choice(_SENSIBLE.get(shown.state, (Verb.SHOW,)))


def _host(orders: Orders, verb: Verb, rng: random.Random) -> str | None:
    if verb is Verb.CREATE:
        return rng.choice([*orders.hosts, None])
    return rng.choice(orders.hosts) if verb in (Verb.DEFINE, Verb.MOVE) else None


async def _give_back(
    orders: Orders, asker: Operator | Clerk, pool: int, over: asyncio.Event
) -> None:
    """Remove a part of what is left of a pool; most of the rest is another's part."""
    for name in pool_names(orders.seed, pool, orders.pool_size):
        if asker.rng.random() < 0.5 and not over.is_set():
            await asker.asks(Verb.REMOVE, name, None)


async def _probe(orders: Orders, asker: Operator, over: asyncio.Event, host: str) -> None:
    """Ask one host for a name that nobody else asks for, and give it back, again and again."""
    owed: list[str] = []
    while not over.is_set():
        begun = time.monotonic()
        name = random_name(asker.rng.getrandbits(128))
        await asker.asks(Verb.CREATE, name, host)
        owed.append(name)
        owed = [each for each in owed[:3] if await _stands(asker, each)] + owed[3:]
        await _until(over, begun + orders.pace)


async def _stands(asker: Operator, name: str) -> bool:
    """Whether a name has to be given back once more."""
    return (await asker.asks(Verb.REMOVE, name, None)).code not in (0, 3)


async def _until(over: asyncio.Event, when: float) -> None:
    """Until it is over, or that moment."""
    try:
        async with asyncio.timeout(max(0.0, when - time.monotonic())):
            await over.wait()
    except TimeoutError:
        pass


async def _run(orders: Orders) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), over.set)  # it is closed when all is to end
    rng = random.Random(f"{orders.seed} {orders.process}")
    with Diary(orders.diary, orders.process) as diary:
        if orders.role == "clerk":
            await _operate(orders, Clerk(orders, diary, rng), over)
            return
        asker = Operator(orders, diary, rng)
        try:
            if orders.role == "operator":
                await _operate(orders, asker, over)
            else:
                async with asyncio.TaskGroup() as group:
                    for host in orders.hosts:
                        group.create_task(_probe(orders, asker, over, host))
        finally:
            await asker.close()


def main() -> None:
    """Do as the orders on the command line say."""
    asyncio.run(_run(Orders.from_json(sys.argv[1])))


if __name__ == "__main__":
    main()
