"""Two hosts, their kernels, one etcd, and everything that can go wrong between any two steps.

The transitions and `decide` are the real ones; the store is the in-memory one; kernels,
agents and workers are as small as they can be: each method is one atomic step, so a crash
between any two of them is a crash anywhere. The kernels are the truth that is checked against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.reconcile import Action, Decision, Facts, Refusal, Sight, Write, decide
from coordinator.claims import Claims, Failure
from coordinator.errors import Fenced, MdevnsError, Moved
from coordinator.keys import Keys
from coordinator.memory import MemoryEtcd
from coordinator.model import (
    AfterRemoval,
    Claim,
    LastError,
    Name,
    NameValue,
    Removal,
    Wish,
    decode,
    read_claim,
)
from coordinator.states import ClaimEvent, ClaimState, transition
from coordinator.store import Put, Txn, get, prefix
from coordinator.transactions import Answer, Change, Guard, answers, transaction

if TYPE_CHECKING:
    from coordinator.store import KeyValue

PARENT, TYPE = "0000:3b:00.0", "mtty-2"
HOSTS = ("gpu01", "gpu02")
NAMES = (
    Name("aaaaaaaa-0000-4000-8000-000000000001"),
    Name("bbbbbbbb-0000-4000-8000-000000000002"),
)
CAPACITY = 1  # so that a kernel refuses now and then
MAY_HAVE_A_DEVICE = (ClaimState.CREATING, ClaimState.ACTIVE, ClaimState.REMOVING)


class Delivery(StrEnum):
    """What becomes of a transaction and its answer."""

    ANSWERED = "answered"
    LOST_ANSWER = "applied, and the answer is lost"
    DROPPED = "never arrives, and nobody knows"
    LATE = "is applied later, and nobody knows"


@dataclass
class Kernel:
    """One host's mdev core: what exists, what is under way, and which boot it is."""

    devices: dict[Name, bool] = field(default_factory=dict)  # name: whether we made it
    creating: set[Name] = field(default_factory=set)
    removing: set[Name] = field(default_factory=set)
    boots: int = 1

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def begin_create(self, name: Name) -> str | None:
        """The errno, or None: a placeholder is on the list and the driver is at work."""
        if name in self.devices or name in self.creating:
            return "EEXIST"
        if len(self.devices) + len(self.creating) >= CAPACITY:
            return "ENOSPC"
        self.creating.add(name)
        return None


@dataclass
class Order:
    """A kernel write that an agent ordered and that no worker has begun."""

    host: str
    write: Write
    claim: Claim


@dataclass
class Sent:
    """A transaction of an agent whose outcome is not known yet."""

    event: ClaimEvent
    claim: Claim
    guards: tuple[Guard, ...]
    change: Change


@dataclass
class Agent:
    """What a living agent has in memory. All of it is gone in a crash."""

    instance: str
    known: dict[Name, Claim] = field(default_factory=dict)
    sent: dict[Name, Sent] = field(default_factory=dict)
    refusals: dict[Name, Refusal] = field(default_factory=dict)
    waits_for: set[Name] = field(default_factory=set)  # names whose kernel write it waits for


