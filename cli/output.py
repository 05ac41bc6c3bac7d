"""Answers on stdout, in the shapes that cli.md promises; errors and notes on stderr.

Tables are plain columns, written as they come: rich takes ten seconds for ten thousand rows,
needs them all at once, and cuts names where the terminal ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from cli.drawing import Drawn
from cli.failures import nobody_reads, printable, report
from cli.objects import json_of, text_of, yaml_of
from cli.options import Format

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.client import Result
    from coordinator.errors import MdevnsError

__all__ = ["Output", "View"]

T = TypeVar("T")

_NAMED = 8  # names of one failure; more are counted
_ROWS = 500  # so many are gathered before their columns are laid out


class View(msgspec.Struct, Generic[T], frozen=True):
    """How one kind of thing is shown: in a table (without columns: no header), JSON, by name.

    `rows` gives all cells, those of `columns` and then those of `wide`, which `-o wide` shows.
    """

    columns: tuple[str, ...]
    rows: Callable[[T], Iterable[tuple[object, ...]]]
    json: Callable[[T], Any]
    name: Callable[[T], str]
    wide: tuple[str, ...] = ()


class Output:
    """Where one command's answer goes, and in which form."""

    def __init__(self, form: Format, *, quiet: bool) -> None:
        self.form, self.quiet = form, quiet
        self.unread = False
        """Nobody reads stdout any more (`… | head`); what is written goes nowhere."""

    @property
    def shows_progress(self) -> bool:
        """Whether somebody sits in front of it."""
        return sys.stderr.isatty() and not self.quiet

    def note(self, text: str) -> None:
        """Say something on stderr that is no error."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Say something on stderr that nobody may miss, however quiet."""
        sys.stderr.write(f"{text}\n")

    def error(self, error: MdevnsError, about: str) -> None:
        """Say on stderr what went wrong with a name."""
        report(error, self.form, about=about)

    @property
    def is_object(self) -> bool:
        """Whether the answer is to be JSON or YAML."""
        return self.form.is_object

    def answer(self, value: Any) -> None:
        """Print an object, in JSON or YAML."""
        self.write(text_of(value, self.form))

    def one(self, view: View[T], item: T) -> None:
        """Print one thing: in JSON and YAML an object, else as a list of one."""
        if self.is_object:
            self.answer(view.json(item))
        else:
            self.many(view, [item])

    def many(self, view: View[T], items: Iterable[T]) -> None:
        """Print things: in JSON and YAML a list."""
        with self.stream(view) as add:
            for item in items:
                add(item)

    @contextmanager
    def stream(self, view: View[T]) -> Iterator[Callable[[T], None]]:
        """Print things as they come; a stream that breaks off leaves its array open."""
        stream: _Stream[T] = _STREAMS[self.form](view, self.write)
        yield stream.add
        stream.end()
        self.flush()

    def live(self, view: View[T]) -> Callable[[T], None]:
        """Prints each thing at once; an object is on a line, or in a document, of its own."""
        stream: _Stream[T] = _STREAMS[self.form](view, self.write)

        def add(item: T) -> None:
            if self.is_object:
                self.answer(view.json(item))
            else:
                stream.add(item)
                stream.end()
            self.flush()

        return add

    def results(
        self, view: View[T], items: Iterable[T], results: Iterable[Result], *, array: bool
    ) -> int:
        """Print what was done, then what failed; the exit code of the first that failed."""
        done = list(items)
        if array and (done or self.is_object):
            self.many(view, done)
        elif done:
            self.one(view, done[0])
        failed = [(each.error, each.name) for each in results if each.error is not None]
        self._errors(failed)
        return failed[0][0].exit_code if failed else 0

    def _errors(self, failed: Sequence[tuple[MdevnsError, str]]) -> None:
        """Say what failed: for people once for each reason that does not differ by name."""
        alike: dict[str, list[tuple[MdevnsError, str]]] = {}
        for number, (error, name) in enumerate(failed):
            by_name = self.is_object or name in error.message
            alike.setdefault(str(number) if by_name else error.line, []).append((error, name))
        for some in alike.values():
            error, _ = some[0]
            names = [each for _, each in some]
            about = " ".join(names) if len(names) <= _NAMED else f"{len(names)} names"
            self.error(error, about)

    def write(self, text: str) -> None:
        """Write to stdout."""
        self._guarded(lambda: sys.stdout.write(text))

    def flush(self) -> None:
        """Let what is written be read."""
        self._guarded(sys.stdout.flush)

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BrokenPipeError:
            self.unread = True
            nobody_reads()


class _Stream(Generic[T]):
    """Prints one thing after the other."""

    def __init__(self, view: View[T], write: Callable[[str], None]) -> None:
        self._view, self._write = view, write

    def add(self, item: T) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Print what is left."""


class _Names(_Stream[T]):
    def add(self, item: T) -> None:
        self._write(f"{self._view.name(item)}\n")


class _Array(_Stream[T]):
    """A JSON array, an element a line."""

    _before = "["

    def add(self, item: T) -> None:
        self._write(self._before + json_of(self._view.json(item)))
        self._before = ",\n"

    def end(self) -> None:
        self._write("[]\n" if self._before == "[" else "]\n")


class _Sequence(_Stream[T]):
    """A YAML sequence, in one document."""

    _before = "---\n"

    def __init__(self, view: View[T], write: Callable[[str], None]) -> None:
        super().__init__(view, write)
        self._waiting: list[Any] = []

    def add(self, item: T) -> None:
        self._waiting.append(self._view.json(item))
        if len(self._waiting) >= _ROWS:
            self._print()

    def end(self) -> None:
        if self._waiting or self._before:
            self._print()

    def _print(self) -> None:
        self._write(self._before + yaml_of(self._waiting))
        self._waiting, self._before = [], ""


class _Table(_Stream[T]):
    """Columns under a header; a column may grow from one part of a long table to the next."""

    def __init__(self, view: View[T], write: Callable[[str], None]) -> None:
        super().__init__(view, write)
        columns = self._columns()
        self._shown = len(columns) or None  # cells of a row; None: all
        self._waiting: list[tuple[str, ...]] = [columns] if columns else []
        self._widths: list[int] = []

    def _columns(self) -> tuple[str, ...]:
        return self._view.columns

    def add(self, item: T) -> None:
        rows = self._view.rows(item)
        self._waiting += [tuple(map(_cell, row[: self._shown])) for row in rows]
        if len(self._waiting) >= _ROWS:
            self.end()

    def end(self) -> None:
        rows, self._waiting = self._waiting, []
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        self._widths = list(map(max, widths, self._widths or widths)) or self._widths
        self._write("".join(f"{self._line(row)}\n" for row in rows))

    def _line(self, row: Sequence[str]) -> str:
        cells = zip(row, self._widths, strict=True)
        return "  ".join(cell + " " * (width - _width(cell)) for cell, width in cells).rstrip()


class _Wide(_Table[T]):
    def _columns(self) -> tuple[str, ...]:
        return (*self._view.columns, *self._view.wide)


_STREAMS: dict[Format, type[_Stream[Any]]] = {
    Format.TABLE: _Table,
    Format.WIDE: _Wide,
    Format.JSON: _Array,
    Format.YAML: _Sequence,
    Format.NAME: _Names,
}


def _width(cell: str) -> int:
    return cell.width if isinstance(cell, Drawn) else len(cell)


def _cell(value: object) -> str:
    if isinstance(value, Drawn):
        return value
    return "-" if value is None or value == "" else printable(str(value))
