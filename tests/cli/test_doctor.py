"""`doctor`: what is configured, and whether etcd and this host are fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent import simulated
from tests.cli.driver import NOWHERE, TYPE
from tests.support.tls import EXPIRED, Authority, secure_etcd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.driver import Cli, Done

pytestmark = pytest.mark.etcd


def kinds(done: Done) -> list[tuple[str, str]]:
    """Level and kind of all findings."""
    return [(one["level"], one["kind"]) for one in done.json["findings"]]


def test_doctor_shows_what_is_in_force_and_from_where(cli: Cli, tmp_path: Path) -> None:
    """Each key has its value and the file's line, the variable, the option, or the default."""
    file = tmp_path / "mdevns.toml"
    file.write_text("# ours\ncluster = 'file'\n[agent]\nrescan = 3\n")
    done = cli.run("doctor", "--config", str(file), "--timeout", "3", "-o", "json")
    shown = {one["key"]: (one["value"], one["origin"]) for one in done.json["settings"]}
    assert shown["cluster"] == (cli.cluster, "environment MDEVNS_CLUSTER")
    assert shown["agent.rescan"] == (3.0, f"configuration {file}, line 4")
    assert shown["timeout"] == (3.0, "option --timeout")
    assert shown["agent.bus"] == ("sysfs", "default")


def test_doctor_looks_at_every_server(cli: Cli) -> None:
    """One that answers is shown with its version, one that does not with the reason."""
    done = cli.run("doctor", "-o", "json", MDEVNS_ENDPOINTS=f"{cli.endpoint},{NOWHERE}")
    assert done.code == 20
    assert done.err == ""
    answers, absent = done.json["servers"]
    assert (answers["error"], answers["leader"]) == (None, True)
    assert absent["error"] == "connection refused"
    assert ("fault", "unreachable") in kinds(done)


def test_doctor_tells_people_too(cli: Cli) -> None:
    """The table has settings, servers and findings, and ends with the verdict."""
    done = cli.run("doctor", MDEVNS_ENDPOINTS=NOWHERE)
    assert done.code == 20
    assert done.out.splitlines()[-1] == "NOT fit"
    assert "connection refused" in done.out


def test_doctor_tells_of_certificates(cli: Cli, tmp_path: Path) -> None:
    """A certificate of ours that has expired is found, and what etcd says to it."""
    authority = Authority(tmp_path / "ca")
    with secure_etcd(authority, authority.issue("etcd", "127.0.0.1")) as server:
        for until, found in ((None, set()), (EXPIRED, {"certificate", "unreachable"})):
            client = authority.client(until=until)
            done = cli.run(
                "doctor",
                "-o",
                "json",
                MDEVNS_ENDPOINTS=server.endpoint,
                MDEVNS_CACERT=str(client.cacert),
                MDEVNS_CERT=str(client.cert),
                MDEVNS_KEY=str(client.key),
            )
            assert {kind for level, kind in kinds(done) if level == "fault"} == found, done.out


def test_doctor_tells_of_an_unsafe_configuration(cli: Cli, tmp_path: Path) -> None:
    """What other commands refuse to run with is a finding here, with its place."""
    done = cli.run("doctor", "-o", "json", MDEVNS_CACERT=str(tmp_path / "ca.pem"))
    assert done.code == 20
    assert kinds(done) == [("fault", "configuration")]
    assert "environment MDEVNS_CACERT" in done.json["findings"][0]["subject"]


def test_doctor_looks_at_this_host(cli: Cli, tmp_path: Path) -> None:
    """A host that is there is fit, and one that is not is told."""
    simulated.init(tmp_path / "here", 1, {TYPE: 1})
    for directory, found in (("here", []), ("nowhere", ["bus", "machine"])):
        done = cli.run("doctor", "-o", "json", MDEVNS_AGENT_BUS=f"sim:{tmp_path / directory}")
        assert [kind for level, kind in kinds(done) if level == "fault"] == found, done.out
