"""The configuration: a TOML file, then MDEVNS_* in the environment, then the flags.

A key that is not known is an error wherever it stands, so that a misspelt one is not missed.
Every value remembers where it comes from: errors name the line, `doctor` shows it.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from coordinator.credentials import Credentials
from coordinator.endpoints import parse_endpoints
from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["AgentTable", "Configuration", "Settings", "load"]

DEFAULT_FILE = Path("/etc/mdevns/mdevns.toml")

_TIMEOUT = 10.0  # seconds

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1, le=1024)]
# etcd grants no lease under two seconds (measured).
LeaseSeconds = Annotated[int, Meta(ge=2, le=86400)]


class AgentTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[agent]`, and MDEVNS_AGENT_*: how this machine's agent runs. Times in seconds."""

    host: str | None = None
    bus: str = "sysfs"
    session_ttl: LeaseSeconds = 10
    rescan: Seconds = 2.0
    resync: Seconds = 300.0
    per_parent: Count = 4
    run_dir: str | None = None
    state_dir: str | None = None
    metrics: str = "off"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is configured."""

    endpoints: str | list[str] = "http://127.0.0.1:2379"
    cluster: str = "default"
    timeout: Seconds | None = None
    # What has no option says here, for the manual, what it is.
    cacert: Annotated[
        str | None,
        Meta(description="Who signed etcd's certificates, in PEM; else whom the system trusts."),
    ] = None
    cert: Annotated[str | None, Meta(description="What etcd is shown of us, in PEM.")] = None
    key: Annotated[
        str | None,
        Meta(description="The key of cert, in PEM; a file that only its owner may read."),
    ] = None
    user: Annotated[
        str | None, Meta(description="etcd's user, where no certificate names one.")
    ] = None
    password_file: Annotated[
        str | None,
        Meta(
            description="The password of user, on one line of a file that only its owner may read."
        ),
    ] = None
    agent: AgentTable = AgentTable()

    @property
    def urls(self) -> list[str]:
        """The endpoints."""
        return [self.endpoints] if isinstance(self.endpoints, str) else self.endpoints

    @property
    def patience(self) -> float:
        """How many seconds a command waits for the store."""
        return _TIMEOUT if self.timeout is None else self.timeout

    @property
    def agent_patience(self) -> float:
        """How many seconds an agent does: never beyond the lease that it is to keep alive."""
        return min(_TIMEOUT, self.agent.session_ttl) if self.timeout is None else self.timeout

    @property
    def credentials(self) -> Credentials:
        """What etcd is shown, and by what it is known."""
        return Credentials(
            cacert=_path(self.cacert),
            cert=_path(self.cert),
            key=_path(self.key),
            user=self.user,
            password_file=_path(self.password_file),
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


class Configuration(NamedTuple):
    """What is in force, and where each key that was set was set; `agent.host` is a key."""

    settings: Settings
    origins: dict[str, str]

    def check(self) -> None:
        """See that the store can be reached with it, and safely.

        Raises:
            Misconfigured: it cannot; with the place where it is set.
        """
        settings = self.settings
        self._checked(
            "endpoints", lambda: settings.credentials.check(parse_endpoints(settings.urls))
        )

    def check_words(self) -> None:
        """See that what is set for the store fits together.

        Certificates and a password are not read here: whoever replaces them may be at it, and
        an agent waits until they can be used.

        Raises:
            Misconfigured: it does not.
        """
        settings = self.settings
        self._checked(
            "endpoints", lambda: settings.credentials.check_words(parse_endpoints(settings.urls))
        )

    def check_agent(self) -> None:
        """See that an agent can run with what is set for it, and safely.

        Raises:
            Misconfigured: a call to the store could last beyond the session's lease, so that it
                would lapse while the agent waits; or metrics are to be served to the network.
        """
        lease = self.settings.agent.session_ttl
        if self.settings.agent_patience > lease:
            raise Misconfigured(
                self._place("timeout"),
                f"{self.settings.agent_patience:g} s is beyond the session's lease of {lease} s",
                "make it shorter, or agent.session_ttl longer",
            )
        from agent.exposition import parse_address  # noqa: PLC0415 - slow to load, and only agents need it

        self._checked("agent.metrics", lambda: parse_address(self.settings.agent.metrics))

    def _checked(self, otherwise: str, check: Callable[[], object]) -> None:
        try:
            check()
        except Misconfigured as error:
            place = self.origins.get(error.setting or otherwise)
            what = f"{place}, {error.what}" if place else error.what
            raise Misconfigured(what, error.why, error.hint) from None

    def _place(self, key: str) -> str:
        return f"{self.origins.get(key, 'default')}, {key}"


def load(
    file: str | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Configuration:
    """The settings of the three sources; the later ones win, key by key.

    `flags` are the ones that were given, shaped as the file is.

    Raises:
        Misconfigured: a source cannot be read, or has a key or value that cannot be.
    """
    merged: dict[str, Any] = {"agent": {}}
    origins: dict[str, str] = {}
    for source in (
        _File(file or environment.get("MDEVNS_CONFIG")),
        _Environment(environment),
        _Flags(flags),
    ):
        _convert(source)
        agent = merged["agent"] | source.found.get("agent", {})
        merged |= {**source.found, "agent": agent}
        origins |= {key: source.place(key) for key in _keys(source.found)}
    return Configuration(msgspec.convert(merged, Settings, strict=False), origins)


def _keys(found: Mapping[str, Any]) -> Iterator[str]:
    """All keys that are set, those of `[agent]` as `agent.host`."""
    for key, value in found.items():
        if key == "agent" and isinstance(value, dict):
            yield from (f"agent.{inner}" for inner in value)
        else:
            yield key


class _Source(Protocol):
    """Where settings are set."""

    found: dict[str, Any]

    def place(self, key: str) -> str:
        """Where in it a key is set, for an error."""


def _convert(source: _Source) -> None:
    """See that a source has known keys and possible values.

    Raises:
        Misconfigured: it has not.
    """
    try:
        msgspec.convert(source.found, Settings, strict=False)
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        unknown = re.search(r"unknown field `(.*)`", why)
        if unknown is None:
            raise Misconfigured(f"{source.place(key)}, {key}", why, _HELP) from None
        whole = f"{key}.{unknown[1]}" if key else unknown[1]
        hint = _meant(unknown[1], AgentTable if key else Settings)
        raise Misconfigured(f"{source.place(whole)}, {whole}", "no such key", hint) from None


_HELP = "see: mdevns --help"


def _meant(unknown: str, table: type[msgspec.Struct]) -> str:
    near = get_close_matches(unknown, table.__struct_fields__, 1)
    return f"is it {near[0]}?" if near else _HELP


class _File:
    """A file in TOML; the default one need not be there."""

    def __init__(self, file: str | None) -> None:
        self._path = Path(file) if file else DEFAULT_FILE
        self._text = self._read(needed=file is not None)
        self.found: dict[str, Any] = {}
        if self._text:
            self._parse()

    def _parse(self) -> None:
        import tomllib  # noqa: PLC0415 - slow to load, and most machines have no such file

        try:
            self.found = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:  # it names line and column
            raise Misconfigured(f"configuration {self._path}", str(error)) from None
        except RecursionError:
            raise Misconfigured(f"configuration {self._path}", "nested too deeply") from None

    def _read(self, *, needed: bool) -> str:
        what = f"configuration {self._path}"
        try:
            return self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if not needed:
                return ""
            raise Misconfigured(what, "no such file") from None
        except OSError as error:
            raise Misconfigured(what, str(error.strerror)) from None
        except ValueError as error:  # not UTF-8
            raise Misconfigured(what, str(error)) from None

    def place(self, key: str) -> str:
        """The file and the line."""
        return f"configuration {self._path}, line {self._line(key)}"

    def _line(self, key: str) -> int:
        """Where the statement that sets a key begins.

        A parser of TOML does not tell. The first lines up to one that are TOML and have the
        key end with its statement, which begins after those up to one before that are TOML.
        """
        import tomllib  # noqa: PLC0415 - as above

        lines, before = self._text.splitlines(keepends=True), 0
        for count in range(1, len(lines) + 1):
            try:
                found = tomllib.loads("".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if key in _keys(found) or key in found:
                return before + 1
            before = count
        return 1


class _Environment:
    """The variables whose names begin with MDEVNS_."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.found: dict[str, Any] = {}
        for variable, value in environment.items():
            if not variable.startswith("MDEVNS_") or _NOT_OURS.fullmatch(variable):
                continue
            name = variable.removeprefix("MDEVNS_").lower()
            if name == "agent":  # a table, which has no value of its own
                raise Misconfigured(f"environment {variable}", "no such key", _HELP)
            if name.startswith("agent_"):
                self.found.setdefault("agent", {})[name.removeprefix("agent_")] = value
            else:
                self.found[name] = value

    def place(self, key: str) -> str:
        """The variable."""
        return f"environment MDEVNS_{key.upper().replace('.', '_')}"


# What is not a setting, or is set by others in our name: the tests, and Kubernetes for a
# Service that is called mdevns or mdevns-… (kubernetes.io: Service, environment variables).
_NOT_OURS = re.compile(
    r"MDEVNS_CONFIG|MDEVNS_TEST_.*|MDEVNS_(.*_)?(SERVICE_(HOST|PORT).*|PORT(_\d+_.*)?)"
)


class _Flags:
    """The options of the command line."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self.found = dict(flags)

    def place(self, key: str) -> str:
        """The option."""
        return f"option --{key.removeprefix('agent.').replace('_', '-')}"
