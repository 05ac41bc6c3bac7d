"""The callout as mdevctl runs it: a process of the host's own Python, and an agent's socket."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.local_http import Desk, served
from tests.support.mdevctl_root import DEFINITION, NAME, Root, called_with
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parents[2] / "cli/callout.py"
ASKING = [("pre", action) for action in ("start", "stop", "define", "undefine", "modify")]
HELD = f"EEXIST: {NAME}: held by gpu07/0000:3b:00.0 (active); see: mdevns show {NAME}"
PATIENCE = 0.5  # seconds, in these tests


@pytest.fixture(params=["1.2.0", "1.4.0"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Root:
    """A host's root with ours installed, in the layout of an old mdevctl and of a new one."""
    root = Root(tmp_path, request.param)
    list(root.scripts.install())
    return root


@pytest.fixture
def agent(root: Root) -> Iterator[Desk]:
    """What answers on the agent's socket."""
    with served(root.scripts.socket) as desk:
        yield desk


def hurry(root: Root) -> None:
    """Let ours wait for as long as a test has time."""
    text = root.callout.read_text()
    waits = ("ANSWERED_IN = 30.0", "BOOTED_IN = 120.0", "THERE_IN = 10.0", "TOLD_IN = 10.0")
    for number in waits:
        assert number in text
        text = text.replace(number, f"{number.split()[0]} = {PATIENCE}")
    root.callout.write_text(text)


def started(root: Root, event: str, action: str) -> subprocess.Popen[bytes]:
    """Ours, just begun, with its input given."""
    process = subprocess.Popen(
        [root.callout, *called_with(event, action)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(DEFINITION.encode())
    process.stdin.close()
    process.stdin = None
    return process


# The agent's answer


@pytest.mark.parametrize(("event", "action"), ASKING)
def test_what_mdevctl_is_about_to_do_is_asked_whole(
    root: Root, agent: Desk, event: str, action: str
) -> None:
    """The agent is given what mdevctl gave, and who runs it; its yes is exit 0 and no word."""
    done = root.call(event, action)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (question,) = agent.asked
    assert question == {
        "event": event,
        "action": action,
        "state": "none",
        "name": NAME,
        "parent": "mtty",
        "type": "mtty-2",
        "holder": os.getpid(),
        "definition": json.loads(DEFINITION),
    }
    assert agent.headers[0]["accept"] == "text/plain"
    assert agent.headers[0]["content-type"] == "application/json"


@pytest.mark.parametrize(("event", "action"), ASKING)
def test_a_refusal_is_its_line_and_exit_1(root: Root, agent: Desk, event: str, action: str) -> None:
    """Nobody else is asked, and nothing more is said."""
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", "exit 0")
    agent.answers["pre"] = (409, HELD)
    done = root.call(event, action)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{HELD}\n")
    assert (root.calls(), len(agent.asked)) == ([], 1)


@pytest.mark.parametrize("status", [400, 403, 404, 422, 500, 503])
def test_whatever_is_no_yes_is_a_no(root: Root, agent: Desk, status: int) -> None:
    """A refusal without a line of the agent's own gets one that names its status."""
    agent.answers["pre"] = (status, "Something\nwent wrong")
    done = root.call("pre", "start")
    assert done.returncode == 1
    assert done.stderr == (
        f"EIO: {NAME}: the agent refused it with {status}: Something went wrong\n"
    )


@pytest.mark.parametrize("text", ['a"b\\c', "ä€", "\U0001f600", "new\nline", "x y"])
def test_any_word_reaches_the_agent_as_it_is(root: Root, agent: Desk, text: str) -> None:
    """What a shell lets through is quoted as JSON wants it."""
    arguments = called_with("pre", "start")
    arguments[-1] = text
    subprocess.run([root.callout, *arguments], input=b"{}", check=True, timeout=60)
    assert agent.asked[0]["parent"] == text


def test_without_an_agent_nothing_may_be_done(root: Root) -> None:
    """It ends with a refusal, soon, that says where it looked and what to look at."""
    hurry(root)
    for event, action in ASKING:
        done = root.call(event, action)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"EHOSTDOWN: {NAME}: the agent of this host does not answer: "
            f"{root.scripts.socket}: No such file or directory; nothing was done; "
            "see: systemctl status mdevns-agent\n"
        )


def test_an_agent_that_comes_later_is_waited_for(root: Root) -> None:
    """An autostart that is earlier than the agent gets its answer from it."""
    process = started(root, "pre", "start")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(root.scripts.socket))  # where nobody listens, as after a crash
    assert process.poll() is None
    root.scripts.socket.unlink()
    with served(root.scripts.socket) as agent:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert len(agent.asked) == 1


def test_an_agent_that_does_not_answer_is_not_waited_for_forever(root: Root, agent: Desk) -> None:
    """What it made of the question is not known, so it is told that nothing came of it."""
    hurry(root)
    agent.silent = frozenset({"pre"})
    done = root.call("pre", "start")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"ETIMEDOUT: {NAME}: the agent of this host was asked and has not"
    )
    assert len(done.stderr.splitlines()) == 1
    assert agent.heard == [("pre", "start", "none"), ("post", "start", "failure")]


