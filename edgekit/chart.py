"""Draw curves in the terminal: braille dots where it can show them, plain ASCII elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

_BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in row r, column c of a braille cell (4 rows, 2 columns)."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        x: increasing positions.
        y: values; NaN leaves a gap.
        symbol: the character that draws it in ASCII.
        spacing: draw every n-th dot column only, for a dotted line.
    """

    x: Sequence[float]
    y: Sequence[float]
    symbol: str = "*"
    spacing: int = 1


@dataclass(frozen=True)
class Canvas:
    """How large a chart is and how it is drawn.

    Attributes:
        width: characters of the plotting area.
        height: lines of the plotting area.
        braille: 2 x 4 dots per character instead of one ASCII symbol.
    """

    width: int = 64
    height: int = 14
    braille: bool = False

    @property
    def dots(self) -> tuple[int, int]:
        """Dot rows and dot columns."""
        return (self.height * 4, self.width * 2) if self.braille else (self.height, self.width)


def canvas_for(console: Console, *, height: int = 14) -> Canvas:
    """Return the canvas that fits a console; braille needs a colour terminal that speaks UTF-8."""
    fancy = console.is_terminal and not console.no_color and console.encoding.lower().startswith("utf")
    return Canvas(max(24, min(100, console.width - 12)), height, fancy)


def chart(lines: Sequence[Line], canvas: Canvas, *, x_label: str = "") -> list[str]:
    """Draw curves over one another, the first on top, with a scale on both axes; return the text lines.

    Args:
        lines: at least one with a finite point.
        canvas: size and style.
        x_label: what the horizontal axis counts.
    """
    xs = np.concatenate([np.asarray(line.x, float) for line in lines])
    ys = np.concatenate([np.asarray(line.y, float) for line in lines])
    xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(ys)]
    assert len(xs) and len(ys), "a chart needs a finite point"
    low, high = _padded(float(ys.min()), float(ys.max()))
    left, right = float(xs.min()), float(xs.max())
    cells = np.full((canvas.height, canvas.width), " ", dtype="<U1")
    bits = np.zeros((canvas.height, canvas.width), dtype=int)
    for line in reversed(lines):
        for row, column in _dots(line, canvas, (left, right, low, high)):
            if canvas.braille:
                bits[row // 4, column // 2] |= _BRAILLE_BITS[row % 4][column % 2]
            else:
                cells[row, column] = line.symbol
    if canvas.braille:
        cells = np.array([[chr(0x2800 + dot) if dot else " " for dot in row] for row in bits])
    return _framed(cells, canvas, (left, right, low, high), x_label)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Widen an empty range so that a flat line can be drawn."""
    return (low, high) if high > low else (low - 0.5 * max(abs(low), 1e-9), high + 0.5 * max(abs(high), 1e-9))


def _dots(line: Line, canvas: Canvas, frame: tuple[float, float, float, float]) -> list[tuple[int, int]]:
    """Return the (row, column) dots of a line, joined where it is steep."""
    left, right, low, high = frame
    rows, columns = canvas.dots
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if not len(x):
        return []
    at: NDArray[np.float64] = np.linspace(left, right, columns) if right > left else np.full(1, left)
    half = (right - left) / max(columns - 1, 1) / 2
    inside = np.flatnonzero((at >= x[0] - half) & (at <= x[-1] + half))
    height = np.rint((high - np.interp(at[inside], x, y)) / (high - low) * (rows - 1)).astype(int)
    dots = []
    before = None
    for column, row in zip(inside, height, strict=True):
        if column % line.spacing == 0:
            joined = range(min(row, before), max(row, before) + 1) if before is not None else (row,)
            near = [r for r in joined if before is None or r != before or row == before]
            dots += [(int(r), int(column)) for r in (near if line.spacing == 1 else (row,))]
        before = row
    return dots


def _framed(
    cells: NDArray[np.str_], canvas: Canvas, frame: tuple[float, float, float, float], x_label: str
) -> list[str]:
    """Put the scale left of and under the cells."""
    left, right, low, high = frame
    ticks = {0: high, canvas.height // 2: high - (high - low) * (canvas.height // 2) / (canvas.height - 1)}
    ticks[canvas.height - 1] = low
    bar, corner, floor = ("│", "└", "─") if canvas.braille else ("|", "+", "-")
    names = {row: _tick(value, high - low) for row, value in ticks.items()}
    margin = max(len(name) for name in names.values())
    text = [f"{names.get(row, ''):>{margin}} {bar}{''.join(cells[row])}".rstrip() for row in range(canvas.height)]
    text.append(f"{'':>{margin}} {corner}{floor * canvas.width}")
    first, last = f"{left:g}", f"{right:g}"
    middle = x_label.center(canvas.width - len(first) - len(last))
    text.append(f"{'':>{margin}}  {first}{middle}{last}")
    return text


def _tick(value: float, span: float) -> str:
    """Return a number with as many digits as its scale needs."""
    decimals = min(6, max(0, 2 - math.floor(math.log10(span)))) if span > 0 else 2
    return f"{value:.{min(decimals, 4)}f}" if abs(value) < 1e6 else f"{value:.3g}"
