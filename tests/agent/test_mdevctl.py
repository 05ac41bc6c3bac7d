"""What mdevctl's callout is told: before an action whether it may go on, and what follows after."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from agent import simulated
from agent.local.mdevctl import Call, Definition, Mdevctl
from agent.makers import maker_of
from agent.simulated import PipeWatcher, SimulatedBus
from coordinator.claims import Hold
from coordinator.errors import (
    InUse,
    InvalidValue,
    NameTaken,
    NotFound,
    OutcomeUnknown,
    TryAgain,
    Unreachable,
)
from coordinator.model import HoldValue, Wish, encode
from coordinator.states import ClaimState
from coordinator.store import Delete, Put, Txn
from tests.agent.host import process
from tests.support.desk import HOST, NAME, OTHER, TYPE, name, wish
from tests.support.faulty import Fate, FaultyStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.daemon import Agent
    from coordinator.model import Name
    from coordinator.store import TxnResult
    from tests.agent.host import Host

ACTIVE, CREATING, DEFINED = ClaimState.ACTIVE, ClaimState.CREATING, ClaimState.DEFINED
REMOVING = ClaimState.REMOVING


class Tool:
    """mdevctl as its callout shows it: a process that writes to the kernel itself."""

    def __init__(self, host: Host, agent: Agent, process: asyncio.subprocess.Process) -> None:
        self.host, self.process, self.agent = host, process, agent
        self.answers = Mdevctl(agent.local, host.directory / "mdevctl.d")
        self.definition: dict[str, Any] | None = None

    async def call(
        self, event: str, action: str, state: str = "none", which: Name = NAME, **more: str
    ) -> None:
        """One call of the callout."""
        words = {"parent": self.host.parents[0], "type": TYPE, **more}
        await self.answers.answer(
            Call(
                event=event,
                action=action,
                state=state,
                name=which.upper(),
                holder=self.process.pid,
                definition=msgspec.convert(self.definition, Definition | None),
                **words,
            ),
            maker_of(self.process.pid),
        )

    async def pre(self, action: str, which: Name = NAME, **more: str) -> None:
        """Ask before an action."""
        await self.call("pre", action, which=which, **more)

    async def post(self, action: str, which: Name = NAME, *, done: bool = True) -> None:
        """Tell after it."""
        await self.call("post", action, "success" if done else "failure", which)

    async def start(self, which: Name = NAME) -> None:
        """`mdevctl start`, which succeeds."""
        await self.pre("start", which)
        self.write(which)
        await self.post("start", which)

    def write(self, which: Name = NAME) -> None:
        """What mdevctl does between the two."""
        simulated.create(self.host.directory, self.host.parents[0], TYPE, which)

    async def define(self, **definition: object) -> None:
        """`mdevctl define`, which succeeds."""
        self.definition = {"mdev_type": TYPE, "start": "manual", **definition}
        await self.pre("define")
        await self.post("define")

    def file(self) -> Path:
        """What it keeps of a definition, from now on."""
        file = self.host.directory / "mdevctl.d" / self.host.parents[0] / NAME
        file.parent.mkdir(parents=True)
        file.touch()
        return file

    async def end(self) -> None:
        """It ends, or is killed."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def tool(
    host: Host,
    *,
    enrols: bool = True,
    starts: bool = False,
    rescan: float = 0.2,
    own: asyncio.subprocess.Process | None = None,
) -> AsyncIterator[Tool]:
    """mdevctl on a host whose agent runs, or has found the store away, or just `starts`.

    Its `own` process outlives this.
    """
    async with (
        process() as made,
        host.agent(enrols=enrols and not starts, rescan=rescan) as agent,
    ):
        if not starts:
            agent.local.starting = 0.0
            local = agent.local
            await host.wait(lambda: local.store_answers if enrols else local.store_is_away)
        yield Tool(host, agent, own or made)


