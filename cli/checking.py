"""`check`: is the namespace consistent?"""

# No `from __future__ import annotations`: Typer reads the annotations.

from cli.context import Call, command
from cli.options import Format
from cli.output import Output, View
from coordinator.check import Finding, Report
from coordinator.check import check as examine

__all__ = ["check"]

_NOT_OK = 20


@command
def check(call: Call) -> int:
    """Check that names, claims and devices agree.

    Exits with 20 when they do not. Foreign and adopted devices are told, and are no fault.
    """
    report = call.run(lambda client: examine(client.store, client.keys))
    if call.out.is_object:
        call.out.answer(_json(report))
    else:
        _tell(call.out, report)
    return 0 if report.ok else _NOT_OK


def _tell(out: Output, report: Report) -> None:
    if report.findings:
        out.many(_FINDINGS, report.findings)
    if out.form is not Format.NAME:
        verdict = "consistent" if report.ok else "NOT consistent"
        out.write(f"{report.names} names, {report.claims} claims: {verdict}\n")


def _row(finding: Finding) -> tuple[object, ...]:
    weight = "fault" if finding.fault else "note"
    return (weight, finding.kind, finding.name, finding.host, finding.detail)


def _json(report: Report) -> dict[str, object]:
    return {
        "ok": report.ok,
        "names": report.names,
        "claims": report.claims,
        "findings": [_finding_json(one) for one in report.findings],
    }


def _finding_json(one: Finding) -> dict[str, str | None]:
    return {"kind": one.kind, "name": one.name, "host": one.host, "detail": one.detail}


_FINDINGS: View[Finding] = View(
    columns=("WEIGHT", "KIND", "NAME", "HOST", "DETAIL"),
    rows=lambda finding: [_row(finding)],
    json=_finding_json,
    name=lambda finding: finding.name or finding.host or "-",
)
