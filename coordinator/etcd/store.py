"""The Store on real etcd servers: each call as a message of gRPC."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from etcd3 import etcdrpc
from msgspec.structs import replace

from coordinator.credentials import Credentials
from coordinator.endpoints import parse_endpoints
from coordinator.errors import LeaseGone, Misconfigured
from coordinator.etcd.messages import (
    range_request,
    range_result,
    to_bytes,
    txn_request,
    txn_result,
)
from coordinator.etcd.servers import Servers, message
from coordinator.etcd.watch import Watch
from coordinator.store import (
    Delete,
    Lease,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    WatchBatch,
    may_write,
    nests_writes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from typing import NoReturn

    from coordinator.fitness import Survey

__all__ = ["EtcdStore"]

_NONE = Credentials()


class EtcdStore:
    """The `Store` on real etcd servers, which are members of one cluster.

    `endpoints` are URLs, `https://` ones with `credentials`; `timeout` is the seconds in which a
    call ends one way or the other, of which an endpoint gets a part. `rng` spreads the pauses
    between attempts; `probe` is a key that may be read by us, by which a server is known.

    `writable` is an absent key that all who may write may delete. etcd before 3.4.42, 3.5.28 and
    3.6.9 checks no role inside nested transactions, so each transaction with nested writes names
    this key at the top level, where every version checks: a reader is refused there.

    `waits`: certificates and a password that cannot be used yet are no error here; calls are
    `Unreachable` until their files are mended.

    A write whose task is cancelled may have been done, as with `OutcomeUnknown`.

    Raises:
        Misconfigured: no endpoint, one that is not such a URL, no time to do anything in, or
            credentials that cannot be used or are not safe.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        timeout: float = 10.0,
        rng: random.Random | None = None,
        credentials: Credentials = _NONE,
        probe: str = "/mdevns/",
        writable: str | None = None,
        *,
        waits: bool = False,
    ) -> None:
        if timeout <= 0:
            raise Misconfigured("etcd timeout", f"{timeout} s is no time", "give more than 0")
        parsed = parse_endpoints(endpoints)
        (credentials.check_words if waits else credentials.check)(parsed)
        rng = rng or random.Random()  # noqa: S311 - spreads pauses, guards no secret
        self._servers = Servers(parsed, credentials, timeout, rng, to_bytes(probe))
        self._writable = writable

    async def txn(self, txn: Txn) -> TxnResult:
        """Apply a transaction. See `Store.txn`.

        Raises:
            ValueError: etcd calls the request malformed: a key put twice, an empty key.
        """
        sent = _with_role_check(txn, self._writable)
        request = txn_request(sent)
        reply = await self._servers.call(
            lambda server, terms: server.stubs.kv.Txn(request, **terms.unary),
            writes=may_write(txn),
            linear=True,
        )
        result = txn_result(reply, reply.header.revision)
        if sent is txn or result.succeeded:
            return result
        return replace(result, results=result.results[:-1])  # without that of the check

    async def range(self, request: Range) -> RangeResult:
        """Read, linearizably. See `Store.range`."""
        asked = range_request(request)
        reply = await self._servers.call(
            lambda server, terms: server.stubs.kv.Range(asked, **terms.unary), linear=True
        )
        return range_result(reply)

    async def grant(self, ttl: int) -> Lease:
        """Grant a lease of `ttl` seconds; the server chooses its id. See `Store.grant`."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl)
        reply = await self._servers.call(
            lambda server, terms: server.stubs.lease.LeaseGrant(request, **terms.unary)
        )
        return Lease(reply.ID, reply.TTL)

    async def keep_alive(self, lease: int) -> int:
        """Refresh a lease once; its time to live in seconds, 0 when it is gone."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)
        reply = await self._servers.call(
            lambda server, terms: _first_answer(
                server.stubs.lease.LeaseKeepAlive(iter([request]), **terms.unary)
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
                lambda server, terms: server.stubs.lease.LeaseRevoke(request, **terms.unary),
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
            Compacted: changes are lost.
            SetBack: the store is another one, or is behind what was told.
            NotAllowed: the ranges may not be read.
            Unreachable: the store was closed.
        """
        watch = Watch(self._servers, ranges, start)
        try:
            yield watch
        finally:
            watch.close()

    async def status(self) -> str:
        """The version of an etcd server that answers now."""
        request = etcdrpc.StatusRequest()
        reply = await self._servers.call(
            lambda server, terms: server.stubs.maintenance.Status(request, **terms.unary)
        )
        return str(reply.version)

    async def survey(self) -> Survey:
        """What every server says of itself, and one of them of the whole; never an error."""
        from coordinator.etcd.survey import survey  # noqa: PLC0415 - doctor alone asks

        return await survey(self._servers)

    def begin_anew(self) -> None:
        """Let the next answer be the first one. See `Store.begin_anew`."""
        self._servers.history.begin_anew()

    async def until_set_back(self) -> NoReturn:
        """Wait until the store is found to be another or an older one. See `Store`."""
        await self._servers.history.until_lost()

    async def close(self) -> None:
        """Let go of connections.

        A write that is under way ends in OutcomeUnknown; other calls under way, watches, and
        every later call in Unreachable.
        """
        await self._servers.close()


def _with_role_check(txn: Txn, writable: str | None) -> Txn:
    """The transaction, if its writes are nested with a top-level Delete of an absent key.

    etcd checks both branches whichever runs. The Delete is in the short one, so that it takes
    no place from the names of a commit, and changes nothing where it runs.
    """
    if writable is None or not nests_writes(txn):
        return txn
    return replace(txn, failure=(*txn.failure, Delete(writable)))


async def _first_answer(stream: Any) -> Any:
    """The first message of a stream, which is then ended."""
    try:
        return message(await stream.read())
    finally:
        stream.cancel()
