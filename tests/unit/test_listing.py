"""A long list is printed as it is read: what is held of it at once does not grow with it."""

from __future__ import annotations

import asyncio
import io
import tracemalloc
from contextlib import redirect_stdout

import pytest

from cli.options import Format
from cli.output import Output
from cli.shapes import CLAIMS
from coordinator.keys import Keys
from coordinator.model import Claim
from coordinator.views import Views
from tests.support.desk import HOST
from tests.support.vast import VastStore

FEW, MANY = 1_500, 12_000


class _Sink(io.StringIO):
    """What is written goes nowhere; its lines, and its longest piece, are counted."""

    lines = longest = 0

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        self.longest = max(self.longest, len(text))
        return len(text)


def listed(form: Format, count: int, host: str | None) -> tuple[_Sink, int]:
    """List so many names; what was printed, and the most bytes that were held for it."""
    keys, sink = Keys("test"), _Sink()
    views, out = Views(VastStore(keys, count), keys), Output(form, quiet=False)

    async def run() -> None:
        with redirect_stdout(sink), out.stream(CLAIMS) as add:
            async for record in views.records(host=host):
                assert isinstance(record, Claim)
                add(record)

    tracemalloc.start()
    try:
        asyncio.run(run())
        return sink, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("form", "lines", "more", "host"),
    [
        (Format.TABLE, 1, 1, None),
        (Format.WIDE, 1, 1, None),
        (Format.JSON, 1, 0, None),
        (Format.YAML, 13, 1, None),
        (Format.NAME, 1, 0, None),
        (Format.NAME, 1, 0, HOST),
    ],
)
def test_a_list_is_streamed_in_constant_memory(
    form: Format, lines: int, more: int, host: str | None
) -> None:
    """Eight times as many names do not take more memory or longer pieces, in any form."""
    listed(form, 1, host)  # what is loaded once is no part of it
    (few, little), (many, much) = (listed(form, count, host) for count in (FEW, MANY))
    assert [few.lines, many.lines] == [count * lines + more for count in (FEW, MANY)]
    assert much < 3 * little  # a page more or less that is not collected yet, and no more
    assert many.longest == few.longest
