"""The agent's local interface: HTTP and JSON, for callers on the host.

The table of operations is data: the routes and the OpenAPI document are made from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from agent.health import verdict
from agent.journal import JournalFailed
from agent.local.mdevctl import Call, Mdevctl
from agent.local.openapi import JSON, Operation, document
from agent.local.shapes import (
    ClaimJson,
    ClaimsJson,
    DeviceJson,
    DevicesJson,
    DoneJson,
    HealthJson,
    MadeJson,
    ReleaseJson,
    TakeJson,
)
from coordinator.errors import (
    HostDown,
    InvalidValue,
    KernelRefused,
    MdevnsError,
    NoCapacity,
    NotAllowed,
    NotFound,
    OutcomeUnknown,
    Refused,
    StoreError,
    TryAgain,
)
from coordinator.model import (
    Wish,
    parse_attribute,
    parse_label,
    parse_name,
    parse_request,
)
from coordinator.requests import Only
from coordinator.states import ClaimState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from agent.health import Verdict, Vitals
    from agent.local.peers import Peer
    from agent.local.service import Local
    from coordinator.model import Claim

__all__ = ["PEER", "application"]

PEER = "peer"
"""Where a request's state has the process that asks."""

_LARGEST = 1 << 20  # bytes of a request's body
_TEXT = "text/plain"


class _Asked:
    """A request: its name in the path, its body, who asks."""

    def __init__(self, request: Request, body: Any) -> None:
        self._request, self.body = request, body
        self.peer: Peer = request.scope["state"][PEER]

    @property
    def name(self) -> Any:
        """The name in the path."""
        return parse_name(self._request.path_params["name"])


def _claim_json(claim: Claim) -> ClaimJson:
    return ClaimJson(**{field: getattr(claim, field) for field in ClaimJson.__struct_fields__})


def _health(found: Verdict, *, well: bool) -> tuple[int, HealthJson]:
    return (200 if well else 503), HealthJson(
        ok=well, reasons=found.reasons, degraded=found.degraded
    )


class _Handlers:
    """What the operations do."""

    def __init__(self, local: Local, vitals: Vitals) -> None:
        self._local, self._vitals = local, vitals
        self._mdevctl = Mdevctl(local)

    async def live(self, _: _Asked) -> tuple[int, HealthJson]:
        found = verdict(self._vitals.facts())
        return _health(found, well=found.live)

    async def ready(self, _: _Asked) -> tuple[int, HealthJson]:
        found = verdict(self._vitals.facts())
        return _health(found, well=found.ready)

    async def claims(self, _: _Asked) -> tuple[int, ClaimsJson]:
        source = "store" if self._local.store_answers else "journal"
        claims = [_claim_json(claim) for claim in self._local.claims()]
        return 200, ClaimsJson(source=source, claims=claims)

    async def claim(self, asked: _Asked) -> tuple[int, ClaimJson]:
        claim = self._local.claim(asked.name)
        if claim is None:
            raise self._local.unknown(asked.name)
        return 200, _claim_json(claim)

    async def devices(self, _: _Asked) -> tuple[int, DevicesJson]:
        try:
            devices = await self._local.devices()
        except OSError as error:
            raise TryAgain(f"host {self._local.host}", f"cannot be looked at: {error}") from None
        found = []
        for device in devices:
            claim = self._local.claim(device.name)
            found.append(
                DeviceJson(
                    name=device.name,
                    parent=device.parent,
                    type=device.type,
                    presence=device.presence.value,
                    state=None if claim is None else claim.state,
                )
            )
        return 200, DevicesJson(devices=found)

    async def take(self, asked: _Asked) -> tuple[int, ClaimJson]:
        wanted: TakeJson = asked.body
        wish = Wish(
            host=self._local.host,
            parent=parse_label(wanted.parent, "parent"),
            type=parse_label(wanted.type, "type"),
            attrs=tuple(parse_attribute(f"{key}={value}") for key, value in wanted.attrs),
            persistent=wanted.persistent or wanted.autostart,
            autostart=wanted.autostart,
        )
        maker = None
        if wanted.maker is not None:
            maker = asked.peer.writer(wanted.maker, its_child=True)
        await self._local.started()
        claim = await self._local.take(
            wish,
            name=None if wanted.name is None else parse_name(wanted.name),
            request=None if wanted.request is None else parse_request(wanted.request),
            by=asked.peer.asked_by,
            maker=maker,
        )
        if maker is not None:
            return 202, _claim_json(claim)
        made = await self._local.made(claim, wanted.wait)
        return (201 if made.state is ClaimState.ACTIVE else 202), _claim_json(made)

    async def made(self, asked: _Asked) -> tuple[int, DoneJson]:
        claim, told = self._local.claim(asked.name), asked.body
        if claim is None:
            raise self._local.unknown(asked.name)
        if not self._local.through(asked.name, asked.peer.writer(told.maker)):
            why = f"process {told.maker} is not the one that makes or removes it"
            raise TryAgain(asked.name, why, name=asked.name, holder=claim.holder)
        return 202, DoneJson()

    async def release(self, asked: _Asked) -> tuple[int, DoneJson]:
        wanted: ReleaseJson = asked.body
        await self._local.started()
        only = Only(request=wanted.request, revision=wanted.revision)
        await self._local.release(asked.name, force=wanted.force, by=asked.peer.asked_by, only=only)
        return 200, DoneJson()

    async def mdevctl(self, asked: _Asked) -> tuple[int, DoneJson]:
        call: Call = asked.body
        await self._mdevctl.answer(call, asked.peer.writer(call.holder))
        return 200, DoneJson()


