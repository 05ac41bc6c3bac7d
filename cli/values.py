"""What is typed for an option, as a value, without pydantic where it is plain what is meant.

Typer has pydantic convert what is typed, and also what is not: every command would load it, which
takes as long as Typer itself. Whatever is not plain here is left to it, and so are the words for
what is wrong.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, get_args, get_origin

from typer.core import TyperArgument, TyperOption

__all__ = ["converted_plainly"]

_NUMBER = re.compile(r"-?[0-9]{1,15}")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


class _NotPlain(Exception):
    """Typer knows better."""


def converted_plainly(parameters: list[Any]) -> list[Any]:
    """The parameters of a command, which are converted here where that is plain."""
    for each in parameters:
        if isinstance(each, TyperOption | TyperArgument):
            # Where a Typer to come does not look there, it converts everything itself.
            each._runtime_param = _Plainly()  # type: ignore[assignment]  # noqa: SLF001 - it has no place to hand one in
    return parameters


class _Plainly:
    """What Typer asks for a value, in the place of its own conversion."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value of what was typed (None: nothing was).

        Raises:
            TyperException: it is none.
        """
        try:
            return _converted(value, param)
        except _NotPlain:
            param._runtime_param = None  # noqa: SLF001 - as it was found
            return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _converted(value: Any, param: Any) -> Any:
    info, kind = param.type_descriptor.parameter_info, param.type_descriptor.annotation
    if (info.parser, info.min, info.max) != (None, None, None):
        raise _NotPlain
    if param.multiple or param.nargs == -1:
        if value is None:
            return ()
        if get_origin(kind) is not list or isinstance(value, str):
            raise _NotPlain
        return [_one(each, *get_args(kind)) for each in value]
    return None if value is None else _one(value, kind)


def _one(value: Any, kind: Any) -> Any:
    if not isinstance(kind, type):
        raise _NotPlain
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        if kind is int and _NUMBER.fullmatch(value):
            return int(value)
        if kind is float and _DECIMAL.fullmatch(value):
            return float(value)
        if issubclass(kind, Enum) and value in {each.value for each in kind}:
            return kind(value)
    raise _NotPlain
