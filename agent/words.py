"""The words of the local socket, as its document has them; `coordinator.model` is as strict."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

__all__ = ["AttributeName", "AttributeValue", "Label", "Pid", "RequestId", "Uuid"]

_LABEL = "^[A-Za-z0-9][A-Za-z0-9._:@+!-]{0,127}$"
_PART = "[A-Za-z0-9_][A-Za-z0-9_.:-]*"
_NIL = "0{8}(-0{4}){3}-0{12}"

Uuid = Annotated[
    str,
    Meta(
        pattern=f"^(?!{_NIL})[0-9a-fA-F]{{8}}(-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}$",
        description="A name: a UUID of 36 characters, upper case folded, and not nil.",
    ),
]
Label = Annotated[str, Meta(pattern=_LABEL, description="A parent or a type.")]
RequestId = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]
AttributeName = Annotated[str, Meta(pattern=f"^{_PART}(/{_PART})*$")]
AttributeValue = Annotated[
    str, Meta(pattern=r"^[^\u0000]*$", max_length=4095, description="One write: 4095 bytes.")
]
Pid = Annotated[int, Meta(ge=1, le=1 << 22, description="A process of this host (proc(5)).")]
