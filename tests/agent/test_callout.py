"""The callout as installed, and a whole agent: what mdevctl is told, and what becomes of names."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agent import simulated
from agent.local.serving import SOCKET, local_socket
from cli.scripts import Scripts
from coordinator.states import ClaimState
from tests.support.desk import NAME, OTHER, TYPE, wish
from tests.support.mdevctl_root import Root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.agent.host import Host

DEFINITION = f'{{"mdev_type": "{TYPE}", "start": "manual", "attrs": []}}'


class Caller:
    """Calls ours as the mdevctl of a host does; this very process is mdevctl."""

    def __init__(self, host: Host, root: Root) -> None:
        self._host, self._callout = host, root.callout
        list(Scripts(root.path, host.bus.run_dir / SOCKET).install())

    async def call(self, event: str, action: str, state: str = "none") -> tuple[int | None, str]:
        """Its exit code, and what it says."""
        process = await asyncio.create_subprocess_exec(
            self._callout,
            *("-t", TYPE, "-e", event, "-a", action),
            *("-s", state, "-u", NAME, "-p", self._host.parents[0]),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate(DEFINITION.encode())
        return process.returncode, err.decode()

    async def fine(self, event: str, action: str, state: str = "none") -> None:
        """Call it; it lets mdevctl go on and has nothing to say."""
        assert await self.call(event, action, state) == (0, "")


@asynccontextmanager
async def served(host: Host) -> AsyncIterator[None]:
    """Inside, the host's agent answers on its socket."""
    async with (
        host.agent() as agent,
        local_socket(host.bus.run_dir, agent.local, agent.vitals),
    ):
        await host.wait(lambda: agent.local.store_answers)
        yield


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Where mdevctl is, an old one or a new one: the callout is the same."""
    return Root(tmp_path / "root", "1.4.0")


@pytest.fixture
def mdevctl(host: Host, root: Root) -> Caller:
    """mdevctl on the host."""
    return Caller(host, root)


async def test_names_are_claimed_and_released(host: Host, mdevctl: Caller) -> None:
    """A start makes an active claim, a stop frees the name, and a second start is refused."""
    async with served(host):
        await mdevctl.fine("pre", "start")
        assert host.is_in(ClaimState.CREATING)
        simulated.create(host.directory, host.parents[0], TYPE, NAME)
        await mdevctl.fine("post", "start", "success")
        assert host.is_in(ClaimState.ACTIVE)
        code, said = await mdevctl.call("pre", "start")
        assert (code, said) == (
            1,
            f"EEXIST: {NAME}: held by gpu01/{host.parents[0]} (active); see: mdevns show {NAME}\n",
        )
        await mdevctl.fine("post", "start", "failure")
        assert host.is_in(ClaimState.ACTIVE)
        await mdevctl.fine("pre", "stop")
        simulated.remove(host.directory, NAME)
        await mdevctl.fine("post", "stop", "success")
        assert host.is_in(None)


async def test_definitions_are_claimed_and_released(host: Host, mdevctl: Caller) -> None:
    """A define takes the name for good, and an undefine gives it back."""
    async with served(host):
        await mdevctl.fine("pre", "define")
        await mdevctl.fine("post", "define", "success")
        assert host.is_in(ClaimState.DEFINED)
        await mdevctl.fine("pre", "undefine")
        await mdevctl.fine("post", "undefine", "success")
        assert host.is_in(None)


async def test_a_name_of_another_host_is_refused(host: Host, mdevctl: Caller) -> None:
    """Whatever is to be done with it, the line says who has it."""
    await host.desk.reserved(NAME, wish(OTHER))
    async with served(host):
        for action in ("start", "define"):
            code, said = await mdevctl.call("pre", action)
            assert code == 1
            assert said.startswith(f"EEXIST: {NAME}: held by {OTHER}")
            assert said.endswith(f"; see: mdevns show {NAME}\n")


async def test_what_the_vendor_refuses_is_kept_while_mdevctl_runs(
    host: Host, root: Root, mdevctl: Caller
) -> None:
    """A refusal that is reported frees nothing: mdevctl itself has to end."""
    root.vendor("etc/mdevctl.d/scripts.d/callouts/50-vendor", "echo no licence >&2; exit 1")
    async with served(host):
        assert await mdevctl.call("pre", "start") == (1, "no licence\n")
        assert host.is_in(ClaimState.CREATING)
