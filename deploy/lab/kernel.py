"""The kernel of the guests: Debian's own, with the mdev sample drivers built beside it.

Debian ships the mdev core (`mdev.ko`) and not the samples, so these are built out of tree from the
same version's source, against its headers where they were unpacked.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import mtty
from .apt import Package, unpack
from .errors import BuildError
from .shell import run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .apt import Apt
    from .cache import Cache
    from .tools import Tools

SAMPLES = ("mtty", "mdpy", "mbochs")
# What finds the root file system, in the order in which it is loaded. ext4's checksums ask for
# crc32c by an alias that only a running modprobe could resolve, so it is named here.
ROOT_MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "squashfs",
    "overlay",
    "crc32c_generic",
    "ext4",
)
VFIO_MODULES = ("vfio_iommu_type1", *SAMPLES)
_META = "linux-image-amd64"
_XZ = b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ELF = b"\x7fELF"


@dataclass(frozen=True)
class Kernel:
    """A built kernel: `vmlinux`, and `lib/modules/<release>` with just the modules above."""

    directory: Path

    @property
    def vmlinux(self) -> Path:
        """The uncompressed kernel, which boots a second earlier than the compressed one."""
        return self.directory / "vmlinux"

    @property
    def release(self) -> str:
        """The kernel's release, as uname -r prints it."""
        return (self.directory / "release").read_text()


def provide(cache: Cache, apt: Apt, tools: Tools) -> Kernel:
    """Fetch and build the kernel that Debian would install now."""
    release, packages = _resolve(apt)
    inputs = {"packages": [f"{package.name}={package.version}" for package in packages]}

    def build(into: Path) -> None:
        work = into / "work"
        unpack(apt.fetch(packages, work / "archives"), work)
        _write_vmlinux(work / "boot" / f"vmlinuz-{release}", into / "vmlinux", tools)
        modules = work / "lib" / "modules" / release
        _build_samples(work, release, modules / "extra", tools)
        _choose_modules(work, into, release, tools)
        (into / "release").write_text(release)
        shutil.rmtree(work)

    sources = [Path(__file__), Path(mtty.__file__)]
    return Kernel(cache.component("kernel", inputs, sources, build))


def _resolve(apt: Apt) -> tuple[str, list[Package]]:
    image = apt.show(_the(apt.show(_META).depends, r"linux-image-(?P<release>.+)"))
    release = image.name.removeprefix("linux-image-")
    headers = apt.show(f"linux-headers-{release}")
    common = apt.show(_the(headers.depends, r"linux-headers-.+-common"))
    kbuild = apt.show(_the(headers.depends, r"linux-kbuild-.+"))
    series = kbuild.name.removeprefix("linux-kbuild-")
    source = Package(f"linux-source-{series}", image.version, ())
    return release, [image, headers, common, kbuild, source]


def _the(names: Iterable[str], pattern: str) -> str:
    matching = [name for name in names if re.fullmatch(pattern, name)]
    if len(matching) != 1:
        raise BuildError(f"{_META}: expected one dependency like {pattern}, found {matching}")
    return matching[0]


def _write_vmlinux(vmlinuz: Path, vmlinux: Path, tools: Tools) -> None:
    """Take the payload out of the boot image: the first stream that unpacks to an ELF file."""
    image = vmlinuz.read_bytes()
    at = image.find(_XZ)
    if at >= 0:
        unpacked = lzma.LZMADecompressor().decompress(image[at:])
    else:
        unpacked = _unzstd(image[image.find(_ZSTD) :], vmlinux.with_suffix(".zst"), tools)
    if not unpacked.startswith(_ELF):
        raise BuildError(f"{vmlinuz.name}: no kernel found inside")
    vmlinux.write_bytes(unpacked)


def _unzstd(stream: bytes, scratch: Path, tools: Tools) -> bytes:
    scratch.write_bytes(stream)
    unpacked = scratch.with_suffix(".out")
    # The kernel's setup code follows the stream; zstd unpacks all and then complains of that.
    line = 'zstd -q -d -f -o "$2" "$1" || test -s "$2"'
    run(["bash", "-c", line, "unzstd", scratch, unpacked], env=tools.env)
    try:
        return unpacked.read_bytes()
    finally:
        scratch.unlink()
        unpacked.unlink()


def _build_samples(work: Path, release: str, into: Path, tools: Tools) -> None:
    source = work / "samples"
    source.mkdir()
    (archive,) = (work / "usr" / "src").glob("linux-source-*.tar.xz")
    folder = f"{archive.name.removesuffix('.tar.xz')}/samples/vfio-mdev"
    run(["tar", "--strip-components=3", "-xJf", archive, "-C", source, folder], env=tools.env)
    driver = source / "mtty.c"
    driver.write_text(mtty.slowed(driver.read_text()))
    (source / "Makefile").write_text(f"obj-m := {' '.join(f'{name}.o' for name in SAMPLES)}\n")

    headers = _relocated_headers(work, release)
    jobs = f"-j{os.cpu_count() or 1}"
    run(["make", jobs, "-C", headers, f"M={source}", "modules"], env=tools.env)
    into.mkdir()
    for name in SAMPLES:
        shutil.copy(source / f"{name}.ko", into)


def _relocated_headers(work: Path, release: str) -> Path:
    headers = work / "usr" / "src" / f"linux-headers-{release}"
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{work}/usr/src/"))
    # With it there, newer kernels want to make type information for modules, and pahole for that.
    (headers / "vmlinux").unlink(missing_ok=True)
    return headers


def _choose_modules(work: Path, into: Path, release: str, tools: Tools) -> None:
    """Copy the modules we need with those they need, uncompressed, and index them."""
    everything = work / "lib" / "modules" / release
    chosen = into / "lib" / "modules" / release
    depmod = tools.program("depmod")
    run([depmod, "-b", work, release], env=tools.env)
    for path in _closure(everything / "modules.dep", (*ROOT_MODULES, *VFIO_MODULES)):
        _copy_module(everything / path, chosen / path)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(everything / name, chosen)
    run([depmod, "-b", into, release], env=tools.env)


def _closure(index: Path, names: Iterable[str]) -> set[str]:
    needs = {}
    for line in index.read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_module_name(path)] = [path, *others.split()]
    absent = [name for name in names if name not in needs]
    if absent:
        raise BuildError(f"this kernel has no module {', '.join(absent)}")
    return {path for name in names for path in needs[name]}


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _copy_module(module: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if module.suffix == ".xz":
        to.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
    else:
        shutil.copy(module, to)
