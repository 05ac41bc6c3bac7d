"""The Store on `grpc.aio`: the one package that speaks gRPC.

`store.py` has the calls, `servers.py` the endpoints and the rules by which one after the other
is asked, `watch.py` the watch that resumes, `tokens.py` user and password, `failures.py` what
gRPC's errors mean, `diagnosis.py` why a connection fails, `survey.py` what servers say of
themselves, `messages.py` our values as protobuf. The messages are `etcd3`'s generated ones.
"""

import os

# Before gRPC is loaded: what it has to say of a connection comes as one of our errors, and a
# command's stderr is for those. Who wants to hear gRPC itself sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from coordinator.etcd.store import EtcdStore

__all__ = ["EtcdStore"]