class Away:
    """A store that can be taken away, or goes with the first transaction that says a word."""

    def __init__(self, host: Host, word: str | None = None) -> None:
        self.is_away, self._word = False, word
        host.store = FaultyStore(host.store, self._fate)

    def _fate(self, txn: Txn) -> Fate:
        if self._word is not None and self._word in repr(txn):
            self.is_away = True
        return Fate.UNREACHABLE if self.is_away else Fate.DELIVER


# Start.


async def test_a_started_device_is_claimed_before_it_is_made_and_active_after(host: Host) -> None:
    """mdevctl makes it under a claim that names its process, and the claim follows."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("start")
        claim = host.claim()
        assert claim is not None
        assert claim.maker is not None
        assert (claim.state, claim.maker.pid) == (CREATING, mdevctl.process.pid)
        mdevctl.write()
        await mdevctl.post("start")
        claim = host.claim()
        assert claim is not None
        assert (claim.state, claim.maker, claim.adopted) == (ACTIVE, None, False)
        assert claim.asked_by == "mdevctl"


async def test_a_name_that_is_held_elsewhere_is_not_started(host: Host) -> None:
    """The refusal says by whom it is held, and nothing is claimed."""
    await host.desk.active(NAME, wish(OTHER))
    async with tool(host) as mdevctl:
        with pytest.raises(NameTaken, match=OTHER):
            await mdevctl.pre("start")
        assert host.claim() is None


async def test_what_mdevctl_could_not_make_is_free_when_it_has_ended(host: Host) -> None:
    """A failure that is reported frees nothing while mdevctl lives, nor is a device made for it."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("start")
        await mdevctl.post("start", done=False)
        await looked_at(mdevctl)
        assert host.is_in(CREATING)
        await mdevctl.end()
        await host.wait(lambda: host.claim() is None)
        assert host.devices() == set()


async def test_a_device_that_appears_after_a_reported_failure_is_claimed(host: Host) -> None:
    """The write that was said to have failed returns later, and its name was never free."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("start")
        await mdevctl.post("start", done=False)
        await looked_at(mdevctl)
        mdevctl.write()
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert not claim.adopted


async def looked_at(mdevctl: Tool) -> None:
    """The agent has decided about the name after what was said."""
    enrolment = mdevctl.agent.local.enrolment
    assert enrolment is not None
    enrolment.reconciler.poke((NAME,))
    await mdevctl.host.wait(lambda: not enrolment.reconciler.is_at(NAME))


async def test_mdevctl_that_is_killed_before_its_write_leaves_nothing(host: Host) -> None:
    """The claim lives as long as its process."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("start")
        await mdevctl.end()
        await host.wait(lambda: host.claim() is None)


async def test_mdevctl_that_is_killed_after_its_write_leaves_an_active_claim(host: Host) -> None:
    """The device is found, as nobody tells of it."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("start")
        mdevctl.write()
        await mdevctl.end()
        await host.wait(lambda: host.is_in(ACTIVE))


async def test_a_failure_after_a_start_frees_nothing_that_is_there(host: Host) -> None:
    """A device that was active before stays claimed whatever is told of the second start."""
    async with tool(host) as mdevctl:
        await mdevctl.start()
        with pytest.raises(NameTaken):
            await mdevctl.pre("start")
        await mdevctl.post("start", done=False)
        await mdevctl.start(name(2))
        assert host.is_in(ACTIVE)
        assert host.devices() == {NAME, name(2)}


async def test_a_placeholder_is_not_started(host: Host) -> None:
    """While one mdevctl makes it, another is told to try again."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("start")
        with pytest.raises(TryAgain):
            await mdevctl.pre("start")


async def test_a_definition_on_another_parent_is_not_started(host: Host) -> None:
    """mdevctl lets a name be defined on two parents; its claim is of one."""
    async with tool(host) as mdevctl:
        await mdevctl.define()
        with pytest.raises(NameTaken):
            await mdevctl.pre("start", parent=host.parents[1])
        with pytest.raises(InvalidValue):
            await mdevctl.pre("start", type="another")


