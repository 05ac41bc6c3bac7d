"""What is told of a request whose first copy may have been done, when others moved on since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from coordinator.client import Result
from coordinator.creating import create
from coordinator.defining import define, move, take_over
from coordinator.errors import HostDown, NameTaken, OutcomeUnknown, StoreReadOnly
from coordinator.evicting import evict
from coordinator.operating import remove, start
from coordinator.reserving import renew, reserve
from coordinator.store import Put, Txn
from coordinator.transactions import transaction
from tests.support.desk import HOST, NAME, OTHER, name, wish
from tests.support.faulty import Fate, FaultyStore
from tests.support.scene import TTL, Scene, ask

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from coordinator.client import Client
    from coordinator.errors import MdevnsError
    from coordinator.model import Claim, Name
    from coordinator.transactions import Change

KEPT = wish(parent="p0", persistent=True)


class Doubtful:
    """A cluster of hosts that do something when they are told to, and one client."""

    def __init__(self) -> None:
        self.scene = Scene()
        self.faulty = FaultyStore(self.scene.desk.store, lambda _: Fate.DELIVER)
        self.scene.store = self.faulty
        self.host, self.other = (self.scene.host(host, p0=4) for host in (HOST, OTHER))
        self.scene.hosts.clear()

    def lose(self, meanwhile: Callable[[], object], fate: Fate = Fate.LOSE_ANSWER) -> None:
        """Lose the answer to the next change; others act before it is asked again."""
        sent: list[Txn] = []

        def decide(txn: Txn) -> Fate:
            if not any(isinstance(op, Txn) for op in txn.success):
                return Fate.DELIVER  # it reads
            sent.append(txn)
            if len(sent) == 1:
                return fate
            if sent[1:] == sent[:1]:
                meanwhile()
            return Fate.DELIVER

        self.faulty.decide = decide

    def run(self, work: Callable[[Client], Awaitable[Result]]) -> MdevnsError | None:
        """The error of a request."""

        async def results(client: Client) -> list[Result]:
            return [await work(client)]

        (result,) = self.scene.run(results)
        return result.error

    def make(self, change: Change) -> None:
        """Somebody else's transition."""
        self.scene.desk.core.txn(transaction((), [change]))

    def claim(self) -> Claim:
        """The claim on the first host, as it stands."""
        _, claim = self.scene.desk.records()
        assert claim is not None
        return claim

    def taken_anew(self) -> None:
        """The host is evicted, and somebody else reserves the name for it."""
        desk = self.scene.desk
        self.make(desk.claims.evict(self.claim(), definitions=True, now="t"))
        lease = desk.core.grant(TTL).id
        self.make(desk.claims.reserve(NAME, "z", KEPT, lease=lease, now="t", by="z"))


def is_in_doubt(error: MdevnsError | None, which: Name = NAME) -> bool:
    """Whether it says that nobody knows, once, and how to find out."""
    assert isinstance(error, OutcomeUnknown)
    return error.line.count("it is not known") == 1 and f"mdevns show {which}" in error.line


def test_a_reservation_that_was_begun_after_a_doubt_is_not_known_to_be_renewed() -> None:
    """Its host began it after the renewal was applied, or before."""
    doubtful = Doubtful()

    async def work(client: Client) -> Result:
        await create(client, [ask(host=HOST)], ttl=TTL, wait=False)
        doubtful.lose(doubtful.host.work)
        return await renew(client, NAME, ttl=2 * TTL)

    assert is_in_doubt(doubtful.run(work))


def test_what_is_done_at_the_next_attempt_is_known() -> None:
    """Somebody else renewed it in between, and then it is renewed once more."""
    doubtful = Doubtful()
    desk = doubtful.scene.desk

    def renewed() -> None:
        kv = desk.kv(desk.keys.name(NAME))
        assert kv is not None
        desk.core.txn(Txn(success=(Put(kv.key, kv.value, desk.core.grant(TTL).id),)))

    async def work(client: Client) -> Result:
        await reserve(client, [NAME], request="r", ttl=TTL)
        doubtful.lose(renewed)
        return await renew(client, NAME, ttl=2 * TTL)

    assert doubtful.run(work) is None


def test_a_start_whose_name_others_have_since_is_not_known() -> None:
    """Its device may have been made before."""
    doubtful = Doubtful()

    async def work(client: Client) -> Result:
        await define(client, NAME, KEPT, request="r")
        doubtful.lose(doubtful.taken_anew)
        (result,) = await start(client, [NAME])
        return result

    assert is_in_doubt(doubtful.run(work))


