"""What tests do to a real etcd that the Store has no words for: compaction, alarms, users."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from etcd3 import etcdrpc

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["change_the_users", "compact", "put", "revision", "switch_auth_on"]

DEADLINE = 10  # seconds


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


def revision(endpoint: str) -> int:
    """Its newest revision."""
    with _channel(endpoint) as channel:
        request = etcdrpc.RangeRequest(key=b"x", count_only=True)
        return int(etcdrpc.KVStub(channel).Range(request, timeout=DEADLINE).header.revision)


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
