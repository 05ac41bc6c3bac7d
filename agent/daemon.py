"""One host's agent: enrol, scan, reconcile, watch; and again when it was fenced.

An enrolment is one object that lives until it is no longer in force or the agent is stopped.
Nothing of it survives into the next but what the kernel, the store and the locks of workers
hold, which is also all that is left of an agent that was killed.
"""

from __future__ import annotations

import asyncio
import errno
import random
import secrets
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from agent.buses import open_bus
from agent.enrolment import Enrolment, Parts, unless
from agent.exposition import OFF, parse_address, serving
from agent.health import BEAT, Vitals, verdict
from agent.journal import Journal, JournalFailed, journal_path
from agent.local.service import Local
from agent.local.serving import local_socket
from agent.locks import AgentLock
from agent.makers import Makers
from agent.metered import MeteredStore
from agent.metrics import Metrics
from agent.notes import Notes
from agent.notify import Notifier
from agent.places import Directories, directories
from agent.restoring import told_of
from agent.slots import raise_descriptor_limit
from agent.sysfs import MachineUnknown
from agent.threads import in_thread
from agent.workers import Workers
from coordinator import __version__
from coordinator.clock import SystemClock
from coordinator.credentials import Credentials
from coordinator.errors import (
    Misconfigured,
    NotAllowed,
    NotFound,
    OutcomeUnknown,
    StoreError,
    Unreachable,
)
from coordinator.etcd import EtcdStore
from coordinator.keys import Keys
from coordinator.model import parse_label
from coordinator.session import Enroller

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.sysfs import SysfsBus
    from coordinator.session import Session

__all__ = ["Agent", "AgentSettings", "run"]

_log = structlog.get_logger()

