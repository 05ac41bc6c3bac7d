"""`watch`: lines as they come, in the shape of the contract, until somebody ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.cli.driver import TYPE, Cli, Host, ended

if TYPE_CHECKING:
    from subprocess import Popen

pytestmark = pytest.mark.etcd


def watching(cli: Cli, *args: str) -> tuple[Popen[str], str]:
    """A watch that is known to watch: it has told of a name that was there before."""
    name = cli.ok("reserve", "--ttl", "600", "-o", "name").out.strip()
    process = cli.start("watch", "--list", *args)
    return process, name


def line(process: Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_change_is_an_object_a_line_until_it_is_told_to_end(
    pair: tuple[Cli, Host, Host], number: int
) -> None:
    """A reservation, a create and a remove are told one by one, and an interrupt ends it well."""
    cli = pair[0]
    process, held = watching(cli, "-o", "json")
    first = json.loads(line(process))
    assert (first["event"], first["claim"]["name"]) == ("put", held)
    name = str(uuid.uuid4())
    made = cli.ok("create", name, "--type", TYPE, "--host", "gpu01", "-o", "json").json
    puts = [json.loads(line(process)) for _ in range(3)]
    assert [each["claim"]["state"] for each in puts] == ["reserved", "creating", "active"]
    assert all(list(each) == ["revision", "event", "claim"] for each in puts)
    assert puts[-1] == {"revision": made["revision"], "event": "put", "claim": made}
    cli.ok("remove", name)
    removing, gone = (json.loads(line(process)) for _ in range(2))
    assert gone == {**gone, "event": "delete", "claim": removing["claim"]}
    assert gone["revision"] > removing["revision"] == removing["claim"]["revision"]
    cli.ok("release", held)
    assert json.loads(line(process))["event"] == "delete"
    process.send_signal(number)
    done = ended(process)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_table_a_document_and_names(cli: Cli) -> None:
    """The other forms tell the same, at once: readable lines, YAML documents, names."""
    table, name = watching(cli)
    assert line(table).split() == ["REVISION", "EVENT", "NAME", "HOST", "PARENT", "TYPE", "STATE"]
    assert line(table).split()[1:] == ["put", name, "-", "-", "-", "reserved"]
    names = cli.start("watch", "--list", "-o", "name")
    assert line(names) == f"{name}\n"
    documents = cli.start("watch", "--list", "-o", "yaml")
    assert line(documents) == "---\n"
    document = yaml.safe_load("".join(line(documents) for _ in range(16)))
    assert (document["event"], document["claim"]["name"]) == ("put", name)
    for process in (table, names, documents):
        process.send_signal(signal.SIGINT)
    assert [ended(process).code for process in (table, names, documents)] == [0, 0, 0]


def test_a_reader_that_goes_away_ends_it_at_once(cli: Cli) -> None:
    """`watch | head` ends, quietly, although nothing changes any more."""
    name = cli.ok("reserve", "-o", "name").out.strip()
    shell = f"{sys.executable} -m cli watch --list -o name | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ("bash", "-c", shell),
        env=cli.environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout.split(), done.stderr) == ([name, "0"], "")


def test_a_host_that_never_was_is_not_watched(cli: Cli) -> None:
    """A misspelt host is an error, not a silence."""
    done = cli.run("watch", "--host", "nowhere")
    assert (done.code, os.linesep in done.out) == (3, False)
    assert done.err.startswith("ENOENT: ")
