"""Guests as hosts of one cluster, looked at without mdevns: etcd's keys, sysfs, locks, events."""

from __future__ import annotations

import json
import re
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from etcd3 import etcdrpc

from deploy.lab.errors import GuestError
from deploy.lab.guest import COMMAND_S, wait_for
from deploy.lab.mdev import BUS, Mdev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from deploy.lab.guest import Background, Guest

__all__ = ["Host", "Record", "Records"]

DEADLINE = COMMAND_S
MEMBER_DEADLINE = 15.0  # seconds, until another member is asked
# Long enough for an agent that was killed to be back before whoever waits is told that it is gone.
SESSION_TTL = "60"
_RUN_DIR = "/run/mdevns"
_EVENT = re.compile(r"^KERNEL\[[\d.]+\] (\w+)\s+\S+/([0-9a-f-]{36}) \(mdev\)$", re.MULTILINE)

_LIST_DEVICES = f"""
cd {BUS} && for name in *-*; do
    device=$(readlink "$name") && echo "$device $(readlink "$name/mdev_type")"
done
"""
# Run in the guest: POSIX's locks stand in the way of the open file description locks of agents.
_HOLD_ORDERS = """
import fcntl, signal, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    signal.pause()
"""
# Run in the guest: fetches the agent's own socket for the kernel's events (the protocol is 15 in
# /proc/net/netlink) and puts a filter on it that lets nothing in, or takes that away again.
# pidfd_getfd is 438, SO_ATTACH_FILTER 26 and SO_DETACH_FILTER 27; the program is "return 0".
_EARS = """
import ctypes, os, pathlib, socket, struct, sys
pid, what = int(sys.argv[1]), sys.argv[2]

def target(fd):
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:  # closed meanwhile
        return None

rows = [line.split() for line in pathlib.Path("/proc/net/netlink").read_text().splitlines()]
events = {f"socket:[{row[-1]}]" for row in rows if row[1] == "15"}
(fd,) = [fd for fd in os.listdir(f"/proc/{pid}/fd") if target(fd) in events]
copy = ctypes.CDLL(None, use_errno=True).syscall(438, os.pidfd_open(pid), int(fd), 0)
with socket.socket(fileno=copy) as ears:
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(nothing))
    ears.setsockopt(socket.SOL_SOCKET, *((26, program) if what == "deafen" else (27, 0)))
"""


@dataclass(frozen=True)
class Record:
    """One key of etcd: its JSON, the revision that wrote it, and the lease that it hangs on."""

    value: Any
    revision: int
    lease: int


