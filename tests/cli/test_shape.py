"""The shape of the command line: help, global options, what is imported, configuration."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cli.main import COMMANDS, load
from cli.settings import load as load_settings
from coordinator.errors import Misconfigured
from tests.cli import driver
from tests.cli.driver import Cli, in_process

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = Cli(driver.NOWHERE, "x")
GROUPS = {
    "sim": ("init", "reboot", "hold", "let-go"),
    "etcd": ("run",),
    "restore": ("begin", "finish"),
}
GROUPS["restore"] = ("begin", "finish")
GROUPS["mdevctl"] = ("install", "uninstall", "status")


def words(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())


def test_help_lists_every_command_in_the_contract() -> None:
    """`mdevns`, and `mdevns --help`, list the commands and the global options."""
    contract = "create remove reserve renew release list show hosts parents types check agent"
    persistent = "define undefine start stop move evict audit doctor completion watch export import"
    persistent += " restore"
    assert set(COMMANDS) == {
        *contract.split(),
        *persistent.split(),
        "sim",
        "etcd",
        "demo",
        "mdevctl",
    }
    for done in (in_process("--help"), in_process()):
        assert (done.code, done.err) == (0, "")
        assert all(f"  {name} " in done.out for name in COMMANDS)
        for option in ("--endpoints", "--cluster", "--config", "-o, --output", "--timeout"):
            assert option in done.out
        assert all(option in done.out for option in ("-q, --quiet", "-v, --verbose", "--version"))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    """A command's help begins with what the list of commands says of it."""
    done = in_process(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: mdevns {name} " in done.out
    assert COMMANDS[name][1] in words(done.out)
    for sub in GROUPS.get(name, ()):
        assert words(load(name).commands[sub].help) in words(in_process(name, sub, "--help").out)


def test_every_option_and_argument_has_help() -> None:
    """Nothing that can be typed is left without a word of what it is."""
    for name in COMMANDS:
        command = load(name)
        for each in getattr(command, "commands", {name: command}).values():
            silent = [param.name for param in each.params if not param.help]
            assert silent in ([], ["help"]), (name, each.name)


def test_the_version_is_told() -> None:
    """`--version` is an answer of one line."""
    done = in_process("--version")
    assert done.code == 0
    assert done.out.startswith("mdevns ")


@pytest.mark.parametrize(
    ("args", "absent"),
    [
        ("--help", ("asyncio", "coordinator.model", "grpc", "msgspec", "rich", "yaml")),
        ("create --help", ("grpc", "rich")),
        (
            "list -o json --endpoints http://127.0.0.1:1 --timeout 0.1",
            ("rich", "yaml", "pydantic", "coordinator.creating"),
        ),
        ("show x", ("grpc", "pydantic", "rich", "tenacity", "tomllib")),
    ],
)
def test_nothing_is_imported_that_is_not_needed(args: str, absent: tuple[str, ...]) -> None:
    """Help is there at once: what a command does not use it does not load."""
    code = f"""
import sys
from cli.main import app
try:
    app({args.split()!r})
finally:
    print("loaded:", *(name for name in {absent!r} if name in sys.modules))
"""
    done = subprocess.run(
        (sys.executable, "-c", code),
        env=NOWHERE.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_global_options_stand_before_and_after() -> None:
    """A global option means the same in both places, and the later one wins."""
    for args in (
        ("--timeout", "0.1", "--endpoints", "http://127.0.0.1:2", "list"),
        ("list", "--timeout", "0.1", "--endpoints", "http://127.0.0.1:2"),
        ("--endpoints", "http://127.0.0.1:3", "list", "--endpoints", "http://127.0.0.1:2"),
    ):
        done = NOWHERE.run(*args, MDEVNS_TIMEOUT="0.1")
        assert done.code == 10
        assert "127.0.0.1:2:" in done.err


def test_a_defect_is_one_line_unless_it_is_asked_for(tmp_path: Path) -> None:
    """An exception nobody foresaw is one line; with -v its traceback stands before it."""
    (tmp_path / "cli").mkdir()
    broken = "import cli.main as m\nm.COMMANDS['list'] = ('nowhere:x', '')\nm.main()"
    for args, lines in ((["list"], 1), (["list", "-v"], None)):
        done = subprocess.run(
            (sys.executable, "-c", broken, *args),
            env=NOWHERE.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("EIO: mdevns: a defect: ModuleNotFoundError")
        assert ("Traceback" in done.stderr) == (lines is None)
        assert lines in (None, len(done.stderr.splitlines()))


# Configuration


def test_the_later_source_wins_key_by_key(tmp_path: Path) -> None:
    """A file gives what the environment does not, and that what the flags do not."""
    path = tmp_path / "mdevns.toml"
    path.write_text(
        'endpoints = ["http://a:1", "http://b:2"]\ncluster = "file"\ntimeout = 1\n'
        '[agent]\nhost = "file"\nsession_ttl = 5\nper_parent = 2\n'
    )
    environment = {
        "MDEVNS_CONFIG": str(path),
        "MDEVNS_CLUSTER": "environment",
        "MDEVNS_TIMEOUT": "2.5",
        "MDEVNS_AGENT_SESSION_TTL": "6",
        "MDEVNS_AGENT_HOST": "environment",
        "HOME": "/",
    }
    configuration = load_settings(None, environment, {"timeout": 3, "agent": {"host": "flag"}})
    settings = configuration.settings
    assert settings.urls == ["http://a:1", "http://b:2"]
    assert (settings.cluster, settings.timeout) == ("environment", 3.0)
    agent = settings.agent
    assert (agent.host, agent.session_ttl, agent.per_parent) == ("flag", 6, 2)
    assert (agent.bus, agent.resync) == ("sysfs", 300.0)
    assert configuration.origins == {
        "endpoints": f"configuration {path}, line 1",
        "cluster": "environment MDEVNS_CLUSTER",
        "timeout": "option --timeout",
        "agent.host": "option --host",
        "agent.session_ttl": "environment MDEVNS_AGENT_SESSION_TTL",
        "agent.per_parent": f"configuration {path}, line 7",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("endpionts = 1", "line 1, endpionts: no such key; is it endpoints?"),
        ("# what\n[agent]\n\nhots = 'x'", "line 4, agent.hots: no such key; is it host?"),
        ("cluster = 'a'\ntimeout = 'long'", "line 2, timeout: Expected `float"),
        ("timeout = -1", "line 1, timeout: Expected `float`"),
        ("cluster = 7", "line 1, cluster: Expected `str`"),
        ("endpoints = [\n  'http://a:1',\n  7,\n]", "line 1, endpoints"),
        ("[agent]\nsession_ttl = 1", "line 2, agent.session_ttl: Expected `int` >= 2"),
        ("agent = 1", "line 1, agent: Expected `object`"),
        ("cluster", "Expected '=' after a key"),
        ("\xff", "can't decode"),
    ],
)
def test_a_file_that_cannot_be_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    """What is wrong in a file is told with the file, the line and the key."""
    path = tmp_path / "mdevns.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Misconfigured) as error:
        load_settings(str(path), {}, {})
    assert says in error.value.message
    assert str(path) in error.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("endpoints = 'etcd'", "line 2, etcd endpoint etcd: not a URL"),
        ("cert = '/nowhere'", "line 2, cert /nowhere: is of no use without key; set key too"),
        ("cacert = '/nowhere'", "line 2, cacert /nowhere: is of no use: no endpoint is https"),
        ("user = 'u'", "line 2, user u: is of no use without password_file"),
        ("user = 'u'\npassword_file = '{secret}'", "line 3, password_file {secret}: others may"),
        ("timeout = 6\nagent.session_ttl = 5", "line 2, timeout: 6 s is beyond the session"),
        ("agent.metrics = '0.0.0.0:1'", "line 2, metrics 0.0.0.0:1: is not on loopback"),
        ("agent.metrics = 'on'", "line 2, metrics on: is neither off nor an IPv4 address"),
    ],
)
def test_what_is_not_safe_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    """What can be read and should not be is told with the file, the line and the key."""
    path, secret = tmp_path / "mdevns.toml", tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    path.write_text("# ours\n" + text.format(secret=secret))
    configuration = load_settings(str(path), {}, {})

    def check() -> None:
        configuration.check()
        configuration.check_agent()

    with pytest.raises(Misconfigured) as error:
        check()
    assert f"configuration {path}, {says.format(secret=secret)}" in error.value.message


