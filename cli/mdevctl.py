"""`mdevctl`: what makes mdevctl's users claim and release names as everybody does."""

# No `from __future__ import annotations`: Typer reads the annotations.

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.places import directories
from cli.context import Call, command
from cli.options import Format
from cli.output import View
from cli.scripts import Scripts
from coordinator.fitness import Finding, Level

__all__ = ["app"]

_NOT_IN_PLACE = 20
_SOCKET = "agent.sock"  # agent.local.serving, which loads slowly, calls it so

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Have mdevctl ask this host's agent before it does something.",
)

_Root = Annotated[Path, typer.Option(metavar="DIR", help="Where the host's file system begins.")]
_ROOT = Path("/")


@app.callback()
def _group() -> None:
    """Have mdevctl ask this host's agent before it does something."""


@app.command()
@command
def install(call: Call, *, root: _Root = _ROOT) -> int:
    """Put the callout and the notifier where mdevctl looks first.

    From then on mdevctl's define, start, stop, undefine and modify claim and release names
    through this host's agent, and fail while it does not answer. The vendors' scripts are still
    asked; mdevctl 1.2 asks in no order, so those are put aside and ours asks them. Says what it
    did, then what is not as it should be (exit 20). Run it again after an upgrade of mdevctl or
    mdevns.
    """
    scripts = _scripts(call, root)
    return _done(call, scripts.install, lambda: list(scripts.findings()))


@app.command()
@command
def uninstall(call: Call, *, root: _Root = _ROOT) -> int:
    """Take both away, and put the vendors' scripts back where they were."""
    return _done(call, _scripts(call, root).uninstall, list)


@app.command()
@command
def status(call: Call, *, root: _Root = _ROOT) -> int:
    """Say whether mdevctl asks the agent, and what is not as it should be.

    Exits with 20 when something is not; a note is no fault.
    """
    scripts = _scripts(call, root)
    findings = list(scripts.findings())
    sound = _is_sound(findings)
    if call.out.is_object:
        call.out.answer(_json(scripts, findings))
    else:
        if call.out.form is not Format.NAME:
            call.out.many(_FACTS, _facts(scripts).items())
        _tell(call, findings)
        if call.out.form is not Format.NAME:
            call.out.write("in place\n" if sound else "NOT in place\n")
    return 0 if sound else _NOT_IN_PLACE


def _scripts(call: Call, root: Path) -> Scripts:
    table = call.configured({}).settings.agent
    run_dir = directories(table.bus, table.run_dir, table.state_dir).run
    return Scripts(root.absolute(), run_dir.absolute() / _SOCKET)


def _done(call: Call, act: Callable[[], Iterable[str]], look: Callable[[], list[Finding]]) -> int:
    """Do it, tell what was done as it is done, and what is left to be done."""
    for line in act():
        call.out.warn(line)
    findings = look()
    _tell(call, [one for one in findings if one.level is not Level.NOTE])
    return 0 if _is_sound(findings) else _NOT_IN_PLACE


def _is_sound(findings: list[Finding]) -> bool:
    return all(one.level is Level.NOTE for one in findings)


def _tell(call: Call, findings: list[Finding]) -> None:
    if findings:
        call.out.many(_FINDINGS, findings)


def _facts(scripts: Scripts) -> dict[str, object]:
    return {
        "mdevctl": str(scripts.program),
        "version": scripts.version,
        "callout": _text(scripts.callout),
        "notifier": _text(scripts.notifier),
        "first": scripts.is_first,
        "socket": str(scripts.socket),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _json(scripts: Scripts, findings: list[Finding]) -> dict[str, Any]:
    return {"ok": _is_sound(findings), **_facts(scripts), "findings": [*map(asdict, findings)]}


def _shown(value: object) -> object:
    return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value


_FACTS: View[tuple[str, object]] = View(
    columns=(),
    rows=lambda one: [(one[0], _shown(one[1]))],
    json=lambda one: {one[0]: one[1]},
    name=lambda one: one[0],
)

_FINDINGS: View[Finding] = View(
    columns=("LEVEL", "KIND", "SUBJECT", "DETAIL"),
    rows=lambda one: [(one.level, one.kind, one.subject, one.detail)],
    json=asdict,
    name=lambda one: one.subject,
)
