"""`doctor`: are etcd, configuration, versions, certificates and this host fit?"""

# No `from __future__ import annotations`: Typer reads the annotations.

import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from agent.fitness import has_parents, host_findings
from agent.places import Directories, directories
from cli.context import Call, command
from cli.options import Format
from cli.output import View
from cli.settings import Configuration
from coordinator import __version__
from coordinator.client import Client
from coordinator.errors import MdevnsError, Misconfigured, NotAllowed
from coordinator.fitness import (
    Finding,
    Level,
    ServerReport,
    Survey,
    certificate_findings,
    store_findings,
)
from coordinator.store import get
from coordinator.views import HostView

__all__ = ["doctor"]

_NOT_FIT = 20


@dataclass(frozen=True)
class _Setting:
    """A key of the configuration, its value and where that comes from."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True)
class _Examined:
    """All that was looked at."""

    settings: list[_Setting]
    survey: Survey
    findings: list[Finding]

    @property
    def fit(self) -> bool:
        """Nothing was found but notes."""
        return all(finding.level is Level.NOTE for finding in self.findings)


@command
def doctor(call: Call) -> int:
    """Look whether etcd, configuration and this host are fit.

    Shows what is configured and where it comes from; looks at every etcd server, its version,
    space and certificate, and at this machine if it has parents or an agent is configured.
    Exits with 20 when something is not fit; a note is no fault.
    """
    configuration = call.configured({})
    survey, findings = Survey(()), list(_examine_configuration(configuration))
    if not any(finding.kind == "configuration" for finding in findings):
        host = _host(configuration)
        survey, found = call.run(lambda client: _examine_store(client, host))
        findings += found
    findings += _examine_host(configuration)
    examined = _Examined(list(_settings(configuration)), survey, findings)
    if call.out.is_object:
        call.out.answer(_json(examined))
    else:
        _tell(call, examined)
    return 0 if examined.fit else _NOT_FIT


# What is looked at.


def _settings(configuration: Configuration) -> Iterator[_Setting]:
    """Every key with its value in force."""
    settings, agent = configuration.settings, configuration.settings.agent
    computed: dict[str, object] = {
        "timeout": settings.patience,
        "agent.host": _host(configuration),
        "agent.run_dir": str(_directories(configuration).run),
        "agent.state_dir": str(_directories(configuration).state),
    }
    for table, prefix in ((settings, ""), (agent, "agent.")):
        for name in table.__struct_fields__:
            key = prefix + name
            if key != "agent":
                value = computed.get(key, getattr(table, name))
                yield _Setting(key, value, configuration.origins.get(key, "default"))


def _host(configuration: Configuration) -> str:
    return configuration.settings.agent.host or socket.gethostname()


def _directories(configuration: Configuration) -> Directories:
    table = configuration.settings.agent
    return directories(table.bus, table.run_dir, table.state_dir)


def _examine_configuration(configuration: Configuration) -> Iterator[Finding]:
    sound = True
    for check in (configuration.check, configuration.check_agent):
        try:
            check()
        except Misconfigured as error:
            sound = False
            yield Finding(Level.FAULT, "configuration", error.what, error.why)
    cert = configuration.settings.credentials.cert
    if sound and cert is not None:  # what is not sound may not be a certificate
        yield from _certificate(f"cert {cert}", cert.read_bytes())


def _certificate(subject: str, certificate: bytes) -> Iterator[Finding]:
    from cryptography import x509  # noqa: PLC0415 - slow to load, and only certificates need it

    pem = certificate.startswith(b"-----")
    load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
    until = load(certificate).not_valid_after_utc
    yield from certificate_findings(subject, until, datetime.now(UTC))


async def _examine_store(client: Client, host: str) -> tuple[Survey, list[Finding]]:
    from coordinator.etcd import EtcdStore  # noqa: PLC0415 - slow to load; --help does without

    store = client.store
    assert isinstance(store, EtcdStore)
    survey = await store.survey()
    findings = list(store_findings(survey))
    for server in survey.servers:
        if server.certificate is not None:
            findings += _certificate(f"etcd at {server.endpoint}", server.certificate)
    if any(server.why is None for server in survey.servers):
        findings += await _examine_namespace(client, host)
    return survey, findings


async def _examine_namespace(client: Client, host: str) -> list[Finding]:
    """What is wrong with the cluster's own records, and whether they may be read."""
    try:
        refusal = client.claims.no_hold().refusal(await client.views.hold())
        hosts, found = await _hosts(client, host)
    except MdevnsError as error:
        return [Finding(Level.FAULT, "namespace", error.what, error.why)]
    if refusal is not None:
        why = f"{refusal.why}; {refusal.hint}"
        found.append(Finding(Level.WARNING, "hold", "namespace", why))
    for each in hosts:
        if each.session is None:
            found.append(Finding(Level.NOTE, "unreachable", each.host, "its agent is not seen"))
        elif each.session.version != __version__:
            why = f"its agent is {each.session.version}, this is {__version__}"
            found.append(Finding(Level.NOTE, "version", each.host, why))
    return found