async def test_a_vanished_process_claims_nothing(host: Host) -> None:
    """A callout whose mdevctl has ended is refused."""
    async with tool(host) as mdevctl:
        await mdevctl.end()
        with pytest.raises(NotFound, match="no such process"):
            await mdevctl.pre("start")
        assert host.claim() is None


# Stop.


async def test_a_stopped_device_is_free(host: Host) -> None:
    """mdevctl removes it, the agent does not, and the name is free once it was seen absent."""
    async with tool(host) as mdevctl:
        await mdevctl.start()
        await mdevctl.pre("stop")
        await mdevctl.start(name(2))
        assert host.is_in(REMOVING)
        assert NAME in host.devices()
        simulated.remove(host.directory, NAME)
        await mdevctl.post("stop")
        assert host.claim() is None


async def test_a_stopped_persistent_device_stays_defined(host: Host) -> None:
    """What mdevctl has defined it can start again."""
    async with tool(host) as mdevctl:
        await mdevctl.define()
        await mdevctl.start()
        await mdevctl.pre("stop")
        simulated.remove(host.directory, NAME)
        await mdevctl.post("stop")
        assert host.is_in(DEFINED)
        await mdevctl.start()
        assert host.is_in(ACTIVE)


async def test_what_follows_a_stop_waits_until_the_claim_has_followed(host: Host) -> None:
    """A store that is slow to hear of the end makes nothing busy that is over."""
    away = Away(host)
    async with tool(host) as mdevctl:
        await mdevctl.define()
        await mdevctl.start()
        await mdevctl.pre("stop")
        away.is_away = True
        simulated.remove(host.directory, NAME)
        told = asyncio.create_task(mdevctl.post("stop"))
        asked = asyncio.create_task(mdevctl.pre("undefine"))
        await asyncio.wait([asked], timeout=0.1)
        assert not asked.done()
        away.is_away = False
        await asyncio.gather(asked, told)
        assert host.is_in(DEFINED)


async def test_a_stop_that_failed_leaves_the_device_as_it_was(host: Host) -> None:
    """Nobody asked the agent to remove it instead."""
    async with tool(host) as mdevctl:
        await mdevctl.start()
        await mdevctl.pre("stop")
        await mdevctl.post("stop", done=False)
        assert host.is_in(ACTIVE)
        assert host.devices() == {NAME}


async def test_a_device_that_is_open_is_not_stopped(host: Host) -> None:
    """EBUSY at once: mdevctl's own write would sleep in the kernel."""
    async with tool(host) as mdevctl:
        await mdevctl.start()
        simulated.hold(host.directory, NAME)
        with pytest.raises(InUse):
            await mdevctl.pre("stop")
        assert host.is_in(ACTIVE)


async def test_what_is_not_ours_may_be_stopped(host: Host) -> None:
    """A device whose name another host holds is a conflict, and its stop is what ends it."""
    async with tool(host) as mdevctl:
        await host.desk.active(NAME, wish(OTHER))
        mdevctl.write()
        await mdevctl.pre("stop")
        assert host.claim() is None


# Definitions.


async def test_a_definition_is_a_persistent_claim(host: Host) -> None:
    """With its attributes, in their order, and whether it starts by itself."""
    async with tool(host) as mdevctl:
        await mdevctl.define(start="auto", attrs=[{"b": "2"}, {"a": "1"}])
        claim = host.claim()
        assert claim is not None
        assert (claim.state, claim.persistent, claim.autostart) == (DEFINED, True, True)
        assert claim.attrs == (("b", "2"), ("a", "1"))


async def test_what_is_defined_to_start_by_itself_does_so_with_the_next_boot(host: Host) -> None:
    """As mdevctl has it: a definition or its change makes no device, and mdevctl may start it."""
    async with tool(host) as mdevctl:
        await mdevctl.define(start="auto")
        await mdevctl.define(start="manual")
        await mdevctl.define(start="auto")
        await mdevctl.start(name(2))
        assert host.devices() == {name(2)}
        await mdevctl.start()
        assert host.devices() == {NAME, name(2)}
        await mdevctl.pre("stop")
        simulated.remove(host.directory, NAME)
        await mdevctl.post("stop")
        assert host.is_in(DEFINED)
    simulated.reboot(host.directory)
    async with host.agent():
        await host.wait(lambda: host.is_in(ACTIVE))
        assert host.devices() == {NAME}