def test_an_mdevctl_that_has_ended_is_not_asked_for(root: Root, agent: Desk) -> None:
    """A claim for whoever has taken the orphan in would never be given up."""
    words = ["sh", "-c", 'exec 3<&0; "$0" "$@" <&3 & echo $!; wait', str(root.callout)]
    mdevctl = subprocess.Popen(
        [*words, *called_with("pre", "start")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert mdevctl.stdout is not None
    pid = int(mdevctl.stdout.readline())
    wait_until(lambda: catches(pid, signal.SIGUSR1), 60)  # it has begun
    mdevctl.kill()
    mdevctl.wait()
    wait_until(lambda: f"PPid:\t{mdevctl.pid}\n" not in status(pid), 60)
    _, err = mdevctl.communicate(DEFINITION, timeout=60)
    assert err == f"ESRCH: {NAME}: mdevctl has ended; nothing was done\n"
    assert agent.heard == []


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    (mask,) = (line for line in status(pid).splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask.split()[1], 16) & 1 << (number - 1))


def status(pid: int) -> str:
    """What the kernel tells of a process."""
    return Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM])
def test_a_signal_makes_it_a_refusal(root: Root, agent: Desk, number: signal.Signals) -> None:
    """Were it to end by the signal, mdevctl would go on."""
    agent.silent = frozenset({"pre"})
    process = started(root, "pre", "start")
    assert agent.came.wait(60)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.decode() == f"EINTR: {NAME}: ended by signal {number.value}; mdevctl did nothing\n"
    assert agent.heard[-1] == ("post", "start", "failure")


@pytest.mark.parametrize(
    ("event", "state"), [("post", "success"), ("post", "failure"), ("notify", "none")]
)
def test_what_was_done_is_told_and_never_refused(
    root: Root, agent: Desk, event: str, state: str
) -> None:
    """Neither a refusal of the agent's nor its absence is one of mdevctl's business."""
    root.rival()  # or there would be nothing to notify of
    assert root.call(event, "start", state).returncode == 0
    assert agent.heard == [(event, "start", state)]
    agent.answers[event] = (503, "EHOSTUNREACH: no")
    assert root.call(event, "start", state).returncode == 0
    agent.silent = frozenset({event})
    hurry(root)
    assert root.call(event, "start", state).returncode == 0  # long before the agent answers
    root.scripts.socket.unlink()
    done = root.call(event, "start", state)
    assert done.returncode == 0
    assert "was not told" in done.stderr


@pytest.mark.parametrize("event", ["pre", "post", "notify", "get"])
def test_all_of_the_input_is_read(root: Root, agent: Desk, event: str) -> None:
    """Whoever writes a megabyte never writes to a pipe that nobody reads."""
    value = "x" * (1 << 20)
    agent.answers["pre"] = (409, HELD)
    process = subprocess.Popen(
        [root.callout, *called_with(event, "start")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"attrs": [{"a": value}]}).encode())
    process.stdin.close()  # flushes: raises BrokenPipeError where it was not read
    process.wait(60)
    if event != "get":
        assert agent.asked[0]["definition"]["attrs"][0]["a"] == value


def test_without_any_input_there_is_no_definition(root: Root, agent: Desk) -> None:
    """Neither an empty nor a closed one is waited for."""
    assert root.call("post", "stop", stdin="").returncode == 0
    closed = ["sh", "-c", 'exec "$0" "$@" <&-', str(root.callout), *called_with("pre", "stop")]
    subprocess.run(closed, check=True, timeout=60)
    assert [one["definition"] for one in agent.asked] == [None, None]


# The vendors' scripts


def test_vendors_are_asked_in_order_until_one_answers(root: Root, agent: Desk) -> None:
    """Those in /usr/lib come first, then those in /etc, each by name; 2 is no answer."""
    usr, etc = "usr/lib/mdevctl/scripts.d/callouts", "etc/mdevctl.d/scripts.d/callouts"
    root.vendor(f"{etc}/10-etc", "exit 2")
    root.vendor(f"{etc}/20-etc", 'read -r line; echo "out $line"; echo err >&2; exit 0')
    root.vendor(f"{etc}/30-etc", "exit 1")
    root.vendor(f"{usr}/90-usr", "echo not this >&2; echo nor this; exit 2")
    root.vendor(f"{usr}/50-usr", "kill -9 $$")
    root.write(f"{usr}/60-broken", "#!/nowhere\n")
    root.write(f"{usr}/README", "not a script", 0o644)
    done = root.call("pre", "start")
    assert root.calls() == ["50-usr", "90-usr", "10-etc", "20-etc"]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"out {DEFINITION}\n", "err\n")
    lines = (root.path / "calls").read_text().splitlines()
    assert {line.partition(" ")[2] for line in lines} == {" ".join(called_with("pre", "start"))}
    assert agent.heard == [("pre", "start", "none")]


