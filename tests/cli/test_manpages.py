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
from tests.cli.driver import in_process

if TYPE_CHECKING:
    from pathlib import Path

PAGES = dict(pages())
REQUEST = re.compile(r"\.(TH|SH|PP|TP)\b")


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
    for option in re.findall(
        r"^  (?:-\w, )?(--[a-z-]+)", in_process(name, "--help").out, re.MULTILINE
    ):
        assert option == "--help" or option in page


def test_the_page_of_all_has_codes_and_settings() -> None:
    """Every exit code of the contract, and every key that can be configured, is explained."""
    assert set(exit_codes()) == {*range(13), 13, 14, 15, 16, 20, 130}
    page = PAGES["mdevns"].replace("\\-", "-")
    for key in (*Settings.__struct_fields__, *AgentTable.__struct_fields__):
        assert key == "agent" or f"{key.upper()}" in page
    assert "EEXIST" in exit_codes()[4]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_roff(name: str) -> None:
    """Each line is text or a request that is known, and no escape is left open."""
    for line in PAGES[name].splitlines():
        assert line
        assert REQUEST.match(line) or line[0] not in ".'"
        assert not re.search(r"\\(?![-&e(f])", line), line
    groff = shutil.which("groff")
    if groff is not None:
        done = subprocess.run(
            [groff, "-man", "-Tutf8", "-ww", "-z"],
            input=PAGES[name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
