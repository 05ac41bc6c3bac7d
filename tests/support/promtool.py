"""Prometheus' own tool, which checks rules: the one on PATH, else the one of Debian's package."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from deploy.lab.apt import Apt, unpack
from deploy.lab.cache import Cache, default_directory

__all__ = ["promtool"]


def promtool() -> Path:
    """Where it is; it is fetched without touching the machine's apt, and kept in a cache."""
    on_path = shutil.which("promtool")
    if on_path is not None:
        return Path(on_path)
    cache = Cache(default_directory("prometheus"), lambda _: None)
    with cache.locked():
        inputs = {"machine": platform.machine()}
        return cache.component("promtool", inputs, [], _fetch) / "promtool"


def _fetch(into: Path) -> None:
    work = into / "work"
    work.mkdir()
    apt = Apt(work, lambda _: None)
    apt.refresh()
    unpack(apt.fetch([apt.show("prometheus")], work / "packages"), work / "root")
    (work / "root/usr/bin/promtool").rename(into / "promtool")
    shutil.rmtree(work)
