"""Installing, upgrading, rolling back and taking away, for real, under a directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli.settings import AgentTable, Settings, load
from tests.support.mdevctl_root import Root

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy/mdevns.toml"


def install(root: Path, *arguments: str, code: int = 0) -> str:
    """Run the script; what it said."""
    done = subprocess.run(
        [ROOT / "deploy/install", "--root", root, *arguments],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_is_installed_upgraded_and_taken_away(tmp_path: Path) -> None:
    """Each version has an environment of its own, a link says which is used, and edits stay."""
    opt, config = tmp_path / "opt/mdevns", tmp_path / "etc/mdevns/mdevns.toml"
    install(tmp_path)
    first = (opt / "current").readlink()
    mdevns = opt / "current/bin/mdevns"
    version = subprocess.run([mdevns, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("mdevns ")
    assert (tmp_path / "usr/local/bin/mdevns").readlink() == Path("/opt/mdevns/current/bin/mdevns")
    assert (tmp_path / "etc/systemd/system/mdevns-agent.service").is_file()
    assert (tmp_path / "usr/local/share/man/man1/mdevns-create.1").is_file()
    for place in (
        "usr/local/share/bash-completion/completions/mdevns",
        "usr/local/share/zsh/site-functions/_mdevns",
        "etc/fish/completions/mdevns.fish",
    ):
        assert "_mdevns" in (tmp_path / place).read_text()
    config.write_text("cluster = 'edited'\n")
    of_another_version = tmp_path / "usr/local/share/man/man1/mdevns-gone.1"
    of_another_version.touch()
    install(tmp_path)
    assert not of_another_version.exists()
    second = (opt / "current").readlink()
    assert (second != first, config.read_text()) == (True, "cluster = 'edited'\n")
    install(tmp_path, "--rollback")
    assert (opt / "current").readlink() == first
    assert "mdevns mdevctl uninstall" in _with_mdevctl(mdevns, tmp_path)
    install(tmp_path, "--uninstall")
    assert [path for path in tmp_path.rglob("*mdevns*") if path.is_file()] == [config]


def _with_mdevctl(mdevns: Path, root: Path) -> str:
    """What taking it away says while mdevctl asks the agent; then mdevctl is gone again."""
    host = Root(root, "1.4.0")
    command = [str(mdevns), "mdevctl", "install", "--root", str(root)]
    environment = {**os.environ, "MDEVNS_CONFIG": os.devnull}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert host.scripts.callout == host.callout
    assert host.scripts.notifier == host.notifier
    said = install(root, "--uninstall", code=1)
    assert mdevns.exists()
    command[2] = "uninstall"
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert host.scripts.callout is None
    assert host.scripts.notifier is None
    return said


def test_what_cannot_be_is_told_in_a_line(tmp_path: Path) -> None:
    """Wrong options, no Python, and nothing to go back to are each one line."""
    for arguments, says in (
        (["--rolback"], "no such option"),
        (["--python", "/nowhere/python"], "name a Python"),
        (["--rollback"], "nothing is installed"),
    ):
        said = install(tmp_path, *arguments, code=1)
        assert says in said
        assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_sample_explains_every_key(tmp_path: Path) -> None:
    """With its comment signs taken away it is a configuration, which has all keys there are."""
    text = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in SAMPLE.read_text().splitlines()
    )
    found = tomllib.loads(text)
    assert set(found) == set(Settings.__struct_fields__)
    assert set(found["agent"]) == set(AgentTable.__struct_fields__)
    whole = tmp_path / "mdevns.toml"
    whole.write_text(text)
    load(str(whole), {}, {})
    load(str(SAMPLE), {}, {}).check_agent()


@pytest.mark.parametrize(
    "script",
    [
        "cli/notifier.sh",
        "deploy/install",
        "deploy/pki/mdevns-pki",
        "deploy/pki/mdevns-etcd-auth",
        "deploy/compose/certificates",
        ".ci/run",
    ],
)
def test_scripts_are_well_formed(script: str) -> None:
    """Shellcheck has nothing to say."""
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), ROOT / script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