async def test_a_name_that_is_held_elsewhere_is_not_defined(host: Host) -> None:
    """Before mdevctl writes its file."""
    await host.desk.active(NAME, wish(OTHER))
    async with tool(host) as mdevctl:
        with pytest.raises(NameTaken):
            await mdevctl.define()


async def test_a_definition_that_failed_is_given_up_unless_mdevctl_has_it(host: Host) -> None:
    """Its file tells; one that was there before keeps its claim."""
    async with tool(host) as mdevctl:
        await mdevctl.pre("define")
        await mdevctl.post("define", done=False)
        assert host.claim() is None
        mdevctl.file()
        await mdevctl.pre("define")
        await mdevctl.post("define", done=False)
        assert host.is_in(DEFINED)


async def test_a_definition_of_which_nobody_knew_is_given_up_unless_mdevctl_has_it(
    host: Host,
) -> None:
    """mdevctl was refused, and tells nothing of it: once it has ended its file does."""
    hold = Put(host.desk.keys.hold, encode(HoldValue(id="i", who="me", at="t")))

    class Losing(FaultyStore):
        async def txn(self, txn: Txn) -> TxnResult:
            result = await super().txn(txn)
            if '"state":"defined"' not in repr(txn) or not result.succeeded:
                return result
            host.desk.core.txn(Txn(success=(hold,)))  # so the same again is refused
            raise OutcomeUnknown("the store", "its answer was lost")

    host.store = Losing(host.store, lambda _: Fate.DELIVER)
    async with tool(host) as mdevctl:
        with pytest.raises(OutcomeUnknown):
            await mdevctl.define()
        assert host.is_in(DEFINED)
        host.desk.core.txn(Txn(success=(Delete(hold.key),)))
        await mdevctl.end()
        await host.wait(lambda: host.claim() is None)


async def test_what_mdevctl_knows_nothing_of_is_not_given_up_by_its_failures(host: Host) -> None:
    """A name that was defined without it stays, whatever it could not do."""
    async with tool(host) as mdevctl:
        wanted = Wish(host=HOST, parent=host.parents[0], type=TYPE, persistent=True)
        lease = host.desk.core.grant(60).id
        claims = host.desk.claims
        await host.desk.make(claims.hold(NAME, "r", lease=lease))
        taken = host.desk.kv(host.desk.keys.name(NAME))
        assert taken is not None
        hold = Hold(NAME, "r", taken.mod_revision, lease)
        await host.desk.made(claims.define(hold, wanted, now="t", by=None))
        await host.wait(lambda: mdevctl.agent.local.claim(NAME) is not None)
        for action in ("define", "undefine"):
            await mdevctl.pre(action)
            await mdevctl.post(action, done=False)
        await mdevctl.pre("undefine")
        await mdevctl.end()
        await mdevctl.answers._pending.idle()
        assert host.is_in(DEFINED)


async def test_a_running_device_that_is_defined_becomes_persistent(host: Host) -> None:
    """And transient again when it is undefined while it runs."""
    async with tool(host) as mdevctl:
        await mdevctl.start()
        await mdevctl.define(start="auto")
        claim = host.claim()
        assert claim is not None
        assert (claim.state, claim.persistent, claim.autostart) == (ACTIVE, True, True)
        await mdevctl.pre("undefine")
        await mdevctl.post("undefine")
        claim = host.claim()
        assert claim is not None
        assert (claim.state, claim.persistent, claim.autostart) == (ACTIVE, False, False)


