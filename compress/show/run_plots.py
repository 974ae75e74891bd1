"""One picture of one run or of several together: losses, accuracy, rate, gradient norm, throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgekit import atomic
from edgekit.compress.training.history import LOSS_PARTS, Curve, History

_PARTS = (*LOSS_PARTS, "val_loss")
_ACCURACIES = {
    "val_acc": "val",
    "zeroshot_acc": "zero-shot",
    "train_acc": "train",
    "agreement": "agreement",
    "mean_r1": "mean R@1",
}
_STYLES = ("-", "--", ":", "-.", "-")
MOST_RUNS = 10
"""Colours that can be told apart."""


def plot_runs(histories: Sequence[History], out: Path, *, title: str = "") -> None:
    """Draw the runs as one PNG; one run shows all its parts, several share each panel, a colour per run.

    Args:
        histories: at most `MOST_RUNS`.
        out: PNG file.
        title: above the picture.

    Raises:
        WriteError: the file cannot be written.
    """
    figure = Figure(figsize=(13, 7), layout="constrained")  # no pyplot: no global state, no display needed
    panels = figure.subplots(2, 3).ravel()
    single = len(histories) == 1
    for number, history in reversed([*enumerate(histories)]):  # where runs share a stretch, the first given is on top
        colour = None if single else f"C{number}"
        _draw_losses(panels[0], history, colour)
        _draw_accuracies(panels[1], history, colour)
        _draw(panels[2], history.curve("lr", by_step=True), colour or "black", history.name)
        _draw(panels[3], history.curve("grad_norm", by_step=True), colour or "black", history.name)
        _draw(panels[4], history.curve("images_per_s"), colour or "black", history.name)
        _draw(panels[5], _minutes(history), colour or "black", history.name)
    names = (
        "loss and its parts" if single else "training loss",
        "accuracy (%)",
        "learning rate",
        "gradient norm, before clipping",
        "training throughput (samples/s)",
        "wall time (minutes)",
    )
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _name_lines(axes, backwards=not single)
        for history in histories:
            _mark(axes, history)
    for axes in (panels[0], panels[2], panels[4], panels[5]):
        axes.set_ylim(bottom=0)
    norms = [v for history in histories for v in history.curve("grad_norm", by_step=True).values if v > 0]
    if norms and max(norms) > 20 * min(norms):
        panels[3].set_yscale("log")  # what explodes does so by powers of ten
    if title:
        figure.suptitle(title, parse_math=False)  # a path, in which "$" is no formula
    with atomic.atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_losses(axes: Any, history: History, colour: str | None) -> None:
    """Draw every part of a single run, the total alone where runs share the panel."""
    for name in _PARTS if colour is None else _PARTS[:1]:
        label = name.replace("_", " ") if colour is None else history.name
        _draw(axes, history.curve(name), colour, label, width=2.0 if name == "loss" else 1.2)


def _draw_accuracies(axes: Any, history: History, colour: str | None) -> None:
    for style, (name, label) in zip(_STYLES, _ACCURACIES.items(), strict=True):
        if colour is not None and name == "agreement":
            continue
        shown = label if colour is None else f"{history.name}, {label}"
        _draw(axes, history.curve(name, scale=100.0), colour, shown, style="-" if colour is None else style)


def _draw(axes: Any, curve: Curve, colour: str | None, label: str, *, style: str = "-", width: float = 1.5) -> None:
    if curve.values:
        marker = "o" if len(curve.values) == 1 else None  # a line through one point is invisible
        axes.plot(curve.epochs, curve.values, style, color=colour, label=label, linewidth=width, marker=marker)


def _name_lines(axes: Any, *, backwards: bool) -> None:
    """Say which line is which where there are several."""
    lines, labels = axes.get_legend_handles_labels()
    if len(lines) > 1:
        order = -1 if backwards else 1
        legend = axes.legend(lines[::order], labels[::order], fontsize="small")
        for text in legend.get_texts():  # names of runs, in which "$" is no formula
            text.set_parse_math(False)


def _mark(axes: Any, history: History) -> None:
    """Mark where a phase began and where the guard rolled back."""
    for at in history.phase_ends:
        axes.axvline(at, color="grey", linestyle="--", linewidth=0.8)
    for row in history.troubles:
        if row.get("action") == "rollback":
            axes.axvline(row["epoch"], color="red", linestyle=":", linewidth=0.8)


def _minutes(history: History) -> Curve:
    """Return the wall time since the first phase began."""
    curve = history.curve("seconds", scale=1 / 60)
    totals, total = [], 0.0
    for value in curve.values:
        total = math.fsum((total, value))
        totals.append(total)
    return Curve(curve.epochs, totals)
