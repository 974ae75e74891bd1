"""The figures of a report: accuracy against latency, distributions, curves; SVG in the page, PNG and SVG as files.

In the page colours are variables of its style sheet, so that they follow light and dark; files have them fixed. No text
of the user's is drawn: models are numbered, and the page names the numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import write_bytes
from edgekit.errors import MissingExtraError


@dataclass(frozen=True)
class Palette:
    """Colours by role; `series` repeats where there are more models than colours."""

    ink: str
    line: str
    paper: str
    series: tuple[str, ...]

    def colour(self, number: int) -> str:
        """Return the colour of series `number`, counted from 0."""
        return self.series[number % len(self.series)]


SERIES = ("#3367c9", "#c2571a", "#2b8a57", "#a03c9d", "#8a6d00", "#127f8f", "#c23a52", "#5d5fb8")
"""Tell-apart colours of at least 3:1 on white; the page has lighter ones for dark."""
PAPER = Palette("#1b1f24", "#c9ced6", "#ffffff", SERIES)
# stand-ins, replaced by the page's variables: matplotlib takes no CSS
_PAGE = Palette("#010203", "#010204", "#010205", tuple(f"#0102{16 + n:02x}" for n in range(len(SERIES))))
_VARIABLES = {_PAGE.ink: "var(--ink)", _PAGE.line: "var(--line)", _PAGE.paper: "var(--paper)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(_PAGE.series)
}
_SIZE_INCHES = (4.7, 3.1)
"""As wide as a phone, so that the text keeps its size there."""
_MAX_POINTS = 400
_BADGE_POINTS = 16.0
"""Distance of two badges' centres, in points: a little more than a badge is wide."""


@dataclass(frozen=True)
class Point:
    """A model in accuracy against latency.

    Attributes:
        number: its number on the page, from 1.
        latency_s: median seconds.
        accuracy, low, high: share of pictures with its interval.
    """

    number: int
    latency_s: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A line of a figure.

    Attributes:
        number: of the model or curve, from 1; gives the colour.
        label: in the legend, fixed words only; None leaves it to the page.
        x, y: (N,) values.
    """

    number: int
    label: str | None
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn in any palette.

    Attributes:
        name: of its file.
        title: what it shows, in words.
        draw: draws it on matplotlib axes.
    """

    name: str
    title: str
    draw: Callable[[Any, Palette], None]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: none is as fast and more accurate, or as accurate and faster."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.latency_s, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def trade_off(points: Sequence[Point]) -> Figure:
    """Draw accuracy against latency with the Pareto front; up and to the left is better."""

    def draw(axes: Any, palette: Palette) -> None:
        front = pareto_front(points)
        xs, ys = [1e3 * p.latency_s for p in front], [100 * p.accuracy for p in front]
        axes.step(xs, ys, where="post", color=palette.ink, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        for point in points:
            colour, x, y = palette.colour(point.number - 1), 1e3 * point.latency_s, 100 * point.accuracy
            arms = [[y - 100 * point.low], [100 * point.high - y]]
            axes.errorbar([x], [y], yerr=arms, color=colour, linewidth=1.0, capsize=2, alpha=0.55, zorder=2)
            axes.plot([x], [y], "o", color=colour, markersize=5 if point in front else 4, zorder=3)
        _log_milliseconds(axes, [1e3 * p.latency_s for p in points])
        axes.set(xlabel="median latency, ms (log)", ylabel="top-1, %")
        axes.margins(x=0.12, y=0.12)
        _badges(axes, points, palette)

    return Figure("accuracy-latency", "Accuracy against latency", draw)


def _badges(axes: Any, points: Sequence[Point], palette: Palette) -> None:
    """Number the points: a badge on each, moved aside where badges would cover each other, a line leading back."""
    if not points:
        return
    axes.autoscale_view()  # or the places below were those of other limits
    at = axes.transData.transform([(1e3 * p.latency_s, 100 * p.accuracy) for p in points]) * 72 / axes.figure.dpi
    box = axes.get_window_extent().get_points() * 72 / axes.figure.dpi
    moved = spread_apart(at, _BADGE_POINTS, box[0], box[1])
    for point, place, home in zip(points, moved, at, strict=True):
        colour = palette.colour(point.number - 1)
        away = float(np.hypot(*(place - home))) > 1.0
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            str(point.number),
            (1e3 * point.latency_s, 100 * point.accuracy),
            xytext=tuple(place - home),
            textcoords="offset points",
            color=palette.paper,
            ha="center",
            va="center",
            fontsize=8,
            weight="bold",
            zorder=4,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "none"},
            arrowprops=line if away else None,
        )


