"""One server that is a cluster by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.embedded.home import Home
from coordinator.embedded.process import Server, find_etcd, flags_of, on_free_ports, start_again
from coordinator.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["EmbeddedEtcd"]


class EmbeddedEtcd(Home):
    """One etcd server on loopback, in a context: it answers inside and is gone after.

    `directory` keeps data and log (`etcd.log`) and stays; without one a temporary directory
    goes with the server. `port` is the client port, a free one by default; `extra` are more
    flags for etcd. With `outlive` it goes on after this process, and after the context too.

    The server ends with the *thread* that started it, which Linux takes for its parent: start
    it from one that lives as long (the main thread does).

    Raises `NotFound` where there is no etcd, `NotAllowed` for a directory that cannot be made
    or written, `Unreachable` with the reason out of its log, whose last lines are the
    exception's note, when it does not answer within 30 s.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int | None = None,
        extra: Sequence[str] = (),
        outlive: bool = False,
    ) -> None:
        super().__init__(directory)
        self._port, self._extra, self._outlive = port, extra, outlive
        self._server: Server | None = None
        self._stays = False

    def _open(self) -> None:
        find_etcd()
        self._make_directory()
        on_free_ports(2, self._port, self._start_on)
        self._stays = self._outlive  # not before it answers: what failed to start must go

    def _start_on(self, ports: list[int]) -> None:
        client, peer = ports
        flags = flags_of("default", client, peer, f"default=http://127.0.0.1:{peer}", self._extra)
        self._server = Server(
            flags,
            self.directory,
            client,
            outlive=self._outlive,
            log_stays=self._given is not None,
        )
        self._server.spawn()
        self._server.wait_ready()

    @property
    def _started(self) -> Server:
        if self._server is None:
            raise Unreachable("etcd", "it was not started", "use it as a context")
        return self._server

    @property
    def port(self) -> int:
        """The port that clients talk to; it stays the same over a restart."""
        return self._started.port

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the server that runs now, or ran last."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; it may not answer yet."""
        return self._started.running

    @property
    def log(self) -> Path:
        """Where it logs, all starts one after the other."""
        return self._started.log

    def stop(self) -> None:
        """End it in good order (SIGTERM); data and directory stay."""
        self._started.stop()

    def kill(self) -> None:
        """End it as a loss of power would (SIGKILL); data and directory stay."""
        self._started.kill()

    def restart(self) -> None:
        """Start it again on the same ports and data, after a `stop` or `kill` or instead of them.

        Raises `Unreachable` when somebody has taken a port meanwhile.
        """
        self._started.stop()
        start_again(self._started)

    def close(self) -> None:
        """Stop it and remove its directory, unless that was given or it is to outlive us."""
        if self._stays:
            return
        if self._server is not None:
            self._server.stop()
        super().close()
