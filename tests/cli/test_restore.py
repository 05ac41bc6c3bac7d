"""`restore begin` and `restore finish`, as operators and scripts meet them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.cli.driver import TYPE, one_line
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.driver import Cli, Host

DEADLINE = 60.0  # seconds


def test_a_restore_is_begun_told_everywhere_and_finished(
    cli: Cli, host_in: Callable[[Cli, str], Host], name: str
) -> None:
    """Whoever asks meanwhile reads since when, by whom, and what ends it."""
    host = host_in(cli, "gpu01").init()
    host.boot()
    cli.ok("create", name, "--type", TYPE)
    first = json.loads(cli.ok("restore", "begin", "-o", "json").out)
    assert first.keys() == {"restore", "since", "by", "why", "instead_of"}
    assert first["instead_of"] is None
    again = cli.ok("restore", "begin").out
    assert first["since"] in again
    assert first["by"] in again
    second = cli.ok("restore", "begin", "-o", "name").out.strip()
    assert second != first["restore"]

    ends = "mdevns restore finish"
    refused = cli.run("create", "--type", TYPE)
    assert refused.code == 14
    assert ends in one_line(refused, "EROFS")
    assert ends in cli.ok("check").out
    assert ends in cli.ok("show", name).out
    assert ends in cli.run("doctor").out
    done = json.loads(cli.ok("restore", "finish", "-o", "json").out)
    assert (done["finished"], done["hosts"], done["left"]) == (True, ["gpu01"], [])
    assert done["restore"] == second
    assert "no restore is under way" in cli.ok("restore", "finish").out
    assert [act["what"] for act in json.loads(cli.ok("audit", "-o", "json").out)] == [
        *["restore begin"] * 3,
        "restore finish",
    ]
    cli.ok("create", "--type", TYPE)


def test_a_host_that_is_gone_is_a_line_and_exit_6(
    cli: Cli, host_in: Callable[[Cli, str], Host]
) -> None:
    """The line names it and what to do; after that is done the restore can be finished."""
    host = host_in(cli, "gpu01").init()
    host.boot()
    host.stop()
    wait_until(lambda: cli.read(cli.keys.session("gpu01")) is None, DEADLINE)
    cli.ok("restore", "begin")
    waits = cli.run("restore", "finish", "--wait", "0")
    assert (waits.code, waits.out) == (6, "")
    line = one_line(waits, "EAGAIN")
    assert "host gpu01" in line
    assert "mdevns evict gpu01 --confirm-fenced" in line
    object_ = cli.run("restore", "finish", "--wait", "0", "-o", "json")
    assert object_.code == 6
    assert json.loads(object_.out)["finished"] is False
    assert json.loads(object_.err)["error"] == "EAGAIN"
    cli.ok("evict", "gpu01", "--confirm-fenced", "--reason", "burnt")
    assert "finished: 1 hosts" in cli.ok("restore", "finish").out


def test_a_wait_that_cannot_be_is_refused(cli: Cli) -> None:
    """A value is looked at before anything is asked."""
    done = cli.run("restore", "finish", "--wait", "-1")
    assert done.code == 8
    assert "--wait" in one_line(done, "EINVAL")
