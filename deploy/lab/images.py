"""All that guests are booted from, built or found in the cache."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import initrd, kernel, keyring, pydeps, root, snapshot, tools
from .apt import Apt, Suite
from .cache import Cache, default_directory
from .errors import FetchError
from .flavours import FLAVOURS, MACHINE_SUITE, Flavour

if TYPE_CHECKING:
    from collections.abc import Callable

    from .kernel import Kernel
    from .root import Root
    from .tools import Tools

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Images:
    """One flavour's: complete and read-only; any number of guests boot from one of these."""

    flavour: Flavour
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


def build(
    repository: Path = REPOSITORY, tell: Callable[[str], None] = say
) -> dict[Flavour, Images]:
    """Build what is not in the cache, the flavours side by side.

    From nothing this takes two or three minutes and a network; with a full cache a second and
    none. Raises BuildError, whose message says what is wrong.
    """
    builder = _Builder(Cache(default_directory(), tell), repository, tell)
    with builder.cache.locked():
        try:
            return builder.all(renew_lists=False)
        except FetchError:
            # The mirror may have dropped a version that lists of last week still name.
            tell("a package could not be fetched; trying once more with new package lists")
            return builder.all(renew_lists=True)


@dataclass(frozen=True)
class _Builder:
    """What all components need."""

    cache: Cache
    repository: Path
    tell: Callable[[str], None]

    def all(self, *, renew_lists: bool) -> dict[Flavour, Images]:
        """Every flavour's images."""
        machine = Apt(self.cache.directory / "apt", self.tell)
        machine.refresh(force=renew_lists)
        programs = tools.provide(self.cache, machine)
        # Before the threads: what is made by either is then made once.
        suites = {each: self._packages(machine, each, renew=renew_lists) for each in FLAVOURS}
        with ThreadPoolExecutor(len(FLAVOURS)) as pool:
            built = pool.map(
                lambda each: self._one(machine, suites[each], programs, each), FLAVOURS
            )
            return dict(zip(FLAVOURS, built, strict=True))

    def _packages(self, machine: Apt, flavour: Flavour, *, renew: bool) -> Apt:
        """Where a flavour's root comes from: the machine's sources, or its mirror's other suite."""
        if flavour.suite == MACHINE_SUITE:
            return machine
        keys = keyring.provide(self.cache, machine)
        suite = Suite(flavour.suite, machine.mirror(MACHINE_SUITE), keys)
        packages = Apt(self.cache.directory / f"apt-{flavour.suite}", self.tell, suite)
        packages.refresh(force=renew)
        return packages

    def _one(self, machine: Apt, packages: Apt, programs: Tools, flavour: Flavour) -> Images:
        linux = kernel.provide(self.cache, machine, programs, flavour.kernel)
        base = root.provide(self.cache, packages, programs, flavour)
        return Images(
            flavour=flavour,
            tools=programs,
            kernel=linux,
            initrd=initrd.provide(self.cache, programs, linux),
            root=base,
            deps=pydeps.provide(self.cache, programs, base, self.repository),
            code=snapshot.provide(self.cache, programs, base, self.repository),
        )
