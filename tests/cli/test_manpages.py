"""The manual: a page a command, from the same text as its help, that the tools of man take."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from cli.main import COMMANDS
from cli.manpages import exit_codes, main, pages
from cli.settings import AgentTable, Settings
from coordinator import errors
from tests.cli.driver import in_process

if TYPE_CHECKING:
    from pathlib import Path

PAGES = dict(pages())
REQUEST = re.compile(r"\.(TH|SH|PP|TP|br)\b")
READERS = {
    "groff": ("-man", "-Tutf8", "-ww", "-z"),
    "mandoc": ("-Tlint", "-Werror"),
}


def test_every_command_has_its_page(tmp_path: Path) -> None:
    """Each command and each command of a group has a file, and there is one for all."""
    main(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"mdevns-{name}.1" for name in COMMANDS} | {"mdevns.1", "mdevns-sim-init.1"} <= names
    assert names == {f"{name}.1" for name in PAGES}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_says_what_the_help_says(name: str) -> None:
    """The first line of the help is in the page, and so is every option that it shows."""
    page = PAGES[f"mdevns-{name}"].replace("\\-", "-").replace("\\(aq", "'")
    assert COMMANDS[name][1].rstrip(".") in page
    said = in_process(name, "--help").out
    for option in re.findall(r"^  (?:-\w, )?(--[a-z-]+)", said, re.MULTILINE):
        assert option == "--help" or option in page
    for default in re.findall(r"\[(?:default:\s+[^]]+|required)\]", said):
        what = " ".join(default.split())
        assert what == "[required]" or what in " ".join(page.split())


def test_a_synopsis_is_what_is_typed() -> None:
    """The commands of a group are typed with a blank, and keep the hyphens of their names."""
    for name in ("mdevns-sim-let-go", "mdevns-sim"):
        assert "\\fBmdevns sim let-go\\fR" in PAGES[name].replace("\\-", "-")


def test_the_page_of_all_has_codes_and_settings() -> None:
    """Every exit code of the contract, and every key that can be configured, is explained."""
    assert set(exit_codes()) == {*range(13), 13, 14, 15, 16, 20, 130}
    page = PAGES["mdevns"].replace("\\-", "-")
    for key in (*Settings.__struct_fields__, *AgentTable.__struct_fields__):
        assert key == "agent" or f"{key.upper()}" in page
        assert f"{key}\\fR\n" in page or key == "agent"
    assert ".TP\n\\fBMDEVNS_CONFIG" in page
    assert not re.search(r"\.TP\n.*\n\n", page)  # none without a text


def test_exit_codes_are_those_of_the_tree_of_errors() -> None:
    """The tree names every error that has a code, with that code and all its errno names."""
    tree = re.findall(r"── (\w+) +(\S.*?) +(\d+)(?: |$)", str(errors.__doc__), re.MULTILINE)
    kinds = {
        name: kind
        for name, kind in vars(errors).items()
        if name in errors.__all__ and "errno" in vars(kind)
    }
    del kinds["MdevnsError"]
    assert kinds.keys() <= {name for name, _, _ in tree}
    for name, errnos, code in tree:
        kind = getattr(errors, name)
        assert (kind.exit_code, name) == (int(code), name)
        assert kind.errno in errnos or errnos == "the kernel's"
        assert int(code) == 1 or errnos in exit_codes()[int(code)]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_roff(name: str) -> None:
    """Each line is text or a request that is known, and no escape is left open."""
    for line in PAGES[name].splitlines():
        assert line
        assert REQUEST.match(line) or line[0] not in ".'"
        assert not re.search(r"\\(?![-&e(f])", line), line
    for reader, arguments in READERS.items():
        if (program := shutil.which(reader)) is not None:
            done = subprocess.run(
                [program, *arguments],
                input=PAGES[name],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
