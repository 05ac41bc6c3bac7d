"""The programs that build and run the guests: the machine's own, or unpacked into the cache.

Nothing is installed and nothing needs root: what the machine lacks is unpacked beside its kin and
found through PATH and the loader's path.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .apt import MACHINE_STATUS, unpack
from .errors import BuildError
from .flavours import MACHINE_SUITE

if TYPE_CHECKING:
    from .apt import Apt
    from .cache import Cache

PACKAGES = (
    "binutils",
    "busybox-static",
    "e2fsprogs",
    "gcc",
    "kmod",
    "libelf1",
    "make",
    "qemu-system-x86",
    "squashfs-tools",
    "xz-utils",
    "zstd",
)
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib")
_PROGRAMS = ("usr/bin", "usr/sbin")
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios")
_MACHINE_NEEDS = ("apt-get", "bash", "dpkg-deb", "setpriv", "tar")


@dataclass(frozen=True)
class Tools:
    """Where the programs are, and how they are started."""

    directory: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment in which a program of these finds its libraries and helpers."""
        programs = [str(self.directory / name) for name in _PROGRAMS]
        libraries = [str(self.directory / name) for name in _LIBRARIES]
        return {
            **os.environ,
            "PATH": ":".join([*programs, os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]),
            "LD_LIBRARY_PATH": ":".join(libraries),
            "LC_ALL": "C.UTF-8",
        }

    def program(self, name: str) -> Path:
        """The path of a program. Raises BuildError when neither place has it."""
        found = shutil.which(name, path=self.env["PATH"])
        if found is None:
            raise BuildError(f"{name}: not found, though its package was unpacked or is installed")
        return Path(found)

    @property
    def firmware(self) -> list[Path]:
        """The directories with QEMU's BIOS and option ROMs."""
        roots = (self.directory, Path("/"))
        return [root / name for root in roots for name in _FIRMWARE if (root / name).is_dir()]


def provide(cache: Cache, apt: Apt) -> Tools:
    """Unpack what this machine lacks. Raises BuildError when it is not an amd64 Debian 12."""
    lacking = [name for name in _MACHINE_NEEDS if shutil.which(name) is None]
    if lacking or os.uname().machine != "x86_64" or _suite() != MACHINE_SUITE:
        raise BuildError(
            f"the lab is built from Debian's packages on an x86-64 Debian {MACHINE_SUITE}; this is "
            f"{_suite()} on {os.uname().machine} and lacks: {', '.join(lacking) or 'nothing else'}"
        )
    missing = apt.missing(PACKAGES, MACHINE_STATUS)

    def build(into: Path) -> None:
        with_archives = into / "archives"
        unpack(apt.fetch_missing(missing, MACHINE_STATUS, with_archives), into)
        shutil.rmtree(with_archives)
        _keep_links_inside(into)

    return Tools(cache.component("tools", {"packages": missing}, [Path(__file__)], build))


def _suite() -> str:
    """This machine's Debian suite (os-release(5)); "unknown" where it does not say."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")
    except OSError:
        return "unknown"


def _keep_links_inside(tree: Path) -> None:
    """Let absolute links (depmod is one, to /bin/kmod) lead to their targets in this tree."""
    for link in (path for path in tree.rglob("*") if path.is_symlink()):
        target = link.readlink()
        if target.is_absolute() and (tree / target.relative_to("/")).exists():
            link.unlink()
            link.symlink_to(os.path.relpath(tree / target.relative_to("/"), link.parent))
