"""A watch that resumes: over as many streams as it takes, with nothing missed or doubled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from etcd3 import etcdrpc

from coordinator.errors import Compacted, NotAllowed, Unreachable
from coordinator.etcd.failures import refusal
from coordinator.etcd.messages import read_event, to_bytes
from coordinator.etcd.servers import message, task_is_cancelled
from coordinator.store import FROM_NOW, Range, WatchBatch, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.etcd.servers import Server, Servers, Terms

__all__ = ["Watch"]


class Watch:
    """One watch, over as many streams as it takes; its own iterator.

    `_told` is the revision up to which everything was handed out. A stream is opened one
    revision before what is still to be told: etcd until August 2024 drops a delete without
    a word when the history was compacted at exactly its revision and the watch starts there
    (etcd issue 18089). Asked for the revision before, it says that it is compacted.
    """

    def __init__(self, servers: Servers, ranges: Sequence[Range], start: int) -> None:
        self._servers, self._ranges = servers, tuple(ranges)
        self._low, self._high = _covering(self._ranges)
        self._told = max(start, 1) - 1
        self._from_now = start == FROM_NOW
        self._server: Server | None = None
        self._stream: Any = None
        self._renewed = self._closed = False

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> WatchBatch:
        while True:
            try:
                return await self._resumed()
            except NotAllowed:
                # It may be but the token: etcd until 3.5 says "permission denied" of any.
                if self._renewed or not self._servers.drop_token():
                    raise
                self._renewed = True

    async def _resumed(self) -> WatchBatch:
        try:
            return await self._next()
        except Unreachable:
            return await self._servers.retrying()(self._next)

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
            if not self._closed or task_is_cancelled():
                raise
        except BaseException:
            self._drop()
            raise
        raise StopAsyncIteration

    async def _response(self) -> Any:
        if self._server is None or self._stream is None:
            return await self._open()
        return message(await self._servers.answered(self._server, self._stream.read()))

    async def _open(self) -> Any:
        """Open a stream at the current server; its first message, which says what it found."""
        self._server, (self._stream, created) = await self._servers.attempt(self._begin)
        if not created.canceled:
            self._renewed = False
            await self._check_history(self._server, created.header)
        return created

    async def _begin(self, server: Server, terms: Terms) -> tuple[Any, Any]:
        stream = server.stubs.watch(metadata=terms.metadata)
        try:
            # The stream lives on; only its first answer has a deadline.
            async with asyncio.timeout(terms.seconds):
                await stream.write(self._request())
                return stream, message(await stream.read())
        except BaseException:
            stream.cancel()
            raise

    def _request(self) -> Any:
        return etcdrpc.WatchRequest(
            create_request=etcdrpc.WatchCreateRequest(
                key=to_bytes(self._low),
                range_end=to_bytes(self._high),
                # 0 is "from now on"
                start_revision=FROM_NOW if self._from_now else max(self._told, 1),
                progress_notify=True,
            )
        )

    async def _check_history(self, server: Server, header: Any) -> None:
        """See that the store still is the one whose changes were told.

        A store that was set back to a snapshot is behind what was told, and would count up to
        it again without a word. So is, for a moment, a member that lags; only a linearizable
        read tells them apart.
        """
        history = self._servers.history
        history.see(server.who, header.cluster_id, header.revision)
        if header.revision < self._told:
            request = etcdrpc.RangeRequest(key=to_bytes(self._low), count_only=True)
            reply = await self._servers.call(
                lambda server, terms: server.stubs.kv.Range(request, **terms.unary)
            )
            history.see(server.who, reply.header.cluster_id, reply.header.revision, self._told)
        history.check()

    def _taken(self, response: Any) -> WatchBatch | None:
        """What a message of the stream tells that was not told before."""
        if response.canceled:
            raise _ended(response)
        if response.created and self._from_now:
            # What is written after this revision will be told (etcd: v3rpc/watch.go).
            self._from_now = False
            return WatchBatch(response.header.revision)
        if response.events:
            return self._changes(response.events)
        # A progress notice is about its one watcher, and etcd sends it when that is in step.
        # That of a watch which starts in the past, as it is created, promises nothing.
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
    return refusal("watch", reason) or Unreachable("watch", reason)


def _covering(ranges: Sequence[Range]) -> tuple[str, str]:
    """The smallest range, key and end, that has all of `ranges` in it."""
    if not ranges:
        raise ValueError("a watch needs a range")
    ends = [_end(each) for each in ranges]
    return min(each.key for each in ranges), "\0" if "\0" in ends else max(ends)


def _end(each: Range) -> str:
    """The end of a range, also when it is but one key. etcd's "no end" is a zero byte."""
    return each.end or each.key + "\0"
