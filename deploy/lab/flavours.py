"""The flavours of guests: a Debian's kernel series and user space, by the names apt has for them.

Debian 12 has Debian 13's kernel series too, built with its own compiler; so both kernels, and
their sample drivers, are made on a Debian 12 from its own packages.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEBIAN_12", "DEBIAN_13", "FLAVOURS", "MACHINE_SUITE", "Flavour"]

MACHINE_SUITE = "bookworm"


@dataclass(frozen=True)
class Flavour:
    """What the guests of one flavour are made of.

    `kernel` is the package that depends on the newest kernel of the series, `suite` is where the
    root's packages come from, `packages` are what only that suite's root needs.
    """

    name: str
    kernel: str
    suite: str
    packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


DEBIAN_12 = Flavour("Debian 12", "linux-image-amd64", MACHINE_SUITE)
# Without the last one apt chooses the whole of systemd for what udev needs of it.
DEBIAN_13 = Flavour(
    "Debian 13", "linux-image-6.12-amd64", "trixie", ("systemd-standalone-sysusers",)
)
FLAVOURS = (DEBIAN_12, DEBIAN_13)
