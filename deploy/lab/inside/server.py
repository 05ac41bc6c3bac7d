"""The guest's command server: does what the machine outside asks, many things at a time.

Requests and answers are lines of JSON over a virtio-serial port, so the guest's network can be cut
without losing it. Each request has an id and is worked on in a thread of its own. An answer has
the same id and either `result`, or `errno` and `error` when the system refused. In between comes a
line a second as a sign of life, so that a machine that hangs is told from one that is at work.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_PORT = "mdevns.lab"
_LOGS = Path("/run/lab")
_BEAT_S = 1.0
_SWEEP_S = 10.0
# The machine's own: they are no test's to leave behind.
_OURS = ("systemd-udevd", "(udev-worker)")

Answer = dict[str, Any]


def serve() -> None:
    """Answer requests until one asks to stop."""
    _LOGS.mkdir(exist_ok=True)
    server = _Server(os.open(_device(), os.O_RDWR))
    server.say({"ready": True})
    threading.Thread(target=server.beat, daemon=True).start()
    server.loop()


def _device() -> str:
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == _PORT:
            return f"/dev/{port.name}"
    raise FileNotFoundError(errno.ENOENT, "no virtio port", _PORT)


class _Server:
    def __init__(self, port: int) -> None:
        self._port = port
        self._writing = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def say(self, answer: Answer) -> None:
        data = json.dumps(answer).encode() + b"\n"
        with self._writing:
            while data:
                data = data[os.write(self._port, data) :]

    def beat(self) -> None:
        while True:
            time.sleep(_BEAT_S)
            self.say({"beat": True})

    def loop(self) -> None:
        with os.fdopen(self._port, "rb", buffering=0, closefd=False) as port:
            rest = b""
            while data := port.read(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    request = json.loads(line)
                    if request["op"] == "stop":
                        return
                    threading.Thread(target=self._answer, args=[request], daemon=True).start()

    def _answer(self, request: dict[str, Any]) -> None:
        ident = request.pop("id")
        try:
            result = getattr(self, f"_do_{request.pop('op')}")(**request)
        except OSError as error:
            self.say({"id": ident, "errno": error.errno, "error": str(error)})
        except Exception as error:  # noqa: BLE001  whatever it is, who asked must hear of it
            self.say({"id": ident, "errno": 0, "error": repr(error)})
        else:
            self.say({"id": ident, "result": result})

    def _do_run(self, argv: list[str], env: dict[str, str], stdin: str, deadline: float) -> Answer:
        child = subprocess.Popen(  # noqa: S603  running what we are told is what this is for
            argv,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = child.communicate(_bytes(stdin), timeout=deadline)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            # Not waited for: in state D it does not die.
            return {"rc": None, "stdout": "", "stderr": ""}
        return {"rc": child.returncode, "stdout": _text(out), "stderr": _text(err)}

    def _do_start(self, argv: list[str], env: dict[str, str]) -> Answer:
        log = _LOGS / f"{threading.get_ident()}.log"
        with log.open("wb") as out:
            child = subprocess.Popen(  # noqa: S603  as above
                argv,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        named = _LOGS / f"{child.pid}.log"
        log.rename(named)
        self._children[child.pid] = child
        return {"pid": child.pid, "log": str(named)}

    def _do_wait(self, pid: int, deadline: float) -> Answer:
        try:
            return {"rc": self._children[pid].wait(deadline)}
        except subprocess.TimeoutExpired:
            return {"rc": None}

    def _do_kill(self, pid: int, sig: int) -> None:
        os.kill(pid, sig)

    def _do_sweep(self) -> None:
        """Kill every process but the machine's own, and wait until they are gone."""
        deadline = time.monotonic() + _SWEEP_S
        while left := [pid for pid in _processes() if pid not in (1, os.getpid())]:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"processes {left} do not die")
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for child in list(self._children.values()):
                child.poll()
            time.sleep(0.02)

    def _do_read(self, path: str) -> str:
        return _text(Path(path).read_bytes())

    def _do_put(self, path: str, text: str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(_bytes(text))

    def _do_poke(self, path: str, text: str) -> int:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            return os.write(descriptor, _bytes(text))
        finally:
            os.close(descriptor)

    def _do_listdir(self, path: str) -> list[str]:
        return sorted(entry.name for entry in Path(path).iterdir())

    def _do_realpath(self, path: str) -> str:
        return os.path.realpath(path, strict=True)


def _processes() -> list[int]:
    """The processes that run programs, but udevd's: no kernel threads and nothing that ended."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it just ended
            program = (directory / "comm").read_text().strip()
            if (directory / "cmdline").read_bytes() and program not in _OURS:
                found.append(int(directory.name))
    return found


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
