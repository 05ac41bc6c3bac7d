"""etcd through its bare grpc stubs: what ours is measured against. Nothing else in between."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from etcd3 import etcdrpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["Raw", "connect", "end_of", "nested", "taking"]

# A proxy in the environment is not asked for a server on this machine; answers may be large.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))


def end_of(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with a prefix."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def taking(pairs: Sequence[tuple[bytes, bytes]], lease: int = 0, revision: int = 0) -> Any:
    """A transaction: if all these keys stand at a revision they are put, else they are read.

    Revision 0: they are absent.
    """
    return etcdrpc.TxnRequest(
        compare=[
            etcdrpc.Compare(
                key=key,
                target=etcdrpc.Compare.MOD,
                result=etcdrpc.Compare.EQUAL,
                mod_revision=revision,
            )
            for key, _ in pairs
        ],
        success=[
            etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=value, lease=lease))
            for key, value in pairs
        ],
        failure=[
            etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key)) for key, _ in pairs
        ],
    )


def nested(inner: Sequence[Any]) -> Any:
    """One transaction around so many; etcd takes 126 that each have lists of two."""
    return etcdrpc.TxnRequest(success=[etcdrpc.RequestOp(request_txn=one) for one in inner])


class Raw:
    """The stubs on one channel of grpc.aio."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.kv = etcdrpc.KVStub(channel)
        self.lease = etcdrpc.LeaseStub(channel)
        self.watch_stub = etcdrpc.WatchStub(channel).Watch

    async def txn(self, request: Any) -> Any:
        """Send a transaction; its answer."""
        return await self.kv.Txn(request)

    async def take(
        self, pairs: Sequence[tuple[bytes, bytes]], lease: int = 0, revision: int = 0
    ) -> int:
        """Put keys that stand at a revision (0: are absent), in one transaction; its revision.

        Raises:
            AssertionError: one does not.
        """
        reply = await self.kv.Txn(taking(pairs, lease, revision))
        assert reply.succeeded, f"{pairs[0][0]!r} is not at revision {revision}"
        return int(reply.header.revision)

    async def take_all(self, names: Sequence[Sequence[tuple[bytes, bytes]]], lease: int = 0) -> int:
        """`take` for each of so many names, in one nested transaction; its revision.

        Raises:
            AssertionError: one was there.
        """
        reply = await self.kv.Txn(nested([taking(pairs, lease) for pairs in names]))
        assert all(one.response_txn.succeeded for one in reply.responses), "a name is there"
        return int(reply.header.revision)

    async def grant(self, ttl: int) -> int:
        """A lease of so many seconds; its id."""
        return int((await self.lease.LeaseGrant(etcdrpc.LeaseGrantRequest(TTL=ttl))).ID)

    async def pages(self, prefix: bytes, *, size: int = 1000) -> AsyncIterator[Any]:
        """etcd's answers to a read of all keys of a prefix, page by page, at one revision."""
        start, end, revision = prefix, end_of(prefix), 0
        while True:
            request = etcdrpc.RangeRequest(key=start, range_end=end, limit=size, revision=revision)
            reply = await self.kv.Range(request)
            revision = revision or reply.header.revision
            yield reply
            if not reply.more:
                return
            start = reply.kvs[-1].key + b"\0"

    @asynccontextmanager
    async def watch(self, prefix: bytes, start: int = 0) -> AsyncIterator[Any]:
        """The answers of a watch on a prefix from a revision on; it stands when this is entered.

        Read them with `await call.read()`.
        """
        call = self.watch_stub()
        request = etcdrpc.WatchCreateRequest(
            key=prefix, range_end=end_of(prefix), start_revision=start
        )
        await call.write(etcdrpc.WatchRequest(create_request=request))
        created = await call.read()
        assert created.created
        try:
            yield call
        finally:
            call.cancel()


@asynccontextmanager
async def connect(endpoint: str) -> AsyncIterator[Raw]:
    """The stubs, on a channel that is closed again."""
    target = endpoint.removeprefix("http://")
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        await channel.channel_ready()
        yield Raw(channel)
