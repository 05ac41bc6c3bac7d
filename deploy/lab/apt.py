"""Debian packages, fetched from the machine's own mirrors without touching its apt or dpkg.

The lists, the caches and the configuration are the lab's own. What a package needs is worked out by
apt against the machine's dpkg status (so that only what is missing is fetched), or against an empty
one (for the guests' root). Nothing is installed: packages are unpacked where the lab wants them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BuildError, FetchError
from .shell import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MACHINE_STATUS = Path("/var/lib/dpkg/status")
_LISTS_LAST_S = 7 * 24 * 3600.0
_INSTALLS = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", re.MULTILINE)
_MERGED = ("bin", "lib", "lib64", "sbin")
# dpkg-deb's own --extract would put directories in the place of the merged links.
_UNPACK = """
set -o pipefail
for archive in "${@:2}"; do
    dpkg-deb --fsys-tarfile "$archive" |
        tar --keep-directory-symlink --no-same-owner -xf - -C "$1"
done
"""


@dataclass(frozen=True)
class Package:
    """One version of a package, as apt would choose it."""

    name: str
    version: str
    depends: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """A Debian suite that need not be the machine's: its mirror, and the keys that sign it."""

    name: str
    mirror: str
    keyring: Path

    @property
    def line(self) -> str:
        """It as a line of a sources.list."""
        return f"deb [signed-by={self.keyring}] {self.mirror} {self.name} main\n"


class Apt:
    """apt-get and apt-cache with a configuration and state of the lab's own.

    Packages come from the machine's own sources, or from `suite` alone.
    """

    def __init__(
        self, directory: Path, say: Callable[[str], None], suite: Suite | None = None
    ) -> None:
        self._directory = directory
        self._say = say
        self._suite = suite
        self._lists = directory / "lists"
        self._answers = directory / "answers"
        self._stamp = directory / "refreshed"
        self._empty_status = directory / "empty-status"
        self._configuration = directory / "apt.conf"
        self._prepare()

    def refresh(self, *, force: bool = False) -> None:
        """Fetch the package lists when there are none or they are older than a week.

        Old lists are used on when they can't be fetched: a cached lab works without a network.
        """
        if not force and self._age() < _LISTS_LAST_S:
            return
        whose = f"{self._suite.name}'s" if self._suite else "Debian's"
        self._say(f"fetching {whose} package lists")
        try:
            self._apt("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")
        except BuildError:
            if force or not self._stamp.exists():
                raise
            self._say("the lists can't be fetched; going on with those of before")
            return
        self._stamp.write_text("")
        shutil.rmtree(self._answers, ignore_errors=True)

    def show(self, name: str) -> Package:
        """The version of a package that apt would install. Raises BuildError if there is none."""
        text = self._remembered("show", [name], MACHINE_STATUS, lambda: self._show(name))
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", text, re.MULTILINE))
        depends = (word.split()[0] for word in fields.get("Depends", "").split(",") if word.strip())
        return Package(fields["Package"], fields["Version"], tuple(depends))

    def mirror(self, suite: str) -> str:
        """The URL from which a suite's main packages come. Raises BuildError if from nowhere."""
        shown = "--format=$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)"
        found = self._apt("apt-get", "indextargets", shown, "Created-By: Packages")
        places = re.findall(rf"^Debian {suite} main (\S+)$", found, re.MULTILINE)
        if not places:
            raise BuildError(f"this machine's package sources do not have Debian's {suite}")
        return str(places[0])

    def missing(self, names: Iterable[str], status: Path | None) -> list[str]:
        """`name=version` of all that installing these packages would install.

        `status` is the dpkg status to start from; None is a machine with nothing on it.
        """
        wanted, start = sorted(names), status or self._empty_status
        options = self._on(start)
        text = self._remembered(
            "missing",
            wanted,
            start,
            lambda: self._apt("apt-get", *options, "-s", "install", *wanted),
        )
        return sorted(f"{name}={version}" for name, version in _INSTALLS.findall(text))

    def fetch_missing(self, names: Iterable[str], status: Path | None, into: Path) -> list[Path]:
        """Download what `missing` lists; the packages' files."""
        (into / "partial").mkdir(parents=True, exist_ok=True)
        archives = ["-o", f"Dir::Cache::archives={into}", "-y", "--download-only"]
        options = self._on(status or self._empty_status)
        self._fetch("apt-get", *options, *archives, "install", *names)
        return sorted(into.glob("*.deb"))

    def fetch(self, packages: Iterable[Package], into: Path) -> list[Path]:
        """Download exactly these versions; the packages' files."""
        into.mkdir(parents=True, exist_ok=True)
        exact = [f"{package.name}={package.version}" for package in packages]
        self._fetch("apt-get", "-q", "download", *exact, cwd=into)
        return sorted(into.glob("*.deb"))

    def _prepare(self) -> None:
        (self._lists / "partial").mkdir(parents=True, exist_ok=True)
        (self._directory / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        if not self._empty_status.exists():  # its age is part of what answers are kept under
            self._empty_status.touch()
        # The machine's ways to reach its mirrors are kept; its hooks, which run commands after an
        # update, are not: they would clean or fill caches that are not ours.
        reach = [line for line in run(["apt-config", "dump"]).splitlines() if _is_reach(line)]
        ours = [
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::parts "/dev/null";',
            f'Dir::State::lists "{self._lists}";',
            f'Dir::Cache "{self._directory / "cache"}";',
            'APT::Sandbox::User "root";',
            'APT::Install-Recommends "false";',
            'Acquire::Languages "none";',
            'Debug::NoLocking "true";',
        ]
        self._configuration.write_text("\n".join([*reach, *ours, *self._suite_sources(), ""]))

    def _suite_sources(self) -> list[str]:
        if self._suite is None:
            return []
        place = self._directory / "sources.list"
        place.write_text(self._suite.line)
        return [f'Dir::Etc::sourcelist "{place}";', 'Dir::Etc::sourceparts "/dev/null";']

    def _apt(self, *argv: str, cwd: Path | None = None) -> str:
        env = {**os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C.UTF-8"}
        return run(argv, env=env, cwd=cwd)

    def _fetch(self, *argv: str, cwd: Path | None = None) -> None:
        try:
            self._apt(*argv, cwd=cwd)
        except BuildError as error:
            raise FetchError(str(error)) from error

    def _show(self, name: str) -> str:
        return self._apt("apt-cache", "show", "--no-all-versions", name)

    def _on(self, status: Path) -> list[str]:
        return ["-o", f"Dir::State::status={status}"]

    def _age(self) -> float:
        return time.time() - self._stamp.stat().st_mtime if self._stamp.exists() else float("inf")

    def _remembered(self, what: str, names: list[str], status: Path, ask: Callable[[], str]) -> str:
        """apt's answer, kept while the lists and the status are the same: it costs 1 s a time."""
        since = [path.stat().st_mtime_ns for path in (self._stamp, status)]
        question = json.dumps([what, names, str(status), since])
        digest = hashlib.sha256(question.encode()).hexdigest()[:16]
        place = self._answers / digest
        if not place.exists():
            answer = ask()
            place.parent.mkdir(exist_ok=True)
            place.write_text(answer)
        return place.read_text()


def unpack(archives: Iterable[Path], into: Path) -> None:
    """Unpack packages over each other, all below `usr` as a merged Debian has them."""
    for name in _MERGED:
        (into / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (into / name).is_symlink():
            (into / name).symlink_to(f"usr/{name}")
    run(["bash", "-e", "-c", _UNPACK, "unpack", into, *archives])


def _is_reach(line: str) -> bool:
    return line.startswith("Acquire::") and '""' not in line
