"""The agent's local socket: to claim, to release and to look, from the host itself."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agent import simulated
from agent.local.api import application
from agent.local.serving import SOCKET, local_socket
from agent.local.shapes import ClaimJson
from cli.shapes import claim_json
from coordinator.states import ClaimState
from coordinator.store import Put, Txn
from tests.agent.host import SOON, Host, process
from tests.support.desk import HOST, NAME, OTHER, TYPE, name, wish
from tests.support.faulty import Fate, FaultyStore, FirstLate
from tests.support.local_client import Answer, ask, ask_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.daemon import Agent

ACTIVE, CREATING, DEFINED = ClaimState.ACTIVE, ClaimState.CREATING, ClaimState.DEFINED


@dataclass(frozen=True)
class Served:
    """An agent with its socket."""

    agent: Agent
    path: Path

    async def ask(self, method: str, where: str, body: object = None) -> Answer:
        """Ask it, as a program."""
        return await ask(self.path, method, where, body)

    async def told(self, method: str, where: str, body: object = None) -> Answer:
        """Ask it, as a script that prints what it is told."""
        return await ask(self.path, method, where, body, text=True)


@asynccontextmanager
async def served(host: Host, *, enrols: bool = True) -> AsyncIterator[Served]:
    """An agent of the host that serves its socket."""
    async with (
        host.agent(enrols=enrols) as agent,
        local_socket(host.bus.run_dir, agent.local, agent.vitals) as path,
    ):
        if enrols:
            await host.wait(lambda: agent.local.store_answers)
        else:
            agent.local.starting = 0.0
        yield Served(agent, path)


def device(host: Host, **more: object) -> dict[str, object]:
    """A device on the first parent."""
    return {"name": NAME, "parent": host.parents[0], "type": TYPE, **more}


class Away:
    """A store that can be taken away."""

    def __init__(self, host: Host) -> None:
        self.is_away = False
        host.store = FaultyStore(host.store, self._fate)

    def _fate(self, _: Txn) -> Fate:
        return Fate.UNREACHABLE if self.is_away else Fate.DELIVER


async def test_what_is_claimed_is_made_and_what_is_released_is_gone(host: Host) -> None:
    """A claim is answered with the active claim of its device, a release when both are gone."""
    async with served(host) as agent:
        made = await agent.ask("POST", "/v1/claims", device(host))
        assert made.status == 201
        claim = host.claim()
        assert claim is not None
        assert made.body == json.loads(msgspec.json.encode(claim_json(claim)))
        assert (claim.state, host.devices()) == (ACTIVE, {NAME})
        assert (await agent.ask("GET", f"/v1/claims/{NAME}")).body == made.body
        freed = await agent.ask("POST", f"/v1/claims/{NAME}/release", {})
        assert (freed.status, freed.body) == (200, {"ok": True})
        assert (host.claim(), host.devices()) == (None, set())
        assert (await agent.ask("GET", f"/v1/claims/{NAME}")).status == 404


async def test_a_claim_is_one_commit_before_the_kernel_is_asked(host: Host) -> None:
    """From free to creating in one transaction, and from there to active in another."""
    async with served(host) as agent:
        before = host.desk.core.revision
        await agent.ask("POST", "/v1/claims", device(host))
        claim = host.claim()
        assert claim is not None
        assert claim.revision == before + 2


async def test_a_name_that_is_held_elsewhere_is_refused_with_its_holder(host: Host) -> None:
    """EEXIST, as an object with the holder or as the line that the command line prints."""
    await host.desk.active(NAME, wish(OTHER))
    async with served(host) as agent:
        refused = await agent.ask("POST", "/v1/claims", device(host))
        assert (refused.status, refused.body["error"]) == (409, "EEXIST")
        assert refused.body["holder"]["host"] == OTHER
        told = await agent.told("POST", "/v1/claims", device(host))
        assert told.body.startswith(f"EEXIST: {NAME}: held by {OTHER}")
        assert host.devices() == set()


async def test_the_same_request_again_is_answered_with_what_stands(host: Host) -> None:
    """A caller that lost its answer asks once more and has one device."""
    async with served(host) as agent:
        first = await agent.ask("POST", "/v1/claims", device(host, request="r1"))
        again = await agent.ask("POST", "/v1/claims", device(host, request="r1"))
        assert (again.status, again.body) == (201, first.body)
        other = await agent.ask("POST", "/v1/claims", device(host, request="r2"))
        assert other.status == 409


async def test_a_request_without_a_name_is_repeated_as_one_device(host: Host) -> None:
    """The name follows from the request's id, so the second answer is the first one."""
    async with served(host) as agent:
        wanted = device(host, request="r1")
        del wanted["name"]
        first = await agent.ask("POST", "/v1/claims", wanted)
        again = await agent.ask("POST", "/v1/claims", wanted)
        assert (again.status, again.body) == (201, first.body)
        assert host.devices() == {first.body["name"]}


