"""What is typed is the same value, or the same error, as Typer makes of it."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated, Any

import pytest
import typer
from typer.core import TyperCommand
from typer.main import get_command

from cli.options import Format
from cli.values import converted_plainly


class Plain(TyperCommand):
    """A command whose values are converted by us where that is plain."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As ours."""
        return converted_plainly(super().get_params(ctx))


def asked(
    name: str,
    more: Annotated[list[str] | None, typer.Argument()] = None,
    *,
    form: Format | None = None,
    default: Format = Format.TABLE,
    ttl: int = 60,
    few: Annotated[int, typer.Option(min=1, max=9)] = 1,
    timeout: float | None = None,
    attr: list[str] | None = None,
    number: list[int] | None = None,
    force: Annotated[bool, typer.Option("--force")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait")] = True,
) -> None:
    """A command with an option of each kind that ours have."""


def outcome(cls: type[TyperCommand], args: list[str]) -> object:
    """The values with their types, or the words of the error."""
    app = typer.Typer(add_completion=False)
    app.command(cls=cls)(asked)
    command: Any = get_command(app)
    try:
        values = command.make_context("asked", args).params
    except typer.TyperException as error:
        return error.format_message()
    return {key: (type(value), repr(value)) for key, value in values.items()}


@pytest.mark.parametrize(
    "args",
    [
        "a",
        "",
        "a b c",
        "a --attr x=1 --attr y",
        "a --force --no-wait",
        *(f"a --form {text}" for text in ("json", "JSON", "x", "table")),
        *(f"a --default {text}" for text in ("json", "x")),
        *(f"a --ttl {text}" for text in ("7", "-7", "007", "1_0", "1.0", "1.5", "x", "1e3", "٣")),
        *(f"a --ttl {text}" for text in ("9" * 15, "9" * 16, "9" * 5000)),
        *(f"a --few {text}" for text in ("0", "9", "10", "x")),
        *(f"a --timeout {text}" for text in ("1", "0.5", "-1", "1e3", ".5", "5.", "nan", "x")),
        "a --number 1 --number 2",
        "a --number 1 --number x",
        "a --unknown",
    ],
    ids=lambda args: args[:20],
)
def test_a_value_is_what_typer_makes_of_it(args: str) -> None:
    """Plain values are the same, and what is not plain is left to Typer with its words."""
    assert outcome(Plain, args.split()) == outcome(TyperCommand, args.split())
