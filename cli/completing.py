"""What may come next on a command line: commands, options, choices, and what the store knows.

`candidates` is given the words up to the cursor. The store is asked in one short call for a
bounded number (`cli.offering`); whatever fails, nothing is offered: a shell that waits for a
completion has no place for an error.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

from cli import offering
from cli.main import COMMANDS, app, load
from cli.settings import load as load_settings
from coordinator.keys import Keys
from coordinator.model import is_label, parse_label
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from coordinator.store import Store

__all__ = ["FILES", "candidates"]

FILES = ":files"
"""Instead of candidates: names of files, which the shell knows best."""

_PATIENCE = 1.0  # seconds for the store, all in all

_FILE_OPTIONS = {"config", "file", "directory", "run_dir", "state_dir"}

_NO_DEVICE = frozenset({ClaimState.DEFINED})
_OF_COMMAND: dict[str, frozenset[ClaimState]] = {
    "start": _NO_DEVICE,
    "undefine": _NO_DEVICE,
    "move": _NO_DEVICE | {ClaimState.RESERVED},
    "stop": frozenset({ClaimState.ACTIVE}),
    "release": frozenset({ClaimState.RESERVED}),
    "renew": frozenset({ClaimState.RESERVED}),
}
"""The states in which a command can do something with a name; any, where none is named."""


@dataclass
class _Line:
    """What the words before the cursor say."""

    path: list[str] = field(default_factory=list)
    command: Any = None
    options: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    expects: Any = None


def candidates(words: Sequence[str]) -> list[str]:
    """What the last word may become, after the command's own name."""
    *before, last = words or [""]
    line = _read(before)
    if line.expects is not None:
        return _values(line, line.expects, last)
    if last.startswith("-"):
        option, equals, value = last.partition("=")
        if equals and (param := _option(line, option)) is not None:
            values = _values(line, param, value)
            return values if values == [FILES] else [f"{option}={one}" for one in values]
        return _starting(last, ["--help", *(name for one in _params(line) for name in _names(one))])
    if line.command is None or hasattr(line.command, "commands"):
        return _starting(last, COMMANDS if line.command is None else line.command.commands)
    arguments = [p for p in line.command.params if p.param_type_name == "argument"]
    if not arguments:
        return []
    return _values(line, arguments[min(len(line.arguments), len(arguments) - 1)], last)


def _read(words: Sequence[str]) -> _Line:
    line = _Line()
    for word in words:
        if line.expects is not None:
            line.options[line.expects.name] = word
            line.expects = None
        elif word.startswith("-") and word != "-":
            name, equals, value = word.partition("=")
            param = _option(line, name)
            if param is None or param.is_flag:
                continue
            if equals:
                line.options[param.name] = value
            else:
                line.expects = param
        elif line.command is None:
            line.path.append(word)
            line.command = load(word) if word in COMMANDS else _Unknown
        elif hasattr(line.command, "commands"):
            line.path.append(word)
            line.command = line.command.commands.get(word, _Unknown)
        else:
            line.arguments.append(word)
    return line


class _Unknown:
    """A command that there is not."""

    params: tuple[Any, ...] = ()


def _params(line: _Line) -> list[Any]:
    """The options that may stand here; every command has the global ones among its own."""
    params = _root().params if line.command is None else line.command.params
    return [param for param in params if param.param_type_name == "option"]


def _root() -> Any:
    from typer.main import get_command  # noqa: PLC0415 - the app is loaded by now

    return get_command(app)


def _names(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _option(line: _Line, name: str) -> Any:
    return next((param for param in _params(line) if name in _names(param)), None)


def _starting(start: str, words: Iterable[str]) -> list[str]:
    return sorted({word for word in words if word.startswith(start)})


# Values.


def _values(line: _Line, param: Any, last: str) -> list[str]:
    kind = param.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _starting(last, (str(one.value) for one in kind))
    if param.name in _FILE_OPTIONS:
        return [FILES]
    ask = _from_store(line, param, last)
    found = [] if ask is None else _asked(line, ask)
    return [one for one in found if one not in line.arguments and _is_harmless(one)]


def _is_harmless(word: str) -> bool:
    """Whether a shell takes a word from etcd as it is: a host's key can put any text there.

    A `!` is part of the grammar of labels, and bash expands its history at it.
    """
    return "!" not in word and all(map(is_label, word.split("/")))


def _from_store(
    line: _Line, param: Any, last: str
) -> Callable[[Store, Keys], Awaitable[list[str]]] | None:
    """What is to be asked for a value; None: it is nothing that the store knows."""
    command = line.path[0] if line.path else ""
    host = line.options.get("host")
    ask: Callable[[Store, Keys], Awaitable[list[str]]] | None = None
    match param.name:
        case "name" | "names" if command not in ("create", "define", "reserve"):
            ask = partial(offering.names, start=last.lower(), states=_OF_COMMAND.get(command))
        case "host" if param.param_type_name == "argument":  # to be evicted or forgotten
            ask = partial(offering.unreachable_hosts, start=last)
        case "host":
            ask = partial(offering.hosts, start=last)
        case "to" if command == "move":
            ask = partial(offering.places, start=last)
        case "type_" if command != "sim":
            ask = partial(offering.types, start=last, host=host)
        case "parent":
            ask = partial(offering.parents, start=last, host=host)
    return ask


def _asked(line: _Line, ask: Callable[[Store, Keys], Awaitable[list[str]]]) -> list[str]:
    try:
        return asyncio.run(_ask(line, ask))
    except Exception:  # noqa: BLE001 - see the module's docstring
        return []


async def _ask(line: _Line, ask: Callable[[Store, Keys], Awaitable[list[str]]]) -> list[str]:
    from coordinator.etcd import EtcdStore  # noqa: PLC0415 - slow to load; most words do without

    known = ("endpoints", "cluster")
    given: dict[str, Any] = {key: line.options[key] for key in known if key in line.options}
    configuration = load_settings(line.options.get("config"), os.environ, given)
    configuration.check()
    settings = configuration.settings
    keys = Keys(parse_label(settings.cluster, "cluster name"))
    store = EtcdStore(settings.urls, timeout=_PATIENCE, credentials=settings.credentials)
    try:
        async with asyncio.timeout(_PATIENCE):
            return await ask(store, keys)
    finally:
        await store.close()
