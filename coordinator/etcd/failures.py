"""What an error of gRPC means: the one seam where foreign exceptions become ours.

**What is certain.** gRPC says of UNAVAILABLE that nothing guarantees that the server has not
seen the request (grpc/status.h). So certainty is made, by starting a call only on a channel
that is connected, and not read from a status. Whatever goes wrong after the start is
`OutcomeUnknown` for a write, unless etcd itself answered with one of the refusals that it gives
before a request enters Raft, or instead of applying it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from coordinator.errors import (
    Compacted,
    LeaseGone,
    NotAllowed,
    OutcomeUnknown,
    StoreReadOnly,
    TooLarge,
    Unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FOREIGN", "AuthOff", "TokenRefused", "failure", "refusal"]

FOREIGN = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError)
"""What gRPC and our waiting for it raise: a status, a channel or a stream that has ended, no
answer in time."""


class AuthOff(NotAllowed):
    """A token was asked for, and etcd wants none."""


class TokenRefused(NotAllowed):
    """The token is no longer good, or there was none: with a new one it may be asked again.

    etcd looks at a token before a request enters Raft, and at the revision of the users and
    roles instead of applying it (etcd: server/auth/store.go, apply_auth.go), so that nothing
    was done.

    `token` is the one that was refused.
    """

    token: str | None = None


# What etcd answers before a request enters Raft, so that the request is certainly not applied
# and another member may take it (etcd: api/v3rpc/interceptor.go, etcdserver/v3_server.go).
_NOT_NOW = (
    "etcdserver: no leader",
    "etcdserver: not capable",
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
)

_SET = "set user and password_file, or a certificate that names the user"


def _no_permission(what: str, why: str) -> NotAllowed:
    return NotAllowed(what, why, "ask whoever gives out etcd's roles")


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
    ("authentication is not enabled", AuthOff),
    ("permission denied", _no_permission),
    (
        "user name is empty",
        lambda what, _: TokenRefused(what, "it wants a user and password", _SET),
    ),
    ("user name not found", lambda what, _: NotAllowed(what, "it does not know the user", _SET)),
    ("authentication failed", lambda what, _: NotAllowed(what, "user or password is wrong", _SET)),
    ("invalid auth token", TokenRefused),
    ("revision of auth store is old", TokenRefused),
)


def failure(error: Exception, who: str, *, writes: bool) -> Exception:
    """What an exception of gRPC means, raised after a call was started.

    Whatever is not known to be a refusal leaves a write's outcome unknown: an attempt's
    deadline, a connection that broke, a reset stream, etcd's "request timed out" and "leader
    changed" (it may be in Raft's log), and whatever a later etcd may answer.
    """
    code, why = _said(error)
    refused = refusal(who, why)
    if refused is not None:
        return refused
    if any(why.startswith(text) for text in _NOT_NOW):
        return Unreachable(who, why)
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return NotAllowed(who, why)
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return ValueError(f"{who}: {why}")  # a defect of ours; a key put twice is one
    if writes:
        return OutcomeUnknown(who, why, "send the very same again to learn it")
    return Unreachable(who, why)


def refusal(what: str, why: str) -> Exception | None:
    """The error for one of etcd's refusals, by its text."""
    return next((make(what, why) for text, make in _REFUSALS if text in why), None)


def _said(error: Exception) -> tuple[grpc.StatusCode | None, str]:
    if not isinstance(error, grpc.aio.AioRpcError):
        return None, str(error) or "no answer in time"
    code: grpc.StatusCode = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return code, "no answer in time"
    return code, error.details() or code.name
