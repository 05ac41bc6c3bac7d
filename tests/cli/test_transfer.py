"""`export` and `import`: the namespace as a file, there and back."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.driver import TYPE, Cli, Host, losing_proxy, one_line

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.etcd


@pytest.fixture
def other(cli: Cli) -> Cli:
    """An empty namespace on the same etcd."""
    return Cli(cli.endpoint, uuid.uuid4().hex)


def lines(count: int) -> list[str]:
    """An export of so many claims."""
    claim = {"host": "gpu01", "parent": "p0", "type": TYPE, "state": "active", "attrs": []}
    flags = {"persistent": False, "autostart": False, "adopted": False, "first": False}
    none = {"error": None, "removal": None, "boot_id": "b", "asked_by": None}
    rest = {"request": "r", "since": "t", "created": "t", "revision": 3}
    names = sorted(str(uuid.uuid4()) for _ in range(count))
    return [
        json.dumps({"mdevns": 1, "cluster": "x", "revision": 9, "at": "t"}),
        *(json.dumps({"name": name, **claim, **flags, **none, **rest}) for name in names),
        json.dumps({"claims": count, "reservations": 0}),
    ]


def claims(out: str) -> list[dict[str, Any]]:
    """The claims of an export, without the revision, which is each store's own."""
    return [{**json.loads(line), "revision": None} for line in out.splitlines()[1:-1]]


def test_what_was_exported_is_imported_as_it_was(
    pair: tuple[Cli, Host, Host], other: Cli, tmp_path: Path
) -> None:
    """Export, import and export again: the same claims, and the namespace is consistent."""
    cli = pair[0]
    made = cli.ok("create", "--type", TYPE, "--count", "20", "--autostart", "-o", "name").names
    odd = cli.ok("create", "--type", TYPE, "--attr", "vgpu_params=ä=b", "-o", "name").names
    cli.ok("stop", *made[:3])
    held = cli.ok("reserve", "--ttl", "600", "-o", "name").out.strip()
    done = cli.run("export")
    assert (done.code, done.err) == (0, "1 reservations are left out\n")
    header, last = (json.loads(done.out.splitlines()[at]) for at in (0, -1))
    assert (header["mdevns"], header["cluster"]) == (1, cli.cluster)
    assert last == {"claims": 21, "reservations": 1}
    assert [one["name"] for one in claims(done.out)] == sorted([*made, *odd])
    file = tmp_path / "export"
    file.write_text(done.out)
    assert other.run("import", str(file)).err == "21 claims imported\n"
    assert claims(other.ok("export").out) == claims(done.out)
    assert other.ok("check", "-o", "json").json["ok"]
    (act,) = other.ok("audit", "-o", "json").json
    assert (act["what"], act["host"], act["why"]) == ("import", None, "21 claims")
    cli.ok("release", held)
    cli.ok("remove", *made, *odd)


def test_more_than_one_commit_is_read_from_stdin(cli: Cli) -> None:
    """A thousand names are there, in order, as they were, and nothing holds anybody up."""
    text = "\n".join(lines(1000))
    assert cli.run("import", "-", "-q", stdin=text).code == 0
    out = cli.ok("export").out
    assert claims(out) == claims(text)
    assert cli.read(cli.keys.hold) is None
    cli.ok("reserve")


def test_a_namespace_that_is_not_empty_is_refused(cli: Cli) -> None:
    """It is one line, and nothing was written."""
    held = cli.ok("reserve", "-o", "name").names
    done = cli.run("import", "-", stdin="\n".join(lines(3)))
    assert (done.code, done.out) == (4, "")
    assert "holds 1 names" in one_line(done, "EEXIST")
    assert cli.ok("list", "-o", "name").names == held


def test_a_bad_line_in_the_middle_is_named(cli: Cli) -> None:
    """Of a file that is wrong somewhere nothing is imported."""
    some = lines(300)
    some[200] = some[200].replace('"active"', '"asleep"')
    done = cli.run("import", "-", stdin="\n".join(some))
    assert (done.code, done.out) == (8, "")
    assert "stdin line 201: " in one_line(done, "EINVAL")
    assert cli.ok("list", "-o", "name").names == []
    gone = cli.run("import", "/nowhere/export")
    assert gone.code == 3
    one_line(gone, "ENOENT")


def test_an_import_that_was_cut_off_holds_everybody_up_and_says_so(cli: Cli) -> None:
    """Half of it is not in force: no name is taken or begun until it is taken back."""
    some = lines(300)
    mark = json.loads(some[-2])["name"]
    with losing_proxy(cli.endpoint, mark.encode()) as proxy:
        done = cli.run(
            "import", "-", "--timeout", "5", stdin="\n".join(some), MDEVNS_ENDPOINTS=proxy
        )
    assert done.code in (10, 11)
    assert "import again" in done.err or "check" in done.err
    assert len(done.err.splitlines()) == 1
    report = cli.run("check")
    assert report.code == 20
    assert "an import by" in report.out
    refused = cli.run("reserve")
    assert refused.code == 14
    assert "imported into" in one_line(refused, "EROFS")
    again = cli.run("import", "-", stdin="\n".join(some))
    assert again.code == 5
    assert "another import is under way" in one_line(again, "EBUSY")
