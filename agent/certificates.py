"""Until when this agent's certificates are good, as their files are now."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coordinator.credentials import Credentials

__all__ = ["Expiries"]


class Expiries:
    """The ends of the certificates that an agent is configured with; a file is read on change."""

    def __init__(self, credentials: Credentials) -> None:
        self._files = {"cert": credentials.cert, "cacert": credentials.cacert}
        self._known: dict[str, tuple[tuple[int, int, int], float | None]] = {}

    def all(self) -> Iterator[tuple[str, float]]:
        """The setting that names a file, and when its first certificate to expire does (UTC).

        Leaves out a file that cannot be read, or is being replaced, at this moment.
        """
        for setting, path in self._files.items():
            if path is not None and (end := self._end(setting, path)) is not None:
                yield setting, end

    def _end(self, setting: str, path: Path) -> float | None:
        try:
            now = path.stat()
            state = (now.st_ino, now.st_mtime_ns, now.st_size)
            known = self._known.get(setting)
            if known is not None and known[0] == state:
                return known[1]
            end = _first_end(path.read_bytes())
        except OSError:
            return None
        self._known[setting] = state, end
        return end


def _first_end(pem: bytes) -> float | None:
    from cryptography import x509  # noqa: PLC0415 - slow to load, and only certificates need it

    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:  # half of it is written, perhaps
        return None
    return min(each.not_valid_after_utc.timestamp() for each in certificates)
