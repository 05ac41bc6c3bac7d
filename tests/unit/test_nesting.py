"""What others wrote may be nested without end, and is refused like anything else that is wrong."""

from pathlib import Path

import msgspec
import pytest

from cli.definitions import Definition, Definitions, Unusable
from cli.settings import load
from coordinator import exporting
from coordinator.errors import InvalidValue, Misconfigured

_DEEP = '{"a":' * 100_000
_PARENT = "0000:3b:00.0"
_FIRST = "6b1c0a6e-5a0e-4b8e-9a38-000000000001"
_SECOND = "6b1c0a6e-5a0e-4b8e-9a38-000000000002"


def test_an_export_that_is_nested_too_deeply_is_refused_with_its_line() -> None:
    """The error names the line of the claim."""
    header = exporting.Header(cluster="c", revision=1, at="2026-01-01T00:00:00Z")
    lines = [("line 1", msgspec.json.encode(header).decode()), ("line 2", _DEEP)]
    with pytest.raises(InvalidValue, match="line 2: nested too deeply"):
        exporting.read(lines)


def test_a_definition_that_is_nested_too_deeply_is_unusable(tmp_path: Path) -> None:
    """It stops no definition beside it."""
    directory = tmp_path / "etc/mdevctl.d" / _PARENT
    directory.mkdir(parents=True)
    (directory / _FIRST).write_text(_DEEP)
    (directory / _SECOND).write_text('{"mdev_type": "mtty-1", "start": "auto"}')
    first, second = Definitions(tmp_path).read()
    assert isinstance(first, Unusable)
    assert "nested too deeply" in str(first.error)
    assert isinstance(second, Definition)


def test_a_configuration_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    file = tmp_path / "mdevns.toml"
    file.write_text("a = " + "[" * 100_000)
    with pytest.raises(Misconfigured, match="nested too deeply"):
        load(str(file), {}, {})
