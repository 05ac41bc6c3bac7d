"""The endpoints, and the rules by which one after the other is asked.

**What is certain.** A call is started only on a channel that is connected; before that, nothing
was sent, and the failure is `Unreachable`. gRPC's own retries are switched off.

**What is asked again.** What does no harm when it is done twice (reads, grants, keepalives)
is asked again, at the next endpoint, until the deadline; a write only while nothing was sent,
or when it was refused for its token. An endpoint has a part of the deadline only, so that one
that is paused leaves time for the others. The endpoint that answered is the one that is asked
next.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import grpc
from etcd3 import etcdrpc

from coordinator.credentials import Certificates
from coordinator.errors import Misconfigured, OutcomeUnknown, Unreachable
from coordinator.etcd.failures import FOREIGN, TokenRefused, failure
from coordinator.etcd.tokens import Tokens
from coordinator.history import History

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from tenacity import AsyncRetrying, RetryCallState

    from coordinator.credentials import Credentials
    from coordinator.endpoints import Endpoint
    from coordinator.etcd.diagnosis import Reason

__all__ = ["Server", "Servers", "Terms", "message", "task_is_cancelled"]

T = TypeVar("T")

Send: TypeAlias = "Callable[[Server, Terms], Awaitable[T]]"
"""Starts a call at a server, on these terms."""

_IS_IT_THERE = "nothing was done; does etcd run there? else name it with --endpoints"

_LAST_CALLS = 30.0  # seconds for calls on a connection that another one has replaced
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds, between rounds over all endpoints

_OPTIONS = (
    # Retries are ours: only we know what may be sent twice. Nor may DNS configure them.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # A store that is closed and made anew does not inherit the backoff of another one.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd is inside the cluster; a proxy that a shell's environment names is not for it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # also how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # How a watch, which may be silent for long, learns that its server is gone without a word.
    # etcd closes connections that ping more often than every 5 s (--grpc-keepalive-min-time)
    # or with no stream open.
    ("grpc.keepalive_time_ms", 8000),
    ("grpc.keepalive_timeout_ms", 4000),
    # The one that takes effect: gRPC does not act on the other (grpc issue 39239), and a minute
    # would pass. Measured on 1.85.
    ("grpc.http2.ping_timeout_ms", 4000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # etcd limits requests, not answers. One that we would not take would be a lost answer.
    ("grpc.max_receive_message_length", -1),
)

# A member without a leader refuses at once, before Raft, instead of letting us wait (etcd:
# api/v3rpc/interceptor.go); a watch on it is cancelled.
_NEEDS_LEADER = ("hasleader", "true")
_METADATA = grpc.aio.Metadata(_NEEDS_LEADER)  # of a call without a token; nobody changes it

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it


class Terms(NamedTuple):
    """What every call is made with: so many seconds, and what it says of us."""

    seconds: float
    metadata: grpc.aio.Metadata

    @property
    def unary(self) -> dict[str, Any]:
        """For a call that has one answer."""
        return {"timeout": self.seconds, "metadata": self.metadata}


class Stubs:
    """A channel and its stubs; made inside the running loop."""

    def __init__(self, endpoint: Endpoint, certificates: Certificates) -> None:
        self.channel = _open_channel(endpoint, certificates)
        self.kv = etcdrpc.KVStub(self.channel)
        self.lease = etcdrpc.LeaseStub(self.channel)
        self.watch = etcdrpc.WatchStub(self.channel).Watch
        self.maintenance = etcdrpc.MaintenanceStub(self.channel)
        self.auth = etcdrpc.AuthStub(self.channel)
        self.cluster = etcdrpc.ClusterStub(self.channel)


def _open_channel(endpoint: Endpoint, certificates: Certificates) -> grpc.aio.Channel:
    """The one place that makes a channel, and so the one that knows how it is secured."""
    if not endpoint.secure:
        return grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)
    pems = certificates.read()
    secured = grpc.ssl_channel_credentials(pems.cacert, pems.key, pems.cert)
    return grpc.aio.secure_channel(endpoint.target, secured, options=_OPTIONS)


class Server:
    """One etcd server, as it is reached from here."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials) -> None:
        self.endpoint, self._credentials = endpoint, credentials
        self.who = f"etcd at {endpoint}"
        """What errors call it."""
        self.certificates = Certificates(credentials)
        self._stubs: Stubs | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.reason: Reason | None = None
        """Why it could not be connected to when that was last tried."""
        self.known = False
        """Whether the connection that stands was seen to lead to the store of all others."""

    @property
    def stubs(self) -> Stubs:
        """Its calls, on the connection that is in use."""
        if self._stubs is None:
            self._stubs = Stubs(self.endpoint, self.certificates)
        return self._stubs

    @property
    def is_connected(self) -> bool:
        """Whether a call would be sent at once."""
        return self._stubs is not None and self._state() is grpc.ChannelConnectivity.READY

    async def connected(self, until: float) -> None:
        """Wait until a call would be sent at once; nothing is sent here.

        Raises:
            Unreachable: not connected by the loop's time `until`, or refused.
        """
        connectivity = grpc.ChannelConnectivity
        if self.is_connected:
            return
        self.known = False
        self._renew_certificates()
        state = self._state()
        try:
            async with asyncio.timeout_at(until):
                while state is not connectivity.READY:
                    if state in (connectivity.TRANSIENT_FAILURE, connectivity.SHUTDOWN):
                        raise await self._unreachable("cannot connect")
                    await self.stubs.channel.wait_for_state_change(state)
                    state = self._state()
        except TimeoutError:
            raise self._no_connection("no connection in time") from None
        self.reason = None

    def _state(self) -> grpc.ChannelConnectivity:
        try:
            return self.stubs.channel.get_state(try_to_connect=True)
        except Misconfigured as error:  # they were good when the store was made
            raise Unreachable(self.who, error.message, "nothing was done") from None

    def _renew_certificates(self) -> None:
        """Make the next connection with the files as they are now; calls under way go on."""
        if self._stubs is None or not self.endpoint.secure or not self.certificates.changed():
            return
        try:
            stubs = Stubs(self.endpoint, self.certificates)
        except Misconfigured:
            return  # half of them is written, perhaps; what was good before may still be
        ending = asyncio.create_task(self._stubs.channel.close(_LAST_CALLS))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        self._stubs = stubs

    async def _unreachable(self, otherwise: str) -> Unreachable:
        """The error of a connection that failed, with a reason where one can be found."""
        from coordinator.etcd.diagnosis import why_unreachable  # noqa: PLC0415 - speaks HTTP, which is slow to load

        self.reason = await why_unreachable(self.endpoint, self.certificates) or self.reason
        return self._no_connection(otherwise)

    def _no_connection(self, otherwise: str) -> Unreachable:
        if self.reason is None:
            return Unreachable(self.who, otherwise, _IS_IT_THERE)
        return Unreachable(self.who, self.reason.text, "nothing was done")

    async def close(self) -> None:
        """Let go of all connections; calls under way on them are cancelled."""
        if self._stubs is not None:
            await self._stubs.channel.close(None)
        for ending in self._ending:
            ending.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)


