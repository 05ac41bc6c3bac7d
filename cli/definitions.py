"""mdevctl's definitions: the files /etc/mdevctl.d/<parent>/<uuid>, read and written as it does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cli.whole import as_ours, write_whole
from coordinator.errors import InvalidValue, MdevnsError, NameTaken, NotFound
from coordinator.model import Claim, Name, Wish, parse_attribute, parse_label, parse_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Definition", "Definitions", "Unusable"]

_SCRIPTS = "scripts.d"  # beside the parents' directories, and none of them
_MODE = 0o644  # as mdevctl's own


class _File(msgspec.Struct, frozen=True):
    """What mdevctl writes into one; whatever else is in it mdevctl does not look at."""

    mdev_type: str
    start: str
    attrs: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True)
class Definition:
    """One definition: where it stands, and what it says."""

    path: Path
    name: Name
    parent: str
    type: str
    autostart: bool
    attrs: tuple[tuple[str, str], ...]

    def wish(self, host: str) -> Wish:
        """What is asked of a host."""
        return Wish(
            host=host,
            parent=self.parent,
            type=self.type,
            attrs=self.attrs,
            persistent=True,
            autostart=self.autostart,
        )


@dataclass(frozen=True)
class Unusable:
    """A file that is no definition that can be used, and why."""

    path: Path
    error: MdevnsError


class Definitions:
    """The definitions of the host whose file system begins at `root`."""

    def __init__(self, root: Path) -> None:
        self._base = root / "etc/mdevctl.d"

    def read(self) -> Iterator[Definition | Unusable]:
        """All of them, by parent and name. A file that cannot be used stops no other.

        Raises:
            NotFound: mdevctl has no directory here.
        """
        if not self._base.is_dir():
            raise NotFound(
                str(self._base), "mdevctl is not installed here", "name its root: --root"
            )
        for directory in sorted(self._base.iterdir()):
            if directory.is_dir() and directory.name != _SCRIPTS:
                for path in sorted(directory.iterdir()):
                    # mdevctl itself passes over what is no file.
                    if path.is_file():
                        yield _read(path)

    def place(self, claim: Claim) -> Path:
        """Where a claim's definition stands."""
        return self._base / claim.parent / claim.name

    def write(self, claim: Claim, *, force: bool) -> bool:
        """Write a persistent claim as a definition; whether there was anything to write.

        Another definition there is not replaced but with `force`; nor is one that cannot be read.

        Raises:
            NameTaken: there is another.
            MdevnsError: it cannot be written.
        """
        path = self.place(claim)
        wanted = Definition(
            path, claim.name, claim.parent, claim.type, claim.autostart, claim.attrs
        )
        if path.exists():
            if _read(path) == wanted:
                return False
            if not force:
                raise _Differs(path)
        with as_ours():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not beside it: mdevctl takes whatever is in that directory for a definition.
            write_whole(path, _text(wanted), mode=_MODE, by_way_of=self._base)
        return True


class _Differs(NameTaken):
    """Another definition of that name stands there."""

    def __init__(self, path: Path) -> None:
        hint = "to replace it: --force"
        MdevnsError.__init__(self, str(path), "another definition is there", hint, name=path.name)


def _read(path: Path) -> Definition | Unusable:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
        return Definition(
            path,
            parse_name(path.name),
            parse_label(path.parent.name, "parent"),
            parse_label(found.mdev_type, "type"),
            found.start == "auto",
            tuple(_attribute(one) for one in found.attrs or ()),
        )
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return Unusable(path, InvalidValue(str(path), f"is no definition: {why}"))
    except RecursionError:
        return Unusable(path, InvalidValue(str(path), "is no definition: nested too deeply"))
    except InvalidValue as error:
        return Unusable(path, InvalidValue(str(path), f"{error.what}: {error.why}"))


def _attribute(one: dict[str, str]) -> tuple[str, str]:
    if len(one) != 1 or "=" in next(iter(one)):
        raise InvalidValue(json.dumps(one), "is not an attribute: one name and its value")
    ((key, value),) = one.items()
    return parse_attribute(f"{key}={value}")


def _text(definition: Definition) -> str:
    """As mdevctl prints it (serde_json's to_string_pretty, measured with 1.2 and 1.4)."""
    found = {
        "mdev_type": definition.type,
        "start": "auto" if definition.autostart else "manual",
        "attrs": [{key: value} for key, value in definition.attrs],
    }
    return json.dumps(found, indent=2, ensure_ascii=False)
