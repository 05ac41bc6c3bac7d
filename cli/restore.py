"""Around a restore of etcd from a snapshot: `restore begin`, `restore finish`."""

# No `from __future__ import annotations`: Typer reads the annotations.

from typing import Annotated, Any

import typer

from cli.asking import bounded
from cli.context import Call, command
from cli.failures import report
from cli.options import Format
from coordinator import finishing, restoring
from coordinator.finishing import Finished
from coordinator.model import RestoreValue

__all__ = ["app"]

_MOST = 86400  # seconds that anybody waits

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Hold the namespace while a restored etcd is reconciled, and let it go.",
)


@app.callback()
def _group() -> None:
    """Hold the namespace while a restored etcd is reconciled, and let it go."""


@app.command("begin")
@command
def begin(call: Call) -> None:
    """Hold the namespace: agents note what exists, and nothing is taken, begun or freed.

    To be done when etcd was restored from a snapshot or is empty, before agents and operators
    may connect. An agent that meets an etcd that was set back does the same. Where a restore is
    under way already it begins anew, and all hosts tell again: its hold may be the snapshot's.
    """
    begun = call.run(restoring.begin)
    if call.out.is_object:
        before = None if begun.before is None else begun.before.restore
        call.out.answer({**_json(begun.restore), "instead_of": before})
    elif call.out.form is Format.NAME:
        call.out.write(f"{begun.restore.restore}\n")
    else:
        if begun.before is not None:
            call.out.write(f"begun anew; a restore was under way {_told(begun.before)}\n")
        call.out.write("the namespace is held; when all hosts are back: mdevns restore finish\n")


@app.command("finish")
@command
def finish(
    call: Call,
    *,
    wait: Annotated[
        int, typer.Option(metavar="S", help="Seconds to wait for hosts that are not done.")
    ] = 30,
) -> int:
    """Let the namespace go, when every host has noted what exists.

    Ends with 6 and a line for each host or name that is not done; nothing is let go then, and it
    is to be called again. A claim without a device, of a name of which another host has the
    device, gives way to it; two devices of one name are a conflict: see mdevns check.
    """
    seconds = bounded(wait, "--wait", 0, _MOST)
    finished = call.run(lambda client: finishing.finish(client, wait=seconds))
    if call.out.is_object:
        call.out.answer(_finished_json(finished))
    elif call.out.form is Format.NAME:
        call.out.write("".join(f"{name}\n" for name in finished.yielded))
    elif not finished.left:
        call.out.write(_summary(finished))
    for error in finished.left:
        report(error, call.out.form)
    return finished.left[0].exit_code if finished.left else 0


def _told(restore: RestoreValue) -> str:
    return f"since {restore.at}, by {restore.begun_by} ({restore.why})"


def _summary(finished: Finished) -> str:
    if finished.restore is None:
        return "no restore is under way\n"
    hosts, conflicts = len(finished.hosts), len(finished.conflicts)
    yielded = f"{len(finished.yielded)} claims gave way"
    lines = [f"finished: {hosts} hosts, {yielded}, {conflicts} conflicts"]
    lines += [f"{one.name}: {one.host} has a device of it too" for one in finished.conflicts]
    if finished.conflicts:
        lines.append("see: mdevns check")
    return "\n".join(lines) + "\n"


def _json(restore: RestoreValue | None) -> dict[str, Any]:
    return {
        "restore": restore and restore.restore,
        "since": restore and restore.at,
        "by": restore and restore.begun_by,
        "why": restore and restore.why,
    }


def _finished_json(finished: Finished) -> dict[str, Any]:
    return {
        **_json(finished.restore),
        "finished": not finished.left,
        "hosts": finished.hosts,
        "yielded": finished.yielded,
        "conflicts": [{"name": one.name, "host": one.host} for one in finished.conflicts],
        "left": [{"what": error.what, "why": error.why} for error in finished.left],
    }