class World:
    """Everything there is; each method is one step that a crash cannot cut."""

    def __init__(self, names: tuple[Name, ...] = NAMES) -> None:
        self.names = names
        self.etcd, self.keys = MemoryEtcd(), Keys("model")
        self.claims = Claims(self.keys)
        self.kernels = {host: Kernel() for host in HOSTS}
        self.agents: dict[str, Agent] = {}
        self.orders: list[Order] = []
        self.late: list[Txn] = []
        self.count = 0

    # The store, and what becomes of answers.

    def send(self, txn: Txn, delivery: Delivery) -> bool:
        """Apply a transaction or not; returns whether its answer arrives."""
        if delivery is Delivery.LOST_ANSWER:
            self.apply(txn)
        elif delivery is Delivery.LATE:
            self.late.append(txn)
        return delivery is Delivery.ANSWERED

    def apply(self, txn: Txn) -> None:
        """Apply it, wherever its answer goes; a lease that is gone refuses it."""
        try:
            self.etcd.txn(txn)
        except MdevnsError:
            return

    def arrive(self, which: int) -> None:
        """A transaction that was on its way arrives."""
        self.apply(self.late.pop(which % len(self.late)))

    def record(self, host: str, name: Name) -> Claim | None:
        kv = self.etcd.range(get(self.keys.claim(host, name))).first
        claim = None if kv is None else read_claim(kv)
        assert claim is None or isinstance(claim, Claim)
        return claim

    def now(self) -> str:
        self.count += 1
        return f"t{self.count}"

    # An operator.

    def reserve(self, host: str, name: Name, delivery: Delivery) -> None:
        lease = self.etcd.grant(60).id
        wish = Wish(host=host, parent=PARENT, type=TYPE)
        request = f"r{self.count}"
        change = self.claims.reserve(name, request, wish, lease=lease, now=self.now(), by=None)
        txn = transaction((self.claims.no_hold(),), [change])
        if self.send(txn, delivery):
            self.etcd.txn(txn)

    def retire(self, host: str, name: Name, delivery: Delivery) -> None:
        claim = self.record(host, name)
        if claim is None or claim.state not in (ClaimState.ACTIVE, ClaimState.DEFINED):
            return  # a placeholder is not a device: EAGAIN
        change = self.claims.retire(claim, Removal(AfterRemoval.FREE), now=self.now())
        txn = transaction((self.claims.no_hold(),), [change])
        if self.send(txn, delivery):
            self.etcd.txn(txn)

    def cancel(self, host: str, name: Name, delivery: Delivery) -> None:
        claim = self.record(host, name)
        if claim is None or claim.state is not ClaimState.RESERVED:
            return
        txn = transaction((self.claims.no_hold(),), [self.claims.cancel(claim)])
        if self.send(txn, delivery):
            self.etcd.txn(txn)

    # An agent's life.

    def start(self, host: str) -> None:
        """Enrol: a new generation of orders, a new epoch, and all claims listed."""
        self._drop_orders(host)
        self.count += 1
        agent = Agent(instance=f"i{self.count}")
        self.etcd.txn(Txn(success=(Put(self.keys.epoch(host), agent.instance.encode()),)))
        self.agents[host] = agent
        for name in self.names:
            self.hear(host, name)

    def crash(self, host: str) -> None:
        """SIGKILL. Orders that workers hold stay theirs until the next generation."""
        self.agents.pop(host, None)

    def power_loss(self, host: str) -> None:
        self.crash(host)
        self._drop_orders(host)
        self.kernels[host] = Kernel(boots=self.kernels[host].boots + 1)

    def _drop_orders(self, host: str) -> None:
        """A new generation is in force: what was ordered and not begun never will be."""
        self.orders = [order for order in self.orders if order.host != host]

    def hear(self, host: str, name: Name) -> None:
        """The agent's watch tells it of the newest state of a name."""
        agent, claim = self.agents[host], self.record(host, name)
        if claim is None:
            agent.known.pop(name, None)
        else:
            agent.known[name] = claim

    def unheard(self, host: str) -> list[Name]:
        """The names of which the agent's watch has something new to tell."""
        known = self.agents[host].known
        return [name for name in self.names if known.get(name) != self.record(host, name)]

    # An agent's step on a name.

    def concerned(self, host: str) -> list[Name]:
        """The names with which the agent may have something to do."""
        agent, kernel = self.agents[host], self.kernels[host]
        return [n for n in self.names if n in agent.known or n in agent.sent or n in kernel.devices]

    def step(self, host: str, name: Name, delivery: Delivery) -> None:
        agent = self.agents[host]
        if name in agent.sent:
            self._send_again(host, name, delivery)
        elif name not in agent.waits_for:
            claim = agent.known.get(name)
            self._do(host, name, claim, decide(claim, self._facts(host, name, claim)), delivery)

    def _facts(self, host: str, name: Name, claim: Claim | None) -> Facts:
        kernel = self.kernels[host]
        there = Sight.OTHER if claim is None else Sight.AS_ASKED
        return Facts(
            boot_id=kernel.boot_id,
            sight=there if name in kernel.devices else Sight.ABSENT,
            settled=True,
            in_flight=name in kernel.creating or name in kernel.removing,
            offers=True,
            refusal=self.agents[host].refusals.get(name),
        )

    def _do(
        self, host: str, name: Name, claim: Claim | None, decision: Decision, delivery: Delivery
    ) -> None:
        if decision.action is Action.ADOPT:
            self._adopt_free(host, name, delivery)
        elif decision.action is Action.REMOVE and claim is not None:
            self._order(host, Write.REMOVE, claim)
        elif claim is not None and decision.action not in (Action.NOTHING, Action.WAIT):
            event, change = self._change(host, claim, decision)
            self._send(host, event, claim, change, delivery)

    def _change(  # noqa: PLR0911 - one transition an action
        self, host: str, claim: Claim, decision: Decision
    ) -> tuple[ClaimEvent, Change]:
        claims, boot_id, now = self.claims, self.kernels[host].boot_id, self.now()
        failure = Failure(LastError(decision.errno or "", decision.text, now), lease=0)
        match decision.action:
            case Action.BEGIN:
                return ClaimEvent.BEGIN, claims.begin(claim, boot_id=boot_id, now=now)
            case Action.CONFIGURE:
                return ClaimEvent.ACTIVATE, claims.activate(claim, boot_id=boot_id, now=now)
            case Action.ABORT:
                return ClaimEvent.ABORT, claims.abort(claim, failure, now=now)
            case Action.LOSE:
                return ClaimEvent.LOSE, claims.lose(claim, now=now)
            case Action.RELEASE:
                return ClaimEvent.RELEASE, claims.release(claim, boot_id=boot_id, now=now)
            case Action.RESTORE:
                return ClaimEvent.RESTORE, claims.restore(claim, failure.error, now=now)
            case Action.ADOPT_OVER | Action.FAIL_AND_ADOPT:
                failed = failure if decision.action is Action.FAIL_AND_ADOPT else None
                return ClaimEvent.ADOPT, claims.adopt_over(
                    claim, parent=PARENT, type_=TYPE, boot_id=boot_id, now=now, failure=failed
                )
            case _:
                raise AssertionError(decision)

    def _adopt_free(self, host: str, name: Name, delivery: Delivery) -> None:
        """Not settled when its answer is lost: the next look at the store tells."""
        boot_id, now = self.kernels[host].boot_id, self.now()
        change = self.claims.adopt_free(
            name, f"a{now}", host=host, parent=PARENT, type_=TYPE, boot_id=boot_id, now=now
        )
        txn = transaction(self._guards(host, None, ClaimEvent.ADOPT), [change])
        if self.send(txn, delivery):
            self.etcd.txn(txn)

    def _guards(self, host: str, state: ClaimState | None, event: ClaimEvent) -> tuple[Guard, ...]:
        in_force = self.claims.in_force(host, self.agents[host].instance)
        if transition(state, event).during_hold:
            return (in_force,)
        return (in_force, self.claims.no_hold())

    def _send(
        self, host: str, event: ClaimEvent, claim: Claim, change: Change, delivery: Delivery
    ) -> None:
        guards = self._guards(host, claim.state, event)
        self.agents[host].sent[claim.name] = Sent(event, claim, guards, change)
        self._send_again(host, claim.name, delivery)

    def _send_again(self, host: str, name: Name, delivery: Delivery) -> None:
        """An unknown outcome is settled by the very same transaction, and by nothing else."""
        agent = self.agents[host]
        sent = agent.sent[name]
        txn = transaction(sent.guards, [sent.change])
        if not self.send(txn, delivery):
            return
        try:
            (answer,) = answers(sent.guards, [sent.change], self.etcd.txn(txn))
        except Fenced:
            self.crash(host)  # it drops all it had; enrolling again is a start
            return
        del agent.sent[name]
        self._settled(host, sent, answer)

    def _settled(self, host: str, sent: Sent, answer: Answer) -> None:
        agent, name = self.agents[host], sent.claim.name
        agent.refusals.pop(name, None)
        if answer.error is not None:
            assert isinstance(answer.error, Moved)
            return
        if answer.claim is None:
            agent.known.pop(name, None)
        else:
            agent.known[name] = answer.claim
            if sent.event is ClaimEvent.BEGIN:
                self._order(host, Write.CREATE, answer.claim)

    def _order(self, host: str, write: Write, claim: Claim) -> None:
        self.orders.append(Order(host, write, claim))
        self.agents[host].waits_for.add(claim.name)

    # Workers and the kernel.

    def work(self, which: int) -> None:
        """A worker begins an order: it has the generation's lock and the name's."""
        order = self.orders.pop(which)
        host, name, kernel = order.host, order.claim.name, self.kernels[order.host]
        assert name not in kernel.creating | kernel.removing, "a second write in flight"
        if order.write is Write.CREATE:
            errno = kernel.begin_create(name)
        else:
            errno = None if name in kernel.devices else "ENOENT"
            kernel.removing |= {name} & set(kernel.devices)
        if errno is not None:
            self._told(host, name, Refusal(order.write, errno, errno))

    def _told(self, host: str, name: Name, refusal: Refusal | None) -> None:
        """The agent that waits for it hears; after a crash nobody does."""
        agent = self.agents.get(host)
        if agent is not None and name in agent.waits_for:
            agent.waits_for.discard(name)
            if refusal is not None:
                agent.refusals[name] = refusal

    def finish(self, host: str, name: Name) -> None:
        """The driver is done with what it was at."""
        kernel = self.kernels[host]
        if name in kernel.creating:
            kernel.creating.discard(name)
            kernel.devices[name] = True
        else:
            kernel.removing.discard(name)
            kernel.devices.pop(name, None)
        self._told(host, name, None)

    def by_hand(self, host: str, name: Name) -> None:
        """Somebody makes a device, or removes one, around us."""
        kernel = self.kernels[host]
        if name in kernel.devices and name not in kernel.removing:
            del kernel.devices[name]
        elif name not in kernel.devices and kernel.begin_create(name) is None:
            kernel.creating.discard(name)
            kernel.devices[name] = False

    # What must hold after every step.

    def check(self) -> None:
        self._check_records()
        for host, kernel in self.kernels.items():
            ours = {name for name, is_ours in kernel.devices.items() if is_ours}
            for name in ours | kernel.creating:
                claim = self.record(host, name)
                assert claim is not None, f"{name} lives on {host} and nobody holds its name"
                assert claim.state in MAY_HAVE_A_DEVICE, f"{name} on {host}: {claim.state}"

    def _check_records(self) -> None:
        names = self.etcd.range(prefix(self.keys.names)).kvs
        hosts = self.etcd.range(prefix(self.keys.hosts)).kvs
        claims = {kv.key: kv for kv in hosts if "/claims/" in kv.key}
        for kv in names:
            value = decode(kv, NameValue)
            assert isinstance(value, NameValue)
            assert value.host is not None
            claim_kv = claims.pop(self.keys.claim(value.host, Name(kv.key[-36:])))
            _check_pair(kv, claim_kv)
        assert not claims, f"claims without their names: {list(claims)}"

    # When faults stop.

    def drain(self) -> None:
        """Everything that is on its way arrives, agents run, leases lapse: it must settle."""
        while self.late:
            self.arrive(0)
        for host in HOSTS:
            self.start(host)
        for _ in range(40):
            for host in HOSTS:
                for name in self.names:
                    self._drain_one(host, name)
        for lease in self.etcd.leases():
            self.etcd.expire(lease)
        for host in HOSTS:
            self._check_drained(host)

    def _drain_one(self, host: str, name: Name) -> None:
        kernel = self.kernels[host]
        if host not in self.agents:
            self.start(host)
        self.hear(host, name)
        self.step(host, name, Delivery.ANSWERED)
        while self.orders:
            self.work(0)
        if name in kernel.creating or name in kernel.removing:
            self.finish(host, name)

    def _check_drained(self, host: str) -> None:
        for name in self.names:
            claim, there = self.record(host, name), name in self.kernels[host].devices
            if claim is not None:
                assert claim.state is ClaimState.ACTIVE, f"{name} on {host} sticks: {claim.state}"
                assert there, f"{name} on {host} is active and has no device"
            elif there:
                assert not self.kernels[host].devices[name], f"{name} on {host} leaked"


def _check_pair(name: KeyValue, claim_kv: KeyValue) -> None:
    """Name and claim share revision and lease; only a reservation hangs on one."""
    claim = read_claim(claim_kv)
    assert isinstance(claim, Claim)
    assert (name.mod_revision, name.lease) == (claim_kv.mod_revision, claim_kv.lease)
    assert bool(claim_kv.lease) == (claim.state is ClaimState.RESERVED)
