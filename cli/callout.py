#!/usr/bin/python3 -IS
"""mdevctl's callout: what mdevctl is about to do and has done, said to this host's agent.

Put where mdevctl looks by `mdevns mdevctl install`, beside a notifier, which runs it where mdevctl
may have asked another script instead. All meaning lives in the agent: this carries the question
there and the answer back. It imports nothing of ours and as little else as it can, since every
`mdevctl start` waits for it.

It may go on (exit 0) or it may not (another code, and a line on stderr). Never 2: that is "not
mine" to mdevctl, which then goes on by itself. `pre` and `live`, which ask, end with a refusal
when the agent cannot be asked, and when a signal ends them; a signal that cannot be caught makes
mdevctl go on, and so the agent watches the kernel, too. `post` and `notify` tell the agent that
there is something to look at, and refuse nothing.

mdevctl asks no script after one that has answered, so this one asks the others: with the same
arguments and the same standard input, in mdevctl's order, until one does not end with 2.

Runs on Python 3.9 and later, whichever the host has.
"""

import os
import sys
import time
from _signal import signal  # type: ignore[import-not-found]  # signal, which loads slowly, wraps it
from _socket import AF_UNIX, SOCK_STREAM, socket

SOCKET = "/run/mdevns/agent.sock"
MDEVCTL = os.getppid()  # for as long as it lives the agent leaves the device to it

ANSWERED_IN = 30.0  # seconds for the whole of a question
BOOTED_IN = 120.0  # seconds for one while the host boots; udev ends what takes 180
THERE_IN = 10.0  # seconds for the agent's socket to be there, since the agent may be restarting
BOOTING = 600.0  # seconds after a boot in which the agent may be still to come
TOLD_IN = 10.0  # seconds for what cannot be refused; the agent may look at the kernel first
PAUSE = 0.1  # seconds between two looks for the socket

# From libc's signal.h, as the module of that name loads slowly: what ends a process that does
# not catch it, and can be caught. Not PIPE and XFSZ, which Python ignores.
ENDING = (1, 2, 3, 10, 12, 14, 15, 16, 24, 26, 27, 29, 30)
IGNORED = (13, 25)

OWN_NAME = "00-mdevns"
_USR = "/usr/lib/mdevctl/scripts.d/callouts"
_ETC = "/etc/mdevctl.d/scripts.d/callouts"
_MOVED = "/etc/mdevctl.d/scripts.d/callouts-of-mdevns"
NOT_MINE = 2
ACTIONS = ["start", "stop", "define", "undefine", "modify", "attributes", "capabilities"]
EVENTS = ["pre", "post", "notify", "get"]


class Refused(Exception):
    """The agent said no; its line."""


class Unasked(Exception):
    """The agent was not asked: it has heard nothing of this."""


class Unanswered(Exception):
    """The agent may have been asked, and what it made of it is not known."""


class Stopped(BaseException):
    """A signal came that would have ended this process."""


def main(arguments: list[str]) -> int:
    """Answer mdevctl; the exit code."""
    for number in ENDING:
        signal(number, stopped)
    given = dict(zip(arguments[::2], arguments[1::2]))  # noqa: B905 - Python 3.9 has no strict
    definition = drained()
    event, action = given.get("-e", ""), given.get("-a", "")
    if event == "get":
        if action == "capabilities":
            return told_capabilities(arguments, definition)
        return passed_on(arguments, definition)
    if event in ("post", "notify"):
        tell(given, definition)
        # Each notifier is called by mdevctl itself.
        return passed_on(arguments, definition) if event == "post" else 0
    return asked(arguments, given, definition)


def stopped(number: int, _: object) -> None:
    """End by a refusal instead of by the signal, which mdevctl would take for leave to go on."""
    raise Stopped(str(number))


def asked(arguments: list[str], given: dict[str, str], definition: bytes) -> int:
    """May mdevctl go on? First the agent is asked, then the vendor's script."""
    name = given.get("-u", "-")
    try:
        ask(given, definition)
        code = passed_on(arguments, definition)
        if code == 0:
            return 0
    except Refused as error:
        say(str(error))
        return 1
    except Unasked as error:
        why = f"the agent of this host does not answer: {error}; nothing was done"
        say(f"EHOSTDOWN: {name}: {why}; see: systemctl status mdevns-agent")
        return 1
    except Unanswered as error:
        why = f"the agent of this host was asked and has not answered: {error}"
        say(f"ETIMEDOUT: {name}: {why}; mdevctl did nothing; see: mdevns show {name}")
        code = 1
    except Stopped as error:
        say(f"EINTR: {name}: ended by signal {error}; mdevctl did nothing")
        code = 1
    # What the agent has prepared need not wait.
    tell({**given, "-e": "post", "-s": "failure"}, definition)
    return code


