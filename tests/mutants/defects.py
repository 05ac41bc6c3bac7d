"""The deliberate defects, as data: what is left out or turned round, and which promise that breaks.

Each is a mistake that a maintainer could make at one place of the code. The places stand in
the `*.toml` files beside this one, by area, each text with what it is replaced by.
"""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec

__all__ = ["HERE", "Defect", "Stale", "defects"]

HERE = Path(__file__).parent


class Stale(Exception):
    """The code has moved on: the defect no longer applies, or yields no program."""


class Defect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One deliberate defect.

    `breaks` names the design's section and rule, `[S]` those that a search found necessary.
    `by` are what pytest is given, the likeliest and quickest first, to kill it.
    """

    id: str
    what: str
    breaks: str
    file: str
    old: str
    new: str
    by: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Put it into the tree under `root`.

        Raises:
            Stale: its text does not stand there exactly once, or what comes out does not parse.
        """
        path = root / self.file
        path.write_text(self.applied(path.read_text()))

    def applied(self, source: str) -> str:
        """Source code with the defect in it; raises as `apply`."""
        count = source.count(self.old)
        if count != 1:
            raise Stale(f"{self.id}: {self.file} has its text {count} times, not once")
        changed = source.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        except SyntaxError as error:
            raise Stale(f"{self.id}: {self.file} does not parse any more: {error}") from error
        if same:
            raise Stale(f"{self.id}: {self.file} is the same program with it")
        return changed


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    defect: tuple[Defect, ...]


def defects(directory: Path = HERE) -> list[Defect]:
    """All of them, in the order in which they are told."""
    files = sorted(directory.glob("*.toml"))
    return [each for file in files for each in _read(file)]


def _read(file: Path) -> tuple[Defect, ...]:
    return msgspec.toml.decode(file.read_bytes(), type=_File).defect
