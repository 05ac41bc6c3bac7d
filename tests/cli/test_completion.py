"""Completion: the words that may come next, and the real bash that is given them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cli.completing import FILES, candidates
from cli.main import COMMANDS
from tests.cli.driver import NOWHERE, TYPE, in_process

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli, Host

# What is static.


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("", set(COMMANDS)),
        ("cre", {"create"}),
        ("nothing ", set()),
        ("sim ", {"init", "reboot", "hold", "let-go"}),
        ("sim re", {"reboot"}),
        ("create --pers", {"--persistent"}),
        ("--out", {"--output"}),
        ("list --output ", {"table", "json", "name"}),
        ("list -o j", {"json"}),
        ("-o json list --state cre", {"creating"}),
        ("list --state=de", {"--state=defined"}),
        ("create --place p", {"pack"}),
        ("create --config ", {FILES}),
        ("create --count ", set()),
        ("completion z", {"zsh"}),
    ],
)
def test_words_that_are_known_are_offered(line: str, offered: set[str]) -> None:
    """Commands, their options, and choices need no store."""
    words = [*shlex.split(line), ""] if line.endswith(" ") else line.split(" ")
    found = set(candidates(words))
    assert offered <= found if "table" in offered else found == offered


def test_options_are_a_commands_own_and_the_global_ones() -> None:
    """After a command its options and the global ones are offered, and no other's."""
    found = candidates(["remove", "--"])
    assert {"--force", "--endpoints", "--timeout"} <= set(found)
    assert "--persistent" not in found


def test_static_words_are_completed_without_grpc() -> None:
    """What needs no store does not load what speaks to it, whichever command it is."""
    script = (
        "import sys; from cli.completing import candidates\n"
        "from cli.main import COMMANDS\n"
        "assert all(candidates([name, '--']) for name in COMMANDS)\n"
        "sys.exit('grpc' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_store_that_is_away_offers_nothing() -> None:
    """A completion has no place for an error."""
    done = in_process("completion", "bash", f"mdevns --endpoints {NOWHERE} show ")
    assert (done.code, done.out, done.err) == (0, "", "")


# What the store knows.


Pair = tuple["Cli", "Host", "Host"]


@pytest.fixture(scope="module")
def typed(pair: Pair) -> list[str]:
    """Names in several states: a device, a defined one, a reservation."""
    cli, host, _ = pair
    (active,) = cli.ok("create", "--type", TYPE, "-o", "name").names
    defined = "d" + active[1:]
    parent = cli.ok("parents", "-o", "json").json[0]["parent"]
    cli.ok("define", defined, "--type", TYPE, "--host", host.name, "--parent", parent)
    (reserved,) = cli.ok("reserve", "-o", "name").names
    return [active, defined, reserved]


def offered(cli: Cli, line: str) -> list[str]:
    """What is offered after a line."""
    return cli.ok("completion", "zsh", f"mdevns {line}").names


@pytest.mark.etcd
def test_names_are_offered_where_they_can_be_used(pair: Pair, typed: list[str]) -> None:
    """Each command is offered the names that are in a state for it."""
    cli = pair[0]
    active, defined, reserved = typed
    assert sorted(offered(cli, "show ")) == sorted(typed)
    assert offered(cli, "start ") == [defined]
    assert offered(cli, "stop ") == [active]
    assert offered(cli, "release ") == [reserved]
    assert active in offered(cli, f"remove {active[:8].upper()}")
    assert offered(cli, "create ") == []


@pytest.mark.etcd
def test_hosts_types_and_parents_are_offered(pair: Pair) -> None:
    """They come from the store, and parents from the host that is named."""
    cli, host, other = pair
    assert offered(cli, "create --host ") == [host.name, other.name]
    assert offered(cli, "evict gpu01") == [host.name]
    assert offered(cli, "create --type ") == [TYPE]
    assert len(offered(cli, f"create --host {host.name} --parent ")) >= 1
    assert offered(cli, "create --host nobody --parent ") == []


@pytest.mark.etcd
def test_the_real_bash_completes(pair: Pair, typed: list[str], tmp_path: Path) -> None:
    """The script that is printed fills COMPREPLY, also after a colon."""
    cli = pair[0]
    script = tmp_path / "completion"
    script.write_text(cli.ok("completion", "bash").out)
    program = tmp_path / "mdevns"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    program.chmod(0o755)
    parent = cli.ok("parents", "-o", "json").json[0]["parent"]
    assert ":" in parent
    head = parent.rpartition(":")[0] + ":"
    for line, reply in (
        ("mdevns sta", "start"),
        (f"mdevns show {typed[0][:6]}", typed[0]),
        (f"mdevns create --parent {head}", parent.removeprefix(head)),
    ):
        asked = (
            f"source {script}; COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; "
            f"_mdevns {program}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(
            ["bash", "-c", asked], env=cli.environment(), capture_output=True, text=True, check=True
        )
        assert reply in done.stdout.split(), (line, done)
