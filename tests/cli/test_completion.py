"""Completion: the words that may come next, and the real bash that is given them."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cli.completing import FILES, candidates
from cli.main import COMMANDS
from tests.cli.driver import DEADLINE, NOWHERE, TYPE, in_process
from tests.support import etcd_kv
from tests.support.waiting import wait_until

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
        ("create --no", {"--no-wait"}),
        ("create --versi", set()),
        ("create --hel", {"--help"}),
        ("--ver", {"--version", "--verbose"}),
        ("--out", {"--output"}),
        ("list --output ", {"table", "json", "name"}),
        ("list -o j", {"json"}),
        ("-o json list --state cre", {"creating"}),
        ("list --state=de", {"--state=defined"}),
        ("create --place p", {"pack"}),
        ("create --config ", {FILES}),
        ("create --config=/etc", {FILES}),
        ("create --count ", set()),
        ("sim init DIR --type ", set()),
        ("hosts ", {"forget", "rename"}),
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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_one_of_its_shell(shell: str, tmp_path: Path) -> None:
    """Where the shell is there it reads its script without complaint; a script names no other."""
    script = tmp_path / "completion"
    script.write_text(in_process("completion", shell).out)
    assert f"completion {shell} " in script.read_text()
    program = shutil.which(shell)
    if program is not None:
        done = subprocess.run([program, "-n", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


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
    defined = ("e" if active[0] == "d" else "d") + active[1:]
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
    assert offered(cli, f"remove {active} {active[:8]}") == []
    assert offered(cli, f"show '{active[:8]}") == [active]
    assert offered(cli, "create ") == []


@pytest.mark.etcd
def test_hosts_types_and_parents_are_offered(pair: Pair) -> None:
    """They come from the store, and parents from the host that is named."""
    cli, host, other = pair
    assert offered(cli, "create --host ") == [host.name, other.name]
    assert offered(cli, "evict ") == []  # both are alive
    assert offered(cli, f"move x --to {other.name[:-1]}") == [host.name, other.name]
    place, *_ = offered(cli, f"move x --to {other.name}/")
    assert place.startswith(f"{other.name}/")
    assert offered(cli, "create --type ") == [TYPE]
    assert len(offered(cli, f"create --host {host.name} --parent ")) >= 1
    assert offered(cli, "create --host nobody --parent ") == []


@pytest.mark.etcd
def test_what_a_shell_would_run_is_not_offered(pair: Pair) -> None:
    """Whoever may write a host's records cannot have a command run on an operator's machine."""
    cli, host, _ = pair
    types = ["evil$(id)", "evil;id", "evil`id`", "evil!id", "evil id", "evil\nid", "harmless"]
    offers = [{"type": type_, "available": 1} for type_ in types]
    parent = json.dumps({"v": 1, "types": offers})
    for place in ("evil", "evil$(id)"):
        etcd_kv.put(cli.endpoint, cli.keys.parent(host.name, place), parent)
    try:
        assert [one for one in offered(cli, "create --type ") if one != TYPE] == ["harmless"]
        places = offered(cli, f"create --host {host.name} --parent ev")
        assert places == ["evil"]
    finally:
        for place in ("evil", "evil$(id)"):
            etcd_kv.put(cli.endpoint, cli.keys.parent(host.name, place), '{"v": 1, "types": []}')


@pytest.mark.etcd
def test_the_real_bash_completes(pair: Pair, typed: list[str], tmp_path: Path) -> None:
    """An interactive bash completes words, in quotes too, and wherever it takes words to end."""
    cli, name = pair[0], typed[0]
    parent = cli.ok("parents", "-o", "json").json[0]["parent"]
    head = parent[:-1]
    assert ":" in head
    whole = "COMP_WORDBREAKS=${COMP_WORDBREAKS//[:=]}"  # as some have it in their .bashrc
    for line, became, setup in (
        ("mdevns sta", "mdevns start ", ""),
        ("mdevns create --no", "mdevns create --no-wait ", ""),
        ("mdevns list --state=de", "mdevns list --state=defined ", ""),
        (f"mdevns show {name[:8].upper()}", f"mdevns show {name} ", ""),
        (f"~/mdevns show '{name[:8]}", f"~/mdevns show '{name}' ", ""),
        (f"mdevns create --parent {head}", f"mdevns create --parent {parent} ", ""),
        (f"mdevns create --parent {head}", f"mdevns create --parent {parent} ", whole),
        (f"mdevns create --parent={head}", f"mdevns create --parent={parent} ", whole),
        (f'mdevns create --parent "{head}', f'mdevns create --parent "{parent}" ', ""),
    ):
        assert after_tab(cli, line, setup, tmp_path) == became


def after_tab(cli: Cli, line: str, setup: str, home: Path) -> str:
    """What an interactive bash makes of a line when Tab is pressed at its end."""
    program, script, start, told = (home / each for each in ("mdevns", "script", "start", "told"))
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    program.chmod(0o755)
    script.write_text(cli.ok("completion", "bash").out)
    tell = f'printf %s "$READLINE_LINE" >{told}.new; mv {told}.new {told}'
    start.write_text(f"source {script}\n{setup}\nbind -x '\"\\C-t\": {tell}'\nPS1='now: '\n")
    told.unlink(missing_ok=True)
    path = f"{home}:{os.environ['PATH']}"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["bash", "--rcfile", start, "-i"],
        env=cli.environment(PATH=path, HOME=str(home), TERM="dumb"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as bash:
        os.close(theirs)
        said = b""
        while b"now: " not in said:
            said += os.read(ours, 4096)
        os.write(ours, f"{line}\t\x14".encode())  # Ctrl-T tells
        try:
            wait_until(told.exists, DEADLINE)
        finally:
            bash.kill()
    os.close(ours)
    return told.read_text()
