"""The project's Python dependencies for the guests' Python: wheels from PyPI, as one image."""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from .root import compile_python, squash
from .shell import run

if TYPE_CHECKING:
    from .cache import Cache
    from .root import Root
    from .tools import Tools


def provide(cache: Cache, tools: Tools, root: Root, repository: Path) -> Path:
    """The image of what pyproject.toml asks for, in the versions that constraints.txt allows."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    wanted: list[str] = project["project"]["dependencies"]
    constraints = repository / "constraints.txt"
    limits = ["--constraint", str(constraints)] if constraints.exists() else []
    inputs = {
        "dependencies": wanted,
        "constraints": constraints.read_text() if limits else "",
        "python": root.python_version,
        "root": root.directory.name,
    }

    def build(into: Path) -> None:
        tree = into / "tree"
        version = ["--python-version", root.python_version, "--only-binary", ":all:"]
        quiet = ["--quiet", "--no-compile", "--no-input", "--target", str(tree)]
        run([sys.executable, "-m", "pip", "install", *quiet, *version, *limits, *wanted])
        compile_python(root.tree, [tree])
        squash(tools, tree, into / "deps.sqfs")
        shutil.rmtree(tree)

    name, sources = f"deps-{root.python_version}", [Path(__file__)]
    return cache.component(name, inputs, sources, build) / "deps.sqfs"
