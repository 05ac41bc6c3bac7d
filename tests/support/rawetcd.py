"""What tests do to a real etcd that the Store has no words for: compaction, alarms, users."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from etcd3 import etcdrpc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "add_member",
    "alarms",
    "change_the_users",
    "compact",
    "defragment",
    "disarm",
    "fill",
    "put",
    "remove_member",
    "revision",
    "switch_auth_on",
]

DEADLINE = 60  # seconds


@contextmanager
def _channel(endpoint: str) -> Iterator[Any]:
    # A proxy in the environment is not asked for a server on this machine.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(endpoint.removeprefix("http://"), options=options) as channel:
        yield channel


def compact(endpoint: str, revision: int) -> None:
    """Let it forget what is older than a revision."""
    with _channel(endpoint) as channel:
        request = etcdrpc.CompactionRequest(revision=revision, physical=True)
        etcdrpc.KVStub(channel).Compact(request, timeout=DEADLINE)


def put(endpoint: str, key: bytes, value: bytes) -> None:
    """Put a key of any bytes."""
    with _channel(endpoint) as channel:
        request = etcdrpc.PutRequest(key=key, value=value)
        etcdrpc.KVStub(channel).Put(request, timeout=DEADLINE)


def revision(endpoint: str, deadline: float = DEADLINE) -> int:
    """Its newest revision, as a majority knows it."""
    with _channel(endpoint) as channel:
        request = etcdrpc.RangeRequest(key=b"x", count_only=True)
        return int(etcdrpc.KVStub(channel).Range(request, timeout=deadline).header.revision)


def defragment(endpoint: str) -> None:
    """Let one member give back what compactions left unused; it answers nobody meanwhile."""
    with _channel(endpoint) as channel:
        request = etcdrpc.DefragmentRequest()
        etcdrpc.MaintenanceStub(channel).Defragment(request, timeout=DEADLINE)


def alarms(endpoint: str) -> list[Any]:
    """The alarms that are raised, each with its member."""
    with _channel(endpoint) as channel:
        request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        return list(etcdrpc.MaintenanceStub(channel).Alarm(request, timeout=DEADLINE).alarms)


def disarm(endpoint: str) -> None:
    """Take all alarms back."""
    for alarm in alarms(endpoint):
        with _channel(endpoint) as channel:
            request = etcdrpc.AlarmRequest(
                action=etcdrpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
            )
            etcdrpc.MaintenanceStub(channel).Alarm(request, timeout=DEADLINE)


def fill(endpoint: str, key: bytes, quota: int) -> None:
    """Write one key again and again until the space for all its versions is used up."""
    with _channel(endpoint) as channel:
        request = etcdrpc.PutRequest(key=key, value=bytes(1 << 20))
        for _ in range(2 * quota >> 20):
            try:
                etcdrpc.KVStub(channel).Put(request, timeout=DEADLINE)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    return
                raise
        raise AssertionError(f"twice {quota} bytes were written and it is not full")


def remove_member(endpoint: str, url: str) -> bool:
    """Tell its peers that the member at a peer URL is gone; False when they would not hear it."""
    with _channel(endpoint) as channel:
        cluster = etcdrpc.ClusterStub(channel)
        try:
            members = cluster.MemberList(etcdrpc.MemberListRequest(), timeout=DEADLINE).members
            for member in members:
                if url in member.peerURLs:
                    request = etcdrpc.MemberRemoveRequest(ID=member.ID)
                    cluster.MemberRemove(request, timeout=DEADLINE)
        except grpc.RpcError:  # no leader yet, or not enough members that are well
            return False
    return True


def add_member(endpoint: str, url: str) -> bool:
    """Tell its peers that one comes at a peer URL; False when they would not hear it."""
    with _channel(endpoint) as channel:
        request = etcdrpc.MemberAddRequest(peerURLs=[url])
        try:
            etcdrpc.ClusterStub(channel).MemberAdd(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            return "Peer URLs already exists" in str(error)  # an earlier try was heard
    return True


def switch_auth_on(endpoint: str, **passwords: str) -> None:
    """Make users who may do all, `root` among them, and switch authentication on."""
    with _channel(endpoint) as channel:
        auth = etcdrpc.AuthStub(channel)
        for user, password in {"root": "root", **passwords}.items():
            auth.UserAdd(etcdrpc.AuthUserAddRequest(name=user, password=password), timeout=DEADLINE)
            auth.UserGrantRole(
                etcdrpc.AuthUserGrantRoleRequest(user=user, role="root"), timeout=DEADLINE
            )
        auth.AuthEnable(etcdrpc.AuthEnableRequest(), timeout=DEADLINE)


def change_the_users(endpoint: str, password: str = "root") -> None:  # noqa: S107 - root's, of a test's own etcd
    """Make another user as root, so that etcd's record of users and roles is a newer one."""
    with _channel(endpoint) as channel:
        auth = etcdrpc.AuthStub(channel)
        asked = etcdrpc.AuthenticateRequest(name="root", password=password)
        token = auth.Authenticate(asked, timeout=DEADLINE).token
        request = etcdrpc.AuthUserAddRequest(name=uuid.uuid4().hex, password=password)
        auth.UserAdd(request, timeout=DEADLINE, metadata=[("token", token)])
