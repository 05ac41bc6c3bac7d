"""The chart: how far each figure is from its bound. SVG, written by hand from the figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.figures import Figure

__all__ = ["chart", "of_bound"]

_ROW, _TOP, _LEFT, _WIDE, _RIGHT = 26, 64, 430, 420, 150  # pixels
_REACHED, _MISSED = "#1a7f37", "#bc4c00"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}"
    "line{stroke:#57606a}"
    ".bound{stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){text{fill:#adbac7}line{stroke:#adbac7}}"
)


def of_bound(figure: Figure, value: float) -> float:
    """A ratio as a multiple of the figure's bound: 1 or less is within it, whichever way it goes.

    Raises:
        ValueError: there is no bound.
    """
    if figure.must is None:
        raise ValueError(f"{figure.line}: no bound")
    least = 1e-3  # what is not there at all has no place on a logarithmic scale
    if figure.at_least:
        return figure.must / max(value, least)
    return max(value, least) / figure.must


def chart(figures: Sequence[Figure]) -> str:
    """A bar for each figure that has a bound, on a logarithmic scale; the dashed line is it."""
    shown = [one for one in figures if one.must is not None]
    values = [of_bound(one, value) for one in shown for value in (one.low, one.ratio, one.high)]
    scale = _Scale(min([0.5, *values]), max([2.0, *values]))
    height = _TOP + _ROW * len(shown) + 20
    width = _LEFT + _WIDE + _RIGHT
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<style>{_STYLE}</style>",
            '<text x="12" y="24">How far from its bound: left of the dashed line is reached</text>',
            *_axis(scale, height),
            *(mark for row, one in enumerate(shown) for mark in _bar(scale, row, one)),
            "</svg>\n",
        ]
    )


class _Scale:
    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most
        self._span = math.log(most / least)

    def __call__(self, value: float) -> float:
        return _LEFT + _WIDE * math.log(value / self.least) / self._span


def _axis(scale: _Scale, height: int) -> Iterator[str]:
    for mark in (0.01, 0.1, 0.25, 0.5, 1, 2, 4, 10, 100):
        if scale.least <= mark <= scale.most:
            x, kind = scale(mark), ' class="bound"' if mark == 1 else ' opacity="0.2"'
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 12}"{kind}/>'
            said = "bound" if mark == 1 else f"{mark:g}"
            yield f'<text x="{x:.1f}" y="{_TOP - 14}" text-anchor="middle">{said}</text>'


def _bar(scale: _Scale, row: int, figure: Figure) -> Iterator[str]:
    middle = _TOP + _ROW * row + _ROW / 2
    at, one = scale(of_bound(figure, figure.ratio)), scale(1)
    ends = sorted(scale(of_bound(figure, value)) for value in (figure.low, figure.high))
    colour = _REACHED if figure.reached else _MISSED
    label = escape(f"{figure.line}: {figure.measure}")
    sign = "≥" if figure.at_least else "≤"
    said = escape(f"{figure.ratio:.2f} ({sign} {figure.must:g})")
    yield f'<text x="{_LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{label}</text>'
    yield (
        f'<rect x="{min(at, one):.1f}" y="{middle - 7:.1f}" width="{abs(at - one):.1f}" '
        f'height="14" fill="{colour}"/>'
    )
    yield f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
    yield f'<text x="{_LEFT + _WIDE + 12}" y="{middle + 4:.1f}">{said}</text>'
