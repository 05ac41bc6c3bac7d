"""The keys that sign Debian's suites, newer ones included.

The machine's own may be older than the suite that a guest's root comes from. The package that has
them all comes by way of the machine's package sources, which the machine trusts already.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .apt import unpack

if TYPE_CHECKING:
    from .apt import Apt
    from .cache import Cache

_PACKAGE = "debian-archive-keyring"


def provide(cache: Cache, apt: Apt) -> Path:
    """The keyring file, for apt's `signed-by`."""
    package = apt.show(_PACKAGE)

    def build(into: Path) -> None:
        work = into / "work"
        unpack(apt.fetch([package], work / "archives"), work)
        shutil.copy(work / "usr" / "share" / "keyrings" / f"{_PACKAGE}.gpg", into / "keyring.gpg")
        shutil.rmtree(work)

    inputs = {"package": f"{package.name}={package.version}"}
    return cache.component("keyring", inputs, [Path(__file__)], build) / "keyring.gpg"
