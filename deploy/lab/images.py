"""All that a guest is booted from, built or found in the cache."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import initrd, kernel, pydeps, root, snapshot, tools
from .apt import Apt
from .cache import Cache, default_directory
from .errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .kernel import Kernel
    from .root import Root
    from .tools import Tools

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Images:
    """Complete and read-only; any number of guests boot from one of these."""

    tools: Tools
    kernel: Kernel
    initrd: Path
    root: Root
    deps: Path
    code: Path


def say(line: str) -> None:
    """Tell the person who waits what is going on."""
    sys.stderr.write(f"lab: {line}\n")
    sys.stderr.flush()


def build(repository: Path = REPOSITORY, tell: Callable[[str], None] = say) -> Images:
    """Build what is not in the cache.

    From nothing this takes a minute or two and a network; with a full cache a fraction of a
    second and none. Raises BuildError, whose message says what is wrong.
    """
    cache = Cache(default_directory(), tell)
    with cache.locked():
        apt = Apt(cache.directory / "apt", tell)
        apt.refresh()
        try:
            return _all(cache, apt, repository)
        except FetchError:
            # The mirror may have dropped a version that lists of last week still name.
            tell("a package could not be fetched; trying once more with new package lists")
            apt.refresh(force=True)
            return _all(cache, apt, repository)


def _all(cache: Cache, apt: Apt, repository: Path) -> Images:
    programs = tools.provide(cache, apt)
    linux = kernel.provide(cache, apt, programs)
    base = root.provide(cache, apt, programs)
    return Images(
        tools=programs,
        kernel=linux,
        initrd=initrd.provide(cache, programs, linux),
        root=base,
        deps=pydeps.provide(cache, programs, base, repository),
        code=snapshot.provide(cache, programs, base, repository),
    )
