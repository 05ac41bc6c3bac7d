"""The notifier as mdevctl runs it: a script of the host's own /bin/sh, beside a callout."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.scripts import NAME
from tests.support.mdevctl_root import DEFINITION, Root, called_with

if TYPE_CHECKING:
    from collections.abc import Callable

USR, ETC = "usr/lib/mdevctl/scripts.d", "etc/mdevctl.d/scripts.d"
ASIDE = f"{ETC}/callouts-of-mdevns/10-vendor"
OURS = NAME.encode()
WORDS = called_with("notify", "start", "success")

# Bytes that shells are known to stumble over, dash's own escapes among them.
odd = st.sampled_from(b" !\"#$%&'()*+,-.0:;<=>?@[\\]^_`a{|}~\n\t\x7f\x81\x82\x88\xc3\xa4\xff")
odd_names = st.one_of(
    st.lists(odd, min_size=1, max_size=4).map(bytes),
    st.tuples(st.integers(0, len(OURS)), st.lists(odd, max_size=2).map(bytes)).map(
        lambda one: OURS[: one[0]] + one[1]
    ),
).filter(lambda name: name not in (b"", b".", b"..", OURS))


@pytest.fixture
def new(tmp_path: Path) -> Root:
    """A host's root whose mdevctl asks in order, and ours is in /usr/lib."""
    return watched(tmp_path, "1.4.0")


@pytest.fixture
def old(tmp_path: Path) -> Root:
    """One whose mdevctl looks in /etc alone, and asks in no order."""
    return watched(tmp_path, "1.2.0")


def watched(path: Path, version: str) -> Root:
    """A host's root with ours installed, whose callout takes down that it was called."""
    root = Root(path, version)
    list(root.scripts.install())
    root.vendor(str(root.callout.relative_to(root.path)), "cat >/dev/null")
    return root


def is_told(root: Root) -> bool:
    """Whether the callout is run, of which nothing else is to be seen."""
    before = len(root.calls())
    done = root.call("notify", "start", "success")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return len(root.calls()) > before


# Whether it has anything to tell.


@pytest.mark.parametrize(
    "place",
    [
        None,
        f"{USR}/callouts/10-vendor",
        f"{USR}/callouts/{NAME}.bak",
        f"{ETC}/callouts/00-first",
        f"{ETC}/callouts/.hidden",
        f"{USR}/notifiers/00-first",
    ],
)
def test_where_ours_is_asked_first_nothing_is_told_twice(new: Root, place: str | None) -> None:
    """The agent has heard of the end from the callout: no script comes before it."""
    if place is not None:
        new.vendor(place, "exit 0")
    assert new.scripts.is_first
    assert not is_told(new)


@pytest.mark.parametrize("name", ["00-first", "00-MDEVNS", "0", ".hidden", "..hidden", " ", "-e"])
def test_where_another_comes_before_ours_the_agent_is_told(new: Root, name: str) -> None:
    """It may have answered instead of ours, and then nobody else tells."""
    new.vendor(f"{USR}/callouts/{name}", "exit 0")
    assert not new.scripts.is_first
    assert is_told(new)


@pytest.mark.parametrize("place", [None, ASIDE, f"{ETC}/notifiers/00-first"])
def test_where_no_order_is_kept_ours_has_to_be_alone(old: Root, place: str | None) -> None:
    """What was put aside is asked by ours, and a notifier answers nothing."""
    if place is not None:
        old.vendor(place, "exit 0")
    assert not is_told(old)


@pytest.mark.parametrize(
    "place",
    [
        f"{ETC}/callouts/10-vendor",
        f"{ETC}/callouts/.hidden",
        f"{USR}/callouts/10-vendor",
        f"{USR}/callouts/.hidden",
    ],
)
def test_where_no_order_is_kept_another_may_be_asked_first(old: Root, place: str) -> None:
    """Also one in /usr/lib, of which a newer mdevctl asks first when that is read-only."""
    old.vendor(place, "exit 0")
    assert is_told(old)


@pytest.mark.parametrize("version", ["1.2.0", "1.4.0"])
def test_what_is_no_script_is_told_of_as_if_it_were(tmp_path: Path, version: str) -> None:
    """A link to nowhere and a directory are there, whatever mdevctl makes of them."""
    root = watched(tmp_path, version)
    first = root.callout.with_name("00-first")
    first.symlink_to("/nowhere")
    assert is_told(root)
    first.unlink()
    first.mkdir()
    assert is_told(root)


@given(st.sets(odd_names, max_size=3))
def test_names_are_in_the_order_of_their_bytes(names: set[bytes]) -> None:
    """As mdevctl has them, whatever is in a name."""
    with tempfile.TemporaryDirectory() as directory:
        new = watched(Path(directory) / "new", "1.4.0")
        old = watched(Path(directory) / "old", "1.2.0")
        for root in (new, old):
            for name in names:
                Path(os.fsdecode(os.fsencode(root.callout.parent) + b"/" + name)).touch()
        assert is_told(new) == any(name < OURS for name in names)
        assert is_told(old) == bool(names)


