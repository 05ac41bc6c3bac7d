"""A run of the tests itself, as somebody ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

_WAITS = """
import pathlib, signal

def test_waits(etcd):
    pathlib.Path("up").touch()
    signal.pause()
"""


def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """After SIGTERM its servers have ended and their directories are gone, as after Ctrl-C."""
    made, place = tmp_path / "made", tmp_path / "place"
    for directory in (made, place):
        directory.mkdir()
    (place / "test_waits.py").write_text(_WAITS)
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", place],
        cwd=place,
        env=os.environ | {"TMPDIR": str(made), "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with run:
        try:
            wait_until((place / "up").exists, 60)
            assert list(made.glob("mdevns-etcd-*"))
            run.terminate()
            said, _ = run.communicate(timeout=120)
        finally:
            run.kill()
    assert run.returncode == pytest.ExitCode.INTERRUPTED, said
    assert not list(made.glob("mdevns-etcd-*"))
