"""Just enough of a client to put a key and read it, without a line of what is tested."""

from __future__ import annotations

import grpc
from etcd3 import etcdrpc

DEADLINE = 60  # seconds


def put(endpoint: str, key: str, value: str) -> None:
    """Write one key; raises `grpc.RpcError` when it was not committed."""
    with _channel(endpoint) as channel:
        request = etcdrpc.PutRequest(key=key.encode(), value=value.encode())
        etcdrpc.KVStub(channel).Put(request, timeout=DEADLINE)


def get(endpoint: str, key: str) -> str | None:
    """Read one key through the quorum, None when it is not there."""
    with _channel(endpoint) as channel:
        request = etcdrpc.RangeRequest(key=key.encode())
        answer = etcdrpc.KVStub(channel).Range(request, timeout=DEADLINE)
        return answer.kvs[0].value.decode() if answer.kvs else None


def _channel(endpoint: str) -> grpc.Channel:
    options = [("grpc.enable_http_proxy", 0)]
    return grpc.insecure_channel(endpoint.removeprefix("http://"), options=options)
