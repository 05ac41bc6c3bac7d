"""The locks of a host: one agent, one generation in force, one write a name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from agent.locks import AgentLock, Generation, NameLock, exclusive, names_in_flight
from coordinator.errors import InUse
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

NAME = "aaaaaaaa-0000-4000-8000-000000000001"

# Takes the lock that its argument calls for, says so, and waits for the end of its input.
HOLDER = """
import pathlib, sys
from agent.locks import AgentLock, NameLock
run_dir = pathlib.Path(sys.argv[2])
lock = NameLock.take(run_dir, sys.argv[3]) if sys.argv[1] == "name" else AgentLock(run_dir).take()
print("taken", flush=True)
sys.stdin.read()
"""


def holder(*args: str) -> subprocess.Popen[bytes]:
    """A process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"taken\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_one_agent_a_machine(tmp_path: Path) -> None:
    """A second agent is told which one runs; after that one's death, however it died, it may."""
    first = holder("agent", str(tmp_path))
    with pytest.raises(InUse, match=rf"another agent \(pid {first.pid}\) runs here"):
        AgentLock(tmp_path).take()
    end(first)
    with AgentLock(tmp_path), pytest.raises(InUse), AgentLock(tmp_path):
        pass
    with AgentLock(tmp_path):
        pass


def test_the_agents_lock_is_not_inherited(tmp_path: Path) -> None:
    """A program that the agent started does not keep the lock after it."""
    lock = AgentLock(tmp_path)
    lock.take()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    lock.release()
    lock.release()
    with AgentLock(tmp_path):
        pass
    child.communicate()


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Who locked a file that somebody removed meanwhile locks the new one instead."""
    path = tmp_path / "lock"
    done = threading.Event()

    def second() -> None:
        with exclusive(path) as fd:
            assert os.path.samestat(os.fstat(fd), path.stat())
            done.set()

    with exclusive(path):
        waiter = threading.Thread(target=second, daemon=True)
        waiter.start()
        path.unlink()
    waiter.join(60)
    assert done.is_set()


def test_only_the_newest_generation_is_in_force(tmp_path: Path) -> None:
    """Renewed, an old number is in force no more; none is before the first, nor when revoked."""
    generation = Generation(tmp_path)
    with generation.in_force(0) as ours:
        assert not ours
    old = generation.renew()
    new = Generation(tmp_path).renew()
    answers = []
    for number in (old, new, 0):
        with generation.in_force(number) as ours:
            answers.append(ours)
    assert answers == [False, True, False]
    generation.revoke(old)
    with generation.in_force(new) as ours:
        assert ours
    generation.revoke(new)
    with generation.in_force(new) as ours:
        assert not ours


def test_a_new_generation_waits_for_those_between_check_and_lock(tmp_path: Path) -> None:
    """Who checked its generation has its name's lock before a new one is in force."""
    generation = Generation(tmp_path)
    number = generation.renew()
    renewed = threading.Thread(target=generation.renew, daemon=True)
    with generation.in_force(number) as ours:
        assert ours
        renewed.start()
        lock = NameLock.take(tmp_path, NAME)
        assert renewed.is_alive()
    renewed.join(60)
    assert names_in_flight(tmp_path) == {NAME}
    assert lock is not None
    lock.release()
    with generation.in_force(number) as ours:
        assert not ours


def test_a_name_is_in_flight_once(tmp_path: Path) -> None:
    """A name's lock is taken once, and its file goes with it."""
    Generation(tmp_path).renew()
    lock = NameLock.take(tmp_path, NAME)
    assert lock is not None
    assert NameLock.take(tmp_path, NAME) is None
    assert names_in_flight(tmp_path) == {NAME}
    lock.release()
    assert names_in_flight(tmp_path) == frozenset()
    assert not list((tmp_path / "names").iterdir())
    again = NameLock.take(tmp_path, NAME)
    assert again is not None
    again.release()


def test_to_look_is_not_to_take(tmp_path: Path) -> None:
    """Asking which names are in flight never makes one look taken to a worker."""
    Generation(tmp_path).renew()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            names_in_flight(tmp_path)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    for _ in range(300):
        lock = NameLock.take(tmp_path, NAME)
        assert lock is not None
        lock.release()
    stop.set()
    looker.join(60)


def test_a_killed_holders_file_is_swept_up(tmp_path: Path) -> None:
    """A file without its lock is not in flight, and the next generation removes it."""
    generation = Generation(tmp_path)
    generation.renew()
    process = holder("name", str(tmp_path), NAME)
    generation.renew()
    assert names_in_flight(tmp_path) == {NAME}
    end(process)
    wait_until(lambda: not names_in_flight(tmp_path))
    assert (tmp_path / "names" / NAME).exists()
    generation.renew()
    assert not (tmp_path / "names" / NAME).exists()


def test_nothing_is_in_flight_on_a_new_host(tmp_path: Path) -> None:
    """Without a run directory there is nothing in flight, and that is no error."""
    assert names_in_flight(tmp_path / "none") == frozenset()
