"""What all tests share: an etcd, Hypothesis' settings, and what CI and cleanliness ask for.

With `CI=true` nothing may be skipped: a skip fails with its reason. Without, a test marked
`containers` is skipped where there is no Docker daemon. At the end of a session no process
may be left that a test has started, however indirectly.

Tests may run in several workers side by side (`pytest -n`). Each worker is a session of its
own: its etcd, its directories and its mark are not another worker's, and what it leaves fails
the whole run. Tests that use Docker share one worker, for they share images and networks.
"""

from __future__ import annotations

import gc
import os
import signal
import uuid
import warnings
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import hypothesis
import pytest

from coordinator.embedded import EmbeddedEtcd, wait_until
from coordinator.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

IN_CI = os.environ.get("CI") == "true"
# Inherited by every process that a test starts, and by theirs, so that none can hide.
MARK = ("MDEVNS_TEST_SESSION", uuid.uuid4().hex)
END_DEADLINE = 60  # seconds for what is just ending
HERE = Path(__file__).parent
# Folders of tests that start containers, or build images.
DOCKER = {"cluster", "chaos", "deploy"}
LEFT = pytest.StashKey[list[str]]()

# Hypothesis would make CI's runs all alike; ours are to find new things and say how to repeat.
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=False, print_blob=True)
# For the mutants: the first example that fails is enough, and is the same each time.
hypothesis.settings.register_profile(
    "first",
    deadline=None,
    derandomize=True,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)


def pytest_configure() -> None:
    """Choose Hypothesis' settings, mark what we start, and have it taken away in the end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hypothesis.settings.load_profile("ci" if IN_CI else "dev")
    os.environ.update([MARK])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by name what needs a Docker daemon, where there is none, and group what shares."""
    needing = [item for item in items if item.get_closest_marker("containers")]
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))
    if needing and not docker_runs():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="needs a Docker daemon"))


def _group(item: pytest.Item) -> str | None:
    """Which tests one worker has to run: those of Docker, and those that share a module's hosts."""
    if not item.path.is_relative_to(HERE):  # a run of the tests that a test has begun
        return None
    path = item.path.relative_to(HERE)
    if path.parts[0] in DOCKER or item.get_closest_marker("containers"):
        return "docker"
    scopes = getattr(item, "fixturenames", ())
    return str(path) if "pair" in scopes else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one."""
    report = yield
    if report.skipped and IN_CI and not hasattr(report, "wasxfail"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI a skipped file is a failed one."""
    report = yield
    if report.skipped and IN_CI:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: CI=true allows no skip: {reason}"


@cache
def docker_runs() -> bool:
    """Whether a Docker daemon answers."""
    with warnings.catch_warnings():
        # Where none does, docker's client drops its socket without closing it.
        warnings.simplefilter("ignore", ResourceWarning)
        answers = _docker_answers()
        gc.collect()
    return answers


def _docker_answers() -> bool:
    try:
        with closing(docker.from_env()) as client:
            return bool(client.ping())
    except docker.errors.DockerException:
        return False


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when something that it started is there after everything is torn down.

    Not a fixture: its failure would belong to the last test, which may be expected to fail.
    """
    if not wait_until(lambda: not _our_processes(), END_DEADLINE):
        left = [_command(process) for process in _our_processes()]
        session.config.stash[LEFT] = left
        if output := getattr(session.config, "workeroutput", None):
            output["left"] = left
    if session.config.stash.get(LEFT, []):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take over what a worker says it left: it has no exit status of its own."""
    config: pytest.Config = node.config  # type: ignore[attr-defined]  # xdist has no public type
    left = getattr(node, "workeroutput", {}).get("left", [])
    config.stash[LEFT] = config.stash.get(LEFT, []) + left


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left."""
    for command in terminalreporter.config.stash.get(LEFT, []):
        terminalreporter.write_line(f"FAILED: still running: {command}", red=True)


def _our_processes() -> list[Path]:
    return [process for process in Path("/proc").glob("[0-9]*") if _is_ours(process)]


def _is_ours(process: Path) -> bool:
    """Whether it carries this session's mark, or is our child: one that forked has no mark."""
    try:
        status = (process / "status").read_text()
        marked = "=".join(MARK).encode() in (process / "environ").read_bytes()
    except OSError:  # it just ended, or is another user's
        return False
    return (marked or f"PPid:\t{os.getpid()}\n" in status) and "State:\tZ" not in status


def _command(process: Path) -> str:
    line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
    return f"{process.name} ({line.decode(errors='replace').strip()})"


@pytest.fixture(scope="session")
def etcd() -> Iterator[EmbeddedEtcd]:
    """A real etcd server, one for each worker: take a cluster name of your own in it."""
    try:
        server = EmbeddedEtcd()
        with server:
            yield server
    except NotFound as error:
        pytest.skip(error.line)