def spread_apart(
    places: NDArray[np.float64], distance: float, low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Move points (N, 2) until any two are `distance` apart where there is room, within the box from low to high.

    Each stays as near to its place as the others let it; points at the same place part in the order of their numbers.
    """
    moved = places + np.stack([np.zeros(len(places)), -1e-3 * np.arange(len(places))], axis=1)
    for _ in range(300):
        gaps = moved[:, None] - moved[None]
        apart = np.hypot(gaps[..., 0], gaps[..., 1])
        np.fill_diagonal(apart, np.inf)
        overlap = np.maximum(0.0, distance - apart)
        if not overlap.any():
            break
        push = (0.5 * overlap / np.maximum(apart, 1e-9))[..., None] * gaps
        moved = np.clip(moved + push.sum(axis=1), low + distance / 2, high - distance / 2)
    return moved


def distributions(samples: Sequence[tuple[int, NDArray[np.float64]]]) -> Figure:
    """Draw the spread of every model's samples (seconds): quartiles as a box, 5 to 95 % as a line, 99 % as a dot."""

    def draw(axes: Any, palette: Palette) -> None:
        for row, (number, seconds) in enumerate(samples):
            p5, p25, p50, p75, p95, p99 = 1e3 * np.percentile(seconds, (5, 25, 50, 75, 95, 99))
            colour = palette.colour(number - 1)
            axes.plot([p5, p95], [row, row], color=colour, linewidth=1.5, solid_capstyle="round")
            axes.plot([p25, p75], [row, row], color=colour, linewidth=9, solid_capstyle="butt", alpha=0.45)
            axes.plot([p50, p50], [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
            axes.plot([p99], [row], "o", color=colour, markersize=4)
        axes.set_yticks(range(len(samples)), [str(number) for number, _ in samples])
        axes.invert_yaxis()
        _log_milliseconds(axes, np.concatenate([1e3 * np.percentile(s, (5, 99)) for _, s in samples]))
        axes.set(xlabel="latency, ms (log)", ylabel="model")

    return Figure("latency", "Latency distributions", draw)


def lines(name: str, title: str, series: Sequence[Series], *, x: str, y: str, marks: Sequence[float] = ()) -> Figure:
    """Draw curves; dashed lines stand at the x of `marks`."""

    def draw(axes: Any, palette: Palette) -> None:
        for one in series:
            step = max(1, len(one.x) // _MAX_POINTS)
            marker = "o" if len(one.x) == 1 else None  # a line through one point is invisible
            colour = palette.colour(one.number - 1)
            axes.plot(one.x[::step], one.y[::step], color=colour, label=one.label, linewidth=1.6, marker=marker)
        for mark in marks:
            axes.axvline(mark, color=palette.ink, linewidth=0.9, linestyle=(0, (3, 3)), alpha=0.6)
        axes.set(xlabel=x, ylabel=y)
        axes.margins(x=0.02)
        if x == "epoch":
            axes.xaxis.get_major_locator().set_params(integer=True)
        if any(one.label for one in series):
            axes.legend(frameon=False, fontsize=9, labelcolor=palette.ink)

    return Figure(name, title, draw)


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element for the page."""
    svg = _render(figure, _PAGE, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?)(?: width="[^"]*"| height="[^"]*"){1,2}', r"\1", svg, count=1)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg


def save_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG and SVG, on white; return the files."""
    found = []
    for figure in figures:
        for kind in ("png", "svg"):
            path = folder / f"{figure.name}.{kind}"
            write_bytes(path, _render(figure, PAPER, kind))
            found.append(path)
    return found


def _render(figure: Figure, palette: Palette, kind: str) -> bytes:
    with _matplotlib() as canvas:
        page = canvas(figsize=_SIZE_INCHES, layout="constrained")  # no pyplot: no global state, no display needed
        axes = page.subplots()
        figure.draw(axes, palette)
        _dress(axes, palette)
        out = io.BytesIO()
        whole = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 160}
        page.savefig(out, format=kind, transparent=palette is _PAGE, **whole)
    return out.getvalue()


@contextmanager
def _matplotlib() -> Iterator[Any]:
    """Yield matplotlib's figure class, set up for text that stays text and files that come out equal each time."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as e:
        raise MissingExtraError("matplotlib", "report", "Drawing a report") from e
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgekit", "font.size": 10}):
        yield Canvas


def _dress(axes: Any, palette: Palette) -> None:
    """Give axes the palette's colours and take away what is not needed."""
    axes.grid(color=palette.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=palette.ink, labelcolor=palette.ink, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(palette.line)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(palette.ink)


def _log_milliseconds(axes: Any, values: Sequence[float] | NDArray[np.float64]) -> None:
    """Scale x by logarithms, with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    low, high = float(np.min(values)) / 1.3, float(np.max(values)) * 1.3
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    wide = high / low > 300
    ticks = [m * 10.0**p for p in powers for m in ((1,) if wide else (1, 2, 5)) if low <= m * 10.0**p <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(low, high)
