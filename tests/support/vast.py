"""A Store with as many names as one likes, of which it holds none: each is made when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.keys import last_part
from coordinator.memory import MemoryEtcd, MemoryStore
from coordinator.model import ClaimValue, NameValue, encode
from coordinator.states import ClaimState
from coordinator.store import KeyValue, Range, RangeResult, TxnResult
from tests.support.counting import CountingStore
from tests.support.desk import HOST, PARENT, TYPE, name

if TYPE_CHECKING:
    from coordinator.keys import Keys
    from coordinator.store import Txn

__all__ = ["VastStore"]

_REVISION = 7
_NAME = encode(NameValue(host=HOST, request="r"))
_CLAIM = encode(
    ClaimValue(
        state=ClaimState.ACTIVE, parent=PARENT, type=TYPE, request="r", since="t", created="t"
    )
)


class VastStore(CountingStore):
    """`count` names of one host, page by page; of each its claim. Nothing else can be asked."""

    def __init__(self, keys: Keys, count: int) -> None:
        super().__init__(MemoryStore(MemoryEtcd()))
        self._keys, self._count = keys, count

    async def range(self, request: Range) -> RangeResult:
        """A page of names, or of claims."""
        claims = self._keys.claims(HOST)
        of = claims if request.key.startswith(claims) else self._keys.names
        after = last_part(request.key.rstrip("\0"))
        first = int(after[-12:], 16) + 1 if after else 0
        until = min(first + request.limit, self._count)
        kvs = tuple(self._kv(of + name(number)) for number in range(first, until))
        return RangeResult(kvs, _REVISION, until < self._count, self._count - first)

    async def txn(self, txn: Txn) -> TxnResult:
        """Claims, one by one."""
        reads = (
            RangeResult((self._kv(op.key),), _REVISION)
            for op in txn.success
            if isinstance(op, Range)
        )
        return TxnResult(succeeded=True, results=tuple(reads), revision=_REVISION)

    def _kv(self, key: str) -> KeyValue:
        value = _NAME if key.startswith(self._keys.names) else _CLAIM
        return KeyValue(key, value, _REVISION, _REVISION, 1)
