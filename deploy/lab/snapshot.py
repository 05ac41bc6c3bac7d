"""The repository's own code for the guests: a compiled snapshot of the moment, as an image.

Compiling it anew in each process would cost an emulated machine seconds, and whoever edits the
working tree while guests run does not change them. It looks installed: importlib.metadata knows
the project's version.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BuildError
from .root import compile_python, squash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .cache import Cache
    from .root import Root
    from .tools import Tools

# Every edit makes another one, so those of other days are not kept for long.
_KEPT_UNUSED_S = 24 * 3600.0
_BESIDE_THE_PACKAGES = "deploy"


def provide(cache: Cache, tools: Tools, root: Root, repository: Path) -> Path:
    """The image of the project's packages and of `deploy`, as they are now."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())
    packages: list[str] = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = dict(_files(repository, [*packages, _BESIDE_THE_PACKAGES]))
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    name, version = project["project"]["name"], _version(files, project)

    def build(into: Path) -> None:
        tree = into / "tree"
        for inside, data in files.items():
            place = tree / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        _mark_installed(tree, name, version)
        compile_python(root.tree, [tree])
        squash(tools, tree, into / "code.sqfs")
        shutil.rmtree(tree)

    inputs = {"files": digests, "version": version, "root": root.directory.name}
    sources = [Path(__file__)]
    kind = f"code-{root.python_version}"
    place = cache.component(kind, inputs, sources, build, kept_unused_s=_KEPT_UNUSED_S)
    return place / "code.sqfs"


def _files(repository: Path, folders: list[str]) -> Iterator[tuple[str, bytes]]:
    """Paths and contents, read once: the key and the image are of the same moment."""
    for folder in folders:
        for path in (repository / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(repository)), path.read_bytes()


def _version(files: dict[str, bytes], project: dict[str, Any]) -> str:
    """The project's version, from the module that hatch takes it from."""
    where: str = project["tool"]["hatch"]["version"]["path"]
    found = re.search(rb'^__version__ = "(.+)"$', files[where], re.MULTILINE)
    if found is None:
        raise BuildError(f"{where} has no line __version__ = …")
    return found[1].decode()


def _mark_installed(tree: Path, name: str, version: str) -> None:
    """Write what importlib.metadata looks for (the core metadata specification, 2.1)."""
    directory = tree / f"{name}-{version}.dist-info"
    directory.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (directory / "METADATA").write_text(text)
