"""The manual: a page a command, made from the text of `--help`, the errors and the settings.

`python -m cli.manpages DIR` writes them as man(7) roff. There is no other source.
"""

from __future__ import annotations

import inspect
import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cli import roff
from cli.main import COMMANDS, app, load
from cli.settings import AgentTable, Settings
from coordinator import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["exit_codes", "pages"]

_GLOBAL = "The global options work here too; they are in mdevns(1)."
_ALL_KEYS = (
    "A configuration has these keys, those of the agent in its table [agent]; any other is an "
    "error. The environment wins over it, and an option over both."
)
_STATUS = "As for all commands; the codes are in mdevns(1)."

_MORE_CODES = {
    0: "Done.",
    1: "An error of ours that should not be.",
    2: "Wrong usage.",
    20: "check or doctor found something.",
}


def pages() -> Iterator[tuple[str, str]]:
    """Every page: its name without the section, and its roff."""
    from typer.main import get_command  # noqa: PLC0415 - the app is loaded by now

    root = get_command(app)
    yield "mdevns", _root(root)
    for name in COMMANDS:
        yield from _of(("mdevns", name), load(name))


def _of(path: tuple[str, ...], command: Any) -> Iterator[tuple[str, str]]:
    yield "-".join(path), _page(path, command)
    for child, inner in _children(command).items():
        yield from _of((*path, child), inner)


def _root(command: Any) -> str:
    return "".join(
        (
            roff.top("mdevns", command.help),
            roff.section(
                "SYNOPSIS", "\\fBmdevns\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]\n"
            ),
            roff.section("DESCRIPTION", roff.paragraphs(command.help)),
            roff.section(
                "COMMANDS",
                "".join(
                    roff.item(roff.reference(f"mdevns-{name}"), summary)
                    for name, (_, summary) in COMMANDS.items()
                ),
            ),
            roff.section("OPTIONS", _options(command)),
            roff.section(
                "EXIT STATUS",
                "".join(roff.item(str(code), text) for code, text in sorted(exit_codes().items())),
            ),
            roff.section("CONFIGURATION", _configuration(command)),
            roff.section("ENVIRONMENT", _environment(command)),
            roff.section(
                "FILES", roff.item("/etc/mdevns/mdevns.toml", "The configuration, in TOML.")
            ),
        )
    )


