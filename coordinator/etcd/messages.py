"""etcd's protobuf messages from and to the terms of `coordinator.store`. Knows no connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etcd3 import etcdrpc

from coordinator.store import (
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

if TYPE_CHECKING:
    from collections.abc import Callable

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


# A transaction is filled in where it stands: to build its parts and have each copied into the
# next greater one takes three times as long, which is most of what a request costs us.


def txn_request(txn: Txn) -> Any:
    """A transaction, with those inside it."""
    request = etcdrpc.TxnRequest()
    _fill_txn(request, txn)
    return request


def _fill_txn(request: Any, txn: Txn) -> None:
    add = request.compare.add
    for compare in txn.compares:
        message = add()
        message.key, message.result = to_bytes(compare.key), _RESULTS[compare.op]
        message.target, field = _TARGETS[compare.target]
        setattr(message, field, compare.operand)
        if compare.end:
            message.range_end = to_bytes(compare.end)
    _fill_ops(request.success.add, txn.success)
    _fill_ops(request.failure.add, txn.failure)


def _fill_ops(add: Callable[[], Any], ops: tuple[Op, ...]) -> None:
    for op in ops:
        if isinstance(op, Put):
            put = add().request_put
            put.key, put.value = to_bytes(op.key), op.value
            if op.lease:
                put.lease = op.lease
        elif isinstance(op, Range):
            _fill_range(add().request_range, op)
        elif isinstance(op, Delete):
            delete = add().request_delete_range
            delete.key, delete.range_end = to_bytes(op.key), to_bytes(op.end)
        else:
            inner = add().request_txn
            inner.SetInParent()  # an empty one is one too
            _fill_txn(inner, op)


def range_request(request: Range) -> Any:
    """A read."""
    message = etcdrpc.RangeRequest()
    _fill_range(message, request)
    return message


def _fill_range(message: Any, request: Range) -> None:
    message.key = to_bytes(request.key)
    if request.end:
        message.range_end = to_bytes(request.end)
    if request.limit:
        message.limit = request.limit
    if request.revision:
        message.revision = request.revision
    if request.keys_only:
        message.keys_only = True
    if request.count_only:
        message.count_only = True


def txn_result(reply: Any, revision: int) -> TxnResult:
    """The answer; the header of an inner transaction is empty, the outer one's counts."""
    results = tuple(_result(response, revision) for response in reply.responses)
    return TxnResult(reply.succeeded, results, revision)


_PUT_DONE = PutDone()


def _result(response: Any, revision: int) -> Result:
    kind = response.WhichOneof("response")
    if kind == "response_put":
        return _PUT_DONE
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
