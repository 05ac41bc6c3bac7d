"""etcd's protobuf messages from and to the terms of `coordinator.store`. Knows no connection."""

from __future__ import annotations

from typing import Any

from etcd3 import etcdrpc

from coordinator.store import (
    Compare,
    Delete,
    Deleted,
    Event,
    KeyValue,
    Op,
    Put,
    PutDone,
    Range,
    RangeResult,
    Result,
    Target,
    Txn,
    TxnResult,
)

__all__ = [
    "range_request",
    "range_result",
    "read_event",
    "to_bytes",
    "txn_request",
    "txn_result",
]


def to_bytes(text: str) -> bytes:
    """A key as etcd has it."""
    # Keys that are not ours may be no UTF-8; they are read and compared without a loss.
    return text.encode(errors="surrogateescape")


_RESULTS = {
    "=": etcdrpc.Compare.EQUAL,
    "!=": etcdrpc.Compare.NOT_EQUAL,
    "<": etcdrpc.Compare.LESS,
    ">": etcdrpc.Compare.GREATER,
}
_TARGETS = {
    Target.CREATE: (etcdrpc.Compare.CREATE, "create_revision"),
    Target.MOD: (etcdrpc.Compare.MOD, "mod_revision"),
    Target.VERSION: (etcdrpc.Compare.VERSION, "version"),
    Target.VALUE: (etcdrpc.Compare.VALUE, "value"),
    Target.LEASE: (etcdrpc.Compare.LEASE, "lease"),
}


def _compare(compare: Compare) -> Any:
    target, field = _TARGETS[compare.target]
    return etcdrpc.Compare(
        key=to_bytes(compare.key),
        target=target,
        result=_RESULTS[compare.op],
        range_end=to_bytes(compare.end),
        **{field: compare.operand},
    )


def txn_request(txn: Txn) -> Any:
    """A transaction, with those inside it."""
    return etcdrpc.TxnRequest(
        compare=[_compare(compare) for compare in txn.compares],
        success=[_op(op) for op in txn.success],
        failure=[_op(op) for op in txn.failure],
    )


def _op(op: Op) -> Any:
    match op:
        case Put(key, value, lease):
            put = etcdrpc.PutRequest(key=to_bytes(key), value=value, lease=lease)
            return etcdrpc.RequestOp(request_put=put)
        case Range():
            return etcdrpc.RequestOp(request_range=range_request(op))
        case Delete(key, end):
            delete = etcdrpc.DeleteRangeRequest(key=to_bytes(key), range_end=to_bytes(end))
            return etcdrpc.RequestOp(request_delete_range=delete)
        case Txn():
            return etcdrpc.RequestOp(request_txn=txn_request(op))


def range_request(request: Range) -> Any:
    """A read."""
    return etcdrpc.RangeRequest(
        key=to_bytes(request.key),
        range_end=to_bytes(request.end),
        limit=request.limit,
        revision=request.revision,
        keys_only=request.keys_only,
        count_only=request.count_only,
    )


def txn_result(reply: Any, revision: int) -> TxnResult:
    """The answer; the header of an inner transaction is empty, the outer one's counts."""
    results = tuple(_result(response, revision) for response in reply.responses)
    return TxnResult(reply.succeeded, results, revision)


def _result(response: Any, revision: int) -> Result:
    kind = response.WhichOneof("response")
    if kind == "response_put":
        return PutDone()
    if kind == "response_range":
        return range_result(response.response_range)
    if kind == "response_delete_range":
        return Deleted(response.response_delete_range.deleted)
    return txn_result(response.response_txn, revision)


def range_result(reply: Any) -> RangeResult:
    """The answer to a read."""
    kvs = tuple(key_value(kv) for kv in reply.kvs)
    return RangeResult(kvs, reply.header.revision, reply.more, reply.count)


def key_value(kv: Any) -> KeyValue:
    return KeyValue(
        kv.key.decode(errors="surrogateescape"),
        kv.value,
        kv.create_revision,
        kv.mod_revision,
        kv.version,
        kv.lease,
    )


def read_event(event: Any) -> Event:
    """What a watch tells of one key."""
    return Event(key_value(event.kv), deleted=bool(event.type))  # PUT is 0, DELETE is 1