# The agent.


def ask(given: dict[str, str], definition: bytes) -> None:
    """Return when the agent lets mdevctl go on.

    Raises:
        Refused: it does not.
        Unasked, Unanswered: there is no answer.
    """
    if is_orphan():
        raise Refused(f"ESRCH: {given.get('-u', '-')}: mdevctl has ended; nothing was done")
    now = time.monotonic()
    booting = time.clock_gettime(time.CLOCK_BOOTTIME) < BOOTING
    there = now + (BOOTED_IN if booting else THERE_IN)
    until = now + (BOOTED_IN if booting else ANSWERED_IN)
    status, body = exchange(given, definition, there, until)
    if 200 <= status < 300:
        return
    text = " ".join(body.decode("utf-8", "replace").split())
    if not text.partition(":")[0].isupper():  # no line of the agent's own
        text = f"EIO: {given.get('-u', '-')}: the agent refused it with {status}: {text or '-'}"
    raise Refused(text)


def is_orphan() -> bool:
    """Whether mdevctl has ended: who takes an orphan in never does, and nor would its claim.

    mdevctl leaves its scripts in its own process group, which whoever takes them in is not in.
    """
    try:
        return os.getpgid(MDEVCTL) != os.getpgrp() or MDEVCTL in (0, 1) or os.getppid() != MDEVCTL
    except ProcessLookupError:
        return True


def tell(given: dict[str, str], definition: bytes) -> None:
    """Tell the agent, which looks for itself when this does not reach it."""
    now = time.monotonic()
    try:
        exchange(given, definition, now, now + TOLD_IN)
    except (Unasked, Unanswered) as error:
        say(f"{given.get('-u', '-')}: the agent was not told of it: {error}")


def exchange(
    given: dict[str, str], definition: bytes, there: float, until: float
) -> tuple[int, bytes]:
    """One request and its answer: status and body.

    `there` and `until` are when the socket has to be there and the answer to have come.
    """
    link = connected(there, until)
    try:
        return transfer(link, request_of(given, definition), until)
    finally:
        link.close()


def connected(there: float, until: float) -> socket:
    """A connection to the agent."""
    while True:
        link = socket(AF_UNIX, SOCK_STREAM)
        try:
            link.settimeout(max(PAUSE, until - time.monotonic()))
            link.connect(SOCKET)
            return link
        # It is not there, or has more callers than it takes at a time.
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
            link.close()
            if time.monotonic() >= there:
                raise Unasked(f"{SOCKET}: {error.strerror}") from None
            time.sleep(PAUSE)
        except OSError as error:
            link.close()
            raise Unasked(f"{SOCKET}: {error.strerror or error}") from None


