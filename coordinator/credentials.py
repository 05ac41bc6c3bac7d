"""What a client shows etcd, and by what it knows etcd: certificates, user, password.

All of it lies in files, which are read again when they change: certificates when the next
connection is made, the password when the next token is asked for. Nothing here speaks to
anything, and gRPC is not needed.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.endpoints import Endpoint

__all__ = ["Certificates", "Credentials", "Pems"]

_READS = 5  # tries to read files that change while they are read

_Signature = tuple[tuple[int, int, int], ...]
"""Of each file: inode, size, time of change in nanoseconds."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Where they lie; None: there is none.

    `cacert` has the certificates (PEM) of who may sign etcd's, the system's own where there is
    none; `cert` and `key` are ours; `password_file` has the password of `user` on one line.
    """

    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None

    def check(self, endpoints: Sequence[Endpoint]) -> None:
        """See that they are whole, safe, and can be used for these endpoints.

        Raises:
            Misconfigured: as `check_words`; or a file cannot be read or used, or others may
                read it.
        """
        self.check_words(endpoints)
        if endpoints[0].secure:
            Certificates(self).read()
        self.password()

    def check_words(self, endpoints: Sequence[Endpoint]) -> None:
        """See that what is configured fits together, whatever the files hold at this moment.

        Raises:
            Misconfigured: a half of a pair is missing, or they would not be protected on their
                way.
        """
        _both("cert", self.cert, "key", self.key)
        _both("user", self.user, "password_file", self.password_file)
        secure = endpoints[0].secure
        files = {"cacert": self.cacert, "cert": self.cert}
        for setting, path in files.items():
            if path is not None and not secure:
                why = "is of no use: no endpoint is https, and all would go in the clear"
                raise _wrong(setting, path, why, "write the endpoints as https://…")
        if self.user is not None and not secure and not all(map(_is_local, endpoints)):
            why = "its password would go over the network in the clear"
            raise _wrong("user", self.user, why, "write the endpoints as https://…")

    def password(self) -> str | None:
        """The password as the file has it now.

        Raises:
            Misconfigured: it cannot be read, has none, or others may read it.
        """
        path = self.password_file
        if path is None:
            return None
        _refuse_readable("password_file", path)
        try:
            password = (_bytes("password_file", path) or b"").decode().rstrip("\r\n")
        except ValueError:
            raise _wrong("password_file", path, "is not UTF-8") from None
        if not password or "\n" in password:
            raise _wrong("password_file", path, "does not have a password on one line")
        return password


class Pems(NamedTuple):
    """What a connection is secured with, as read; None where it was not given."""

    cacert: bytes | None
    cert: bytes | None
    key: bytes | None


class Certificates:
    """The certificates of some credentials, and whether they changed since they were read."""

    def __init__(self, credentials: Credentials) -> None:
        self._files = (credentials.cacert, credentials.cert, credentials.key)
        self._signature: _Signature | None = None

    @property
    def ours(self) -> bool:
        """Whether there is one of our own to show."""
        return self._files[1] is not None

    def changed(self) -> bool:
        """Whether a file is another one than when it was last read."""
        return self._signed() != self._signature

    def read(self) -> Pems:
        """Read them, and see that they fit together.

        Raises:
            Misconfigured: a file cannot be read or is not what it should be, the key is of
                another certificate, or others may read it.
        """
        for attempt in range(_READS):
            before = self._signed()
            try:
                pems = self._read()
            except Misconfigured:
                # A certificate and its key are replaced one after the other: what was read in
                # between is neither.
                if self._signed() == before or attempt == _READS - 1:
                    raise
                continue
            if self._signed() == before:
                self._signature = before
                return pems
        raise _wrong("cert", self._files[1], "it and its key change all the time", "try again")

    def context(self, protocol: str = "h2") -> ssl.SSLContext:
        """The same for Python's own TLS, which says what is wrong where gRPC does not.

        Raises:
            Misconfigured: as `read`.
        """
        cacert, cert, key = self._files
        try:
            context = ssl.create_default_context(cafile=cacert)
        except (ssl.SSLError, OSError) as error:
            why = _why(error, "has no certificate in PEM")
            raise _wrong("cacert", cacert, why) from None
        context.set_alpn_protocols([protocol])
        if cert is not None and key is not None:
            try:
                context.load_cert_chain(cert, key, password=_none)
            except ssl.SSLError as error:
                why = "it and its key are not a certificate and its key"
                if error.reason == "KEY_VALUES_MISMATCH":
                    why = f"{key} is not this certificate's key"
                hint = "both must be PEM, the key without a password"
                raise _wrong("cert", cert, why, hint) from None
            except OSError:  # which of them it is, their reading told
                raise _wrong("cert", cert, "it or its key cannot be read") from None
        return context

    def _read(self) -> Pems:
        cacert, cert, key = self._files
        if key is not None:
            _refuse_readable("key", key)
        pems = Pems(
            _bytes("cacert", cacert or _system_roots()), _bytes("cert", cert), _bytes("key", key)
        )
        self.context()
        return pems

    def _signed(self) -> _Signature:
        return tuple(_sign(path) for path in self._files if path is not None)


def _none() -> str:
    """Instead of a prompt for a key's password, for which nobody is there."""
    return ""


def _sign(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _both(one: str, first: object, other: str, second: object) -> None:
    if (first is None) != (second is None):
        given, missing = (one, other) if second is None else (other, one)
        value = first if second is None else second
        raise _wrong(given, value, f"is of no use without {missing}", f"set {missing} too")


def _is_local(endpoint: Endpoint) -> bool:
    try:
        return endpoint.host == "localhost" or ipaddress.ip_address(endpoint.host).is_loopback
    except ValueError:
        return False


def _refuse_readable(setting: str, path: Path) -> None:
    """A secret is its owner's, and may be its group's to read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _wrong(setting, path, str(error.strerror)) from None
    if not stat.S_ISREG(mode):
        raise _wrong(setting, path, "is not a file")
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        why = f"others may read or change it (mode {mode & 0o7777:04o})"
        raise _wrong(setting, path, why, f"chmod 600 {path}")


def _wrong(setting: str, value: object, why: str, hint: str = "") -> Misconfigured:
    return Misconfigured(f"{setting} {value}", why, hint, setting=setting)


def _bytes(setting: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(setting, path, str(error.strerror)) from None


def _system_roots() -> Path | None:
    """The file of the system's own authorities; None: gRPC's own are taken."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file) if file and os.access(file, os.R_OK) else None


def _why(error: OSError, otherwise: str) -> str:
    return otherwise if isinstance(error, ssl.SSLError) else str(error.strerror)
