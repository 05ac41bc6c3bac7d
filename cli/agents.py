"""`agent`: one host's agent, in the foreground."""

# No `from __future__ import annotations`: Typer reads the annotations.

import socket
from typing import Annotated

import typer

from cli.context import Call, command

__all__ = ["agent"]


@command
def agent(  # noqa: PLR0913 - an argument for each option
    call: Call,
    *,
    host: Annotated[
        str | None, typer.Option(help="This host's name in the cluster.  [default: its own]")
    ] = None,
    bus: Annotated[
        str | None,
        typer.Option(
            metavar="sysfs|sim:DIR", help="The kernel, or a simulated host.  [default: sysfs]"
        ),
    ] = None,
    session_ttl: Annotated[
        int | None,
        typer.Option(help="Seconds without a sign of life until it is unreachable.  [default: 10]"),
    ] = None,
    rescan: Annotated[
        float | None, typer.Option(help="Look at the bus every so many seconds.  [default: 2]")
    ] = None,
    resync: Annotated[
        float | None, typer.Option(help="List the claims every so many seconds.  [default: 300]")
    ] = None,
    per_parent: Annotated[
        int | None, typer.Option(help="So many writes to a parent at a time.  [default: 4]")
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="For locks and the socket.  [default: /run/mdevns, or DIR/run]"),
    ] = None,
    state_dir: Annotated[
        str | None,
        typer.Option(help="For the journal.  [default: /var/lib/mdevns, or DIR/state]"),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS:PORT|off",
            help="Serve metrics and health on a loopback address.  [default: off]",
        ),
    ] = None,
) -> None:
    """Run one host's agent, in the foreground.

    SIGTERM lets what the kernel is doing finish, and leaves the rest for the next start.
    """
    from agent.daemon import AgentSettings, run  # noqa: PLC0415 - slow to load; --help does without

    flags = {
        "host": host,
        "bus": bus,
        "session_ttl": session_ttl,
        "rescan": rescan,
        "resync": resync,
        "per_parent": per_parent,
        "run_dir": run_dir,
        "state_dir": state_dir,
        "metrics": metrics,
    }
    configuration = call.configured(flags)
    configuration.check_words()
    configuration.check_agent()
    settings, chosen = configuration.settings, configuration.settings.agent
    run(
        AgentSettings(
            host=chosen.host or socket.gethostname(),
            bus=chosen.bus,
            endpoints=settings.urls,
            credentials=settings.credentials,
            cluster=settings.cluster,
            timeout=settings.agent_patience,
            session_ttl=chosen.session_ttl,
            rescan=chosen.rescan,
            resync=chosen.resync,
            per_parent=chosen.per_parent,
            run_dir=chosen.run_dir,
            state_dir=chosen.state_dir,
            metrics=chosen.metrics,
            verbose=call.given.verbose,
        )
    )
