"""Draws the README's pictures: what a terminal shows of the real demo and of a real cluster.

`python -m deploy.pictures DIR` runs them on a pseudo-terminal and writes SVG. Nothing in a
picture points elsewhere: no font is fetched. What differs from machine to machine (the demo's
directory, who ran it) is replaced.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

from cli.stage import TYPE, staged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["main"]

_COLUMNS = 112
_OURS = (
    (re.compile(r"/tmp/mdevns-demo-\w+"), "/tmp/mdevns-demo"),  # noqa: S108 - in a text
    (re.compile(r"\b[\w-]+@[\w.-]+"), "you@here"),
)
_FONTS = re.compile(r"@font-face \{.*?\}\n", re.DOTALL)


def main(directory: str) -> None:
    """Draw all pictures into a directory."""
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    (place / "demo.svg").write_text(_drawn("make demo", _shown(["demo"], {})), encoding="utf-8")
    (place / "hosts.svg").write_text(_drawn("mdevns hosts", _hosts()), encoding="utf-8")


def _hosts() -> str:
    """What `hosts` and `parents` show of a cluster with some devices."""
    with staged() as stage:
        for count, host in ((60, "gpu01"), (24, "gpu02"), (3, "gpu03")):
            stage.run("create", "--type", TYPE, "--host", host, "--count", str(count), "-o", "name")
        shown = []
        for command in (["hosts"], ["parents"]):
            shown += [
                f"\x1b[36m$ mdevns {' '.join(command)}\x1b[0m",
                _shown(command, stage.environment),
            ]
        return "\n".join(shown)


def _shown(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a command prints on a terminal, colours and all."""
    ours, theirs = pty.openpty()
    command = subprocess.Popen(  # noqa: S603 - our own command, no shell
        [sys.executable, "-m", "cli", *arguments],
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(_COLUMNS), **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = bytearray()
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor
        while part := _read(terminal.fileno()):
            said += part
    if command.wait():
        raise SystemExit(said.decode(errors="replace"))
    return said.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has the other end any more
        return b""


def _drawn(title: str, text: str) -> str:
    for pattern, instead in _OURS:
        text = pattern.sub(instead, text)
    # Progress is written over and over on one line: the last of it stays.
    lines = [line.rsplit("\r", 1)[-1] for line in text.strip("\n").split("\n")]
    console = Console(record=True, width=_COLUMNS, file=StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(lines)), soft_wrap=False)
    svg = console.export_svg(title=title, theme=DIMMED_MONOKAI, unique_id="mdevns")
    plain = _FONTS.sub("", svg).replace("Fira Code, monospace", "monospace")
    return re.sub(r"[ \t]+$", "", plain, flags=re.MULTILINE)


if __name__ == "__main__":
    main(sys.argv[1])
