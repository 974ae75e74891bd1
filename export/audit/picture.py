"""A picture of a file's precision: its products in order, as bars as long as their share of the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.atomic import atomic_path
from edgekit.errors import MissingExtraError
from edgekit.export.audit.record import CONVERT, UNPACK, Audit, Op
from edgekit.terminal import human_count

COLOURS: Mapping[str, str] = {
    # Okabe and Ito's palette, which colour-blind readers can tell apart
    "fp32": "#0072B2", "fp16": "#56B4E9", "bf16": "#009E73", "int8": "#E69F00", "int8-dynamic": "#F0E442",
    "convert": "#000000",
}  # fmt: skip
_OTHER = "#BBBBBB"
_NAMES = {CONVERT: "change of dtype"}
_MAX_INCHES, _ROW_INCHES = 24.0, 0.14
_HAIRLINE = 0.003
"""Of the longest bar: the least that still shows its colour."""
_MAX_BESIDE = 24
"""Operations drawn beside a bar; more would leave no room for it."""


@dataclass(frozen=True)
class Row:
    """One bar.

    Attributes:
        op: the product.
        beside: the operations without products that follow it.
    """

    op: Op
    beside: tuple[Op, ...]


def rows_of(ops: Sequence[Op]) -> list[Row]:
    """Group operations: each product with what follows it; what precedes the first product stands with it.

    Unpacking of weights is left out: it says nothing that the colour of the product does not.
    """
    rows: list[Row] = []
    waiting: list[Op] = []
    for op in (op for op in ops if op.dtype != UNPACK):
        if op.macs:
            rows.append(Row(op, tuple(waiting)))
            waiting = []
        elif rows:
            rows[-1] = Row(rows[-1].op, (*rows[-1].beside, op))
        else:
            waiting.append(op)
    return rows


def draw_precision(audit: Audit, out: Path) -> None:
    """Write a PNG: a row per product in the order of the file, its bar as long as its share of multiply-accumulates.

    The squares at the right of a row are the operations that follow the product. Colours are what each computes in.

    Raises:
        MissingExtraError: matplotlib is not installed.
        WriteError: `out` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError("matplotlib", "report", "Drawing a picture") from e
    rows = rows_of(audit.ops)
    height = min(_MAX_INCHES, 1.6 + _ROW_INCHES * max(len(rows), 4))
    figure = Figure(figsize=(10, height), layout="constrained")
    bars, beside = figure.subplots(1, 2, sharey=True, width_ratios=(2.4, 1))
    _draw_bars(bars, rows, audit.macs, labelled=(height - 1.6) / max(len(rows), 1) >= 0.09)
    _draw_beside(beside, rows)
    _legend(figure, audit)
    figure.suptitle(_title(audit), fontsize=11)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_beside(axes: Any, rows: Sequence[Row]) -> None:
    for at, row in enumerate(rows):
        beside = row.beside[:_MAX_BESIDE]
        axes.barh([at] * len(beside), 0.8, left=range(len(beside)), height=0.7, color=[_colour(op) for op in beside])
        if len(row.beside) > _MAX_BESIDE:
            axes.text(_MAX_BESIDE, at, f"+{len(row.beside) - _MAX_BESIDE}", va="center", fontsize=5)
    axes.set_xlim(0, max([12, *(min(len(row.beside), _MAX_BESIDE) + 1 for row in rows)]))
    axes.set_xlabel("what follows it")
    axes.set_xticks([])
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)


def _draw_bars(axes: Any, rows: Sequence[Row], total: int, *, labelled: bool) -> None:
    shares = [100 * (row.op.macs or 0) / total for row in rows]
    shares = [max(share, _HAIRLINE * max(shares)) for share in shares]
    axes.barh(range(len(rows)), shares, height=0.85, color=[_colour(row.op) for row in rows])
    axes.set_xlabel(f"% of {human_count(total)} multiply-accumulates")
    axes.spines[["top", "right"]].set_visible(False)
    if not rows:
        axes.text(0.5, 0.5, "no product whose size is known", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first operation on top
    axes.tick_params(axis="y", length=0)
    names = [row.op.kind for row in rows] if labelled else []
    axes.set_yticks(range(len(names)), names, fontsize=6)
    if not labelled:
        axes.set_ylabel(f"{len(rows)} products in the order of the file")


def _legend(figure: Any, audit: Audit) -> None:
    from matplotlib.patches import Patch

    shares = audit.macs_by_dtype()
    used = list(dict.fromkeys([*shares, *(op.dtype for op in audit.ops if op.dtype != UNPACK)]))
    known = [name for name in used if name in COLOURS]
    patches = [Patch(color=COLOURS[name], label=_label(name, shares, audit.macs)) for name in known]
    if len(known) < len(used):
        patches.append(Patch(color=_OTHER, label="other (indices, flags)"))
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 5), fontsize=8, frameon=False)


def _label(name: str, shares: Mapping[str, int], total: int) -> str:
    return f"{name}: {100 * shares[name] / total:.1f} % of the work" if name in shares else _NAMES.get(name, name)


def _title(audit: Audit) -> str:
    name = Path(audit.path).name
    return f"{name if len(name) < 60 else name[:57] + '…'}: {audit.precision}, {audit.parameters:,} weights"


def _colour(op: Op) -> str:
    return COLOURS.get(op.dtype, _OTHER)
