"""The Store in memory, with etcd's semantics and a virtual clock.

`MemoryEtcd` (`core.py`) is the store itself: a small deterministic core without I/O, whose whole
state can be copied (`snapshot`) and hashed; `admission.py` has what etcd refuses unseen.
`MemoryStore` (`store.py`) is one client of it; several may share a core. Time passes only in
`advance`, so nothing expires by itself.

Held to a real etcd by tests/unit/test_store_contract.py and test_store_differential.py. Where a
rule is odd it is etcd's; the comment names its source.
"""

from coordinator.memory.admission import MAX_REQUEST
from coordinator.memory.core import LEASE_FLOOR, Granted, MemoryEtcd, Snapshot
from coordinator.memory.store import MemoryStore

__all__ = ["LEASE_FLOOR", "MAX_REQUEST", "Granted", "MemoryEtcd", "MemoryStore", "Snapshot"]