def _operations(handlers: _Handlers) -> tuple[Operation, ...]:
    name = "/v1/claims/{name}"
    return (
        Operation(
            method="GET",
            path="/healthz",
            does="Whether the agent's process works.",
            handle=handlers.live,
            answers={200: HealthJson, 503: HealthJson},
        ),
        Operation(
            method="GET",
            path="/readyz",
            does="Whether the agent serves its host.",
            handle=handlers.ready,
            answers={200: HealthJson, 503: HealthJson},
        ),
        Operation(
            method="GET",
            path="/v1/claims",
            does="This host's claims; the journal's while the store is away.",
            handle=handlers.claims,
            answers={200: ClaimsJson},
        ),
        Operation(
            method="GET",
            path="/v1/devices",
            does="What the kernel of this host has, looked at now.",
            handle=handlers.devices,
            answers={200: DevicesJson},
            refused=(409,),
        ),
        Operation(
            method="POST",
            path="/v1/claims",
            does="Claim a name for a device of this host, and have it made. "
            "202: it is not made yet, or its maker is to make it.",
            handle=handlers.take,
            answers={201: ClaimJson, 202: ClaimJson},
            body=TakeJson,
            refused=(404, 409, 502, 503, 504, 507),
        ),
        Operation(
            method="GET",
            path=name,
            does="This host's claim of a name.",
            handle=handlers.claim,
            answers={200: ClaimJson},
            refused=(404,),
        ),
        Operation(
            method="POST",
            path=f"{name}/made",
            does="Its maker is through with the kernel, whether it made the device or not.",
            handle=handlers.made,
            answers={202: DoneJson},
            body=MadeJson,
            refused=(404, 409),
        ),
        Operation(
            method="POST",
            path=f"{name}/release",
            does="Remove a device and its claim; answered when both are gone.",
            handle=handlers.release,
            answers={200: DoneJson},
            body=ReleaseJson,
            refused=(404, 409, 502, 503, 504),
        ),
        Operation(
            method="POST",
            path="/v1/mdevctl",
            does="What mdevctl's callout asks before an action and tells after it.",
            handle=handlers.mdevctl,
            answers={200: DoneJson},
            body=Call,
            refused=(404, 409, 502, 503, 504),
        ),
    )


def application(local: Local, vitals: Vitals) -> Starlette:
    """The ASGI application. Its server puts a `Peer` into each request's state."""
    operations = _operations(_Handlers(local, vitals))
    described = msgspec.json.encode(document(operations))

    async def openapi(request: Request) -> Response:
        _check_peer(request)
        return Response(described, media_type=JSON)

    routes = [Route(one.path, _endpoint(one), methods=[one.method]) for one in operations]
    routes.append(Route("/openapi.json", openapi, methods=["GET"]))
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: _http_error, MdevnsError: _error},  # type: ignore[dict-item]  # each takes its own kind
    )


def _endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        _check_peer(request)
        body = None if operation.body is None else await _body(request, operation.body)
        status, answer = await operation.handle(_Asked(request, body))
        return Response(msgspec.json.encode(answer) + b"\n", status, media_type=JSON)

    return endpoint


def _check_peer(request: Request) -> None:
    peer: Peer = request.scope["state"][PEER]
    if not peer.allowed:
        why = f"uid {peer.uid} is neither root nor in the group mdevns"
        raise NotAllowed("the agent's socket", why, errno_name="EACCES")


def _number(text: str) -> float:
    """A number with a point in it: 7.0 is an integer for JSON Schema, and for us."""
    value = float(text)
    return int(value) if value.is_integer() else value


_READER = msgspec.json.Decoder(float_hook=_number)

T = TypeVar("T")


async def _body(request: Request, kind: type[T]) -> T:
    """The request's body, read strictly; none is an empty object.

    Raises:
        InvalidValue: it is no such object.
    """
    data = b""
    async for some in request.stream():
        data += some
        if len(data) > _LARGEST:
            raise InvalidValue("the request", f"is over {_LARGEST} bytes")
    try:
        return msgspec.convert(_READER.decode(data or b"{}"), kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidValue("the request", str(error)) from None
    except RecursionError:
        raise InvalidValue("the request", "nested too deeply") from None


async def _error(request: Request, error: MdevnsError) -> Response:
    """An error in the form that the caller takes: one line, or an object."""
    if request.headers.get("accept", "").startswith(_TEXT):
        return Response(error.line + "\n", _status(error), media_type=_TEXT)
    return Response(msgspec.json.encode(error.as_json()) + b"\n", _status(error), media_type=JSON)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the framework refuses, in the same form."""
    what = f"{request.method} {request.url.path}"
    ours = NotFound(what, error.detail, "see: /openapi.json")
    response = await _error(request, ours)
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response


_STATUS: tuple[tuple[type[MdevnsError], int], ...] = (
    (JournalFailed, 503),
    (NotFound, 404),
    (InvalidValue, 422),
    (NotAllowed, 403),
    (NoCapacity, 507),
    (KernelRefused, 502),
    (HostDown, 503),
    (OutcomeUnknown, 504),
    (StoreError, 503),
    (Refused, 409),
)


def _status(error: MdevnsError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
