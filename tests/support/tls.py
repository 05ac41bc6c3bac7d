"""Certificates for tests, and an etcd that asks for them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import trustme

from coordinator.credentials import Credentials
from coordinator.embedded import EmbeddedEtcd, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["EXPIRED", "Authority", "SecureEtcd", "secure_etcd"]

EXPIRED = datetime.now(UTC) - timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    cert: Path
    key: Path


class Authority:
    """Who signs certificates, with its files in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory, self._ca = directory, trustme.CA()
        self.cacert = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.cacert))

    def issue(self, name: str, *hosts: str, until: datetime | None = None) -> Pair:
        """A certificate for `hosts` whose common name is `name`; it replaces an earlier one."""
        began = None if until is None else until - timedelta(days=30)
        leaf = self._ca.issue_cert(
            *(hosts or (f"{name}.invalid",)),
            common_name=name,
            not_before=began,
            not_after=until,
        )
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        _write(pair.cert, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        _write(pair.key, leaf.private_key_pem.bytes())
        return pair

    def client(self, name: str = "client", *, until: datetime | None = None) -> Credentials:
        """What a client of this authority has."""
        pair = self.issue(name, until=until)
        return Credentials(cacert=self.cacert, cert=pair.cert, key=pair.key)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole, as whoever renews certificates does."""
    new = path.with_suffix(".new")
    with open(new, "wb", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
        file.write(data)
    new.rename(path)


@dataclass(frozen=True)
class SecureEtcd:
    """An etcd with mutual TLS, reached under two names."""

    server: EmbeddedEtcd
    port: int

    @property
    def endpoint(self) -> str:
        """By the address that its certificate covers."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def other_name(self) -> str:
        """By a name that it may not cover."""
        return f"https://localhost:{self.port}"


@contextmanager
def secure_etcd(authority: Authority, pair: Pair, *extra: str) -> Iterator[SecureEtcd]:
    """An etcd that wants its clients' certificates from `authority` and shows `pair`.

    It is asked whether it is there on a second port, without TLS.
    """
    plain, secure = free_ports(2)
    flags = [
        f"--listen-client-urls=http://127.0.0.1:{plain},https://127.0.0.1:{secure}",
        "--client-cert-auth",
        f"--trusted-ca-file={authority.cacert}",
        f"--cert-file={pair.cert}",
        f"--key-file={pair.key}",
        "--unsafe-no-fsync",
    ]
    with EmbeddedEtcd(port=plain, extra=[*flags, *extra]) as server:
        yield SecureEtcd(server, secure)
