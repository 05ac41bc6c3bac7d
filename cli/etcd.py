"""`etcd run`: the embedded etcd."""

# No `from __future__ import annotations`: Typer reads the annotations.

from pathlib import Path
from typing import Annotated

import typer

from cli.asking import bounded
from cli.context import Call, command
from cli.ending import interruptible, wait_for_end
from coordinator.embedded import NOT_FOR_PRODUCTION, EmbeddedEtcd
from coordinator.errors import Unreachable

__all__ = ["app"]

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="The embedded etcd, for demos and tests."
)


@app.callback()
def _group() -> None:
    """The embedded etcd, for demos and tests."""


@app.command("run")
@command
def run(
    call: Call,
    *,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="D", help="Where its data stay.  [default: nowhere]"),
    ] = None,
    port: Annotated[
        int, typer.Option(metavar="P", help="Its port on 127.0.0.1; 0 is a free one.")
    ] = 2379,
) -> None:
    """Run an etcd in the foreground, until Ctrl-C.

    It is one machine without TLS: not for production.
    """
    wanted = bounded(port, "--port", 0, 65535) or None
    with interruptible():
        try:
            _serve(call, EmbeddedEtcd(directory, port=wanted))
        except KeyboardInterrupt:
            return


def _serve(call: Call, etcd: EmbeddedEtcd) -> None:
    with etcd:
        call.out.warn(NOT_FOR_PRODUCTION)
        call.out.write(f"export MDEVNS_ENDPOINTS={etcd.endpoint}\n")
        call.out.flush()
        wait_for_end(etcd.pid)
        raise Unreachable("etcd", "it ended by itself", f"see its log: {etcd.log}")
