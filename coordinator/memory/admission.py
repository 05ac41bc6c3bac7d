"""What etcd refuses before it looks at any key (etcd: api/v3rpc/key.go)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.errors import TooLarge
from coordinator.store import MAX_TXN_OPS, Compare, Delete, Op, Put, Range, Txn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MAX_REQUEST", "admit", "all_ops"]

MAX_REQUEST = 1536 * 1024  # bytes; etcd's --max-request-bytes
_PER_OP = 16  # bytes that an operation has around its key and value, about


def admit(txn: Txn) -> None:
    """Refuse a transaction that etcd would not look at.

    Raises:
        ValueError: a key put twice, an empty key.
        TooLarge: too many operations, or too many bytes.
    """
    _check_count(txn, MAX_TXN_OPS)
    if not all(each.key for each in _keyed(txn)):
        raise ValueError("an empty key")
    _written(txn.success)
    _written(txn.failure)
    if sum(map(_size, _keyed(txn))) > MAX_REQUEST:
        raise TooLarge("memory", "request is too large")


def _check_count(txn: Txn, limit: int) -> None:
    """The longest list counts, and an inner transaction has what the outer one leaves."""
    longest = max(map(len, (txn.compares, txn.success, txn.failure)))
    if longest > limit:
        raise TooLarge("memory", "too many operations in txn request")
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            _check_count(op, limit - longest)


def all_ops(txn: Txn) -> Iterator[Put | Delete | Range]:
    """Every operation in any branch, inner transactions opened."""
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            yield from all_ops(op)
        else:
            yield op


def _keyed(txn: Txn) -> Iterator[Compare | Put | Delete | Range]:
    """Everything in it that names a key."""
    yield from txn.compares
    for op in (*txn.success, *txn.failure):
        if isinstance(op, Txn):
            yield from _keyed(op)
        else:
            yield op


def _size(each: Compare | Put | Delete | Range) -> int:
    """About what it takes in a request."""
    match each:
        case Put(key, value):
            return _PER_OP + len(key.encode()) + len(value)
        case Compare(key, _, _, bytes(operand)):
            return _PER_OP + len(key.encode()) + len(operand)
        case _:
            return _PER_OP + len(each.key.encode())


def _written(ops: Sequence[Op]) -> tuple[set[str], list[Delete]]:
    """What a list puts and deletes, if etcd lets it (key.go, checkIntervals).

    No key may be put twice, or be put and deleted. The two branches of one inner transaction
    may put the same key; an inner delete counts only for what comes after it.

    Raises:
        ValueError: a key is given twice.
    """
    puts: set[str] = set()
    deletes = [op for op in ops if isinstance(op, Delete)]
    for op in ops:
        if isinstance(op, Txn):
            then_puts, then_deletes = _written(op.success)
            else_puts, else_deletes = _written(op.failure)
            _refuse_double(then_puts, puts, deletes)
            _refuse_double(else_puts, puts, deletes)
            puts |= then_puts | else_puts
            deletes += then_deletes + else_deletes
    for op in ops:
        if isinstance(op, Put):
            _refuse_double({op.key}, puts, deletes)
            puts.add(op.key)
    return puts, deletes


def _refuse_double(new: set[str], puts: set[str], deletes: Sequence[Delete]) -> None:
    for key in new:
        if key in puts or any(_deletes(delete, key) for delete in deletes):
            raise ValueError(f"duplicate key given in txn request: {key}")


def _deletes(delete: Delete, key: str) -> bool:
    # A range without an end covers nothing here, unlike when it is carried out; so in etcd.
    return delete.key <= key < delete.end if delete.end else key == delete.key
