"""The callout and the notifier where the installed mdevctl looks for them.

mdevctl asks the first script that answers and then no other, so ours has to be the first. From
1.3 on mdevctl asks in order, /usr/lib before /etc and each by name. Before, it looks in /etc
alone and asks in whatever order the directory has: there the scripts that were before ours are
put aside, and ours asks them.

All paths derive from one root.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from agent.fitness import mdevctl_findings
from cli.whole import as_ours, write_whole
from coordinator import __version__
from coordinator.errors import NotFound
from coordinator.fitness import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Scripts"]

NAME = "00-mdevns"  # sorts before what a vendor would choose
ASIDE = "callouts-of-mdevns"
_SOURCES = {"callouts": "callout.py", "notifiers": "notifier.sh"}
_SOCKET = re.compile(r'^SOCKET = ".*"$', re.MULTILINE)
_VERSION = re.compile(r"^# mdevns (\S+) put this here", re.MULTILINE)
_IN_ORDER = (1, 3)  # the first version that looks in /usr/lib, and sorts (measured)
_INTERPRETER = "usr/bin/python3"
_PROGRAMS = ("usr/bin/mdevctl", "usr/sbin/mdevctl")
_ASKED_IN = 10  # seconds
_MODE = 0o755
_AGAIN = "run mdevns mdevctl install again"


@dataclass(frozen=True)
class Scripts:
    """The scripts of the mdevctl under `root`, which ask the agent whose socket is `socket`."""

    root: Path
    socket: Path

    # mdevctl.

    @cached_property
    def program(self) -> Path:
        """The mdevctl that is installed.

        Raises:
            NotFound: there is none.
        """
        for place in _PROGRAMS:
            if (self.root / place).is_file():
                return self.root / place
        what = str(self.root / _PROGRAMS[0])
        raise NotFound(what, "mdevctl is not installed here", "name its root with --root")

    @cached_property
    def version(self) -> str | None:
        """Its version as it says itself; None when it cannot be run (another machine's root)."""
        try:
            said = subprocess.run(  # noqa: S603 - the very program whose scripts are put in place
                [self.program, "--version"],
                env={"MDEVCTL_ENV_ROOT": str(self.root)},
                capture_output=True,
                text=True,
                timeout=_ASKED_IN,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.match(r"mdevctl (\d+\.\d+\S*)", said.stdout)
        return None if said.returncode or found is None else found[1]

    @property
    def asks_in_order(self) -> bool:
        """Whether it asks scripts in order, those in /usr/lib first."""
        if self.version is None:
            return self._usr.is_dir()
        return tuple(map(int, self.version.split(".")[:2])) >= _IN_ORDER

    # Putting them there, and away.

    def install(self) -> Iterator[str]:
        """Put the callout and the notifier where they are asked first; says what it did.

        Again is fine: what stands as it should is left as it is.

        Raises:
            NotFound: there is no mdevctl.
            NotAllowed: it may not write there.
        """
        base = self._usr if self.asks_in_order else self._etc
        with as_ours():
            try:
                yield from self._put(base)
            except OSError as error:
                if base == self._etc or error.errno != errno.EROFS:
                    raise
                yield f"{base} is read-only; {self._etc} is used instead"
                base = self._etc
                yield from self._put(base)
            # Ours asks those that are aside, so at no moment is a vendor's script left out.
            yield from self._put_back() if self.asks_in_order else self._put_aside()
            yield from self._take_away(except_in=base)

    def uninstall(self) -> Iterator[str]:
        """Take ours away and put back what was put aside; says what it did.

        Raises:
            NotAllowed: it may not write there.
        """
        with as_ours():
            yield from self._put_back()
            yield from self._take_away()

    def _put(self, base: Path) -> Iterator[str]:
        for kind, text in self._texts.items():
            path = base / kind / NAME
            if _content(path) == text and _is_fit(path):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not beside it: whatever is in its directory is run.
            write_whole(path, text, mode=_MODE, by_way_of=base)
            yield f"put in place: {path}"

    def _put_aside(self) -> Iterator[str]:
        aside = self._etc / ASIDE
        for script in _entries(self._etc / "callouts"):
            if script.name == NAME:
                continue
            aside.mkdir(exist_ok=True)
            if os.path.lexists(aside / script.name):
                yield f"left where it is, since one of that name was put aside before: {script}"
                continue
            script.rename(aside / script.name)
            yield f"put aside, ours asks it: {script} -> {aside / script.name}"

    def _put_back(self) -> Iterator[str]:
        aside, callouts = self._etc / ASIDE, self._etc / "callouts"
        for script in _entries(aside):
            callouts.mkdir(exist_ok=True)
            if os.path.lexists(callouts / script.name):
                yield f"left aside, since {callouts / script.name} is there: {script}"
                continue
            script.rename(callouts / script.name)
            yield f"put back: {callouts / script.name}"
        with suppress(OSError):  # it is not there, or something was left in it
            aside.rmdir()

    def _take_away(self, except_in: Path | None = None) -> Iterator[str]:
        for path in self._ours():
            if path.parent.parent != except_in:
                path.unlink()
                yield f"taken away: {path}"

    # How it stands.

    def findings(self) -> Iterator[Finding]:
        """What is not as it should be.

        Raises:
            NotFound: there is no mdevctl.
        """
        for kind, text in self._texts.items():
            yield from self._findings_of(kind, text)
        for rival in self._before_ours() if self.callout else ():
            what = "rename it" if self.asks_in_order else _AGAIN
            why = f"mdevctl may ask it before ours, and then ours is not asked: {what}"
            yield Finding(Level.FAULT, "order", str(rival), why)
        if not (self.root / _INTERPRETER).exists():
            why = "is not there: the callout cannot be run, and mdevctl goes on without it"
            yield Finding(Level.FAULT, "python", str(self.root / _INTERPRETER), why)
        if self.root == Path("/") and not self.socket.exists():
            why = "no agent listens there: mdevctl's define, start, stop, undefine, modify fail"
            yield Finding(Level.WARNING, "agent", str(self.socket), f"{why}; start mdevns-agent")
        for script in _entries(self._etc / ASIDE):
            yield Finding(Level.NOTE, "aside", str(script), "was put aside; ours asks it")
        yield from mdevctl_findings(self.root, "mdevctl")

    @property
    def callout(self) -> Path | None:
        """Where the callout is that mdevctl asks; None when there is none."""
        return self._found("callouts")

    @property
    def notifier(self) -> Path | None:
        """Where the notifier is; None when there is none."""
        return self._found("notifiers")

    @property
    def is_first(self) -> bool:
        """Whether the callout is asked before any other script."""
        return self.callout is not None and not list(self._before_ours())

    def _found(self, kind: str) -> Path | None:
        paths = (base / kind / NAME for base in self._looked_in)
        return next((path for path in paths if path.is_file()), None)

    def _findings_of(self, kind: str, wanted: str) -> Iterator[Finding]:
        path, what = self._found(kind), kind.removesuffix("s")
        if path is None:
            where = str(self._looked_in[0] / kind / NAME)
            yield Finding(
                Level.FAULT, what, where, "is not there; put it there: mdevns mdevctl install"
            )
            return
        text = _content(path)
        if text != wanted:
            found = _VERSION.search(text or "")
            whose = f"of mdevns {found[1]}" if found else "nothing that mdevns wrote"
            if found and found[1] == __version__:
                whose += ", edited or for another socket" if kind == "callouts" else ", edited"
            why = f"is {whose}, and this is {__version__}: {_AGAIN}"
            yield Finding(Level.FAULT, what, str(path), why)
        if not _is_fit(path):
            why = f"is not root's own with mode 755, so it may not be run: {_AGAIN}"
            yield Finding(Level.FAULT, what, str(path), why)

    def _before_ours(self) -> Iterator[Path]:
        """The scripts that mdevctl asks, or may ask, before ours."""
        for base in self._looked_in:
            for script in _entries(base / "callouts"):
                if script.name == NAME:
                    if self.asks_in_order:
                        return
                    continue
                yield script

    @property
    def _looked_in(self) -> tuple[Path, ...]:
        return (self._usr, self._etc) if self.asks_in_order else (self._etc,)

    def _ours(self) -> list[Path]:
        places = [base / kind / NAME for base in (self._usr, self._etc) for kind in _SOURCES]
        return [path for path in places if os.path.lexists(path)]

    @cached_property
    def _texts(self) -> dict[str, str]:
        """The script of each kind for this version and this socket."""
        return {kind: self._text(source) for kind, source in _SOURCES.items()}

    def _text(self, source: str) -> str:
        text = Path(__file__).with_name(source).read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        said = f"# mdevns {__version__} put this here (mdevns mdevctl install); edits are lost.\n"
        socket = f"SOCKET = {json.dumps(str(self.socket))}"
        return f"{first}\n{said}" + _SOCKET.sub(lambda _: socket, rest, count=1)

    @property
    def _usr(self) -> Path:
        return self.root / "usr/lib/mdevctl/scripts.d"

    @property
    def _etc(self) -> Path:
        return self.root / "etc/mdevctl.d/scripts.d"


def _content(path: Path) -> str | None:
    """A file's text; None where there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _is_fit(path: Path) -> bool:
    """Whether it is run, and only root can change it (or who runs this, where that is not root)."""
    status = path.stat()
    return stat.S_IMODE(status.st_mode) == _MODE and status.st_uid in (0, os.geteuid())


def _entries(directory: Path) -> list[Path]:
    """What is in a directory, by name; nothing where there is none."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
