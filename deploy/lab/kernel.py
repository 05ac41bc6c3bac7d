"""The kernels of the guests: Debian's own, with the mdev sample drivers built beside it.

Debian ships the mdev core (`mdev.ko`) and not the samples, so these are built out of tree from the
same version's source, against its headers where they were unpacked.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
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
# What finds the root file system, in the order in which it is loaded; a kernel may have some of it
# built in. ext4's checksums ask for
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
_XZ = b"\xfd7zXZ\x00"
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

    @property
    def root_modules(self) -> list[str]:
        """ROOT_MODULES without those that are built into this kernel."""
        built_in = _built_in(self.directory / "lib" / "modules" / self.release)
        return [name for name in ROOT_MODULES if name not in built_in]

    @property
    def series(self) -> str:
        """The kernel's series, as "6.12"."""
        return _series(self.release)


def provide(cache: Cache, apt: Apt, tools: Tools, meta: str) -> Kernel:
    """Fetch and build the kernel that Debian would install now with the package `meta`."""
    release, packages = _resolve(apt, meta)
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
    return Kernel(cache.component(f"kernel-{_series(release)}", inputs, sources, build))


def _resolve(apt: Apt, meta: str) -> tuple[str, list[Package]]:
    image = apt.show(_the(apt.show(meta), r"linux-image-.+"))
    release = image.name.removeprefix("linux-image-")
    headers = apt.show(f"linux-headers-{release}")
    common = apt.show(_the(headers, r"linux-headers-.+-common"))
    kbuild = apt.show(_the(headers, r"linux-kbuild-.+"))
    source = Package(f"linux-source-{_series(release)}", image.version, ())
    return release, [image, headers, common, kbuild, source]


def _series(release: str) -> str:
    """6.1 of 6.1.0-50-amd64, 6.12 of 6.12.117+deb12-amd64."""
    return ".".join(release.split(".")[:2])


def _the(package: Package, pattern: str) -> str:
    matching = [name for name in package.depends if re.fullmatch(pattern, name)]
    if len(matching) != 1:
        raise BuildError(
            f"{package.name}: expected one dependency like {pattern}, found {matching}"
        )
    return matching[0]


def _write_vmlinux(vmlinuz: Path, vmlinux: Path, tools: Tools) -> None:
    """Take the kernel out of its boot image."""
    packed = _payload(vmlinuz.read_bytes())
    if packed.startswith(_XZ):
        unpacked = lzma.LZMADecompressor().decompress(packed)
    else:
        unpacked = _unzstd(packed, vmlinux.with_suffix(".zst"), tools)
    if not unpacked.startswith(_ELF):
        raise BuildError(f"{vmlinuz.name}: no kernel found inside")
    vmlinux.write_bytes(unpacked)


def _payload(image: bytes) -> bytes:
    """The packed kernel: after the sectors of setup code, where the header says.

    Its last four bytes are the size unpacked, and no part of the stream. The header's fields are
    setup_sects, payload_offset and payload_length of Documentation/arch/x86/boot.rst.
    """
    (sectors,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (sectors + 1) * 512 + offset
    return image[begin : begin + length - 4]


def _unzstd(stream: bytes, scratch: Path, tools: Tools) -> bytes:
    scratch.write_bytes(stream)
    unpacked = scratch.with_suffix(".out")
    run([tools.program("zstd"), "-q", "-d", "-f", "-o", unpacked, scratch], env=tools.env)
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
    built_in = _built_in(index.parent)
    absent = [name for name in names if name not in needs and name not in built_in]
    if absent:
        raise BuildError(f"this kernel has no module {', '.join(absent)}")
    return {path for name in names for path in needs.get(name, ())}


def _built_in(modules: Path) -> set[str]:
    paths = (modules / "modules.builtin").read_text().split()
    return {_module_name(path) for path in paths}


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _copy_module(module: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if module.suffix == ".xz":
        to.with_suffix("").write_bytes(lzma.decompress(module.read_bytes()))
    else:
        shutil.copy(module, to)
