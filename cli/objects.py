"""Objects as text: JSON, and the same in YAML. Loads its encoders when it is first used."""

from __future__ import annotations

from functools import cache
from typing import Any

from cli.options import Format

__all__ = ["text_of"]


def text_of(value: Any, form: Format) -> str:
    """An object in one form, with its last line ended; in YAML a document of its own."""
    if form is Format.YAML:
        return f"---\n{yaml_of(value)}"
    return json_of(value) + "\n"


def json_of(value: Any) -> str:
    """Compact JSON, on one line."""
    import msgspec  # noqa: PLC0415 - `mdevns --help` does without it

    return msgspec.json.encode(value).decode()


def yaml_of(value: Any) -> str:
    """The same object in YAML.

    What could be read as a number, a time or a truth by YAML 1.1 or 1.2 is quoted: a request
    `1e5` or a type `0o17` is text.
    """
    import msgspec  # noqa: PLC0415 - `mdevns --help` does without it
    import yaml  # noqa: PLC0415 - only -o yaml needs it

    plain = msgspec.to_builtins(value)
    text: str = yaml.dump(
        plain, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=_NO_WRAP
    )
    return text


_NO_WRAP = 1 << 16


@cache
def _dumper() -> Any:
    """PyYAML's own dumper, the C one where it has one, which is ten times as fast."""
    import yaml  # noqa: PLC0415 - only -o yaml needs it

    base = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc, valid-type]  # which it is, is known at run time
        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
            return True

    def string(dumper: Any, text: str) -> Any:
        style = None if text[:1].isalpha() else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, string)
    return Dumper
