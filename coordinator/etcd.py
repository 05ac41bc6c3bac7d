"""The Store on `grpc.aio`: endpoints, failover, deadlines, watches that resume.

The one module that speaks grpc; its errors become ours in `_failure` and nowhere else. The
messages are `etcd3`'s generated ones.

**What is certain.** gRPC says of UNAVAILABLE that nothing guarantees that the server has not
seen the request (grpc/status.h). So certainty is made here and not read from a status: a call
is started only on a channel that is connected; before that, nothing was sent, and the failure
is `Unreachable`. Whatever goes wrong after the start is `OutcomeUnknown` for a write, unless
etcd itself answered with one of the refusals that it gives before a request enters Raft, or
instead of applying it. gRPC's own retries are switched off.

**What is asked again.** What does no harm when it is done twice (reads, grants, keepalives)
is asked again, at the next endpoint, until the deadline; a write only while nothing was sent.
An endpoint has a part of the deadline only, so that one that is paused leaves time for the
others. The endpoint that answered is the one that is asked next.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import grpc
from etcd3 import etcdrpc
from tenacity import AsyncRetrying, retry_if_exception, stop_before_delay, stop_never

from coordinator.errors import (
    Compacted,
    LeaseGone,
    Misconfigured,
    NotAllowed,
    OutcomeUnknown,
    StoreReadOnly,
    TooLarge,
    Unreachable,
)
from coordinator.messages import (
    may_write,
    range_request,
    range_result,
    read_event,
    to_bytes,
    txn_request,
    txn_result,
)
from coordinator.store import Lease, Range, RangeResult, Txn, TxnResult, WatchBatch, within

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from tenacity import RetryCallState
    from tenacity.stop import StopBaseT

__all__ = ["EtcdStore", "parse_endpoints"]

T = TypeVar("T")

_Send: TypeAlias = "Callable[[_Endpoint, float], Awaitable[T]]"
"""Starts a call at an endpoint, with so many seconds for its answer."""

_IS_IT_THERE = "nothing was done; does etcd run there? else name it with --endpoints"

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
_NEEDS_LEADER = grpc.aio.Metadata(("hasleader", "true"))

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs do not know it


def parse_endpoints(text: str) -> tuple[str, ...]:
    """The endpoints in `http://host:port,…`.

    Raises:
        Misconfigured: one is not such a URL, or there is none.
    """
    urls = tuple(part.strip() for part in text.split(",") if part.strip())
    if not urls:
        raise Misconfigured("etcd endpoints", "none is given", "write them as http://host:port,…")
    for url in urls:
        _target(url)
    return urls


def _target(url: str) -> str:
    """What gRPC calls the address of an endpoint; names are resolved again on reconnecting."""
    hint = "write it as http://host:port"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Misconfigured(f"etcd endpoint {url}", str(error), hint) from None
    if parts.scheme == "https":
        raise Misconfigured(f"etcd endpoint {url}", "TLS is not supported", hint)
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme != "http" or not host or not port or extra:
        raise Misconfigured(f"etcd endpoint {url}", "not a URL of an etcd server", hint)
    return f"dns:///[{host}]:{port}" if ":" in host else f"dns:///{host}:{port}"


def _open_channel(target: str) -> grpc.aio.Channel:
    """The one place that makes a channel, and so the one that knows how it is secured."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


class _Endpoint:
    """One etcd server. Its channel is made at the first use, inside the running loop."""

    def __init__(self, url: str) -> None:
        self.url, self._target = url, _target(url)

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        return _open_channel(self._target)

    @cached_property
    def kv(self) -> Any:
        return etcdrpc.KVStub(self.channel)

    @cached_property
    def lease(self) -> Any:
        return etcdrpc.LeaseStub(self.channel)

    @cached_property
    def watch(self) -> Any:
        return etcdrpc.WatchStub(self.channel).Watch

    @cached_property
    def maintenance(self) -> Any:
        return etcdrpc.MaintenanceStub(self.channel)

    async def connected(self, until: float) -> None:
        """Wait until a call would be sent at once; nothing is sent here.

        Raises:
            Unreachable: not connected by the loop's time `until`, or refused.
        """
        connectivity = grpc.ChannelConnectivity
        state = self.channel.get_state(try_to_connect=True)
        if state is connectivity.READY:
            return
        try:
            async with asyncio.timeout_at(until):
                while state is not connectivity.READY:
                    if state in (connectivity.TRANSIENT_FAILURE, connectivity.SHUTDOWN):
                        raise Unreachable(f"etcd at {self.url}", "cannot connect", _IS_IT_THERE)
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise Unreachable(
                f"etcd at {self.url}", "no connection in time", _IS_IT_THERE
            ) from None

    async def close(self) -> None:
        if "channel" in self.__dict__:
            await self.channel.close(None)


