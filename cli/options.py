"""The global options, which every command takes before and after its name.

They are Typer options of the app's callback and, hidden from its help, of every command; what
stands after the command wins. Nothing heavy is imported here: `mdevns --help` needs it.
"""

# No `from __future__ import annotations`: Typer reads the annotations.

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Self, get_args

import typer

__all__ = ["Format", "Given", "taking_options"]


class Format(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"

    @property
    def is_object(self) -> bool:
        """Whether programs read it: answers and errors are objects then."""
        return self in (Format.JSON, Format.YAML)


@dataclass(frozen=True, slots=True)
class Given:
    """The global options as given at one place; None (or False) where they were not."""

    endpoints: str | None = None
    cluster: str | None = None
    config: str | None = None
    output: Format | None = None
    timeout: float | None = None
    quiet: bool = False
    verbose: bool = False

    def over(self, before: Self) -> Self:
        """These, and what was given before them where they say nothing."""

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return getattr(before, name) if value is None or value is False else value

        return type(self)(*(chosen(field.name) for field in fields(self)))


def _declared(
    *,
    endpoints: Annotated[
        str | None,
        typer.Option(
            help="Where etcd is: http://host:port,…  [env: MDEVNS_ENDPOINTS; "
            "default: http://127.0.0.1:2379]"
        ),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Which namespace.  [env: MDEVNS_CLUSTER; default: default]")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="The configuration file.  [env: MDEVNS_CONFIG; default: "
            "/etc/mdevns/mdevns.toml where it exists]"
        ),
    ] = None,
    output: Annotated[
        Format | None, typer.Option("--output", "-o", help="How to print.  [default: table]")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="How many seconds to wait for the store.  [env: MDEVNS_TIMEOUT; default: 10]"
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="More on stderr; a defect shows its traceback.")
    ] = False,
) -> None:
    """The global options. Never called: it is here for its signature."""


_NAMES = tuple(inspect.signature(_declared).parameters)


def taking_options(
    function: Callable[..., Any], own: list[inspect.Parameter], *, hidden: bool
) -> Callable[..., Any]:
    """What Typer calls: `function(context, given, **own)`, with the options `own` and ours."""

    def called(context: typer.Context, **values: Any) -> Any:
        given = Given(**{name: values.pop(name) for name in _NAMES})
        return function(context, given, **values)

    context = inspect.Parameter("context", _KEYWORD, annotation=typer.Context)
    ours = inspect.signature(_declared).parameters.values()
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # inspect reads it
        [
            context,
            *(one.replace(kind=_KEYWORD) for one in own),
            *(map(_hidden, ours) if hidden else ours),
        ]
    )
    called.__annotations__ = {}
    called.__name__, called.__doc__ = function.__name__, function.__doc__
    return called


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _hidden(parameter: inspect.Parameter) -> inspect.Parameter:
    base, option = get_args(parameter.annotation)
    option = copy(option)
    option.hidden = True
    return parameter.replace(annotation=Annotated[base, option])
