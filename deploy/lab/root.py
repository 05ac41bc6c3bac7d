"""The guests' root: a small Debian with Python and udev, read-only, under an overlay of each guest.

Its packages are unpacked and not installed: no maintainer script runs, so no chroot and no root are
needed. What those scripts would have made and a guest needs is made here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .apt import unpack
from .errors import BuildError
from .shell import run

if TYPE_CHECKING:
    from .apt import Apt
    from .cache import Cache
    from .flavours import Flavour
    from .tools import Tools

PACKAGES = (
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",  # logger, to which mdevctl's udev rule pipes
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "iproute2",
    "kmod",
    "libc-bin",
    "libstdc++6",  # grpc's wheel is linked against it
    "mdevctl",
    "mount",
    "procps",
    "python3",
    "sed",
    "udev",
    "util-linux",
)
STATE_SIZE = 256 * 1024 * 1024
_WITHOUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n")
# Groups that udev's rules name; without them it complains on every console.
_GROUPS = ("input", "kvm", "render", "sgx")
_MOUNT_POINTS = ("dev", "proc", "run", "sys", "tmp", "opt/mdevns/code", "opt/mdevns/deps")


@dataclass(frozen=True)
class Root:
    """The built root."""

    directory: Path

    @property
    def image(self) -> Path:
        """The squashfs."""
        return self.directory / "root.sqfs"

    @property
    def blank_state(self) -> Path:
        """An empty ext4 image (sparse), which becomes a guest's own disk."""
        return self.directory / "state.img"

    @property
    def tree(self) -> Path:
        """The same root as a directory: its Python also runs on the machine, to compile."""
        return self.directory / "tree"

    @property
    def python_version(self) -> str:
        """The guests' Python, as "3.11"."""
        return _python(self.tree).name.removeprefix("python")


def provide(cache: Cache, apt: Apt, tools: Tools, flavour: Flavour) -> Root:
    """Build the root from nothing but packages, those of the flavour's suite."""
    packages = apt.missing([*PACKAGES, *flavour.packages], None)

    def build(into: Path) -> None:
        root = Root(into)
        unpack(apt.fetch_missing(packages, None, into / "archives"), root.tree)
        shutil.rmtree(into / "archives")
        _finish(root.tree)
        compile_python(root.tree, [_library(root.tree)])
        squash(tools, root.tree, root.image)
        with root.blank_state.open("wb") as blank:
            blank.truncate(STATE_SIZE)
        run([tools.program("mke2fs"), "-q", "-t", "ext4", root.blank_state], env=tools.env)

    inputs = {"packages": packages}
    return Root(cache.component(f"root-{flavour.suite}", inputs, [Path(__file__)], build))


def squash(tools: Tools, tree: Path, image: Path) -> None:
    """Pack a tree, owned by root in the image whoever owns it here."""
    options = ["-comp", "lz4", "-all-root", "-noappend", "-no-progress", "-quiet"]
    run([tools.program("mksquashfs"), tree, image, *options], env=tools.env)


def compile_python(root: Path, trees: list[Path]) -> None:
    """Compile Python files with the root's own Python: importing sources in a guest is slow."""
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    loader = root / "lib64" / "ld-linux-x86-64.so.2"
    python = [str(loader), "--library-path", str(libraries), str(_python(root))]
    # One process: its helpers would be started without that loader, on the machine's libraries.
    compiling = ["-S", "-m", "compileall", "-q", *map(str, trees)]
    env = {"PYTHONHOME": str(root / "usr"), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    # Some files of some packages do not compile: templates, or for another Python.
    run(["bash", "-c", '"$@" >/dev/null || true', "compile", *python, *compiling], env=env)
    if any(_mostly_uncompiled(tree) for tree in trees):
        raise BuildError(f"{_python(root).name}: the root's Python does not run on this machine")


def _mostly_uncompiled(tree: Path) -> bool:
    return 2 * len(list(tree.rglob("*.pyc"))) < len(list(tree.rglob("*.py")))


def _finish(tree: Path) -> None:
    for name in _WITHOUT:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in _MOUNT_POINTS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name in ("passwd", "group"):
        shutil.copy(tree / "usr" / "share" / "base-passwd" / f"{name}.master", tree / "etc" / name)
    with (tree / "etc" / "group").open("a") as groups:
        groups.writelines(f"{name}:x:{900 + n}:\n" for n, name in enumerate(_GROUPS))
    (tree / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    shell = tree / "usr" / "bin" / "sh"
    if not shell.is_symlink():
        shell.symlink_to("dash")


def _python(tree: Path) -> Path:
    return (tree / "usr" / "bin" / "python3").resolve()


def _library(tree: Path) -> Path:
    return tree / "usr" / "lib" / _python(tree).name
