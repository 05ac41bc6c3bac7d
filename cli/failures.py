"""Errors on stderr: one line or one object; and the exit code of what nobody foresaw."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import TYPE_CHECKING

from cli.objects import text_of
from coordinator.errors import MdevnsError

if TYPE_CHECKING:
    from cli.options import Format

__all__ = ["Usage", "nobody_reads", "printable", "report", "unforeseen"]


class Usage(MdevnsError):
    """The command was not written as its help says."""

    errno, exit_code = "EINVAL", 2


def report(error: MdevnsError, form: Format, *, about: str | None = None) -> None:
    """Print an error on stderr; `about` is the name it is about, where it does not say so."""
    if form.is_object:
        text = text_of({**error.as_json(), "name": error.name or about}, form)
    else:
        before = f"{about}: " if about and about not in error.message else ""
        text = printable(f"{error.errno}: {before}{error.message}") + "\n"
    sys.stderr.write(text)


def printable(text: str) -> str:
    """On one line: what was typed, or a driver said, must not make it two or move the cursor."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def nobody_reads() -> None:
    """Let what is still to be written to stdout go nowhere: its reader is gone (`… | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unforeseen(error: Exception, *, verbose: bool) -> MdevnsError:
    """The error for an exception that is none of ours; `verbose` prints its traceback."""
    if verbose:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno is not None:
        name = errno.errorcode.get(error.errno, "EIO")
        what = str(error.filename) if error.filename else "mdevns"
        return MdevnsError(what, error.strerror or str(error), errno_name=name)
    hint = "" if verbose else "run it again with -v and report what it says"
    return MdevnsError("mdevns", f"a defect: {type(error).__name__}: {error}", hint)
