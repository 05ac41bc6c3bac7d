"""A lab in use: the images, and guests that are all gone when it is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .flavours import DEBIAN_12
from .guest import ETCD, Guest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from .flavours import Flavour
    from .images import Images


class Lab:
    """Makes guests that reach the etcd members at three ports of this machine's loopback.

    Leaving its context switches every guest off at once and drops the disks; the consoles stay
    in `directory`, a folder a guest.
    """

    def __init__(
        self, images: Mapping[Flavour, Images], directory: Path, etcd_ports: Sequence[int]
    ) -> None:
        self.images = images
        self.directory = directory
        self.etcd_ports = etcd_ports
        self._guests: list[Guest] = []

    def guest(self, name: str, flavour: Flavour = DEBIAN_12) -> Guest:
        """A new guest, switched off, with an empty disk."""
        directory = self.directory / f"{len(self._guests)}-{name}"
        forwards = dict(zip(ETCD, self.etcd_ports, strict=True))
        guest = Guest(name, self.images[flavour], directory, forwards=forwards)
        self._guests.append(guest)
        return guest

    def close(self) -> None:
        """Discard every guest."""
        for guest in self._guests:
            guest.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