async def _hosts(client: Client, host: str) -> tuple[list[HostView], list[Finding]]:
    """All hosts; none, with a note, for whoever may read only the records of `host`."""
    try:
        return await client.views.host_views(), []
    except NotAllowed:
        await client.store.range(get(client.keys.epoch(host)))
        why = "only its own records may be read with its certificate; others were not looked at"
        return [], [Finding(Level.NOTE, "namespace", host, why)]


def _examine_host(configuration: Configuration) -> Iterator[Finding]:
    table = configuration.settings.agent
    meant = any(key.startswith("agent.") for key in configuration.origins)
    if meant or has_parents(table.bus):
        yield from host_findings(table.bus, _directories(configuration), _host(configuration))


# How it is told.


def _tell(call: Call, examined: _Examined) -> None:
    out = call.out
    if out.form is not Format.NAME:
        out.many(_SETTINGS, examined.settings)
        out.write("\n")
        if examined.survey.servers:
            out.many(_SERVERS, examined.survey.servers)
            out.write("\n")
    if examined.findings:
        out.many(_FINDINGS, examined.findings)
    if out.form is not Format.NAME:
        out.write("fit\n" if examined.fit else "NOT fit\n")


def _json(examined: _Examined) -> dict[str, Any]:
    return {
        "ok": examined.fit,
        "settings": [asdict(setting) for setting in examined.settings],
        "servers": [_server_json(server) for server in examined.survey.servers],
        "findings": [asdict(finding) for finding in examined.findings],
    }


def _server_json(server: ServerReport) -> dict[str, object]:
    return {
        "endpoint": server.endpoint,
        "error": server.why,
        "version": server.version,
        "cluster": f"{server.cluster:x}" if server.why is None else None,
        "leader": None if server.leader is None else server.member == server.leader,
        "bytes": server.size,
    }


def _shown(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value


_SETTINGS: View[_Setting] = View(
    columns=("SETTING", "VALUE", "FROM"),
    rows=lambda one: [(one.key, _shown(one.value), one.origin)],
    json=asdict,
    name=lambda one: one.key,
)

_SERVERS: View[ServerReport] = View(
    columns=("ENDPOINT", "VERSION", "ROLE", "MIB"),
    rows=lambda one: [
        (
            one.endpoint,
            one.version,
            _role(one),
            None if one.size is None else f"{one.size / 2**20:.1f}",
        )
    ],
    json=_server_json,
    name=lambda one: one.endpoint,
)


def _role(server: ServerReport) -> str | None:
    if server.why is not None:
        return "unreachable"
    if server.leader is None:
        return None
    return "leader" if server.member == server.leader else "follower"


_FINDINGS: View[Finding] = View(
    columns=("LEVEL", "KIND", "SUBJECT", "DETAIL"),
    rows=lambda one: [(one.level, one.kind, one.subject, one.detail)],
    json=asdict,
    name=lambda one: one.subject,
)