async def test_a_stale_release_leaves_the_next_owners_device(host: Host) -> None:
    """By request or revision only what was named is given up; else EEXIST, and it stays."""
    async with served(host) as agent:
        made = await agent.ask("POST", "/v1/claims", device(host, request="second"))
        path = f"/v1/claims/{NAME}/release"
        for only in ({"request": "first"}, {"revision": 1}):
            refused = await agent.ask("POST", path, only)
            assert (refused.status, refused.body["error"]) == (409, "EEXIST")
        assert host.devices() == {NAME}
        mine = {"request": "second", "revision": made.body["revision"]}
        assert (await agent.ask("POST", path, mine)).status == 200


async def test_what_the_driver_refuses_is_told_and_leaves_nothing(host: Host) -> None:
    """A full parent is ENOSPC, and the name is free."""
    async with served(host) as agent:
        for number in range(2, 6):
            await agent.ask("POST", "/v1/claims", device(host) | {"name": name(number)})
        refused = await agent.ask("POST", "/v1/claims", device(host))
        assert (refused.status, refused.body["error"]) == (507, "ENOSPC")
        assert host.claim() is None


async def test_a_device_that_is_open_is_busy(host: Host) -> None:
    """A release is EBUSY at once, and the device stays."""
    async with served(host) as agent:
        await agent.ask("POST", "/v1/claims", device(host))
        simulated.hold(host.directory, NAME)
        refused = await agent.ask("POST", f"/v1/claims/{NAME}/release", {})
        assert (refused.status, refused.body["error"]) == (409, "EBUSY")
        assert host.is_in(ACTIVE)


async def test_a_maker_makes_its_device_itself(host: Host) -> None:
    """Claimed with a maker, the agent writes nothing and takes note when it is made."""
    mine = {"maker": os.getpid()}
    async with served(host) as agent:
        answer = await agent.ask("POST", "/v1/claims", device(host, **mine))
        assert (answer.status, answer.body["state"]) == (202, "creating")
        simulated.create(host.directory, host.parents[0], TYPE, NAME)
        assert (await agent.ask("POST", f"/v1/claims/{NAME}/made", mine)).status == 202
        await host.wait(lambda: host.is_in(ACTIVE))
        claim = host.claim()
        assert claim is not None
        assert (claim.adopted, claim.maker) == (False, None)


async def test_a_maker_that_ends_without_making_gives_its_name_back(host: Host) -> None:
    """While it lives the claim is kept, and nothing is made in its place afterwards."""
    async with process() as maker, served(host) as agent:
        await agent.ask("POST", "/v1/claims", device(host, maker=maker.pid))
        await agent.ask("POST", "/v1/claims", device(host) | {"name": name(2)})
        assert host.is_in(CREATING)
        maker.kill()
        await host.wait(lambda: host.claim() is None)
        assert host.devices() == {name(2)}


