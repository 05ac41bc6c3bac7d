"""The guests' first file system: busybox, the modules, and a script that finds the real root."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cache import Cache
    from .kernel import Kernel
    from .tools import Tools

_SCRIPT = Path(__file__).with_name("inside") / "init.sh"
_DIRECTORIES = ("bin", "dev", "lower", "proc", "root", "state", "sys")


def provide(cache: Cache, tools: Tools, kernel: Kernel) -> Path:
    """The initrd for this kernel."""
    busybox = tools.program("busybox")
    inputs = {"kernel": kernel.directory.name, "tools": tools.directory.name}

    def build(into: Path) -> None:
        archive = _Cpio()
        for name in _DIRECTORIES:
            archive.directory(name)
        archive.device("dev/console", 5, 1)
        archive.file("bin/busybox", busybox.read_bytes(), 0o755)
        archive.file("init", _SCRIPT.read_bytes(), 0o755)
        archive.file("modules", "\n".join([*kernel.root_modules, ""]).encode(), 0o644)
        archive.tree(kernel.directory / "lib", "lib")
        (into / "initrd.cpio").write_bytes(archive.finished())

    sources = [Path(__file__), _SCRIPT]
    place = cache.component(f"initrd-{kernel.series}", inputs, sources, build)
    return place / "initrd.cpio"


@dataclass
class _Cpio:
    """An archive in the kernel's `newc` form (Documentation/driver-api/early-userspace).

    Written here because a device node can stand in it without anybody being root.
    """

    _parts: list[bytes] = field(default_factory=list)

    def directory(self, name: str) -> None:
        self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int) -> None:
        self._add(name, stat.S_IFREG | mode, data)

    def device(self, name: str, major: int, minor: int) -> None:
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def tree(self, root: Path, name: str) -> None:
        self.directory(name)
        for path in sorted(root.rglob("*")):
            inside = f"{name}/{path.relative_to(root)}"
            if path.is_dir():
                self.directory(inside)
            else:
                self.file(inside, path.read_bytes(), 0o644)

    def finished(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return b"".join(self._parts)

    def _add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        path = name.encode() + b"\0"
        inode, links, owner, time = len(self._parts) + 1, 1, 0, 0
        fields = (
            *(inode, mode, owner, owner, links, time, len(data)),
            *(0, 0, *device, len(path), 0),
        )
        header = b"070701" + b"".join(b"%08X" % number for number in fields)
        self._parts += [_padded(header + path), _padded(data)]


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
