"""What may come next on a command line: commands, options, choices, and names from the store.

`candidates` is given the words up to the cursor. What stands in the namespace is asked for in
one short call and a bounded number; whatever fails, nothing is offered: a shell that waits for
a completion has no place for an error.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from cli.main import COMMANDS, app, load
from cli.settings import load as load_settings
from coordinator.keys import Keys, last_part
from coordinator.model import Claim, Name, ParentValue, decode, parse_label
from coordinator.states import ClaimState
from coordinator.store import Range, prefix, prefix_end
from coordinator.views import Views

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from coordinator.store import Store

__all__ = ["FILES", "candidates"]

FILES = ":files"
"""Instead of candidates: names of files, which the shell knows best."""

_PATIENCE = 1.0  # seconds for the store, all in all
_MOST = 128  # names that are offered, which is what one transaction can look at

_FILE_OPTIONS = {"config", "file", "directory", "run_dir"}

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
    arguments: int = 0
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
            return [f"{option}={one}" for one in _values(line, param, value)]
        return _starting(
            last, (name for param in _params(line) for name in param.opts if name.startswith("-"))
        )
    if line.command is None or hasattr(line.command, "commands"):
        return _starting(last, COMMANDS if line.command is None else line.command.commands)
    arguments = [p for p in line.command.params if p.param_type_name == "argument"]
    if not arguments:
        return []
    return _values(line, arguments[min(line.arguments, len(arguments) - 1)], last)


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
            line.arguments += 1
    return line


class _Unknown:
    """A command that there is not."""

    params: tuple[Any, ...] = ()


def _params(line: _Line) -> list[Any]:
    """The options that may stand here; the global ones may anywhere."""
    own = [] if line.command is None else line.command.params
    known = {param.name for param in own}
    root = [param for param in _root().params if line.command is None or param.name not in known]
    return [param for param in (*own, *root) if param.param_type_name == "option"]


def _root() -> Any:
    from typer.main import get_command  # noqa: PLC0415 - the app is loaded by now

    return get_command(app)


def _option(line: _Line, name: str) -> Any:
    return next((param for param in _params(line) if name in param.opts), None)


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
    return [] if ask is None else _asked(line, ask)


def _from_store(
    line: _Line, param: Any, last: str
) -> Callable[[Store, Keys], Awaitable[list[str]]] | None:
    """What is to be asked for a value; None: it is nothing that the store knows."""
    command = line.path[0] if line.path else ""
    host = line.options.get("host")
    match param.name:
        case "name" | "names" if command not in ("create", "define", "reserve"):
            states = _OF_COMMAND.get(command)
            return lambda store, keys: _names(store, keys, last.lower(), states)
        case "host" | "to" | "from_host":
            return lambda store, keys: _hosts(store, keys, last)
        case "type_" | "type":
            return lambda store, keys: _types(store, keys, last, host)
        case "parent":
            return lambda store, keys: _parents(store, keys, last, host)
    return None


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


async def _names(
    store: Store, keys: Keys, start: str, states: frozenset[ClaimState] | None
) -> list[str]:
    first = keys.names + start
    page = await store.range(Range(first, prefix_end(first), limit=_MOST, keys_only=True))
    names = [Name(last_part(kv.key)) for kv in page.kvs]
    if states is None:
        return list(names)
    records = await Views(store, keys).find_all(names)
    return [name for name, record in records.items() if _state(record) in states]


def _state(record: object) -> ClaimState:
    """The state of what holds a name; what has no claim is a reservation."""
    return record.state if isinstance(record, Claim) else ClaimState.RESERVED


async def _hosts(store: Store, keys: Keys, start: str) -> list[str]:
    return _starting(start, await Views(store, keys).hosts())


async def _offers(store: Store, keys: Keys, host: str | None) -> list[tuple[str, ParentValue]]:
    hosts = [host] if host else await Views(store, keys).hosts()
    found = []
    for each in hosts[:_MOST]:
        page = await store.range(prefix(keys.parents(each)))
        values = ((last_part(kv.key), decode(kv, ParentValue)) for kv in page.kvs)
        found += [(parent, value) for parent, value in values if isinstance(value, ParentValue)]
    return found


async def _types(store: Store, keys: Keys, start: str, host: str | None) -> list[str]:
    offers = await _offers(store, keys, host)
    return _starting(start, (type_.type for _, value in offers for type_ in value.types))


async def _parents(store: Store, keys: Keys, start: str, host: str | None) -> list[str]:
    return _starting(start, (parent for parent, _ in await _offers(store, keys, host)))
