"""`itertools.batched` of Python 3.12, for 3.11."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["batched"]

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Cut `items` into tuples of `size`; the last may be shorter."""
    iterator = iter(items)
    while some := tuple(islice(iterator, size)):
        yield some