class Records:
    """A cluster's keys in etcd, read with etcd3's bare stubs. Keys are spelt as design.md does.

    Any of `endpoints` will do: the first one that answers is asked, and it has to have a majority.
    """

    def __init__(self, endpoints: Sequence[str], cluster: str) -> None:
        self.cluster = cluster
        self._targets = [endpoint.removeprefix("http://") for endpoint in endpoints]
        self._root = f"/mdevns/{cluster}/"

    def names(self) -> dict[str, Record]:
        """The names that are taken."""
        return self._below("names/")

    def claims(self, host: str) -> dict[str, Record]:
        """A host's claims, by name."""
        return self._below(f"hosts/{host}/claims/")

    def state(self, host: str, name: str) -> str | None:
        """The state of a host's claim of this name; None when there is none."""
        claim = self.claims(host).get(name)
        return None if claim is None else str(claim.value["state"])

    def states(self, host: str) -> dict[str, str]:
        """The states of a host's claims, by name."""
        return {name: claim.value["state"] for name, claim in self.claims(host).items()}

    def wait_for(
        self, host: str, states: Mapping[str, str | None], timeout: float = DEADLINE
    ) -> None:
        """Wait until a host's claims of these names are in these states; None: there is none."""

        def reached() -> bool:
            now = self.states(host)
            return all(now.get(name) == state for name, state in states.items())

        wait_for(reached, what=f"the claims of {host} to be {states}", timeout=timeout)

    def parents(self, host: str) -> dict[str, Record]:
        """A host's parents."""
        return self._below(f"hosts/{host}/parents/")

    def findings(self, host: str) -> dict[str, Record]:
        """A host's devices that are not ours, by name, and what stands against them."""
        return self._below(f"hosts/{host}/findings/")

    def session(self, host: str) -> Record | None:
        """A host's sign of life."""
        return self._below(f"hosts/{host}/").get("session")

    def erase(self) -> None:
        """Drop the whole cluster."""
        key = self._root.encode()
        request = etcdrpc.DeleteRangeRequest(key=key, range_end=_end(key))
        self._call(lambda store: store.DeleteRange(request, timeout=MEMBER_DEADLINE))

    def _below(self, part: str) -> dict[str, Record]:
        prefix = f"{self._root}{part}".encode()
        request = etcdrpc.RangeRequest(key=prefix, range_end=_end(prefix))
        answer = self._call(lambda store: store.Range(request, timeout=MEMBER_DEADLINE))
        return {
            kv.key.removeprefix(prefix).decode(): Record(_json(kv.value), kv.mod_revision, kv.lease)
            for kv in answer.kvs
        }

    def _call(self, call: Callable[[Any], Any]) -> Any:
        """What the first member answers that does; the last one's error when none does."""
        *others, last = self._targets
        for target in others:
            with suppress(grpc.RpcError):
                return _of(target, call)
        return _of(last, call)


def _of(target: str, call: Callable[[Any], Any]) -> Any:
    # A proxy in the environment is not asked for a server on this machine.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(target, options=options) as channel:
        return call(etcdrpc.KVStub(channel))


def _end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _json(value: bytes) -> Any:
    with suppress(ValueError):
        return json.loads(value)
    return value.decode()


def _level(line: str) -> str | None:
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(line)["level"])
    return None


@contextmanager
def _ended(process: Background) -> Iterator[None]:
    """In the end it has ended."""
    try:
        yield
    finally:
        with suppress(GuestError):  # a guest that was switched off has no processes
            if process.alive():
                process.kill()
                process.wait()


