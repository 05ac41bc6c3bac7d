"""man(7) roff: the few requests that the manual is made of."""

from __future__ import annotations

import inspect

from coordinator import __version__

__all__ = ["fonted", "item", "paragraphs", "reference", "section", "summary", "text", "top"]


def top(page: str, help_: str) -> str:
    """How a page begins: its header, its name, and what it is about in one line.

    Its date is left out, so that the same text gives the same bytes.
    """
    header = f'.TH {text(page.upper())} 1 "" "mdevns {__version__}" "mdevns"\n'
    about = text(summary(help_).rstrip("."))
    return header + section("NAME", f"{text(page)} \\- {about}\n")


def section(title: str, body: str) -> str:
    """A section; nothing, where it has no body."""
    return f".SH {title}\n{body}" if body else ""


def item(term: str, meaning: str | None) -> str:
    """One term of a list, which is roff already, and what it means."""
    return f".TP\n{term}\n{text(meaning or '')}\n"


def paragraphs(help_: str) -> str:
    """A help text: its paragraphs, each on one line."""
    parts = inspect.cleandoc(help_).split("\n\n")
    return ".PP\n".join(f"{text(' '.join(part.split()))}\n" for part in parts)


def summary(help_: str | None) -> str:
    """The first line of a help text."""
    return inspect.cleandoc(help_ or "").split("\n", 1)[0]


def fonted(font: str, plain: str) -> str:
    """A word in a font: B is bold, I is italic."""
    return f"\\f{font}{text(plain)}\\fR"


def reference(page: str) -> str:
    """The name of another page."""
    return f"{fonted('B', page)}(1)"


def text(plain: str) -> str:
    """Text that roff takes as it is: no escapes, and no line that begins with a request."""
    escaped = plain.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = escaped.replace("`", "\\(ga").replace("…", "...").replace("→", "\\(->")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
