"""The manual: a page a command, made from the text of `--help`, the errors and the settings.

`python -m cli.manpages DIR` writes them as man(7) roff. There is no other source.
"""

from __future__ import annotations

import inspect
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.main import COMMANDS, app, load
from cli.settings import AgentTable, Settings
from coordinator import __version__, errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["exit_codes", "pages"]

_GLOBAL = "Global options work before and after a command; they are in mdevns(1)."

_MORE_CODES = {
    0: "Done.",
    1: "An error of ours that should not be.",
    2: "Wrong usage.",
    20: "check or doctor found something.",
}


def pages() -> Iterator[tuple[str, str]]:
    """Every page: its name without the section, and its roff."""
    from typer.main import get_command  # noqa: PLC0415 - the app is loaded by now

    yield "mdevns", _root(get_command(app))
    for name in COMMANDS:
        yield from _of(f"mdevns-{name}", load(name))


def _of(name: str, command: Any) -> Iterator[tuple[str, str]]:
    yield name, _page(name, command)
    for child, inner in getattr(command, "commands", {}).items():
        yield from _of(f"{name}-{child}", inner)


def _root(command: Any) -> str:
    return "".join(
        (
            _title("mdevns"),
            _name("mdevns", command.help),
            _section(
                "SYNOPSIS", "\\fBmdevns\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]\n"
            ),
            _section("DESCRIPTION", _paragraphs(command.help)),
            _section(
                "COMMANDS",
                "".join(
                    _item(f"\\fBmdevns-{_text(name)}\\fR(1)", summary)
                    for name, (_, summary) in COMMANDS.items()
                ),
            ),
            _section("OPTIONS", _options(command)),
            _section(
                "EXIT STATUS",
                "".join(_item(str(code), text) for code, text in sorted(exit_codes().items())),
            ),
            _section(
                "FILES",
                _item(
                    "/etc/mdevns/mdevns.toml",
                    "The configuration, with the keys "
                    + ", ".join(_keys())
                    + ". Unknown ones are errors.",
                ),
            ),
            _section("ENVIRONMENT", "".join(map(_variable, _keys()))),
        )
    )


def _page(name: str, command: Any) -> str:
    return "".join(
        (
            _title(name),
            _name(name, command.help),
            _section("SYNOPSIS", _synopsis(name, command)),
            _section("DESCRIPTION", _paragraphs(command.help)),
            _section(
                "COMMANDS",
                "".join(
                    _item(f"\\fB{_text(name)}-{_text(child)}\\fR(1)", _summary(inner.help))
                    for child, inner in getattr(command, "commands", {}).items()
                ),
            ),
            _section("ARGUMENTS", "".join(map(_argument, _arguments(command)))),
            _section("OPTIONS", _options(command)),
            _section(
                "SEE ALSO",
                "\\fBmdevns\\fR(1)\n"
                if "-" not in name
                else f".PP\n{_text(_GLOBAL)} Exit codes, too.\n",
            ),
        )
    )


def exit_codes() -> dict[int, str]:
    """What each exit code means: the errors' own words, with their errno names."""
    found: dict[int, list[type[errors.MdevnsError]]] = {}
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, errors.MdevnsError) and not _is_group(kind):
            found.setdefault(kind.exit_code, []).append(kind)
    return {**_MORE_CODES, **{code: _meaning(kinds) for code, kinds in found.items() if code != 1}}


def _is_group(kind: type[errors.MdevnsError]) -> bool:
    """Whether it only gathers others, and is not raised itself."""
    return "exit_code" not in vars(kind) and kind is not errors.Moved


def _meaning(kinds: Iterable[type[errors.MdevnsError]]) -> str:
    kinds = list(kinds)
    names = dict.fromkeys(kind.errno for kind in kinds)
    texts = dict.fromkeys(_summary(kind.__doc__) for kind in kinds)
    return f"{' '.join(texts)} ({', '.join(names)})"


def _keys() -> list[str]:
    return [
        *(name for name in Settings.__struct_fields__ if name != "agent"),
        *(f"agent.{name}" for name in AgentTable.__struct_fields__),
    ]


def _variable(key: str) -> str:
    variable = f"MDEVNS_{key.upper().replace('.', '_')}"
    return _item(f"\\fB{_text(variable)}\\fR", f"As the key {key} of the configuration.")


# What a command is made of.


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument" and not p.hidden]


def _synopsis(name: str, command: Any) -> str:
    parts = ["[\\fIoptions\\fR]"]
    if hasattr(command, "commands"):
        parts.append("\\fIcommand\\fR")
    parts += [_shown(one) for one in _arguments(command)]
    return f"\\fB{_text(name.replace('-', ' ', 1))}\\fR {' '.join(parts)}\n"


def _shown(argument: Any) -> str:
    """An argument in the synopsis: in brackets if it may be left out, with dots if repeated."""
    shown = f"\\fI{_text((argument.metavar or argument.name).strip('[].'))}\\fR"
    if argument.nargs == -1:
        shown += " ..."
    return shown if argument.required else f"[{shown}]"


def _argument(argument: Any) -> str:
    return _item(_shown(argument), argument.help)


def _options(command: Any) -> str:
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    return "".join(map(_option, options))


def _option(option: Any) -> str:
    names = ", ".join(f"\\fB{_text(one)}\\fR" for one in (*option.opts, *option.secondary_opts))
    if not option.is_flag:
        names += f" \\fI{_text(_value(option))}\\fR"
    return _item(names, option.help)


def _value(option: Any) -> str:
    """What an option takes: its choices, or a word for it."""
    kind = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(one.value) for one in kind)
    return str(option.metavar or option.name.strip("_").upper())


# roff.


def _title(name: str) -> str:
    return f'.TH {_text(name.upper())} 1 "" "mdevns {__version__}" "mdevns"\n'


def _name(name: str, text: str) -> str:
    return _section("NAME", f"{_text(name)} \\- {_text(_summary(text).rstrip('.'))}\n")


def _section(title: str, body: str) -> str:
    return f".SH {title}\n{body}" if body else ""


def _item(term: str, text: str | None) -> str:
    return f".TP\n{term}\n{_text(text or '')}\n"


def _paragraphs(text: str) -> str:
    """A help text: its paragraphs, each on one line."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "".join(f".PP\n{_text(' '.join(part.split()))}\n" for part in parts)


def _summary(text: str | None) -> str:
    return inspect.cleandoc(text or "").split("\n", 1)[0]


def _text(text: str) -> str:
    """Text that roff takes as it is: no escapes, and no line that begins with a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    escaped = escaped.replace("…", "...").replace("→", "\\(->")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(directory: str) -> None:
    """Write all pages into a directory."""
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    for name, roff in pages():
        (place / f"{name}.1").write_text(roff, encoding="utf-8")
    sys.stdout.write(f"{len(list(place.glob('mdevns*.1')))} pages in {place}\n")


if __name__ == "__main__":
    main(sys.argv[1])
