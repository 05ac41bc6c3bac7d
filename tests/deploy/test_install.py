"""Installing, upgrading, rolling back and taking away, for real, under a directory of its own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli.settings import AgentTable, Settings, load
from coordinator import __version__
from tests.support.mdevctl_root import Root

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy/mdevns.toml"


def install(root: Path, *arguments: str, code: int = 0) -> str:
    """Run the script under a narrow umask; returns what it printed."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [ROOT / "deploy/install", "--root", root, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def mdevns(root: Path, *arguments: str) -> str:
    """Run the staged command, whose script names the interpreter's place in the end."""
    command = [str(root / "opt/mdevns/current/bin/python"), "-m", "cli", *arguments]
    environment = {**os.environ, "MDEVNS_CONFIG": os.devnull}
    return subprocess.check_output(command, env=environment, text=True)


def names(root: Path, link: str) -> str | None:
    """The environment that a link names."""
    path = root / "opt/mdevns" / link
    return str(path.readlink()) if path.is_symlink() else None


@pytest.mark.long
def test_it_is_installed_upgraded_rolled_back_and_removed(tmp_path: Path) -> None:
    """Links name the version in use and the one before, edits stay, and no number is used twice."""
    opt, config = tmp_path / "opt/mdevns", tmp_path / "etc/mdevns/mdevns.toml"
    install(tmp_path)
    first = (opt / "current").readlink()
    assert mdevns(tmp_path, "--version").startswith("mdevns ")
    _check_staged(tmp_path)
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
    _check_kept(tmp_path)
    assert "mdevns mdevctl uninstall" in _with_mdevctl(tmp_path)
    install(tmp_path, "--uninstall")
    assert [path for path in tmp_path.rglob("*mdevns*") if path.is_file()] == [config]


def _with_mdevctl(root: Path) -> str:
    """What an uninstall prints while mdevctl asks the agent; then mdevctl is gone again."""
    host = Root(root, "1.4.0")
    mdevns(root, "mdevctl", "install", "--root", str(root))
    assert host.scripts.callout == host.callout
    assert host.scripts.notifier == host.notifier
    printed = install(root, "--uninstall", code=1)
    mdevns(root, "mdevctl", "uninstall", "--root", str(root))
    assert host.scripts.callout is None
    assert host.scripts.notifier is None
    return printed


def _check_staged(root: Path) -> None:
    """No file names the staging directory, and everybody can read all of them."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in files if str(root).encode() in path.read_bytes()] == []
    script = (root / "opt/mdevns/current/bin/mdevns").read_text()
    assert script.startswith("#!/opt/mdevns/0")
    assert [path for path in files if not path.stat().st_mode & stat.S_IROTH] == []


def _check_kept(root: Path) -> None:
    """Of three versions, with the second rolled back: what worked, and what runs, is kept."""
    first, second, third, fourth = (f"{__version__}-{number}" for number in range(1, 5))
    assert (names(root, "current"), names(root, "previous")) == (first, None)
    printed = install(root, "--rollback", code=1)
    assert (f"no version before {first}" in printed, len(printed.splitlines())) == (True, 1)
    install(root)
    assert (names(root, "current"), names(root, "previous")) == (third, first)
    assert not (root / "opt/mdevns" / second).exists()
    # The agent's command line, as its script starts it in the place where the tree will be.
    agent = [f"/opt/mdevns/{first}/bin/python", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(agent, executable=sys.executable, stdin=subprocess.PIPE) as running:
        install(root)
        assert f"{first} running" in install(root, "--status")
        assert running.stdin is not None
        running.stdin.close()
    assert install(root, "--status").split() == [first, third, "previous", fourth, "current"]


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