async def test_only_the_writer_or_its_child_speaks_for_it(host: Host) -> None:
    """A made-up end of another process's write is refused, and its name is not free."""
    async with process() as writer, served(host) as agent:
        await agent.ask("POST", "/v1/claims", device(host, maker=writer.pid))
        call = {"event": "post", "action": "start", "state": "failure", "name": NAME}
        call |= {"parent": host.parents[0], "type": TYPE}
        said = [
            await agent.ask("POST", "/v1/mdevctl", {**call, "holder": writer.pid}),
            await agent.ask("POST", f"/v1/claims/{NAME}/made", {"maker": writer.pid}),
        ]
        assert [(one.status, one.body["error"]) for one in said] == [(403, "EPERM")] * 2
        assert host.is_in(CREATING)
        simulated.create(host.directory, host.parents[0], TYPE, NAME)
        writer.kill()
        await host.wait(lambda: host.is_in(ACTIVE))


async def test_what_a_living_writer_says_frees_nothing(host: Host) -> None:
    """Its write may be under way whatever it says; a device that appears later is claimed."""
    mine = {"maker": os.getpid()}
    async with served(host) as agent:
        await agent.ask("POST", "/v1/claims", device(host, **mine))
        assert (await agent.ask("POST", f"/v1/claims/{NAME}/made", mine)).status == 202
        enrolment = agent.agent.local.enrolment
        assert enrolment is not None
        enrolment.reconciler.poke((NAME,))
        await host.wait(lambda: not enrolment.reconciler.is_at(NAME))
        assert host.is_in(CREATING)
        simulated.create(host.directory, host.parents[0], TYPE, NAME)
        await host.wait(lambda: host.is_in(ACTIVE))


async def test_init_is_no_writer(host: Host) -> None:
    """A claim of a process that never ends could not be taken back."""
    async with served(host) as agent:
        refused = await agent.ask("POST", "/v1/claims", device(host, maker=1))
        assert (refused.status, refused.body["error"]) == (403, "EPERM")
        assert host.claim() is None


async def test_deep_json_is_refused_in_one_line(host: Host) -> None:
    """Brackets without end are no request, at every depth."""
    async with served(host) as agent:
        for depth in (1_000, 100_000):
            for where in ("/v1/claims", "/v1/mdevctl"):
                body = b'{"definition":' + b"[" * depth + b"]" * depth + b"}"
                refused = await agent.ask("POST", where, body)
                assert (refused.status, refused.body["error"]) == (422, "EINVAL")


async def test_members_may_ask_by_any_of_their_groups(host: Host) -> None:
    """A supplementary group counts, among three hundred of them too."""
    async with (
        host.agent() as agent,
        local_socket(host.bus.run_dir, agent.local, agent.vitals, gid=70_000) as path,
    ):
        path.chmod(0o666)
        _open_up(path)
        for groups, status in (([70_000], 200), ([*range(69_800, 70_100)], 200), ([69_999], 403)):
            with ThreadPoolExecutor(1) as nobody:
                answer = await asyncio.wrap_future(nobody.submit(_as_nobody, path, groups))
            assert answer.status == status


async def test_idle_connections_keep_nobody_out(host: Host) -> None:
    """The oldest idle connection of a user goes for a new one, and each has a deadline."""
    async with (
        host.agent() as agent,
        local_socket(host.bus.run_dir, agent.local, agent.vitals, seconds=SOON, most=8) as path,
    ):
        idle = [_connected(path) for _ in range(40)]
        assert (await ask(path, "GET", "/healthz")).status == 200
        assert await asyncio.wrap_future(_READERS.submit(idle[0].recv, 1)) == b""
        for connection in idle:
            connection.close()


async def test_a_request_that_does_not_arrive_is_cut_off(host: Host) -> None:
    """Head and body have one deadline together, however slowly they come."""
    async with (
        host.agent() as agent,
        local_socket(host.bus.run_dir, agent.local, agent.vitals, seconds=0.1) as path,
    ):
        body = b"POST /v1/claims HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"
        for sent in (b"GET /hea", body):
            connection = _connected(path)
            with suppress(BrokenPipeError):  # the deadline may be over before this
                connection.sendall(sent)
            assert await asyncio.wrap_future(_READERS.submit(connection.recv, 1)) == b""
            connection.close()


