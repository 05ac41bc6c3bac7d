"""A call in a child process: what it asks of the system, and what if it is killed then."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["calls_of", "killed_at"]

_CALLS = ("open", "os.", "fcntl.")  # of Python's audit events those that are system calls


def killed_at(call: Callable[[], object], number: int) -> bool:
    """Make a call in a child that is killed right before its system call of this number, from 0.

    Whether it was; False: it had ended by then. Writes through a descriptor are not counted.
    """
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(_killer(number))
            call()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def calls_of(call: Callable[[], object]) -> Counter[str]:
    """How often a call makes each system call, made in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(_teller(write))
            call()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        events = Counter(told.read().split())
    os.waitpid(child, 0)
    return events


def _teller(fd: int) -> Callable[[str, object], None]:
    def tell(event: str, _: object) -> None:
        if event.startswith(_CALLS):
            os.write(fd, f"{event}\n".encode())

    return tell


def _killer(number: int) -> Callable[[str, object], None]:
    calls = count()

    def kill(event: str, _: object) -> None:
        if event.startswith(_CALLS) and next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill
