"""PID 1 of a guest: adopts orphans, and ends the machine when the command server does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __package__ in {None, ""}:
    sys.path.insert(0, "/opt/mdevns/code")

from deploy.lab.inside import server

# linux/reboot.h
_POWER_OFF = 0x4321FEDC
_GRACE_S = 5.0
_SAMPLES = ("mtty", "mdpy", "mbochs", "vfio_iommu_type1")
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/mdevns/code:/opt/mdevns/deps",
    "PYTHONUNBUFFERED": "1",
}


def main() -> None:
    """Run the machine from its root file system to its power off."""
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    udevd = subprocess.Popen(["/lib/systemd/systemd-udevd"])
    subprocess.run(["modprobe", "--all", *_SAMPLES], check=True)  # noqa: S603, S607  constants
    if not Path("/etc/ld.so.cache").exists():
        # Once a disk: pyudev finds libudev by way of it.
        subprocess.run(["ldconfig"], check=True)  # noqa: S607  a constant
    child = os.fork()
    if child == 0:
        _serve()
    while True:
        ended, _ = os.wait()
        if ended == udevd.pid:
            _note("udevd ended")
        if ended == child:
            _power_off()


def _serve() -> None:
    """The command server, in a process of its own, so that PID 1 may reap whatever it likes."""
    try:
        if "lab.shell" in Path("/proc/cmdline").read_text().split():
            _console_shell()
        else:
            server.serve()
    except BaseException as error:  # noqa: BLE001  the machine ends here: say why on the console
        _note(f"the command server failed: {error!r}")
    os._exit(0)


def _console_shell() -> None:
    """A shell for a person, on the serial console."""
    os.setsid()
    console = os.open("/dev/ttyS0", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(console, descriptor)
    subprocess.run(["/bin/bash", "--login"], check=False)


def _power_off() -> None:
    """Ask every process to end, then make it; write all back; switch off."""
    os.kill(-1, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and _reap():
        time.sleep(0.05)
    os.kill(-1, signal.SIGKILL)
    os.sync()
    ctypes.CDLL(None, use_errno=True).reboot(_POWER_OFF)


def _reap() -> bool:
    """Whether a process is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _note(text: str) -> None:
    Path("/dev/console").write_text(f"lab: {text}\n")


if __name__ == "__main__":
    main()
