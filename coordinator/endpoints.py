"""The endpoints of etcd: URLs, one a member, all of one kind.

Nothing here speaks to anything: configurations are checked with it, without gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import msgspec

from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Endpoint", "parse_endpoints"]

_HINT = "write it as http://host:port or https://host:port"


class Endpoint(msgspec.Struct, frozen=True):
    """The address of an etcd server; `secure` is https."""

    host: str
    port: int
    secure: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """The endpoint of a URL.

        Raises:
            Misconfigured: it is not such a URL.
        """
        if "@" in url:
            # Not shown again, nor what a parser says of it: it holds a password.
            what = f"etcd endpoint …@{url.rpartition('@')[2]}"
            raise Misconfigured(what, "has a user in it", "set user and password_file")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise Misconfigured(f"etcd endpoint {url}", str(error), _HINT) from None
        extra = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not host or not port or extra:
            raise Misconfigured(f"etcd endpoint {url}", "not a URL of an etcd server", _HINT)
        return cls(host, port, secure=parts.scheme == "https")

    def __str__(self) -> str:
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{self._bracketed}:{self.port}"

    @property
    def target(self) -> str:
        """What gRPC calls it; a name is resolved again on reconnecting."""
        return f"dns:///{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_endpoints(urls: str | Iterable[str]) -> tuple[Endpoint, ...]:
    """The endpoints in `http://host:port,…`, or of several such texts.

    Raises:
        Misconfigured: one is not such a URL, there is none, or some are https and some not:
            what one of them may not hear, another would.
    """
    texts = [urls] if isinstance(urls, str) else urls
    parts = [part.strip() for text in texts for part in text.split(",")]
    endpoints = tuple(Endpoint.parse(part) for part in parts if part)
    if not endpoints:
        raise Misconfigured("etcd endpoints", "none is given", "write them as http://host:port,…")
    if len({endpoint.secure for endpoint in endpoints}) > 1:
        raise Misconfigured("etcd endpoints", "some are https and some http", "use one kind")
    return endpoints
