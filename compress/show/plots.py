"""Pictures of a run: losses, accuracy and learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from edgekit import atomic
from edgekit.compress.training.history import LOSS_PARTS

_ACCURACIES = {
    "train_acc": "train",
    "val_acc": "validation",
    "zeroshot_acc": "zero-shot, validation",
    "agreement": "agreement with teacher",
    "mean_r1": "mean R@1, validation",
}


def plot_run(
    rows: Sequence[Mapping[str, Any]], out: Path, *, teacher_acc: float | None = None, title: str = ""
) -> None:
    """Draw loss parts, accuracy and learning rate of the epoch rows as one PNG.

    Args:
        rows: epoch rows of metrics.jsonl.
        out: PNG file.
        teacher_acc: the teacher's validation accuracy in [0, 1], drawn as a line.
        title: above the picture.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")  # no pyplot: no global state, no display needed
    losses, accuracy, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for name in (p for p in LOSS_PARTS if p in rows[0]):
        losses.plot(epochs, [row[name] for row in rows], label=name, linewidth=2 if name == "loss" else 1.2)
    losses.set(title="training loss", xlabel="epoch", ylim=(0, None))
    losses.legend()
    for name, label in _ACCURACIES.items():
        points = [(row["epoch"], 100 * row[name]) for row in rows if name in row]
        if points:
            accuracy.plot(*zip(*points, strict=True), label=label)
    if teacher_acc is not None:
        accuracy.axhline(100 * teacher_acc, color="grey", linestyle="--", label=f"teacher {100 * teacher_acc:.1f} %")
    accuracy.set(title="accuracy (%)", xlabel="epoch")
    accuracy.legend()
    rate.plot(epochs, [row["lr"] for row in rows], color="black")
    rate.set(title="learning rate at the epoch's end", xlabel="epoch", ylim=(0, None))
    for axes in (losses, accuracy, rate):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title, parse_math=False)  # a path, in which "$" is no formula
    with atomic.atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110)
