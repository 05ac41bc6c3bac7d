"""A host's root with an mdevctl in it, and its scripts called as mdevctl calls them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from cli.scripts import Scripts

__all__ = ["NAME", "Root", "called_with"]

NAME = "3f0c3a5e-4a6f-4c39-a2a4-9a8f3a9b0001"
DEFINITION = '{"mdev_type": "mtty-2", "start": "manual", "attrs": []}'


def called_with(event: str, action: str, state: str = "none") -> list[str]:
    """The arguments that mdevctl gives."""
    return [
        *("-t", "mtty-2", "-e", event, "-a", action),
        *("-s", state, "-u", NAME, "-p", "mtty"),
    ]


@dataclass
class Root:
    """A directory that looks like the root of a host with mdevctl of a version."""

    path: Path
    version: str

    def __post_init__(self) -> None:
        """Lay it out as the package of that version does."""
        self.write("usr/bin/mdevctl", f"#!/bin/sh\necho mdevctl {self.version}\n")
        self.write("usr/bin/python3", "")
        base = "usr/lib/mdevctl" if self.in_order else "etc/mdevctl.d"
        (self.path / "etc/mdevctl.d").mkdir(parents=True)
        for kind in ("callouts", "notifiers"):
            (self.path / base / "scripts.d" / kind).mkdir(parents=True)

    @property
    def in_order(self) -> bool:
        """Whether its mdevctl looks in /usr/lib, and sorts."""
        return not self.version.startswith("1.2")

    @property
    def scripts(self) -> Scripts:
        """Its scripts, for an agent with its socket in this very directory."""
        return Scripts(self.path, self.path / "agent.sock")

    @property
    def base(self) -> Path:
        """Where its mdevctl looks first."""
        return self.path / ("usr/lib/mdevctl" if self.in_order else "etc/mdevctl.d") / "scripts.d"

    @property
    def callout(self) -> Path:
        """Ours."""
        return self.base / "callouts/00-mdevns"

    @property
    def notifier(self) -> Path:
        """Ours."""
        return self.base / "notifiers/00-mdevns"

    def write(self, place: str, text: str, mode: int = 0o755) -> Path:
        """Write a file of it."""
        path = self.path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def vendor(self, place: str, body: str) -> Path:
        """A vendor's script, which takes down that it was called, and by what."""
        took = f'echo "{Path(place).name} $*" >> {quote(str(self.path / "calls"))}'
        return self.write(place, f"#!/bin/sh\n{took}\n{body}\n")

    def rival(self) -> Path:
        """A vendor's script that mdevctl asks, or may ask, before ours; no device is its own."""
        return self.vendor(f"{self.base.relative_to(self.path)}/callouts/00-first", "exit 2")

    def calls(self) -> list[str]:
        """The vendors' scripts that were called, in order."""
        log = self.path / "calls"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    def call(
        self, event: str, action: str, state: str = "none", *, stdin: str = DEFINITION
    ) -> subprocess.CompletedProcess[str]:
        """Call ours as mdevctl does."""
        script = self.notifier if event == "notify" else self.callout
        return subprocess.run(
            [script, *called_with(event, action, state)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