_ETCD_LEASE_FLOOR = 2  # seconds; etcd grants no shorter lease (measured)
_ENROL_AGAIN = 0.5  # seconds between an enrolment that ended and the next
_LONGEST = 10.0  # seconds, where the machine has failed many of them
_STORE_AGAIN = 1.0  # seconds between tries at a store that failed an enrolment


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How an agent runs. Times in seconds.

    `bus` is `sysfs` or `sim:DIR`; `rescan` how often the bus is looked at without any event,
    `resync` how often the claims are listed again; `per_parent` how many writes a parent is
    given at a time.
    """

    host: str
    bus: str = "sysfs"
    endpoints: Sequence[str] = ("http://127.0.0.1:2379",)
    cluster: str = "default"
    credentials: Credentials = field(default_factory=Credentials)
    timeout: float = 10.0
    session_ttl: int = 10
    rescan: float = 2.0
    resync: float = 300.0
    per_parent: int = 4
    run_dir: str | None = None
    state_dir: str | None = None
    metrics: str = OFF
    verbose: bool = False


def _open_bus(settings: AgentSettings) -> tuple[SysfsBus, Directories]:
    """The bus, and the agent's directories.

    Raises:
        Misconfigured: the spec is neither `sysfs` nor `sim:DIR`.
        NotFound: there is no such (simulated) host.
        NotAllowed: nobody lets us make devices here.
    """
    places = directories(settings.bus, settings.run_dir, settings.state_dir)
    what = f"bus {settings.bus}"
    try:
        bus = open_bus(settings.bus, places.run)
        problem = bus.problem()
        bus.boot_id()
    except ValueError:
        why = "is neither sysfs nor sim:DIR"
        raise Misconfigured(what, why, "see: mdevns agent --help") from None
    except FileNotFoundError:
        why = "there is no host: no boot id can be read"
        raise NotFound(what, why, "make a simulated one: mdevns sim init DIR") from None
    except PermissionError as error:
        raise NotAllowed(what, str(error.strerror), errno_name="EACCES") from None
    if problem is not None:  # a driver that loads later is an ordinary boot
        _log.warning("no devices can be made yet", bus=settings.bus, why=problem)
    return bus, places


def run(settings: AgentSettings) -> None:
    """Run an agent in the foreground until SIGTERM or SIGINT.

    Raises:
        MdevnsError: it cannot run here: the host name is not one, the bus is not ours to
            write, another agent runs on this machine, or another machine has the host name.
    """
    from agent.logs import configure  # noqa: PLC0415 - logging is set up by whoever runs one

    configure(verbose=settings.verbose)
    _check(settings)
    raise_descriptor_limit()  # a worker takes three, and 400 parents have that many workers
    bus, places = _open_bus(settings)
    with AgentLock(places.run, bus.root / "sys"):
        asyncio.run(_serve(settings, bus, places))


def _check(settings: AgentSettings) -> None:
    parse_label(settings.host, "host name")
    parse_label(settings.cluster, "cluster name")
    if settings.session_ttl < _ETCD_LEASE_FLOOR:
        raise Misconfigured(
            f"session-ttl {settings.session_ttl}",
            f"etcd grants no lease under {_ETCD_LEASE_FLOOR} s",
            f"use {_ETCD_LEASE_FLOOR} or more",
        )


async def _serve(settings: AgentSettings, bus: SysfsBus, places: Directories) -> None:
    metrics = Metrics()
    keys = Keys(settings.cluster)
    notes = Notes(Journal(journal_path(places.state, settings.cluster, settings.host)))
    store = EtcdStore(
        settings.endpoints,
        timeout=settings.timeout,
        credentials=settings.credentials,
        probe=keys.hold,
        writable=keys.names,
        waits=True,  # for files that are being replaced; what is configured was checked
    )
    parts = Parts(
        store=MeteredStore(store, metrics),
        keys=keys,
        clock=SystemClock(),
        # Seeded by the system: no two agents may ever draw the same instance id.
        rng=random.Random(secrets.randbits(256)),  # noqa: S311 - see above
        bus=bus,
        workers=Workers(bus.spec, places.run, per_parent=settings.per_parent),
        notes=notes,
        makers=Makers(notes, bus.boot_id),
        metrics=metrics,
    )
    agent = Agent(settings, parts)
    try:
        with _signals(agent.stop):
            async with local_socket(places.run, agent.local, agent.vitals):
                await agent.run()
    finally:
        await store.close()
        await notes.close()


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stop.set)
    try:
        yield
    finally:
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(one)


class Agent:
    """The agent of a host; set `stop` and it ends after what the kernel is doing."""

    def __init__(self, settings: AgentSettings, parts: Parts) -> None:
        self._settings, self._parts = settings, parts
        self.stop = asyncio.Event()
        self.vitals = Vitals(parts.clock)
        self._pause = _ENROL_AGAIN
        self.local = Local(parts, settings.host)
        """What callers on this host may ask."""

    async def run(self) -> None:
        """Enrol and serve, again and again, until stopped.

        Raises:
            NotAllowed: another machine has this host name, or this machine another one.
            Misconfigured: metrics are to be served at what is no address on loopback.
        """
        metrics = self._parts.metrics
        metrics.show(self.vitals, self._parts.clock, self._settings.credentials)
        beating = asyncio.create_task(self._beat())
        try:
            with serving(parse_address(self._settings.metrics), metrics, self.vitals):
                while not self.stop.is_set():
                    await self._serve_or_wait()
                    # Two agents of one host would fence one another as fast as they can.
                    await unless(self.stop, asyncio.sleep(self._pause))
        finally:
            beating.cancel()
        _log.info("stopped", host=self._settings.host)

    async def _beat(self) -> None:
        notifier = Notifier(self._parts.clock)
        while not self.stop.is_set():
            self.vitals.beat()
            notifier.beat(verdict(self.vitals.facts()))
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self.stop.wait()
        notifier.stopping()

    async def _serve_or_wait(self) -> None:
        """Serve once; what the machine has no room for now is tried again, ever more rarely.

        A full run directory, no descriptor left, or a machine-id that is being written mends
        itself or is mended by others, and devices do not need the agent meanwhile.
        """
        try:
            await self._serve_once()
        except OSError as error:
            self._note("cannot enrol", _line(error))
            self._pause = min(2 * self._pause, _LONGEST)

    def _note(self, what: str, trouble: str | None) -> None:
        """Say what keeps the agent from enrolling when it begins; readiness says it meanwhile."""
        if trouble is not None and trouble != self.vitals.trouble:
            _log.warning(what, host=self._settings.host, error=trouble)
        self.vitals.trouble = trouble

    async def _serve_once(self) -> None:
        # Orders of an enrolment before this one, by whichever agent, that have not begun
        # never will; those that have are in flight for whoever looks from here on.
        await in_thread(self._parts.workers.new_generation)
        boot_id = self._parts.bus.boot_id()
        session = await self._enrol(boot_id)
        if session is None:
            return
        self._note("enrolled", None)
        self._pause = _ENROL_AGAIN
        _log.info("enrolled", host=session.host, instance=session.instance)
        if session.restore is not None:
            _log.warning("a restore is under way", **told_of(session.restore))
        self._parts.metrics.enrolled()
        self.vitals.enrolled(session)
        settings = self._settings
        enrolment = Enrolment(
            self._parts,
            session,
            boot_id,
            self.vitals,
            ttl=settings.session_ttl,
            rescan=settings.rescan,
            resync=settings.resync,
        )
        self.local.enrolment = enrolment
        try:
            await enrolment.serve(self.stop)
        finally:
            self.local.enrolment = None
            self.vitals.enrolled(None)

    async def _enrol(self, boot_id: str) -> Session | None:
        """A session, or None when stopped before there is one."""
        parts = self._parts
        enroller = Enroller(
            parts.store,
            parts.keys,
            parts.clock,
            parts.rng,
            host=self._settings.host,
            identity=parts.bus.identity(),
            boot_id=boot_id,
            version=__version__,
            ttl=self._settings.session_ttl,
        )
        enroller.told = self._waits
        enroller.found = self._found
        while not self.stop.is_set():
            # Nothing that was read before an enrolment is used in it.
            parts.store.begin_anew()
            try:
                session = await unless(self.stop, enroller.enrol())
                self.local.say_away(is_away=False)
                return session
            except StoreError as error:
                self.local.say_away(isinstance(error, Unreachable | OutcomeUnknown))
                self._note("cannot enrol", error.line)
                await unless(self.stop, asyncio.sleep(_STORE_AGAIN))
        return None

    async def _found(self, epoch: str | None, revision: int) -> str | None:
        """Note what the epoch tells of the store before it is overwritten, for good."""
        why = self._parts.notes.found(epoch, revision)
        with suppress(JournalFailed):  # told in the log; an agent without a disk enrols
            await self._parts.notes.written()
        return why

    def _waits(self, why: str) -> None:
        self.local.say_away(is_away=False)
        _log.warning("waiting to enrol", host=self._settings.host, why=why)


def _line(error: OSError) -> str:
    """An error of the machine as one line: its name, where, and what to do."""
    name = errno.errorcode.get(error.errno or 0, "EIO")
    where = f"{error.filename}: " if error.filename else ""
    hint = "it is tried again"
    if isinstance(error, MachineUnknown):
        hint = "set it up: systemd-machine-id-setup"
    return f"{name}: {where}{error.strerror or error}; {hint}"
