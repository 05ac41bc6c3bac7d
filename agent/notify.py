"""What systemd is told of an agent: sd_notify(3), a datagram to the socket that it names.

An agent is ready when it serves its host, so that what is started after it finds its devices.
It does not let a boot wait for ever for a store that is away: after `_PATIENCE` it says that it
is ready and, in its status, what it waits for.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.health import Verdict
    from coordinator.clock import Clock

__all__ = ["Notifier"]

_PATIENCE = 20.0  # seconds; the unit's TimeoutStartSec is longer


class Notifier:
    """Tells the service manager; nothing where there is none."""

    def __init__(self, clock: Clock, environment: Mapping[str, str] = os.environ) -> None:
        self._clock, self._began = clock, clock.boottime()
        address = environment.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is in the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._ready = False
        self._status = ""

    def beat(self, verdict: Verdict) -> None:
        """Say how the agent is; to be called more often than the unit's WatchdogSec.

        That comes from the event loop: one that stands still says nothing, and is killed.
        """
        lines = ["WATCHDOG=1"]
        patient = self._clock.boottime() - self._began < _PATIENCE
        ready = self._ready or verdict.ready or not patient
        if ready != self._ready:
            lines.append("READY=1")
        status = "serving" if verdict.ready else f"waiting: {'; '.join(verdict.reasons)}"
        if status != self._status:
            lines.append(f"STATUS={status}")
        # A manager that is busy has not heard it: what it does not know is said again.
        if self._send(lines):
            self._ready, self._status = ready, status

    def stopping(self) -> None:
        """Say that the agent ends once the kernel is done with what it was given."""
        self._send(["STOPPING=1", "STATUS=finishing what the kernel was given"])

    def _send(self, lines: list[str]) -> bool:
        """Say it; whether it was taken. Somebody who does not listen is no reason to stop."""
        if not self._address:
            return True
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto("\n".join(lines).encode(), self._address)
            return True
        return False
