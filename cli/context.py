"""One call of a command: its settings, its output, and its access to the store."""

from __future__ import annotations

import asyncio
import inspect
import os
import pwd
import random
import signal
import socket
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from cli.options import Format, Given, taking_options
from cli.output import Output
from cli.settings import Configuration, Settings, load
from coordinator.client import Client
from coordinator.clock import SystemClock
from coordinator.errors import Interrupted
from coordinator.keys import Keys
from coordinator.model import parse_label

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import typer

__all__ = ["Call", "command"]

P = ParamSpec("P")
T = TypeVar("T")


class Call:
    """What a command is given: how it was called, and what it needs to answer."""

    def __init__(self, path: str, given: Given) -> None:
        self.path, self.given = path, given
        self.out = Output(given.output or Format.TABLE, quiet=given.quiet)
        # Names and ids come from the system's randomness: no two processes draw the same.
        self.rng = random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311 - seeded by the system

    @cached_property
    def settings(self) -> Settings:
        """The configuration; read when it is first needed, for not every command does.

        Raises:
            Misconfigured: it cannot be, or is not safe.
        """
        configuration = self.configured({})
        configuration.check()
        return configuration.settings

    def configured(self, agent: dict[str, Any]) -> Configuration:
        """The configuration, with the flags of an agent; None where one was not given.

        It is read and not yet checked.
        """
        given = self.given
        flags = {
            "endpoints": given.endpoints,
            "cluster": given.cluster,
            "timeout": given.timeout,
            "agent": _present(agent),
        }
        return load(given.config, os.environ, _present(flags))

    def run(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        """Ask the namespace, and let go of the store whatever happens.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, unless `ask` said more about it itself.
        """
        return asyncio.run(self._run(ask))

    async def _run(self, ask: Callable[[Client], Awaitable[T]]) -> T:
        from coordinator.etcd import EtcdStore  # noqa: PLC0415 - gRPC is slow to load; --help and completion do without

        chosen = self.settings
        keys = Keys(parse_label(chosen.cluster, "cluster name"))
        store = EtcdStore(
            chosen.urls,
            timeout=chosen.patience,
            credentials=chosen.credentials,
            probe=keys.hold,
            writable=keys.names,
        )
        client = Client(
            store, keys, SystemClock(), self.rng, patience=chosen.patience, asked_by=_who()
        )
        this = asyncio.current_task()
        assert this is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
        try:
            return await ask(client)
        except asyncio.CancelledError:
            raise Interrupted(self.path, "interrupted", "nothing was changed") from None
        finally:
            await client.close()
            await store.close()


def command(
    function: Callable[Concatenate[Call, P], int | None],
) -> Callable[..., int | None]:
    """A command for Typer: `function` with the global options among its own."""

    def called(context: typer.Context, given: Given, **own: Any) -> int | None:
        before = context.find_root().obj
        merged = given.over(before) if isinstance(before, Given) else given
        return function(Call(context.command_path, merged), **own)  # type: ignore[call-arg]  # Typer passes what its signature says

    called.__name__, called.__doc__ = function.__name__, function.__doc__
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    return taking_options(called, own, hidden=True)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _who() -> str:
    """Who asks, for people who read a claim."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without an entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