_READERS = ThreadPoolExecutor(1)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SOON)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
    return connection


async def test_a_maker_is_waited_for_over_a_restart_of_the_agent(host: Host) -> None:
    """The next agent finds it in the claim, and makes nothing for as long as it lives."""
    async with process() as maker:
        async with served(host) as agent:
            await agent.ask("POST", "/v1/claims", device(host, maker=maker.pid))
        async with served(host) as agent:
            await agent.ask("POST", "/v1/claims", device(host) | {"name": name(2)})
            assert host.is_in(CREATING)
            assert host.devices() == {name(2)}
            maker.kill()
            await host.wait(lambda: host.claim() is None)


async def test_while_the_store_is_away_it_answers_from_the_journal(host: Host) -> None:
    """What is there is told, by an agent that was started meanwhile too; nothing new is claimed."""
    away = Away(host)
    async with served(host) as agent:
        await agent.ask("POST", "/v1/claims", device(host))
    away.is_away = True
    async with served(host, enrols=False) as agent:
        known = (await agent.ask("GET", "/v1/claims")).body
        assert known["source"] == "journal"
        assert [one["name"] for one in known["claims"]] == [NAME]
        (seen,) = (await agent.ask("GET", "/v1/devices")).body["devices"]
        assert (seen["name"], seen["state"], seen["presence"]) == (NAME, "active", "present")
        refused = await agent.ask("POST", "/v1/claims", device(host) | {"name": name(2)})
        assert (refused.status, refused.body["error"]) == (503, "EHOSTUNREACH")
        assert (await agent.ask("GET", "/healthz")).status == 200
        ready = await agent.ask("GET", "/readyz")
        assert (ready.status, ready.body["reasons"][0]) == (503, "it is not enrolled")


async def test_a_refused_claim_that_was_in_doubt_ends_the_enrolment(host: Host) -> None:
    """Its first copy could come late and take the name for nobody; the new epoch refuses it."""
    fate = FirstLate(NAME)
    faulty = FaultyStore(host.store, fate)
    host.store = faulty
    async with served(host) as agent:
        epoch = host.desk.kv(host.desk.keys.epoch(HOST))
        asking = asyncio.create_task(agent.ask("POST", "/v1/claims", device(host)))
        await host.wait(lambda: faulty.late)
        taken = await host.desk.active(NAME, wish(OTHER))
        fate.passes = True
        assert (await asking).status == 409
        await host.wait(lambda: host.desk.kv(host.desk.keys.epoch(HOST)) != epoch)
        await host.desk.make(
            host.desk.claims.evict(taken, definitions=True, now="t")
        )  # the name is free, and the copy arrives
        await faulty.release_late()
        assert host.desk.records(NAME) == (None, None)


async def test_a_claim_whose_host_was_evicted_after_a_lost_answer_is_not_known(host: Host) -> None:
    """It may have been made before that, so it is not told as refused."""
    desk, copies = host.desk, list[Txn]()

    def fate(txn: Txn) -> Fate:
        if NAME not in repr(txn):
            return Fate.DELIVER
        copies.append(txn)
        if len(copies) == 1:
            return Fate.LOSE_ANSWER
        desk.core.txn(Txn(success=(Put(desk.keys.epoch(HOST), b"evict-1"),)))
        return Fate.DELIVER

    host.store = FaultyStore(host.store, fate)
    async with served(host) as agent:
        told = await agent.ask("POST", "/v1/claims", device(host))
        assert told.body["error"] == "ETIMEDOUT"


async def test_the_socket_is_for_root_and_the_group(host: Host) -> None:
    """Its mode is 0660, and who is neither is refused although it could connect."""
    async with served(host) as agent:
        assert stat.S_IMODE(agent.path.stat().st_mode) == 0o660
        assert (await agent.ask("GET", "/v1/claims")).status == 200
        _open_up(agent.path)
        with ThreadPoolExecutor(1) as nobody:
            asking = nobody.submit(_as_nobody, agent.path)
            refused = await asyncio.wrap_future(asking)
        assert refused.status == 403
        assert refused.body.startswith("EACCES: the agent's socket: uid 65534 is neither root nor")