def request_of(given: dict[str, str], definition: bytes) -> bytes:
    """The question; the definition is handed on as it came."""
    words = {
        "event": given.get("-e", ""),
        "action": given.get("-a", ""),
        "state": given.get("-s", "none"),
        "name": given.get("-u", ""),
        "parent": given.get("-p", ""),
        "type": given.get("-t", ""),
    }
    said = "".join(f'"{key}":{quoted(text)},' for key, text in words.items())
    body = f'{{{said}"holder":{MDEVCTL},"definition":'.encode()
    body += (definition.strip() or b"null") + b"}"
    # In HTTP/1.0 the answer comes in one piece and ends the connection.
    head = (
        "POST /v1/mdevctl HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def quoted(text: str) -> str:
    """A text as JSON, without the module, which takes longer to load than all of this to run."""
    if all(char.isalnum() or char in "-_.:/ " for char in text) and text.isascii():
        return f'"{text}"'
    units = text.encode("utf-16-be", "surrogatepass").hex()
    return '"' + "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + '"'


def transfer(link: socket, request: bytes, until: float) -> tuple[int, bytes]:
    """Send it, and read the whole answer."""
    answer = b""
    try:
        link.settimeout(max(PAUSE, until - time.monotonic()))
        link.sendall(request)
        while True:
            link.settimeout(max(PAUSE / 10, until - time.monotonic()))
            piece = link.recv(65536)
            if not piece:
                break
            answer += piece
    except OSError as error:
        raise Unanswered(error.strerror or str(error)) from None
    head, end, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not end or len(words) < 2 or not words[1].isdigit():
        raise Unanswered("the connection ended")
    return int(words[1]), body


# mdevctl and the vendors' scripts.


def drained() -> bytes:
    """All of the standard input, so that whoever writes it is never refused; no terminal's."""
    pieces = []
    try:
        while not os.isatty(0):
            piece = os.read(0, 65536)
            if not piece:
                break
            pieces.append(piece)
    except OSError:  # there is none
        pass
    return b"".join(pieces)


def say(line: str) -> None:
    """One line on stderr, which mdevctl prints."""
    put(2, f"{line}\n".encode("utf-8", "replace"))


def put(descriptor: int, data: bytes) -> None:
    """Write all of it; nothing is left to do when nobody reads it."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        pass


def vendor_scripts() -> list[str]:
    """The other scripts, in the order in which mdevctl would ask them.

    mdevctl 1.2 asks in no order, and so those that were there when this was installed were moved.
    """
    here, root = os.path.dirname(sys.argv[0]), ""  # noqa: PTH120 - pathlib loads slowly
    for known in (_USR, _ETC):
        if here.endswith(known):
            root = here[: -len(known)]
    local = [(name, root + folder) for folder in (_ETC, _MOVED) for name in listed(root + folder)]
    found = [(name, root + _USR) for name in sorted(listed(root + _USR))] + sorted(local)
    return [f"{folder}/{name}" for name, folder in found if name != OWN_NAME]


def listed(folder: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - pathlib loads slowly
    except OSError:
        return []


def passed_on(arguments: list[str], definition: bytes) -> int:
    """The answer of the first vendor's script whose device it is; 0 when there is none.

    But what changes a running device is the vendor's to do, and not done when nobody does it.
    """
    for path in vendor_scripts():
        code, out, err = run(path, arguments, definition)
        if code >= 0 and code != NOT_MINE:
            put(1, out)
            put(2, err)
            return code
    if "live" in arguments:
        say("EOPNOTSUPP: mdevctl: no script of a vendor changes this device while it runs")
        return 1
    return 0


def told_capabilities(arguments: list[str], definition: bytes) -> int:
    """Say what mdevctl may ask: what the agent wants to hear, and what the vendor's script does.

    Whatever is not listed makes mdevctl fail, whatever is listed comes here.
    """
    actions, events, version = list(ACTIONS), list(EVENTS), 1
    for path in vendor_scripts():
        code, out, _ = run(path, arguments, definition)
        supports = supported(out) if code >= 0 and code != NOT_MINE else []
        for listed_version, listed_actions, listed_events in supports:
            version = max(version, listed_version)
            actions += [word for word in listed_actions if word not in actions]
            events += [word for word in listed_events if word not in events]
        if supports:
            break
    words = [",".join(map(quoted, each)) for each in (actions, events)]
    answer = f'"version":{version},"actions":[{words[0]}],"events":[{words[1]}]'
    put(1, f'{{"supports":{{{answer}}}}}\n'.encode())
    return 0


def supported(out: bytes) -> list[tuple[int, list[str], list[str]]]:
    """Version, actions and events that a vendor's script lists; nothing when it lists none."""
    if not out.strip(b"\0 \n"):
        return []
    from json import loads  # noqa: PLC0415 - slow to load, and most hosts have no such script

    try:
        found = loads(out.strip(b"\0 \n"))["supports"]
        actions, events = (list(map(str, found[key])) for key in ("actions", "events"))
        return [(int(found["version"]), actions, events)]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []


def run(path: str, arguments: list[str], definition: bytes) -> tuple[int, bytes, bytes]:
    """Run a script to its end, however long it takes: its code, and what it printed.

    The code is negative when a signal ended it or it cannot be run; mdevctl then asks the next.
    """
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    put(files[0], definition)
    os.lseek(files[0], 0, 0)
    actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
    child = 0
    try:
        child = os.posix_spawn(
            path, [path, *arguments], os.environ, file_actions=actions, setsigdef=IGNORED
        )
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), printed(files[1]), printed(files[2])
    except OSError:
        return -1, b"", b""
    except Stopped:
        if child:
            os.kill(child, 15)
        raise
    finally:
        for file in files:
            os.close(file)


def printed(file: int) -> bytes:
    """All that was written to it."""
    return os.pread(file, os.fstat(file).st_size, 0)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except Stopped as error:
        say(f"EINTR: ended by signal {error}")
        code = 1
    # All is written, and Python's own end takes as long as the agent's answer.
    os._exit(code)
