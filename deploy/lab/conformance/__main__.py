"""python -m deploy.lab.conformance sysfs | simulated | document: play the rows, or write them down.

`sysfs` is for root in a guest: it takes the sample drivers for its own. It and `simulated` print a
line of JSON for the kernel and one a row, with the answers of its steps or with the error that
ended it; `document` prints docs/kernel.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rows import ROWS
from .vocabulary import play

if TYPE_CHECKING:
    from .subject import Subject
    from .vocabulary import Row


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m deploy.lab.conformance", description=__doc__)
    parser.add_argument("what", choices=["sysfs", "simulated", "document"])
    what = parser.parse_args().what
    if what == "document":
        from .document import text  # noqa: PLC0415 - a guest does without it

        sys.stdout.write(text())
    elif what == "simulated":
        from .simulated import SimulatedSubject  # noqa: PLC0415 - the same

        with tempfile.TemporaryDirectory(prefix="mdevns-conformance-") as directory:
            _play_all(SimulatedSubject(Path(directory, "host")))
    else:
        from .sysfs import SysfsSubject  # noqa: PLC0415 - needs a kernel with the sample drivers

        _play_all(SysfsSubject())
        # A write that never returned must not keep us from ending.
        sys.stdout.flush()
        os._exit(0)


def _play_all(subject: Subject) -> None:
    _say({"kernel": subject.kernel})
    for row in ROWS:
        _say(_played(row, subject))


def _played(row: Row, subject: Subject) -> dict[str, Any]:
    try:
        try:
            answers = play(row, subject)
        finally:
            subject.reset()
    except Exception:  # noqa: BLE001 - the other rows are to be played all the same
        return {"row": row.id, "error": traceback.format_exc()}
    return {"row": row.id, "answers": answers}


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