class _Servers:
    """The endpoints, and the rules by which one after the other is asked."""

    def __init__(self, urls: Sequence[str], timeout: float, rng: random.Random) -> None:
        self._all = [_Endpoint(url) for url in urls]
        self._timeout, self._rng = timeout, rng
        # One part more than there are endpoints: the first to be asked may be asked again.
        self._part = timeout / (len(urls) + 1)
        self._current = 0
        self.closed = False

    async def call(self, send: _Send[T], *, writes: bool = False) -> T:
        """Let `send` be answered by one of the endpoints, within the deadline."""
        deadline = _now() + self._timeout
        try:
            # Not inside tenacity, which would cost a happy call a tenth of its time.
            return await self.attempt(send, deadline, writes=writes)
        except Unreachable:
            again = self.retrying(stop_before_delay(deadline - _now()))
            return await again(self.attempt, send, deadline, writes=writes)

    def retrying(self, stop: StopBaseT) -> AsyncRetrying:
        """Try again what is `Unreachable`, with pauses, as long as the store is open."""
        return AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, Unreachable) and not self.closed),
            wait=self._pause,
            stop=stop,
            reraise=True,
        )

    def _pause(self, state: RetryCallState) -> float:
        """No pause until every endpoint was asked, then longer and longer ones, spread."""
        rounds = state.attempt_number - len(self._all) + 1
        if rounds < 0:
            return 0.0
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(rounds, 10))
        return self._rng.uniform(longest / 2, longest)

    async def attempt(self, send: _Send[T], deadline: float = inf, *, writes: bool = False) -> T:
        """One try, at the current endpoint, in its part of the time up to `deadline`."""
        if self.closed:
            raise Unreachable(*_CLOSED)
        endpoint = self._all[self._current]
        end = min(deadline, _now() + self._part)
        try:
            await endpoint.connected(end)
        except Unreachable:
            self._turn_from(endpoint)
            raise
        return await self.answered(endpoint, send(endpoint, end - _now()), writes=writes)

    async def answered(
        self, endpoint: _Endpoint, answer: Awaitable[T], *, writes: bool = False
    ) -> T:
        """Wait for the answer of a call that was started; a failure is one of our errors."""
        try:
            return await answer
        except asyncio.CancelledError:
            if self.closed and not _task_is_cancelled():
                raise (OutcomeUnknown if writes else Unreachable)(*_CLOSED) from None
            raise
        except _FOREIGN as error:
            failure = _failure(error, endpoint.url, writes=writes)
            if isinstance(failure, (Unreachable, OutcomeUnknown)):
                self._turn_from(endpoint)
            raise failure from error

    def _turn_from(self, endpoint: _Endpoint) -> None:
        """Ask the next endpoint from now on; once, however many calls failed here together."""
        if self._all[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._all)

    async def close(self) -> None:
        self.closed = True
        for endpoint in self._all:
            await endpoint.close()