@pytest.mark.parametrize("version", ["1.2.0", "1.4.0"])
@pytest.mark.parametrize("place", ["a b", "*", "[a]", "$HOME", '"`\\', "-n", "a\nb", "ä"])
def test_any_root_will_do(tmp_path: Path, version: str, place: str) -> None:
    """What a path holds is nothing that the shell makes something of."""
    (tmp_path / "a").mkdir()
    root = watched(tmp_path / place, version)
    assert not is_told(root)
    root.rival()
    assert is_told(root)


def test_one_that_lies_elsewhere_tells(new: Root) -> None:
    """Where mdevctl looks besides is not known then."""
    (new.path / "usr/lib/mdevctl").rename(new.path / "elsewhere")
    callouts = new.path / "elsewhere/scripts.d/callouts"
    notifier = callouts.with_name("notifiers") / NAME
    subprocess.run([notifier, *WORDS], input=b"{}", check=True, timeout=60)
    assert new.calls() == [NAME]


# What it gives to the callout, and what it takes.


def test_the_callout_is_given_all_that_came(new: Root) -> None:
    """Its words and its standard input, as they are."""
    new.rival()
    new.callout.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\ncat\n")
    words = [*WORDS, "", "a b", "*", "\\n", "ä\n"]
    done = subprocess.run(
        [new.notifier, *words], input=b"\\a\0 b\n\nc", capture_output=True, check=True, timeout=60
    )
    assert done.stdout == "".join(f"{word}|" for word in words).encode() + b"\\a\0 b\n\nc"


def without_callout(root: Root) -> None:
    root.callout.unlink()


def with_a_callout_that_is_not_run(root: Root) -> None:
    root.callout.chmod(0o644)


def with_a_directory_for_a_callout(root: Root) -> None:
    root.callout.unlink()
    root.callout.mkdir()


def with_a_callout_that_cannot_be_run(root: Root) -> None:
    root.rival()
    root.callout.write_text("#!/nowhere/python3\n")


BROKEN = [
    without_callout,
    with_a_callout_that_is_not_run,
    with_a_directory_for_a_callout,
    with_a_callout_that_cannot_be_run,
]


@pytest.mark.parametrize("version", ["1.2.0", "1.4.0"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_callout_that_cannot_tell_is_told_of(
    tmp_path: Path, version: str, broken: Callable[[Root], None]
) -> None:
    """One line says so, and mdevctl goes on."""
    root = watched(tmp_path, version)
    broken(root)
    done = root.call("notify", "start", "success")
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert str(root.callout) in line
    assert root.calls() == []


def fine(_: Root) -> None:
    pass


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n\\"])
@pytest.mark.parametrize("how", [fine, *BROKEN])
def test_all_of_the_input_is_read(new: Root, how: Callable[[Root], None], end: bytes) -> None:
    """Whoever writes a megabyte never writes to a pipe that nobody reads."""
    how(new)
    process = subprocess.Popen(
        [new.notifier, *WORDS], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(DEFINITION.encode() + b"x\0\\" * (1 << 18) + b" " * (1 << 18) + end)
    process.stdin.close()  # flushes: raises BrokenPipeError where it was not read
    assert process.wait(60) == 0


def test_without_any_input_it_ends(new: Root) -> None:
    """Neither an empty nor a closed one, nor a terminal, is waited for."""
    assert not is_told(new)
    for stdin in ("</dev/null", "<&-", "</"):
        line = f'exec "$0" "$@" {stdin}'
        done = subprocess.run(
            ["sh", "-c", line, new.notifier, *WORDS], capture_output=True, check=True, timeout=60
        )
        assert (done.stdout, done.stderr) == (b"", b"")
    ours, theirs = os.openpty()
    try:
        subprocess.run([new.notifier, *WORDS], stdin=theirs, check=True, timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)


# What it costs.


@pytest.mark.parametrize("how", [fine, without_callout])
@pytest.mark.parametrize("version", ["1.2.0", "1.4.0"])
def test_it_starts_no_other_process(
    tmp_path: Path, how: Callable[[Root], None], version: str
) -> None:
    """What it does the shell does by itself."""
    root = watched(tmp_path, version)
    how(root)
    assert faults_of_children([root.notifier, *WORDS]) == 0
    assert faults_of_children(["sh", "-c", "(:); :"]) > 0  # any process has some


def faults_of_children(command: list[str | Path]) -> int:
    """The page faults of the processes that a command has started and waited for (proc(5))."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    process.wait()
    return int(stat.rpartition(")")[2].split()[8])