class Servers:
    """The servers, of which one after the other is asked."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        credentials: Credentials,
        timeout: float,
        rng: random.Random,
        probe: bytes,
    ) -> None:
        self._probe = probe
        self._all = [Server(endpoint, credentials) for endpoint in endpoints]
        self._tokens = Tokens(credentials)
        self._timeout, self._rng = timeout, rng
        # One part more than there are endpoints: the first to be asked may be asked again.
        self._part = timeout / (len(endpoints) + 1)
        self._current = 0
        self.history = History()
        self.closed = False

    async def call(self, send: Send[T], *, writes: bool = False, linear: bool = False) -> T:
        """Let `send` be answered by one of the servers, within the deadline.

        `linear`: its answer is never older than one that was given before it was sent.

        Raises:
            SetBack: the store was found to be another or an older one. A write that was
                answered all the same has its answer.
        """
        deadline = _now() + self._timeout
        try:
            # Not inside tenacity, which would cost a happy call a tenth of its time.
            return await self._called(send, deadline, writes=writes, linear=linear)
        except Unreachable:
            again = self.retrying(deadline - _now())
            return await again(self._called, send, deadline, writes=writes, linear=linear)

    async def _called(self, send: Send[T], deadline: float, *, writes: bool, linear: bool) -> T:
        floor = self.history.revision if linear else 0
        server, reply = await self.attempt(send, deadline, writes=writes)
        header = reply.header  # type: ignore[attr-defined]  # every answer of etcd has one
        fits = self.history.see(server.who, header.cluster_id, header.revision, floor)
        if fits:
            server.known = True
        elif not writes:
            self.history.check()
        return reply

    @property
    def probed(self) -> bytes:
        """The key that may be read by us."""
        return self._probe

    @property
    def all(self) -> Sequence[Server]:
        """The servers, in the order in which they were named."""
        return self._all

    async def ask(self, server: Server, send: Send[T]) -> T:
        """Let this very server answer, once.

        Raises:
            StoreError: it cannot be reached, or does not answer in its part of the time.
        """
        end = _now() + self._part
        await server.connected(end)
        token = await self._token(server, end)
        return await self._sent(server, send, end, token, writes=False)

    def retrying(self, seconds: float | None = None) -> AsyncRetrying:
        """Try again what is `Unreachable`, with pauses, for so long and as there is hope."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay, stop_never  # noqa: PLC0415 - slow to load, and seldom needed

        return AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, Unreachable) and self._hopes()),
            wait=self._pause,
            stop=stop_never if seconds is None else stop_before_delay(seconds),
            reraise=True,
        )

    def _hopes(self) -> bool:
        """Whether the store is open, and a server may be there by waiting."""
        lasting = (server.reason is not None and server.reason.lasting for server in self._all)
        return not (self.closed or all(lasting))

    def _pause(self, state: RetryCallState) -> float:
        """No pause until every server was asked, then longer and longer ones, spread."""
        rounds = state.attempt_number - len(self._all) + 1
        if rounds < 0:
            return 0.0
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(rounds, 10))
        return self._rng.uniform(longest / 2, longest)

    async def attempt(
        self, send: Send[T], deadline: float = inf, *, writes: bool = False
    ) -> tuple[Server, T]:
        """One try, at the current server, in its part of the time up to `deadline`."""
        server = self._all[self._current]
        end = min(deadline, _now() + self._part)
        try:
            return server, await self._once(server, send, end, writes=writes)
        except TokenRefused as error:
            if not self._tokens.used:
                raise
            # Nothing was done (failures.py). Once: a new token that is refused is an answer.
            self._tokens.drop(error.token)
            return server, await self._once(server, send, end, writes=writes)

    async def _once(self, server: Server, send: Send[T], end: float, *, writes: bool) -> T:
        # Nearly always nothing has to be waited for.
        is_ready = self._is_ready(server)
        token = self._tokens.at_hand if is_ready else await self._ready(server, end)
        return await self._sent(server, send, end, token, writes=writes)

    def _is_ready(self, server: Server) -> bool:
        """Whether `_ready` would find nothing to wait for, nor to raise."""
        return (
            not (self.closed or self.history.is_lost)
            and (server.known or not self.history.cluster)
            and self._tokens.are_taken
            and server.is_connected
        )

    async def _ready(self, server: Server, end: float) -> str | None:
        """See that a server is the one to ask; the token to ask with."""
        if self.closed:
            raise Unreachable(*_CLOSED)
        self.history.check()
        try:
            await server.connected(end)
            if self.history.cluster and not server.known:
                await self._recognise(server, end)
            return await self._token(server, end)
        except Unreachable:
            self._turn_from(server)
            raise

    async def _recognise(self, server: Server, end: float) -> None:
        """See that a new connection leads to the same cluster, before anything is sent there.

        Raises:
            SetBack: it does not.
        """
        token = await self._token(server, end)
        reply = await self._sent(server, self.probe, end, token, writes=False)
        self.history.see(server.who, reply.header.cluster_id, reply.header.revision)
        self.history.check()
        server.known = True

    def probe(self, server: Server, terms: Terms) -> Any:
        """Read the key that may be read by us, as this member has it, for what its header says.

        Not its status: with authentication on etcd tells that to root alone (3.5.30).
        """
        request = etcdrpc.RangeRequest(key=self._probe, count_only=True, serializable=True)
        return server.stubs.kv.Range(request, **terms.unary)

    async def _token(self, server: Server, end: float) -> str | None:
        return await self._tokens.get(lambda request: self._authenticated(server, request, end))

    async def _authenticated(self, server: Server, request: Any, end: float) -> Any:
        terms = Terms(end - _now(), _METADATA)
        return await self.answered(server, server.stubs.auth.Authenticate(request, **terms.unary))

    async def _sent(
        self, server: Server, send: Send[T], end: float, token: str | None, *, writes: bool
    ) -> T:
        metadata = _METADATA
        if token is not None:
            metadata = grpc.aio.Metadata(_NEEDS_LEADER, ("token", token))
        call = send(server, Terms(end - _now(), metadata))
        try:
            return await self.answered(server, call, writes=writes)
        except TokenRefused as error:
            error.token = token
            raise

    async def answered(self, server: Server, answer: Awaitable[T], *, writes: bool = False) -> T:
        """Wait for the answer of a call that was started; a failure is one of our errors."""
        try:
            return await answer
        except asyncio.CancelledError:
            if task_is_cancelled():
                raise
            # Its channel was closed under it: with the store, or for renewed certificates.
            why = _CLOSED if self.closed else (server.who, "its connection was given up")
            raise (OutcomeUnknown if writes else Unreachable)(*why) from None
        except FOREIGN as error:
            failed = failure(error, server.who, writes=writes)
            if isinstance(failed, (Unreachable, OutcomeUnknown)):
                self._turn_from(server)
            raise failed from error

    def drop_token(self) -> bool:
        """Let the next call take a new token; whether there is a user to take one for."""
        self._tokens.drop(None)
        return self._tokens.used

    def _turn_from(self, server: Server) -> None:
        """Ask the next server from now on; once, however many calls failed here together."""
        if self._all[self._current] is server:
            self._current = (self._current + 1) % len(self._all)

    async def close(self) -> None:
        """Let go of all connections."""
        self.closed = True
        for server in self._all:
            await server.close()


_CLOSED = ("etcd", "the store was closed")


def message(read: Any) -> Any:
    """What was read from a stream, unless that is its end."""
    if read is _EOF:
        raise Unreachable("etcd", "it ended a stream")
    return read


def _now() -> float:
    return asyncio.get_running_loop().time()


def task_is_cancelled() -> bool:
    """Whether our own task is being cancelled, rather than the call because of a close."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
