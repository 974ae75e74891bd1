"""A page of a report as plain values, and its HTML: one file that asks for nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bench.figures import SERIES, Figure, to_svg
from edgekit.errors import MissingExtraError, VerificationError

MAX_BYTES = 3_000_000
DARK = ("#7aa5ff", "#f0955c", "#62c48f", "#d98bd6", "#d3b344", "#58c3d2", "#ff8da0", "#a4a6f5")
"""The figures' colours on dark: the same hues, lighter."""
_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Column:
    """A column; kind is "text", "prose" (may break) or "" for numbers."""

    name: str
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell; mark is a word that colours it: a verdict, "passed", "failed"."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Row:
    """A row; its number is the one that figures use."""

    cells: tuple[Cell, ...]
    number: int | None = None


@dataclass(frozen=True)
class PageTable:
    """A table; the first column is the name."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PageFigure:
    """A figure with words below it."""

    figure: Figure
    caption: str = ""

    @property
    def title(self) -> str:
        """Return what it shows."""
        return self.figure.title


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is not shown."""

    title: str
    table: PageTable | None = None
    figures: tuple[PageFigure, ...] = ()
    key: tuple[tuple[int, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def figures(self) -> list[Figure]:
        """Return all figures in order."""
        return [one.figure for section in self.sections for one in section.figures]


@dataclass(frozen=True)
class _Drawn:
    title: str
    svg: object
    caption: str


def render_page(page: Page) -> str:
    """Return the page as HTML. Every text is escaped: names of files and classes may come from anyone.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        VerificationError: the page would be larger than `MAX_BYTES`.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as e:
        raise MissingExtraError(e.name or "jinja2", "report", "Writing a report") from e
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    sections = [_drawn(section, Markup) for section in page.sections]
    text = template.render(page={**vars(page), "sections": sections}, light=SERIES, dark=DARK)
    if len(text.encode()) > MAX_BYTES:
        raise VerificationError(f"the page would be {len(text.encode())} bytes, more than {MAX_BYTES}: give it less")
    return text


def _drawn(section: Section, markup: type[str]) -> dict[str, object]:
    figures: Sequence[_Drawn] = [
        _Drawn(one.title, markup(to_svg(one.figure)), one.caption) for one in section.figures
    ]  # matplotlib writes the SVG, and it holds no text of others
    return {**vars(section), "figures": figures}