def _page(path: tuple[str, ...], command: Any) -> str:
    name, children = "-".join(path), _children(command)
    above = ["-".join(path[:end]) for end in range(1, len(path))]
    return "".join(
        (
            roff.top(name, command.help),
            roff.section("SYNOPSIS", _synopsis(path, command)),
            roff.section("DESCRIPTION", roff.paragraphs(command.help)),
            roff.section(
                "COMMANDS",
                "".join(
                    roff.item(roff.reference(f"{name}-{child}"), roff.summary(inner.help))
                    for child, inner in children.items()
                ),
            ),
            roff.section("ARGUMENTS", "".join(map(_argument, _arguments(command)))),
            roff.section("OPTIONS", "" if children else _own_and_global(_options(command))),
            roff.section("EXIT STATUS", f"{roff.text(_STATUS)}\n"),
            roff.section("SEE ALSO", ", ".join(map(roff.reference, above)) + "\n"),
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
    names = dict.fromkeys(map(_errnos, kinds))
    texts = dict.fromkeys(roff.summary(kind.__doc__) for kind in kinds)
    return f"{' '.join(texts)} ({', '.join(names)})"


def _errnos(kind: type[errors.MdevnsError]) -> str:
    """The errno names of an error, as the tree says them: not only what it mostly has."""
    found = re.search(rf"── {kind.__name__} +(.+?) +\d", errors.__doc__ or "")
    return found[1] if found else kind.errno


# What is configured.


def _configuration(root: Any) -> str:
    meant = {**_meant(load("agent"), "agent."), **_described(), **_meant(root, "")}
    items = (roff.item(roff.fonted("B", key), meant[key]) for key in _keys())
    return f"{roff.text(_ALL_KEYS)}\n{''.join(items)}"


def _environment(root: Any) -> str:
    (config,) = (param.help for param in root.params if param.name == "config")
    items = (
        roff.item(roff.fonted("B", _variable(key)), f"As the key {key} of a configuration.")
        for key in _keys()
    )
    return roff.item(roff.fonted("B", "MDEVNS_CONFIG"), config) + "".join(items)


def _meant(command: Any, table: str) -> dict[str, str]:
    """What the options of a command say of the keys that they are for."""
    return {f"{table}{param.name}": param.help for param in command.params}


def _described() -> dict[str, str]:
    """What the keys say that have no option."""
    described = {}
    for field in msgspec.inspect.type_info(Settings).fields:  # type: ignore[attr-defined]  # a StructType
        if isinstance(field.type, msgspec.inspect.Metadata):
            described[field.name] = (field.type.extra_json_schema or {}).get("description", "")
    return described


def _keys() -> list[str]:
    return [
        *(name for name in Settings.__struct_fields__ if name != "agent"),
        *(f"agent.{name}" for name in AgentTable.__struct_fields__),
    ]


def _variable(key: str) -> str:
    return f"MDEVNS_{key.upper().replace('.', '_')}"


# What a command is made of.


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument" and not p.hidden]


def _children(command: Any) -> dict[str, Any]:
    """The commands of a group."""
    return dict(getattr(command, "commands", {}))


def _synopsis(path: tuple[str, ...], command: Any) -> str:
    """How a command is typed; those of a group one by one."""
    if children := _children(command):
        each = [_synopsis((*path, child), inner) for child, inner in children.items()]
        return ".br\n".join(each)
    needed = (_typed(param) for param in command.params if _is_option(param) and param.required)
    parts = [*needed, "[\\fIoptions\\fR]", *map(_shown, _arguments(command))]
    return f"{roff.fonted('B', ' '.join(path))} {' '.join(parts)}\n"


def _shown(argument: Any) -> str:
    """An argument in the synopsis: in brackets if it may be left out, with dots if repeated."""
    shown = roff.fonted("I", (argument.metavar or argument.name).strip("[]."))
    if argument.nargs == -1:
        shown += " ..."
    return shown if argument.required else f"[{shown}]"


def _argument(argument: Any) -> str:
    return roff.item(_shown(argument), argument.help)


def _options(command: Any) -> str:
    return "".join(map(_option, filter(_is_option, command.params)))


def _is_option(param: Any) -> bool:
    return param.param_type_name == "option" and not param.hidden


def _own_and_global(options: str) -> str:
    return f"{options}.PP\n{roff.text(_GLOBAL)}\n" if options else f"{roff.text(_GLOBAL)}\n"


def _option(option: Any) -> str:
    return roff.item(_typed(option), f"{option.help}{_otherwise(option)}")


def _typed(option: Any) -> str:
    """An option as it is typed, by all its names."""
    names = ", ".join(roff.fonted("B", one) for one in (*option.opts, *option.secondary_opts))
    return names if option.is_flag else f"{names} {roff.fonted('I', _value(option))}"


def _otherwise(option: Any) -> str:
    """What holds where an option is left out, as its help says it."""
    if option.required:
        return "  [required]"
    default = option.default
    if not option.show_default or default is None or default is False:
        return ""
    # A flag has two names, the first of which turns it on.
    return f"  [default: {option.opts[0].strip('-') if default is True else default}]"


def _value(option: Any) -> str:
    """What an option takes: its choices, or a word for it."""
    kind = option.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(one.value) for one in kind)
    return str(option.metavar or option.name.strip("_").upper())


def main(directory: str) -> None:
    """Write all pages into a directory."""
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    for name, page in pages():
        (place / f"{name}.1").write_text(page, encoding="utf-8")
    sys.stdout.write(f"{len(list(place.glob('mdevns*.1')))} pages in {place}\n")


if __name__ == "__main__":
    main(sys.argv[1])
