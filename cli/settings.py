"""The configuration: a TOML file, then MDEVNS_* in the environment, then the flags.

A key that is not known is an error wherever it stands, so that a misspelt one is not missed.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from coordinator.credentials import Credentials
from coordinator.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["AgentTable", "Settings", "load"]

DEFAULT_FILE = Path("/etc/mdevns/mdevns.toml")

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class AgentTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[agent]`, and MDEVNS_AGENT_*: how this machine's agent runs. Times in seconds."""

    host: str | None = None
    bus: str = "sysfs"
    session_ttl: Annotated[int, msgspec.Meta(ge=2, le=86400)] = 10
    rescan: Seconds = 2.0
    resync: Seconds = 300.0
    per_parent: Count = 4
    run_dir: str | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is configured."""

    endpoints: str | list[str] = "http://127.0.0.1:2379"
    cluster: str = "default"
    timeout: Seconds = 10.0
    cacert: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    agent: AgentTable = AgentTable()

    @property
    def urls(self) -> list[str]:
        """The endpoints."""
        return [self.endpoints] if isinstance(self.endpoints, str) else self.endpoints

    @property
    def credentials(self) -> Credentials:
        """What etcd is shown, and by what it is known."""
        return Credentials(
            cacert=self.cacert,
            cert=self.cert,
            key=self.key,
            user=self.user,
            password_file=self.password_file,
        )


def load(file: str | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """The settings of the three sources; the later ones win, key by key.

    `flags` are the ones that were given, shaped as the file is.

    Raises:
        Misconfigured: a source cannot be read, or has a key or value that cannot be.
    """
    file = file or environment.get("MDEVNS_CONFIG")
    merged: dict[str, Any] = {}
    for source, found in (
        (f"configuration {file or DEFAULT_FILE}", _from_file(file)),
        ("environment", _from_environment(environment)),
        ("options", flags),
    ):
        _checked(source, found)
        agent = {**merged.get("agent", {}), **found.get("agent", {})}
        merged |= {**found, "agent": agent}
    return _checked("settings", merged)


def _checked(source: str, found: Mapping[str, Any]) -> Settings:
    try:
        return msgspec.convert(found, Settings, strict=False)
    except msgspec.ValidationError as error:
        why, _, where = str(error).partition(" - at `$.")
        what = f"{source}, {where.rstrip('`')}" if where else source
        raise Misconfigured(what, why, "see: mdevns --help") from None


def _from_file(file: str | None) -> dict[str, Any]:
    path = Path(file) if file else DEFAULT_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file is None:
            return {}
        raise Misconfigured(f"configuration {path}", "no such file") from None
    except OSError as error:
        raise Misconfigured(f"configuration {path}", str(error.strerror)) from None
    except ValueError as error:  # TOML's, or not UTF-8
        raise Misconfigured(f"configuration {path}", str(error)) from None


# What others set in our name: the tests, and Kubernetes for a Service that is called mdevns
# or mdevns-… (kubernetes.io: Service, environment variables).
_NOT_OURS = re.compile(r"MDEVNS_TEST_.*|MDEVNS_(.*_)?(SERVICE_(HOST|PORT).*|PORT(_\d+_.*)?)")


_NAMES = frozenset(Settings.__struct_fields__) - {"agent"}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in environment.items():
        if not key.startswith("MDEVNS_") or key == "MDEVNS_CONFIG" or _NOT_OURS.fullmatch(key):
            continue
        name = key.removeprefix("MDEVNS_").lower()
        if name.startswith("agent_"):
            found.setdefault("agent", {})[name.removeprefix("agent_")] = value
        elif name in _NAMES:
            found[name] = value
        else:
            raise Misconfigured(f"environment {key}", "no such setting", "see: mdevns --help")
    return found