_CLOSED = ("etcd", "the store was closed")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _task_is_cancelled() -> bool:
    """Whether our own task is being cancelled, rather than the call because of a close."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class EtcdStore:
    """The `Store` on real etcd servers, which are members of one cluster.

    `endpoints` are `http://host:port`, `timeout` the seconds in which a call ends one way or
    the other; an endpoint gets a part of it. `rng` spreads the pauses between attempts.

    A write whose task is cancelled may have been done, as with `OutcomeUnknown`.

    Raises:
        Misconfigured: no endpoint, one that is not such a URL, or no time to do anything in.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        timeout: float = 10.0,
        rng: random.Random | None = None,
    ) -> None:
        if timeout <= 0:
            raise Misconfigured("etcd timeout", f"{timeout} s is no time", "give more than 0")
        urls = parse_endpoints(",".join(endpoints))
        rng = rng or random.Random()  # noqa: S311 - spreads pauses, guards no secret
        self._servers = _Servers(urls, timeout, rng)

    async def txn(self, txn: Txn) -> TxnResult:
        """Apply a transaction. See `Store.txn`.

        Raises:
            ValueError: etcd calls the request malformed: a key put twice, an empty key.
        """
        request = txn_request(txn)
        reply = await self._servers.call(
            lambda endpoint, seconds: endpoint.kv.Txn(
                request, timeout=seconds, metadata=_NEEDS_LEADER
            ),
            writes=may_write(txn),
        )
        return txn_result(reply, reply.header.revision)

    async def range(self, request: Range) -> RangeResult:
        """Read, linearizably. See `Store.range`."""
        message = range_request(request)
        reply = await self._servers.call(
            lambda endpoint, seconds: endpoint.kv.Range(
                message, timeout=seconds, metadata=_NEEDS_LEADER
            )
        )
        return range_result(reply)

    async def grant(self, ttl: int) -> Lease:
        """Grant a lease of `ttl` seconds; the server chooses its id. See `Store.grant`."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl)
        reply = await self._servers.call(
            lambda endpoint, seconds: endpoint.lease.LeaseGrant(
                request, timeout=seconds, metadata=_NEEDS_LEADER
            )
        )
        return Lease(reply.ID, reply.TTL)

    async def keep_alive(self, lease: int) -> int:
        """Refresh a lease once; its time to live in seconds, 0 when it is gone."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)
        reply = await self._servers.call(
            lambda endpoint, seconds: _first_answer(
                endpoint.lease.LeaseKeepAlive(
                    iter([request]), timeout=seconds, metadata=_NEEDS_LEADER
                )
            )
        )
        return int(reply.TTL)

    async def revoke(self, lease: int) -> None:
        """Revoke a lease and delete its keys; nothing when it is gone already.

        Raises:
            OutcomeUnknown: as for a transaction; to revoke it once more does no harm.
        """
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        with suppress(LeaseGone):
            await self._servers.call(
                lambda endpoint, seconds: endpoint.lease.LeaseRevoke(
                    request, timeout=seconds, metadata=_NEEDS_LEADER
                ),
                writes=True,
            )

    @asynccontextmanager
    async def watch(
        self, ranges: Sequence[Range], start: int
    ) -> AsyncGenerator[AsyncIterator[WatchBatch], None]:
        """Watch `ranges` from revision `start` on. See `Store.watch`; entering asks nothing.

        etcd keeps order within one watcher and promises nothing across several: a slow one is
        served later. So that a batch's revision holds for all ranges there is one watcher,
        over the whole stretch from the first range to the last; what lies between is sent to
        us and left out here. Ranges that lie far apart are better watched in two contexts.

        A reading that is cancelled loses nothing: the next one resumes.

        Raises (from the iterator):
            Compacted: changes are lost, be it that the store was set back to an older state.
            NotAllowed: the ranges may not be read.
            Unreachable: the store was closed.
        """
        watch = _Watch(self._servers, ranges, start)
        try:
            yield watch
        finally:
            watch.close()

    async def status(self) -> str:
        """The version of an etcd server that answers now."""
        request = etcdrpc.StatusRequest()
        reply = await self._servers.call(
            lambda endpoint, seconds: endpoint.maintenance.Status(request, timeout=seconds)
        )
        return str(reply.version)

    async def close(self) -> None:
        """Let go of connections.

        A write that is under way ends in OutcomeUnknown; other calls under way, watches, and
        every later call in Unreachable.
        """
        await self._servers.close()


async def _first_answer(stream: Any) -> Any:
    """The first message of a stream, which is then ended."""
    try:
        return _message(await stream.read())
    finally:
        stream.cancel()


def _message(read: Any) -> Any:
    """What was read from a stream, unless that is its end."""
    if read is _EOF:
        raise Unreachable("etcd", "it ended a stream")
    return read


