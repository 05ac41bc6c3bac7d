"""The OpenAPI document of the local socket, made from the table of its operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from agent.local.shapes import ErrorJson, Uuid
from coordinator import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["JSON", "Operation", "document"]

JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that can be asked: `answers` are those that are no error, `refused` the others."""

    method: str
    path: str
    does: str
    handle: Callable[[Any], Awaitable[tuple[int, Any]]]
    answers: Mapping[int, type[Any]]
    body: type[Any] | None = None
    refused: tuple[int, ...] = ()


def document(operations: tuple[Operation, ...]) -> dict[str, Any]:
    """The OpenAPI document of these operations."""
    kinds = [ErrorJson, *(kind for one in operations for kind in one.answers.values())]
    kinds += [one.body for one in operations if one.body is not None]
    _, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _described(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "mdevns agent, local socket", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _described(operation: Operation) -> dict[str, Any]:
    codes = {*operation.refused, 403}
    if operation.body is not None or "{name}" in operation.path:
        codes.add(422)
    answers = {str(code): _content(ErrorJson, "It is refused.") for code in sorted(codes)}
    answers |= {str(code): _content(kind, "Done.") for code, kind in operation.answers.items()}
    described: dict[str, Any] = {"summary": operation.does, "responses": answers}
    if operation.body is not None:
        needed = any(field.required for field in msgspec.structs.fields(operation.body))
        described["requestBody"] = {"required": needed, **_content(operation.body)}
    if "{name}" in operation.path:
        where = {"name": "name", "in": "path", "required": True}
        described["parameters"] = [{**where, "schema": msgspec.json.schema(Uuid)}]
    return described


def _content(kind: type, description: str | None = None) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content: dict[str, Any] = {"content": {JSON: {"schema": reference}}}
    return content if description is None else {"description": description, **content}
