"""An etcd of our own, for the demo, development and tests; not for production.

`EmbeddedEtcd` (`single.py`) is one server, `EmbeddedCluster` (`cluster.py`) several that elect a
leader. They listen on loopback, keep their data and their log in one directory (`home.py`), and
end with the process that made them, even when that is killed with SIGKILL (`process.py`).
"""

from coordinator.embedded.cluster import EmbeddedCluster, find_leader
from coordinator.embedded.process import find_etcd, free_ports, healthy, wait_until
from coordinator.embedded.single import EmbeddedEtcd

__all__ = [
    "NOT_FOR_PRODUCTION",
    "EmbeddedCluster",
    "EmbeddedEtcd",
    "find_etcd",
    "find_leader",
    "free_ports",
    "healthy",
    "wait_until",
]

NOT_FOR_PRODUCTION = (
    "this etcd is mdevns's own, one machine without TLS, for demo, development and tests; "
    "it is not for production"
)