# --- errors: the one seam

# What gRPC and our waiting for it raise: a status, a channel or a stream that has ended, no
# answer in time.
_FOREIGN = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError)

# What etcd answers before a request enters Raft, so that the request is certainly not applied
# and another member may take it (etcd: api/v3rpc/interceptor.go, etcdserver/v3_server.go).
_NOT_NOW = (
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
)

# Refusals of a whole request, before Raft or instead of applying it (etcd: api/v3rpc/rpctypes).
_REFUSALS: tuple[tuple[str, Callable[[str, str], Exception]], ...] = (
    (
        "requested lease not found",
        lambda what, _: LeaseGone(what, "a lease is gone", "take a new one and try again"),
    ),
    ("too many operations in txn", TooLarge),
    ("request is too large", TooLarge),
    # The server's gRPC, half a MiB above etcd's own limit. Ours takes answers of any size.
    ("grpc: received message larger than max", TooLarge),
    (
        "database space exceeded",
        lambda what, _: StoreReadOnly(
            what,
            "its space quota is used up (NOSPACE)",
            "compact, defragment and disarm the alarm; until then nothing is freed either",
        ),
    ),
    (
        "corrupt cluster",
        lambda what, _: StoreReadOnly(what, "it found itself corrupt", "replace the member"),
    ),
    ("required revision has been compacted", lambda what, _: Compacted(what)),
    # Only a store that was set back can be asked for what it has not seen: list again.
    ("required revision is a future revision", lambda what, _: Compacted(what)),
    ("permission denied", NotAllowed),
    ("user name is empty", lambda what, _: NotAllowed(what, "it wants a user and password")),
    ("authentication failed", NotAllowed),
    ("invalid auth token", NotAllowed),
)


def _failure(error: Exception, url: str, *, writes: bool) -> Exception:
    """What an exception of gRPC means, raised after a call was started.

    Whatever is not known to be a refusal leaves a write's outcome unknown: an attempt's
    deadline, a connection that broke, a reset stream, etcd's "request timed out" and "leader
    changed" (it may be in Raft's log), and whatever a later etcd may answer.
    """
    what = f"etcd at {url}"
    code, why = _said(error)
    refusal = _refusal(what, why)
    if refusal is not None:
        return refusal
    if any(why.startswith(text) for text in _NOT_NOW):
        return Unreachable(what, why)
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return NotAllowed(what, why)
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return ValueError(f"{what}: {why}")  # a defect of ours; a key put twice is one
    if writes:
        return OutcomeUnknown(what, why, "send the very same again to learn it")
    return Unreachable(what, why)


def _refusal(what: str, why: str) -> Exception | None:
    """The error for one of etcd's refusals, by its text."""
    return next((make(what, why) for text, make in _REFUSALS if text in why), None)


def _said(error: Exception) -> tuple[grpc.StatusCode | None, str]:
    if not isinstance(error, grpc.aio.AioRpcError):
        return None, str(error) or "no answer in time"
    code: grpc.StatusCode = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return code, "no answer in time"
    return code, error.details() or code.name


# --- watch