def _as_nobody(path: Path, groups: list[int] | None = None) -> Answer:
    """Ask as another user: in Linux a thread has credentials of its own, and this one ends."""
    syscall, setgroups, setresgid, setresuid = ctypes.CDLL(None).syscall, 116, 119, 117  # x86-64
    given = (ctypes.c_uint32 * len(groups or ()))(*(groups or ()))
    assert syscall(setgroups, len(given), given) == 0
    assert syscall(setresgid, 65534, 65534, 65534) == 0
    assert syscall(setresuid, 65534, 65534, 65534) == 0
    return ask_blocking(path, "GET", "/v1/claims", text=True)


def _open_up(path: Path) -> None:
    path.chmod(0o666)
    for directory in path.parents:
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o111)


async def test_a_socket_that_a_killed_agent_left_is_replaced(host: Host) -> None:
    """It is the next agent's to serve, and gone after an orderly end."""
    path = host.bus.run_dir / SOCKET
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    async with served(host) as agent:
        assert (await agent.ask("GET", "/healthz")).status == 200
    assert not path.exists()


async def test_what_is_no_request_is_refused_in_one_form(host: Host) -> None:
    """Wrong JSON, unknown fields, names and paths, and what is too long: an error object each."""
    async with served(host) as agent:
        asks: list[tuple[int, str, str, object]] = [
            (422, "POST", "/v1/claims", b"{"),
            (422, "POST", "/v1/claims", b"\xff"),
            (422, "POST", "/v1/claims", b"[" * 100_000),
            (422, "POST", "/v1/claims", device(host, colour="red")),
            (422, "POST", "/v1/claims", device(host) | {"name": "x"}),
            (404, "POST", "/v1/claims", device(host, maker=4_000_000)),
            (422, "POST", "/v1/claims", b" " * ((1 << 20) + 1)),
            (422, "GET", "/v1/claims/x", None),
            (404, "GET", "/v2", None),
            (405, "DELETE", "/v1/claims", None),
            (404, "POST", f"/v1/claims/{NAME}/made", {"maker": os.getpid()}),
            (404, "POST", f"/v1/claims/{NAME}/release", {}),
        ]
        for status, method, where, body in asks:
            answer = await agent.ask(method, where, body)
            assert (answer.status, set(answer.body)) == (
                status,
                {"error", "errno", "name", "holder", "message"},
            )


async def test_the_agent_stops_although_a_caller_waits(tmp_path: Path) -> None:
    """What the kernel was given is finished, and whoever waits for longer is cut off."""
    host = Host(tmp_path / "slow", latency=1.0)
    async with served(host) as agent:
        waiting = asyncio.create_task(agent.ask("POST", "/v1/claims", device(host)))
        await host.wait(lambda: host.bus.scan().devices)
    assert host.is_in(ACTIVE)
    await asyncio.wait([waiting])
    assert waiting.exception() is not None or waiting.result().status == 201


async def test_the_document_describes_every_route_and_claims_as_the_command_line(
    host: Host,
) -> None:
    """Each path and method is in it and nothing else, and a claim has the contract's fields."""
    async with served(host) as agent:
        document = (await agent.ask("GET", "/openapi.json")).body
        app = application(agent.agent.local, agent.agent.vitals)
    described = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    every: list[Any] = list(app.routes)
    routes = [route for route in every if route.path != "/openapi.json"]
    assert described == {
        (route.path, method) for route in routes for method in route.methods - {"HEAD"}
    }
    claim = await host.desk.active(name(9))
    assert set(ClaimJson.__struct_fields__) == set(claim_json(claim))
    assert set(document["components"]["schemas"]["ClaimJson"]["required"]) == set(claim_json(claim))