def test_an_agent_waits_no_longer_than_its_lease(tmp_path: Path) -> None:
    """Without a timeout of its own an agent with a short lease has a shorter one than commands."""
    path = tmp_path / "mdevns.toml"
    path.write_text("[agent]\nsession_ttl = 3")
    configuration = load_settings(str(path), {}, {})
    configuration.check_agent()
    assert (configuration.settings.patience, configuration.settings.agent_patience) == (10, 3)


def test_kubernetes_variables_are_not_misspelt_settings() -> None:
    """What Kubernetes sets for a Service of our name is not taken for configuration."""
    environment = {
        "MDEVNS_SERVICE_HOST": "10.0.0.1",
        "MDEVNS_SERVICE_PORT_GRPC": "1",
        "MDEVNS_PORT": "tcp://10.0.0.1:1",
        "MDEVNS_PORT_1_TCP_ADDR": "10.0.0.1",
        "MDEVNS_ETCD_SERVICE_HOST": "10.0.0.1",
        "MDEVNS_TEST_SESSION": "x",
    }
    assert load_settings("/dev/null", environment, {}).settings.cluster == "default"
    with pytest.raises(Misconfigured, match="MDEVNS_AGNET_HOST"):
        load_settings("/dev/null", {"MDEVNS_AGNET_HOST": "x"}, {})
    with pytest.raises(Misconfigured, match="MDEVNS_AGENT: no such key"):
        load_settings("/dev/null", {"MDEVNS_AGENT": "x", "MDEVNS_AGENT_HOST": "y"}, {})