async def test_an_undefined_name_without_a_device_is_free(host: Host) -> None:
    """What mdevctl gives up is given up in the cluster."""
    async with tool(host) as mdevctl:
        await mdevctl.define()
        await mdevctl.pre("undefine")
        await mdevctl.post("undefine")
        assert host.claim() is None


async def test_a_modified_definition_is_followed(host: Host) -> None:
    """Its attributes and its autostart; the type of a claim cannot change."""
    async with tool(host) as mdevctl:
        await mdevctl.define()
        mdevctl.definition = {"mdev_type": TYPE, "start": "auto", "attrs": [{"a": "1"}]}
        await mdevctl.pre("modify")
        await mdevctl.post("modify")
        claim = host.claim()
        assert claim is not None
        assert (claim.autostart, claim.attrs) == (True, (("a", "1"),))
        with pytest.raises(InvalidValue):
            await mdevctl.pre("modify", type="another")


async def test_what_is_no_word_of_ours_is_noted(host: Host) -> None:
    """Other events and actions go on: the agent looks at the device, and that is all."""
    async with tool(host) as mdevctl:
        for event, action in (("notify", "start"), ("get", "attributes"), ("live", "modify")):
            await mdevctl.call(event, action)
        assert host.claim() is None


class Deaf(SimulatedBus):
    """A bus whose events are lost."""

    def watch(self) -> PipeWatcher:
        """A pipe into which nobody writes."""
        silence = self.root / "silence"
        os.mkfifo(silence)
        return PipeWatcher(silence)


@pytest.mark.parametrize("action", ["start", "stop", "define", "undefine", "modify", "other"])
@pytest.mark.parametrize("said", [TYPE, "no type"])
async def test_after_every_action_the_device_is_looked_at(
    host: Host, action: str, said: str
) -> None:
    """Whatever is told of it: where ours is the first callout no notifier tells again."""
    host.bus = Deaf(host.directory)
    async with tool(host, rescan=60.0) as mdevctl:
        await mdevctl.start()
        enrolment = mdevctl.agent.local.enrolment
        assert enrolment is not None
        looks = enrolment.reconciler
        await host.wait(lambda: not looks.is_at(NAME) and not looks._timers)
        simulated.remove(host.directory, NAME)
        with suppress(InvalidValue):
            await mdevctl.call("post", action, "failure", type=said)
        await host.wait(lambda: host.claim() is None)


# While the store is away.


async def test_who_calls_while_the_agent_starts_is_answered_when_it_is_enrolled(host: Host) -> None:
    """At boot mdevctl's autostart is often there first."""
    async with tool(host, starts=True) as mdevctl:
        await mdevctl.start()
        assert host.is_in(ACTIVE)


async def after_a_reboot(host: Host, wished: Wish) -> Away:
    """A host that made a device, was rebooted, and does not reach the store since."""
    away = Away(host)
    async with host.agent():
        await host.ask(wished)
        await host.wait(lambda: host.is_in(ACTIVE))
    simulated.reboot(host.directory)
    away.is_away = True
    return away


def persistent(host: Host) -> Wish:
    """A device that is to start by itself."""
    return Wish(host=HOST, parent=host.parents[0], type=TYPE, persistent=True, autostart=True)


async def test_the_journal_lets_a_persistent_device_come_back_after_a_reboot(host: Host) -> None:
    """Its claim can be freed by this host alone; when the store is back it is active as before."""
    away = await after_a_reboot(host, persistent(host))
    async with tool(host, enrols=False) as mdevctl:
        await mdevctl.start()
        away.is_away = False
        await host.wait(
            lambda: (claim := host.claim()) is not None and claim.boot_id == host.bus.boot_id()
        )
        assert host.is_in(ACTIVE)
        assert host.devices() == {NAME}


async def test_without_the_store_nothing_new_is_started_or_defined(host: Host) -> None:
    """A name that is nobody's here can be anybody's elsewhere."""
    await after_a_reboot(host, persistent(host))
    async with tool(host, enrols=False) as mdevctl:
        for action in ("start", "define"):
            with pytest.raises(Unreachable):
                await mdevctl.pre(action, name(2))


