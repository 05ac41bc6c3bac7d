"""A script that has etcd's bare stubs and nothing else: reads ranges, page by page.

    python -m tests.bench.bare HOST:PORT LIMIT PREFIX...

Of each PREFIX all keys, LIMIT a page; with a LIMIT below 0 one page of so many. Prints how many.
Imports nothing of ours, as a script that somebody wrote would not.
"""

from __future__ import annotations

import sys

import grpc
from etcd3 import etcdrpc

_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))


def main(target: str, limit: str, *prefixes: str) -> None:
    """Read."""
    size, found = int(limit), 0
    with grpc.insecure_channel(target, options=_OPTIONS) as channel:
        kv = etcdrpc.KVStub(channel)
        for prefix in prefixes:
            key = prefix.encode()
            end, more, revision = key[:-1] + bytes([key[-1] + 1]), True, 0
            while more:
                request = etcdrpc.RangeRequest(
                    key=key, range_end=end, limit=abs(size), revision=revision
                )
                page = kv.Range(request)
                found += len(page.kvs)
                revision = page.header.revision if revision == 0 else revision
                more = page.more and size > 0
                key = page.kvs[-1].key + b"\0" if page.kvs else key
    print(found)  # noqa: T201 - its answer


main(*sys.argv[1:])