def test_a_vendors_refusal_is_ours(root: Root, agent: Desk) -> None:
    """Its code and words are handed on, and the agent hears that nothing came of it."""
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", "echo no licence >&2; exit 7")
    done = root.call("pre", "start")
    assert (done.returncode, done.stderr) == (7, "no licence\n")
    assert agent.heard == [("pre", "start", "none"), ("post", "start", "failure")]
    assert agent.asked[1]["definition"] == json.loads(DEFINITION)


def test_a_signal_ends_the_vendors_script_too(root: Root, agent: Desk) -> None:
    """What the agent had let go on does not go on."""
    mark = root.path / "vendor"
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", f"echo $$ > {mark}; exec sleep 600")
    process = started(root, "pre", "start")
    pid = int(wait_until(lambda: mark.exists() and mark.read_text().strip(), 60))
    process.terminate()
    assert process.wait(60) == 1
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 60)
    assert agent.heard[-1] == ("post", "start", "failure")


def test_post_is_handed_on_and_notify_is_not(root: Root, agent: Desk) -> None:
    """Each notifier is called by mdevctl itself; of callouts it calls one."""
    root.rival()
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", "exit 0")
    root.vendor("etc/mdevctl.d/scripts.d/notifiers/50-other", "exit 0")
    root.call("post", "start", "success")
    root.call("notify", "start", "success")
    assert root.calls() == ["00-first", "50-vendor"]
    assert agent.heard == [("post", "start", "success"), ("notify", "start", "success")]


def test_attributes_are_the_vendors(root: Root, agent: Desk) -> None:
    """What it prints reaches mdevctl, the agent is not asked, and without one there are none."""
    done = root.call("get", "attributes", stdin="")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    attributes = '[{"assign_adapter": "5"}]'
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", f"echo '{attributes}'")
    done = root.call("get", "attributes", stdin="")
    assert (done.returncode, json.loads(done.stdout)) == (0, json.loads(attributes))
    assert agent.asked == []


def test_a_running_device_is_changed_by_its_vendor_or_by_nobody(root: Root, agent: Desk) -> None:
    """Without a script that does it, mdevctl may not believe that it was done."""
    done = root.call("live", "modify")
    assert done.returncode == 1
    assert "no script of a vendor" in done.stderr
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", "exit 0")
    assert root.call("live", "modify").returncode == 0
    agent.answers["live"] = (409, HELD)
    assert root.call("live", "modify").stderr == f"{HELD}\n"
    assert root.calls() == ["50-vendor"]


# What it says that it can be asked

OURS = {
    "version": 1,
    "actions": ["start", "stop", "define", "undefine", "modify", "attributes", "capabilities"],
    "events": ["pre", "post", "notify", "get"],
}


@pytest.mark.parametrize(
    "body",
    [
        "exit 2",
        "exit 0",
        "echo no json",
        "head -c 100000 /dev/zero | tr '\\0' '['",
        """echo '{"supports": null}'""",
        """echo '{"supports": {"version": "x", "actions": 1}}'""",
        """echo '{"supports": {"version": 1, "actions": ["start"], "events": ["pre"]}}'""",
    ],
)
def test_everything_that_we_need_is_listed(root: Root, body: str) -> None:
    """Whatever is not listed makes mdevctl fail, so no vendor's script makes the list shorter."""
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", body)
    done = root.call("get", "capabilities", stdin='{"provides": {"version": 2}}')
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"supports": OURS}


def test_what_a_vendors_script_can_do_beyond_that_is_listed(root: Root) -> None:
    """`live` is listed where there is a script that does it."""
    base = "etc/mdevctl.d/scripts.d/callouts"
    more = {"version": 2, "actions": ["modify", "test"], "events": ["get", "live"]}
    root.vendor(f"{base}/10-other", "exit 2")
    root.vendor(f"{base}/50-vendor", f"cat >/dev/null; echo '{json.dumps({'supports': more})}'")
    root.vendor(f"{base}/60-never-asked", "exit 0")
    done = root.call("get", "capabilities", stdin='{"provides": {"version": 2}}')
    assert json.loads(done.stdout)["supports"] == {
        "version": 2,
        "actions": [*OURS["actions"], "test"],  # type: ignore[misc]  # a list
        "events": [*OURS["events"], "live"],  # type: ignore[misc]  # a list
    }
    assert root.calls() == ["10-other", "50-vendor"]


# What it costs


def test_it_loads_next_to_nothing(root: Root) -> None:
    """No module is loaded but what Python itself needs, os, and three that are built in."""
    script = root.callout.read_text().replace('__name__ == "__main__"', "False")
    probe = root.write("probe", script + "\nprint(*sys.modules)\n")
    loaded = subprocess.run([probe], capture_output=True, text=True, check=True, timeout=60)
    bare = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", "import os, sys, time; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert set(loaded.stdout.split()) - set(bare.stdout.split()) == {"_socket"}


def test_it_runs_on_the_python_of_an_older_host() -> None:
    """Its grammar is that of Python 3.9."""
    ast.parse(SOURCE.read_text(), feature_version=(3, 9))