async def test_without_the_store_a_transient_device_does_not_come_back(host: Host) -> None:
    """Its claim ends with the boot."""
    await after_a_reboot(host, host.wish())
    async with tool(host, enrols=False) as mdevctl:
        with pytest.raises(Unreachable):
            await mdevctl.pre("start")


async def test_without_the_store_a_definition_is_not_started(host: Host) -> None:
    """An operator may have moved it to another host meanwhile."""
    away = Away(host)
    async with tool(host) as mdevctl:
        await mdevctl.define()
        away.is_away = True
    async with tool(host, enrols=False) as mdevctl:
        with pytest.raises(Unreachable):
            await mdevctl.pre("start")


async def test_without_the_store_what_was_being_given_up_is_not_started(host: Host) -> None:
    """The agent before may have lost it in a transaction of which nobody heard."""
    away = Away(host, '"state":"defined"')
    async with host.agent():
        await host.ask(persistent(host))
        await host.wait(lambda: host.is_in(ACTIVE))
        simulated.remove(host.directory, NAME)
        await host.wait(lambda: away.is_away)
    async with tool(host, enrols=False) as mdevctl:
        with pytest.raises(Unreachable):
            await mdevctl.pre("start")


async def test_a_permit_holds_while_its_process_lives_and_the_store_comes_back(host: Host) -> None:
    """The agent that enrols meanwhile gives nothing up and makes nothing itself."""
    away = await after_a_reboot(host, persistent(host))
    async with tool(host, enrols=False) as mdevctl:
        await mdevctl.pre("start")
        away.is_away = False
        await host.ask(name=name(2))
        await host.wait(lambda: host.is_in(ACTIVE, name(2)))
        assert host.is_in(ACTIVE)
        assert host.devices() == {name(2)}
        mdevctl.write()
        await mdevctl.post("start")
        await host.wait(
            lambda: (claim := host.claim()) is not None and claim.boot_id == host.bus.boot_id()
        )


async def test_a_permit_outlives_the_agent_that_gave_it(host: Host) -> None:
    """It stands in the journal, so the next agent waits for the process too."""
    away = await after_a_reboot(host, persistent(host))
    async with process() as maker:
        async with tool(host, enrols=False, own=maker) as mdevctl:
            await mdevctl.pre("start")
        away.is_away = False
        async with host.agent():
            await host.ask(name=name(2))
            await host.wait(lambda: host.is_in(ACTIVE, name(2)))
            assert host.devices() == {name(2)}
            maker.kill()
            await host.wait(lambda: host.devices() == {NAME, name(2)})


async def test_a_device_is_stopped_without_the_store_and_given_up_when_it_is_back(
    host: Host,
) -> None:
    """Nothing is freed before the store hears that it was seen absent."""
    away = Away(host)
    async with tool(host) as mdevctl:
        await mdevctl.start()
        away.is_away = True
    async with tool(host, enrols=False) as mdevctl:
        await mdevctl.pre("stop")
        simulated.remove(host.directory, NAME)
        await mdevctl.post("stop")
        assert host.is_in(ACTIVE)
        away.is_away = False
        await host.wait(lambda: host.claim() is None)


async def test_nobody_waits_for_a_claim_that_cannot_follow_without_the_store(host: Host) -> None:
    """What a mdevctl that was killed has left stays so until the store is back."""
    away = Away(host)
    async with process() as maker:
        async with tool(host, own=maker) as mdevctl:
            await mdevctl.pre("start")
            away.is_away = True
        await mdevctl.end()
    async with tool(host, enrols=False) as mdevctl, asyncio.timeout(2):
        await mdevctl.pre("stop")
    assert host.is_in(CREATING)


def test_the_definitions_are_mdevctls(host: Host) -> None:
    """Where nothing else is said they are looked for where mdevctl keeps them."""
    local: Any = host
    where: Path = Mdevctl(local)._definitions
    assert str(where) == "/etc/mdevctl.d"
