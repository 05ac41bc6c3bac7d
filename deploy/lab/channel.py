"""The machine's end of a guest's command channel (the guest's is inside/server.py)."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from typing import Any

from .errors import GuestDied, GuestError, GuestTimeout

Answer = dict[str, Any]

# So often whoever waits looks whether the guest still gives signs of life.
_LOOK_S = 0.5


class Channel:
    """Requests to one running guest; any number of threads may use it at the same time.

    QEMU has the other end of the socket, so the channel ends when QEMU does, and whoever waits
    for an answer then gets GuestDied.
    """

    def __init__(self, near: socket.socket) -> None:
        self._socket = near
        self._guarded = threading.Lock()
        self._waiting: dict[int, Future[Answer]] = {}
        self._last_id = 0
        self._ended = False
        self._heard_at: float | None = None
        self._ready: Future[Answer] = Future()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest's server answers. Raises GuestDied or GuestTimeout."""
        self._result(self._ready, "is not up", timeout, math.inf)

    def ask(self, op: str, timeout: float, silence: float, **arguments: Any) -> Any:
        """Have the guest do something and return its result.

        Raises the OSError that the guest's kernel gave, with its errno; GuestDied; GuestTimeout
        when there is no answer within `timeout` seconds, or not even a sign of life for `silence`
        seconds; GuestError when the request was wrong.
        """
        future: Future[Answer] = Future()
        with self._guarded:
            self._last_id += 1
            request = {"id": self._last_id, "op": op, **arguments}
            if self._ended:
                raise GuestDied("is not running")
            self._waiting[self._last_id] = future
            self._send(request)
        answer = self._result(future, f"gave no answer to {op} {arguments}", timeout, silence)
        if "result" in answer:
            return answer["result"]
        if answer["errno"]:
            raise OSError(answer["errno"], answer["error"])
        raise GuestError(f"could not do {op} {arguments}: {answer['error']}")

    def stop(self) -> None:
        """Ask the guest to switch itself off; there is no answer to that."""
        with self._guarded:
            self._send({"id": 0, "op": "stop"})

    def paused(self) -> None:
        """The guest stands still and is not expected to say anything."""
        self._heard_at = None

    def resumed(self) -> None:
        """The guest goes on."""
        self._heard_at = time.monotonic()

    def close(self) -> None:
        """Let go of the socket; whoever still waits gets GuestDied."""
        # Not close(): the listening thread would go on sleeping on the descriptor.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, request: Answer) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise GuestDied("ended") from error

    def _result(self, future: Future[Answer], what: str, timeout: float, silence: float) -> Answer:
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return future.result(min(left, _LOOK_S))
            except FutureTimeout as error:
                if left == 0.0:
                    raise GuestTimeout(f"{what} within {timeout:g} s") from error
                if self._silent_for() > silence:
                    raise GuestTimeout(f"{what}, and said nothing for {silence:g} s") from error

    def _silent_for(self) -> float:
        """Seconds since the last sign of life, of a guest that was up and is not paused."""
        heard = self._heard_at
        return 0.0 if heard is None else time.monotonic() - heard

    def _listen(self) -> None:
        with self._socket, self._socket.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                self._hand_over(json.loads(line))
        self._end()

    def _hand_over(self, answer: Answer) -> None:
        if "beat" in answer:
            if self._heard_at is not None:  # what it said before it was paused may come late
                self._heard_at = time.monotonic()
            return
        if "ready" in answer:
            self._heard_at = time.monotonic()
            self._ready.set_result(answer)
            return
        with self._guarded:
            future = self._waiting.pop(answer["id"])
        future.set_result(answer)

    def _end(self) -> None:
        with self._guarded:
            self._ended = True
            left = [*self._waiting.values(), self._ready]
            self._waiting.clear()
        for future in left:
            if not future.done():
                future.set_exception(GuestDied("ended while an answer was expected"))