@pytest.mark.parametrize("lost", [False, True])
def test_a_removal_whose_host_went_down_is_not_done_unless_an_answer_was_lost(
    lost: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """The host's agent may have been asked before it went."""
    doubtful = Doubtful()

    async def work(client: Client) -> Result:
        await define(client, NAME, KEPT, request="r")
        doubtful.lose(lambda: doubtful.scene.end_session(HOST))
        if not lost:
            doubtful.faulty.decide = lambda _: Fate.DELIVER
            doubtful.scene.end_session(HOST)
        (result,) = await remove(client, [NAME])
        return result

    error = doubtful.run(work)
    assert is_in_doubt(error) if lost else isinstance(error, HostDown)


@pytest.mark.parametrize("lost", [False, True])
def test_a_reservation_that_a_hold_refuses_is_not_done_unless_an_answer_was_lost(
    lost: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A restore began between two of its copies."""
    doubtful = Doubtful()
    desk = doubtful.scene.desk

    def held() -> None:
        desk.core.txn(Txn(success=(Put(desk.keys.hold, b"{}"),)))

    async def work(client: Client) -> Result:
        if lost:
            doubtful.lose(held)
        else:
            held()
        (result,) = await reserve(client, [NAME], request="r", ttl=TTL)
        return result

    error = doubtful.run(work)
    assert is_in_doubt(error) if lost else isinstance(error, StoreReadOnly)


def test_a_name_that_others_took_is_taken_after_a_doubt_too() -> None:
    """Whoever asks has to know who has it, whatever became of the first copy."""
    doubtful = Doubtful()
    desk = doubtful.scene.desk

    def taken() -> None:
        lease = desk.core.grant(TTL).id
        doubtful.make(desk.claims.reserve(NAME, "z", KEPT, lease=lease, now="t", by="z"))

    async def work(client: Client) -> Result:
        doubtful.lose(taken, Fate.DROP)
        (result,) = await reserve(client, [NAME], request="r", ttl=TTL)
        return result

    assert isinstance(doubtful.run(work), NameTaken)


def test_a_reservation_whose_lease_is_gone_since_is_not_known() -> None:
    """It was done, and given up with the lease; somebody else has one of its names."""
    doubtful = Doubtful()
    desk = doubtful.scene.desk

    def lapsed() -> None:
        kv = desk.kv(desk.keys.name(NAME))
        assert kv is not None
        desk.core.expire(kv.lease)
        lease = desk.core.grant(TTL).id
        doubtful.make(desk.claims.reserve(NAME, "z", KEPT, lease=lease, now="t", by="z"))

    async def work(client: Client) -> Result:
        doubtful.lose(lapsed)
        first, second = await reserve(client, [NAME, name(2)], request="r", ttl=TTL)
        assert is_in_doubt(second.error, name(2))
        return first

    assert is_in_doubt(doubtful.run(work))


def test_an_evict_that_was_overtaken_after_a_lost_answer_is_not_known_of_its_name() -> None:
    """The host's agent enrolled again after the name was freed, or before."""
    doubtful = Doubtful()
    desk = doubtful.scene.desk

    def enrolled() -> None:
        desk.core.txn(Txn(success=(Put(desk.keys.epoch(HOST), b"another"),)))

    async def work(client: Client) -> Result:
        await define(client, NAME, KEPT, request="r")
        doubtful.scene.end_session(HOST)
        doubtful.lose(enrolled)
        with pytest.raises(OutcomeUnknown) as told:
            await evict(client, HOST, reason="it burnt down", definitions=True)
        return Result(NAME, error=told.value)

    assert is_in_doubt(doubtful.run(work))


def test_a_move_of_a_name_that_was_started_since_is_not_known() -> None:
    """It was moved and then started by others, or started first."""
    doubtful = Doubtful()
    desk = doubtful.scene.desk

    def started() -> None:
        _, claim = desk.records(host=OTHER)
        assert claim is not None
        doubtful.make(desk.claims.start(claim, now="t"))

    async def work(client: Client) -> Result:
        await define(client, NAME, KEPT, request="r")
        doubtful.lose(started)
        return await move(client, NAME, OTHER, "p0")

    assert is_in_doubt(doubtful.run(work))


def test_a_claim_that_others_have_since_is_not_known_to_be_taken_over() -> None:
    """It was kept as was asked, and then given up and taken for another parent."""
    doubtful = Doubtful()
    wanted = wish(parent="p0", persistent=True, autostart=True)

    async def work(client: Client) -> Result:
        await define(client, NAME, KEPT, request="r")
        doubtful.lose(doubtful.taken_anew)
        return await take_over(client, NAME, wanted, request="q")

    assert is_in_doubt(doubtful.run(work))
