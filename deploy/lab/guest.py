"""One guest: a machine with a name, a disk of its own and Linux's mdev core, in QEMU under TCG.

A guest keeps its disk, its machine-id and its DMI product UUID over power_off() and power_loss(),
and gets a new boot_id and no mediated devices at each boot(), as a machine does.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .channel import Channel
from .errors import GuestDied, GuestError, GuestTimeout
from .shell import tied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from .images import Images

# The members of the etcd outside, as a guest sees them.
ETCD = ("10.0.2.101:2379", "10.0.2.102:2379", "10.0.2.103:2379")
ENDPOINTS = ",".join(f"http://{address}" for address in ETCD)
BOOT_S = 120.0
# Seconds. On a busy machine an emulated guest takes over a minute to load a command or an agent.
COMMAND_S = 240.0
_CODE = "/opt/mdevns/code"
_PID1 = f"{_CODE}/deploy/lab/inside/pid1.py"
_CONSOLE_LINES = 40
_TROUBLE = re.compile(r"kernel BUG|BUG: |Oops: |Kernel panic")
# What a request may take beyond its own deadline: the guest is slow when others boot.
_MARGIN_S = 20.0
# A guest says something every second. None was seen to be quiet for more than a few, however busy.
SILENCE_S = 20.0


@dataclass(frozen=True)
class Result:
    """What a command left."""

    rc: int
    stdout: str
    stderr: str


class Guest:
    """A guest that exists (its disk does) and may be running.

    `forwards` maps an address that the guest sees ("10.0.2.101:2379") to a port on this machine's
    loopback. Nothing else can be reached from inside. It may be changed between two boots.

    Whoever waits for a guest that has been silent for `silence_s` seconds gets GuestTimeout,
    whatever deadline he has given.
    """

    def __init__(
        self,
        name: str,
        images: Images,
        directory: Path,
        *,
        forwards: Mapping[str, int] | None = None,
        memory_mib: int = 512,
    ) -> None:
        self.name = name
        self.flavour = images.flavour
        self.machine_id = hashlib.sha256(f"mdevns lab {name}".encode()).hexdigest()[:32]
        self.product_uuid = str(uuid.uuid5(uuid.NAMESPACE_OID, f"mdevns lab {name}"))
        self.forwards = dict(forwards or {})
        self.silence_s = SILENCE_S
        self._images = images
        self._directory = directory
        self._memory_mib = memory_mib
        self._qemu: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._paused = False
        directory.mkdir(parents=True, exist_ok=True)
        self._blank_disk()

    # Power

    def start(self) -> None:
        """Switch on and return at once; wait_ready() waits. From the main thread only.

        The kernel kills QEMU when the thread that started it ends, so that thread must be the one
        that lives longest.
        """
        if threading.current_thread() is not threading.main_thread():
            raise GuestError(f"{self.name}: start() outside the main thread would not last")
        if self.running:
            raise GuestError(f"{self.name}: is running already")
        near, far = socket.socketpair()
        with far, self._errors.open("wb") as errors:
            self._qemu = subprocess.Popen(  # noqa: S603  our own QEMU
                tied(self._command(far.fileno())),
                env=self._images.tools.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[far.fileno()],
            )
        self._channel = Channel(near)

    def wait_ready(self, timeout: float = BOOT_S) -> None:
        """Wait until commands can be run. Raises GuestDied or GuestTimeout, with the console."""
        with self._telling_more():
            self._connected().wait_ready(timeout)

    def boot(self, timeout: float = BOOT_S) -> None:
        """Switch on and wait until commands can be run."""
        self.start()
        self.wait_ready(timeout)

    def power_off(self, timeout: float = 60.0) -> None:
        """Shut down in order: processes get SIGTERM and five seconds, and all is written back."""
        with self._telling_more():
            self._connected().stop()
            try:
                self._process().wait(timeout)
            except subprocess.TimeoutExpired as error:
                raise GuestTimeout(f"is not off after {timeout:g} s") from error
        self._forget()

    def power_loss(self) -> None:
        """Pull the plug: what the guest had not written to its disk is gone. Also when off."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._forget()

    def reboot(self, timeout: float = BOOT_S) -> None:
        """power_off(), then boot()."""
        self.power_off()
        self.boot(timeout)

    def pause(self) -> None:
        """Stop the whole machine where it is, its clocks included, until resume()."""
        self._connected().paused()
        self._paused = True
        self._process().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused machine go on; it does not know that it was paused."""
        self._process().send_signal(signal.SIGCONT)
        self._paused = False
        self._connected().resumed()

    def renew(self, timeout: float = BOOT_S) -> None:
        """Switch off at once, and boot again from an empty disk: nothing of before is left."""
        self.power_loss()
        self._blank_disk()
        self.boot(timeout)

    def discard(self) -> None:
        """Switch off at once and drop the disk. The console stays, for whoever looks for it."""
        self.power_loss()
        self._disk.unlink(missing_ok=True)

    @property
    def running(self) -> bool:
        """Whether its QEMU runs."""
        return self._qemu is not None and self._qemu.poll() is None

    def answers(self) -> bool:
        """Whether it runs and does what it is asked; not so when it is paused or hangs."""
        if self._paused or not self.running:
            return False
        try:
            return self.exists("/")
        except GuestError:
            return False

    def console(self) -> str:
        """All that was printed on the serial console since it last was switched on."""
        texts = [path.read_text(errors="replace") for path in self._logs if path.exists()]
        return "".join(texts).replace("\r", "")

    # Commands

    def run(
        self,
        *argv: str,
        timeout: float = COMMAND_S,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        check: bool = False,
    ) -> Result:
        """Run a command to its end.

        After `timeout` seconds its process group is killed and GuestTimeout raised. With `check`,
        another exit code than 0 is a GuestError.
        """
        answer = self._ask(
            "run", timeout, argv=argv, env=dict(env or {}), stdin=stdin, deadline=timeout
        )
        if answer["rc"] is None:
            raise GuestTimeout(f"{self.name}: {shlex.join(argv)}: not done after {timeout:g} s")
        result = Result(answer["rc"], answer["stdout"], answer["stderr"])
        if check and result.rc != 0:
            raise GuestError(f"{self.name}: {shlex.join(argv)}: {result}")
        return result

    def python(self, source: str, *argv: str, timeout: float = COMMAND_S) -> Result:
        """Run a Python program, with the repository and its dependencies on its path."""
        return self.run("python3", "-", *argv, stdin=source, timeout=timeout)

    def spawn(self, *argv: str, env: Mapping[str, str] | None = None) -> Background:
        """Start a command in a session of its own and leave it running."""
        answer = self._ask("start", COMMAND_S, argv=argv, env=dict(env or {}))
        return Background(self, answer["pid"], answer["log"])

    def kill(self, pid: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to one process of the guest. Raises ProcessLookupError."""
        self._ask("kill", COMMAND_S, pid=pid, sig=int(sig))

    def sweep(self) -> None:
        """Kill every process that is not the machine's own. Raises TimeoutError: one won't die."""
        self._ask("sweep", COMMAND_S)

    # Files

    def read(self, path: str) -> str:
        """A file's text. Raises the OSError that the guest's kernel gave."""
        text: str = self._ask("read", COMMAND_S, path=path)
        return text

    def put(self, path: str, text: str) -> None:
        """Write a regular file, and the directories above it."""
        self._ask("put", COMMAND_S, path=path, text=text)

    def poke(self, path: str, text: str, timeout: float = COMMAND_S) -> int:
        """One write(2) to a file that is there, as sysfs wants it; the number of bytes taken.

        Raises the OSError that the guest's kernel gave, with its errno. When the write does not
        return within `timeout` seconds, GuestTimeout; it then goes on in the guest.
        """
        taken: int = self._ask("poke", timeout, path=path, text=text)
        return taken

    def listdir(self, path: str) -> list[str]:
        """The sorted names in a directory."""
        names: list[str] = self._ask("listdir", COMMAND_S, path=path)
        return names

    def realpath(self, path: str) -> str:
        """Where a path leads to. Raises FileNotFoundError when that is nowhere."""
        real: str = self._ask("realpath", COMMAND_S, path=path)
        return real

    def exists(self, path: str) -> bool:
        """Whether a path leads to anything."""
        try:
            self.realpath(path)
        except FileNotFoundError:
            return False
        return True

    @property
    def boot_id(self) -> str:
        """The kernel's id of this boot."""
        return self.read("/proc/sys/kernel/random/boot_id").strip()

    # mdevns

    def start_agent(self, *options: str, endpoints: str = ENDPOINTS) -> Background:
        """Start this host's agent on the real sysfs, and leave it running."""
        return self.spawn(
            *("python3", "-m", "cli", "agent", "--host", self.name, "--bus", "sysfs"),
            *("--endpoints", endpoints, *options),
        )

    def mdevns(self, *argv: str, endpoints: str = ENDPOINTS, timeout: float = COMMAND_S) -> Result:
        """Run one command of the CLI in the guest."""
        return self.run("python3", "-m", "cli", "--endpoints", endpoints, *argv, timeout=timeout)

    def hold(self, name: str) -> Background:
        """Hold a mediated device open as a virtual machine does, until the process is killed."""
        script = f"{_CODE}/deploy/lab/inside/hold.py"
        holder = self.spawn("python3", script, name)
        wait_for(lambda: "held" in holder.output() or not holder.alive(), what=f"{name} to be held")
        if not holder.alive():
            raise GuestError(f"{self.name}: {name} could not be held: {holder.output()}")
        return holder

    def cut_network(self) -> None:
        """Take the guest's network away; the command channel does not use it."""
        self.run("ip", "link", "set", "eth0", "down", check=True)

    def restore_network(self) -> None:
        """Give the guest's network back."""
        self.run("ip", "link", "set", "eth0", "up", check=True)

    # What is behind it

    def _blank_disk(self) -> None:
        shutil.copyfile(self._images.root.blank_state, self._disk)

    @property
    def _disk(self) -> Path:
        return self._directory / "disk.img"

    @property
    def _console(self) -> Path:
        return self._directory / "console.log"

    @property
    def _errors(self) -> Path:
        return self._directory / "qemu.log"

    @property
    def _logs(self) -> tuple[Path, Path]:
        return self._console, self._errors

    def interactive_command(self) -> list[str]:
        """QEMU with a shell on this terminal instead of the command channel."""
        serial = ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        return [*self._hardware(), *serial, "-append", self._command_line("lab.shell")]

    def _command(self, channel: int) -> list[str]:
        return [
            *self._hardware(),
            *("-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=channel,fd={channel}"),
            *("-device", "virtserialport,chardev=channel,name=mdevns.lab"),
            *("-append", self._command_line()),
        ]

    def _command_line(self, *more: str) -> str:
        words = ["console=ttyS0", "quiet", "panic=-1", "oops=panic", "net.ifnames=0"]
        ours = [f"lab.name={self.name}", f"lab.machine={self.machine_id}", f"lab.run={_PID1}"]
        return " ".join([*words, *ours, *more])

    def _hardware(self) -> list[str]:
        images = self._images
        firmware = [word for path in images.tools.firmware for word in ("-L", str(path))]
        drive = "if=virtio,format=raw"
        shared = f"{drive},readonly=on,file.locking=off"
        return [
            str(images.tools.program("qemu-system-x86_64")),
            *firmware,
            *("-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "max", "-smp", "1"),
            *("-m", str(self._memory_mib), "-display", "none", "-monitor", "none"),
            *("-no-reboot", "-nodefaults", "-no-user-config"),
            *("-name", self.name, "-uuid", self.product_uuid),
            *("-kernel", str(images.kernel.vmlinux), "-initrd", str(images.initrd)),
            *("-drive", f"file={images.root.image},{shared}"),
            *("-drive", f"file={images.deps},{shared}"),
            *("-drive", f"file={images.code},{shared}"),
            # Flushes need not reach the machine's own disk: only guests lose power here.
            *("-drive", f"file={self._disk},{drive},cache=unsafe"),
            *("-device", "virtio-serial-pci"),
            *("-netdev", self._network(), "-device", "virtio-net-pci,netdev=net,romfile="),
        ]

    def _network(self) -> str:
        busybox = shlex.quote(str(self._images.tools.program("busybox")))
        forwards = (
            f"guestfwd=tcp:{address}-cmd:{busybox} nc 127.0.0.1 {port}"
            for address, port in self.forwards.items()
        )
        return ",".join(["user,id=net,restrict=on", *forwards])

    def _ask(self, op: str, timeout: float, **arguments: Any) -> Any:
        with self._telling_more():
            return self._connected().ask(op, timeout + _MARGIN_S, self.silence_s, **arguments)

    def _connected(self) -> Channel:
        if self._channel is None:
            raise GuestDied("is switched off")
        return self._channel

    def _process(self) -> subprocess.Popen[bytes]:
        if self._qemu is None:
            raise GuestDied("is switched off")
        return self._qemu

    def _forget(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._qemu = self._channel = None
        self._paused = False

    @contextmanager
    def _telling_more(self) -> Iterator[None]:
        """Add the guest's name and the end of its console to an error."""
        try:
            yield
        except GuestError as error:
            message = f"{self.name}: {error}\n--- console of {self.name}\n{_gist(self.console())}"
            raise type(error)(message) from error


class Background:
    """A process that was left running in a guest. `pid` is its pid there."""

    def __init__(self, guest: Guest, pid: int, log: str) -> None:
        self.pid = pid
        self._guest = guest
        self._log = log

    def output(self) -> str:
        """What it has printed so far, on both streams."""
        return self._guest.read(self._log)

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send it a signal. Raises ProcessLookupError once it has ended and was waited for."""
        self._guest.kill(self.pid, sig)

    def wait(self, timeout: float = COMMAND_S) -> int:
        """Wait for its end; its exit code, or minus the signal. Raises GuestTimeout."""
        rc = self._end(timeout)
        if rc is None:
            raise GuestTimeout(f"{self._guest.name}: process {self.pid} runs after {timeout:g} s")
        return rc

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._end(0.0) is None

    def _end(self, timeout: float) -> int | None:
        answer = self._guest._ask("wait", timeout, pid=self.pid, deadline=timeout)  # noqa: SLF001
        rc: int | None = answer["rc"]
        return rc


def _gist(console: str) -> str:
    """A console's last lines, and before them all since the kernel's first word of trouble."""
    lines = console.splitlines()
    told = (at for at, line in enumerate(lines) if _TROUBLE.search(line))
    last = max(0, len(lines) - _CONSOLE_LINES)
    return "\n".join(lines[min(next(told, last), last) :])


def boot_all(guests: Sequence[Guest], timeout: float = BOOT_S) -> None:
    """Boot guests at the same time."""
    for guest in guests:
        guest.start()
    for guest in guests:
        guest.wait_ready(timeout)


def wait_for(
    condition: Callable[[], object],
    *,
    what: str,
    timeout: float = COMMAND_S,
    guests: Iterable[Guest] = (),
) -> None:
    """Ask again and again until a condition holds. Raises GuestTimeout, with their consoles."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            consoles = "".join(f"\n--- console of {each.name}\n{each.console()}" for each in guests)
            raise GuestTimeout(f"waited {timeout:g} s for {what}{consoles}")
        time.sleep(0.05)