class Host:
    """A guest with an agent on it, which is always started with `options`."""

    def __init__(self, guest: Guest, records: Records, *options: str) -> None:
        self.guest, self.name, self.mdev = guest, guest.name, Mdev(guest)
        self._records, self._options = records, options
        self._agents: list[Background] = []
        self._booted = ""
        self._before: Record | None = None
        self._monitor: Background | None = None

    @property
    def agent(self) -> Background:
        """The agent that was started last."""
        return self._agents[-1]

    def alive(self) -> bool:
        """Whether the agent that was started last still runs; not so after a reboot."""
        try:
            return self._here() != [] and self.agent.alive()
        except GuestError:
            return False

    def begin(self) -> None:
        """Start its agent; returns when it is enrolled and its parents are known."""
        self.start()
        self.wait_enrolled()

    def start(self, *, cut_off: bool = False) -> None:
        """Start its agent and return at once; `cut_off`, it will not reach etcd."""
        self._before = None if cut_off else self._records.session(self.name)
        options = ("--cluster", self._records.cluster, "--session-ttl", SESSION_TTL)
        self._agents = self._here()
        self._booted = self.guest.boot_id
        self._agents.append(self.guest.start_agent(*options, *self._options))

    def wait_enrolled(self) -> None:
        """Wait until the agent that was started last is enrolled and its parents are known."""
        wait_for(
            lambda: self._enrolled() or not self.agent.alive(),
            what=f"the agent of {self.name} to enrol",
            timeout=DEADLINE,
        )
        assert self.agent.alive(), self.log()

    def _here(self) -> list[Background]:
        """Its agents since the guest was booted: pids and logs of before mean nothing now."""
        return self._agents if self._booted == self.guest.boot_id else []

    def _enrolled(self) -> bool:
        if self._records.session(self.name) in (None, self._before):
            return False
        return sorted(self._records.parents(self.name)) == self.mdev.parents()

    def kill(self, *, workers: bool = False) -> None:
        """SIGKILL its agent, and (with `workers`) what writes to the kernel for it."""
        self.agent.kill(signal.SIGKILL)
        assert self.agent.wait() == -signal.SIGKILL
        for pid in self.workers() if workers else ():
            with suppress(ProcessLookupError):  # without an agent an idle one ends by itself
                self.guest.kill(pid)

    def workers(self) -> list[int]:
        """The processes that write to the kernel, or wait for orders to."""
        return [int(pid) for pid in self.guest.run("pgrep", "-f", "agent.worker").stdout.split()]

    def in_flight(self) -> list[str]:
        """The names with a write under way, by the kernel's own table of locks."""
        script = f"cat /proc/locks; stat -c 'file %Hd %Ld %i %n' {_RUN_DIR}/names/*"
        lines = self.guest.run("sh", "-c", script).stdout.splitlines()
        locked = {line.split()[5] for line in lines if "OFDLCK" in line}
        files = [line.split()[1:] for line in lines if line.startswith("file ")]
        return sorted(
            path.rpartition("/")[2]
            for major, minor, inode, path in files
            if f"{int(major):02x}:{int(minor):02x}:{inode}" in locked
        )

    def listen(self) -> None:
        """Take down the kernel's events from here on."""
        monitor = self._monitor = self.guest.spawn(
            "udevadm", "monitor", "--kernel", "--subsystem-match=mdev"
        )
        wait_for(lambda: "KERNEL - " in monitor.output(), what="udevadm to listen")

    def events(self, name: str) -> list[str]:
        """What the kernel said of the device of this name: add, bind, unbind, remove."""
        assert self._monitor is not None
        found = _EVENT.findall(self._monitor.output())
        return [action for action, device in found if device == name]

    def devices(self) -> dict[str, tuple[str, str]]:
        """Parent and type of each device on the bus, by name; the type is empty before it has one.

        Its create has not returned then.
        """
        answer = self.guest.run("sh", "-c", _LIST_DEVICES).stdout
        found = (line.split(" ") for line in answer.splitlines())
        return {
            device.split("/")[-1]: (device.split("/")[-2], kind.rpartition("/")[2])
            for device, kind in found
        }

    @contextmanager
    def held(self, name: str) -> Iterator[Background]:
        """Inside, a virtual machine has the device, until it is killed."""
        holder = self.guest.hold(name)
        with _ended(holder):
            yield holder

    @contextmanager
    def orders_held(self) -> Iterator[Background]:
        """Inside, until it is killed, workers wait at the gate with what they are ordered to write.

        The gate is the lock of the generation, which one who enrols takes too.
        """
        holder = self.guest.spawn("python3", "-c", _HOLD_ORDERS, f"{_RUN_DIR}/generation")
        with _ended(holder):
            wait_for(lambda: "held" in holder.output(), what="the generation's lock")
            yield holder

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Inside, the kernel drops each event that it has for the agent."""
        self._ears("deafen")
        try:
            yield
        finally:
            self._ears("restore")

    def _ears(self, what: str) -> None:
        self.guest.run("python3", "-", str(self.agent.pid), what, stdin=_EARS, check=True)

    def left(self) -> dict[str, Any]:
        """What is on the host and in its part of etcd; empty values when that is nothing."""
        return {
            "devices": self.mdev.devices(),
            "claims": self._records.claims(self.name),
            "in flight": self.in_flight(),
        }

    def complaints(self) -> list[str]:
        """What its agents since the last boot printed that is no log line, or is an error's."""
        lines = [line for agent in self._here() for line in agent.output().splitlines()]
        return [line for line in lines if _level(line) not in ("info", "warning")]

    def log(self) -> str:
        """All that its agents said."""
        with suppress(GuestError, OSError):
            return "---\n".join(agent.output() for agent in self._here())
        return "(the guest does not answer)"
