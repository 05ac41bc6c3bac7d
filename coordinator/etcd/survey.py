"""What each etcd server says of itself, for `doctor`: asked one by one, also those that fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from etcd3 import etcdrpc

from coordinator.errors import Compacted, MdevnsError, NotAllowed
from coordinator.etcd.diagnosis import certificate_of, version_of
from coordinator.fitness import ServerReport, Survey

if TYPE_CHECKING:
    from coordinator.etcd.servers import Server, Servers, Terms

__all__ = ["survey"]

_TOGETHER = 16  # servers that are asked side by side
_FORBIDDEN = b"\0"  # the first key that etcd can have; nothing of mdevns is there


async def survey(servers: Servers) -> Survey:
    """Ask all servers, and of the whole the first one that answers."""
    gate = asyncio.Semaphore(_TOGETHER)

    async def ask(server: Server) -> ServerReport:
        async with gate:
            return await _ask(servers, server)

    reports = tuple(await asyncio.gather(*map(ask, servers.all)))
    if all(report.why is not None for report in reports):
        return Survey(reports)
    return Survey(
        reports,
        await _alarms(servers),
        await _members(servers),
        await _compacted(servers),
        await _nested_roles(servers),
    )


async def _ask(servers: Servers, server: Server) -> ServerReport:
    endpoint = str(server.endpoint)
    try:
        header = (await servers.ask(server, servers.probe)).header
    except MdevnsError as error:
        return ServerReport(endpoint, why=error.why)
    report = ServerReport(
        endpoint,
        version=await version_of(server.endpoint, server.certificates),
        cluster=header.cluster_id,
        member=header.member_id,
        revision=header.revision,
        certificate=await certificate_of(server.endpoint, server.certificates),
    )
    try:
        status = await servers.ask(server, _status)
    except MdevnsError:  # with authentication on it is told to root alone (3.5.30)
        return report
    return replace(report, version=status.version, leader=status.leader, size=status.dbSize)


def _status(server: Server, terms: Terms) -> Any:
    return server.stubs.maintenance.Status(etcdrpc.StatusRequest(), **terms.unary)


async def _alarms(servers: Servers) -> tuple[str, ...] | None:
    request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
    try:
        reply = await servers.call(
            lambda server, terms: server.stubs.maintenance.Alarm(request, **terms.unary)
        )
    except MdevnsError:
        return None
    return tuple(etcdrpc.AlarmType.Name(alarm.alarm) for alarm in reply.alarms)


async def _members(servers: Servers) -> int | None:
    try:
        reply = await servers.call(
            lambda server, terms: server.stubs.cluster.MemberList(
                etcdrpc.MemberListRequest(), **terms.unary
            )
        )
    except MdevnsError:
        return None
    return len(reply.members)


async def _nested_roles(servers: Servers) -> bool | None:
    """Whether roles count inside nested transactions; None if nothing is forbidden to us.

    Asks for a key that only a role over every key covers, in a branch that never runs: at the
    top level first, then nested. Nothing is read or written, whatever etcd answers.
    """
    request = etcdrpc.RangeRequest(key=_FORBIDDEN)
    forbidden = etcdrpc.RequestOp(request_range=request)
    plain = _never_run(servers.probed, forbidden)
    if await _is_allowed(servers, plain) is not False:
        return None
    nested = _never_run(servers.probed, etcdrpc.RequestOp(request_txn=plain))
    allowed = await _is_allowed(servers, nested)
    return None if allowed is None else not allowed


def _never_run(readable: bytes, op: Any) -> Any:
    """A transaction with `op` under a condition that no key meets: a version below 0."""
    condition = etcdrpc.Compare(
        key=readable, target=etcdrpc.Compare.VERSION, result=etcdrpc.Compare.LESS, version=0
    )
    return etcdrpc.TxnRequest(compare=[condition], success=[op])


async def _is_allowed(servers: Servers, request: Any) -> bool | None:
    """Whether etcd does a transaction for us; None if it fails for another reason."""
    try:
        await servers.call(lambda server, terms: server.stubs.kv.Txn(request, **terms.unary))
    except NotAllowed:
        return False
    except MdevnsError:
        return None
    return True


async def _compacted(servers: Servers) -> bool | None:
    """Whether its first revision is forgotten, so that somebody compacts it now and then."""
    request = etcdrpc.RangeRequest(key=servers.probed, revision=1, count_only=True)
    try:
        await servers.call(lambda server, terms: server.stubs.kv.Range(request, **terms.unary))
    except Compacted:
        return True
    except MdevnsError:
        return None
    return False