class _Watch:
    """One watch, over as many streams as it takes; its own iterator.

    `_told` is the revision up to which everything was handed out. A stream is opened one
    revision before what is still to be told: etcd until August 2024 drops a delete without
    a word when the history was compacted at exactly its revision and the watch starts there
    (etcd issue 18089). Asked for the revision before, it says that it is compacted.
    """

    def __init__(self, servers: _Servers, ranges: Sequence[Range], start: int) -> None:
        self._servers, self._ranges = servers, tuple(ranges)
        self._low, self._high = _covering(self._ranges)
        self._told = max(start, 1) - 1
        self._cluster = 0
        self._endpoint: _Endpoint | None = None
        self._stream: Any = None
        self._closed = False

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> WatchBatch:
        try:
            return await self._next()
        except Unreachable:
            return await self._servers.retrying(stop_never)(self._next)

    def close(self) -> None:
        """End the stream and the iteration."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def _next(self) -> WatchBatch:
        """The next batch. Any failure ends the stream; the next try opens another."""
        try:
            while not self._closed:
                batch = self._taken(await self._response())
                if batch is not None:
                    self._told = batch.revision
                    return batch
        except asyncio.CancelledError:
            self._drop()
            if not self._closed or _task_is_cancelled():
                raise
        except BaseException:
            self._drop()
            raise
        raise StopAsyncIteration

    async def _response(self) -> Any:
        if self._endpoint is None or self._stream is None:
            return await self._open()
        return _message(await self._servers.answered(self._endpoint, self._stream.read()))

    async def _open(self) -> Any:
        """Open a stream at the current endpoint; its first message, which says what it found."""
        self._endpoint, self._stream, created = await self._servers.attempt(self._begin)
        if not created.canceled:
            await self._check_history(created.header)
        return created

    async def _begin(self, endpoint: _Endpoint, seconds: float) -> tuple[_Endpoint, Any, Any]:
        stream = endpoint.watch(metadata=_NEEDS_LEADER)
        try:
            # The stream lives on; only its first answer has a deadline.
            async with asyncio.timeout(seconds):
                await stream.write(self._request())
                return endpoint, stream, _message(await stream.read())
        except BaseException:
            stream.cancel()
            raise

    def _request(self) -> Any:
        return etcdrpc.WatchRequest(
            create_request=etcdrpc.WatchCreateRequest(
                key=to_bytes(self._low),
                range_end=to_bytes(self._high),
                start_revision=max(self._told, 1),  # 0 would be "from now on"
                progress_notify=True,
            )
        )

    async def _check_history(self, header: Any) -> None:
        """See that the store still is the one whose changes were told.

        A store that was set back to a snapshot is behind what was told, and would count up to
        it again without a word. So is, for a moment, a member that lags; only a linearizable
        read tells them apart.
        """
        if self._cluster not in (0, header.cluster_id):
            raise Compacted("watch: this is another etcd cluster than before")
        self._cluster = header.cluster_id
        if header.revision < self._told:
            request = etcdrpc.RangeRequest(key=to_bytes(self._low), count_only=True)
            reply = await self._servers.attempt(
                lambda endpoint, seconds: endpoint.kv.Range(
                    request, timeout=seconds, metadata=_NEEDS_LEADER
                )
            )
            if reply.header.revision < self._told:
                raise Compacted(f"watch: the store is back at revision {reply.header.revision}")

    def _taken(self, response: Any) -> WatchBatch | None:
        """What a message of the stream tells that was not told before."""
        if response.canceled:
            raise _ended(response)
        if response.events:
            return self._changes(response.events)
        # A progress notice is about its one watcher, and etcd sends it when that is in step.
        # The message that says "created" has a revision too, which promises nothing.
        if not response.created and response.header.revision > self._told:
            return WatchBatch(response.header.revision)
        return None

    def _changes(self, events: Sequence[Any]) -> WatchBatch | None:
        # A watcher that catches up is told in parts, under a header that is ahead of them:
        # only the events themselves say how far it is. No revision is cut by that (etcd:
        # mvcc/watcher_group.go).
        revision = events[-1].kv.mod_revision
        if revision <= self._told:
            return None
        new = (read_event(event) for event in events if event.kv.mod_revision > self._told)
        return WatchBatch(
            revision, tuple(e for e in new if any(within(e.kv.key, r) for r in self._ranges))
        )


def _ended(response: Any) -> Exception:
    """Why the server cancelled a watch."""
    if response.compact_revision:
        return Compacted("watch", response.compact_revision)
    # It cites the status that a call would have had: permission denied, user name is empty.
    reason = response.cancel_reason or "the server ended it"
    return _refusal("watch", reason) or Unreachable("watch", reason)


def _covering(ranges: Sequence[Range]) -> tuple[str, str]:
    """The smallest range, key and end, that has all of `ranges` in it."""
    if not ranges:
        raise ValueError("a watch needs a range")
    ends = [_end(each) for each in ranges]
    return min(each.key for each in ranges), "\0" if "\0" in ends else max(ends)


def _end(each: Range) -> str:
    """The end of a range, also when it is but one key. etcd's "no end" is a zero byte."""
    return each.end or each.key + "\0"
