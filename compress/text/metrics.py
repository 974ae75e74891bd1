"""What a text classifier is judged by, each number with its 95 % interval, and the confusion matrix as a picture.

Shapes: N texts, C classes. Probabilities are natural-log; cross-entropy and KL divergence are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.interval import Interval, wilson

Floats = NDArray[np.float64]
RESAMPLES = 1000
_MOST_CLASSES = 40
"""Whose names a picture of the matrix can show."""


def log_softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Return the log probabilities (N, C) of logits (N, C)."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return counts (C, C): rows are true classes, columns predicted ones."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return np.asarray(counts.reshape(classes, classes), np.int64)


def macro_f1(matrix: NDArray[np.integer[Any]]) -> float:
    """Return the mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    A class that neither the labels nor the predictions have is left out of the mean.
    """
    right = np.diag(matrix).astype(np.float64)
    support = matrix.sum(axis=0) + matrix.sum(axis=1)
    return float((2 * right[support > 0] / support[support > 0]).mean())


def cross_entropies(targets: NDArray[np.floating[Any]], log_probabilities: Floats) -> Floats:
    """Return −Σ_c t_c log p_c (N,) for target probabilities (N, C)."""
    return np.asarray(-(np.asarray(targets, np.float64) * log_probabilities).sum(axis=1), np.float64)


def kl_divergences(targets: NDArray[np.floating[Any]], log_probabilities: Floats) -> Floats:
    """Return KL(t ‖ p) = Σ_c t_c (log t_c − log p_c) (N,); for one-hot targets it is the cross-entropy."""
    wanted = np.asarray(targets, np.float64)
    entropy = -(wanted * np.log(np.where(wanted > 0, wanted, 1.0))).sum(axis=1)
    found: Floats = cross_entropies(wanted, log_probabilities) - entropy
    return found


def bootstrap(samples: int, statistic: Callable[[NDArray[np.int64]], float], level: float = 0.95) -> Interval:
    """Return a statistic of N samples with its percentile interval over resamples (Efron & Tibshirani 1993, §13.3).

    Args:
        samples: N > 0.
        statistic: takes row numbers (N,), with repeats.
        level: coverage.
    """
    random = np.random.default_rng(0)
    values = [statistic(random.integers(0, samples, samples)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(np.arange(samples)), float(low), float(high), level)


def judge(
    logits: NDArray[np.float32], targets: NDArray[np.float32], teacher: NDArray[np.float32] | None = None
) -> dict[str, Any]:
    """Return accuracy, macro-F1, cross-entropy and KL divergence with intervals, and the confusion matrix.

    Args:
        logits: (N, C).
        targets: (N, C) probabilities.
        teacher: (N, C) the teacher's logits, against which a second KL divergence and the agreement are taken.
    """
    said, labels, classes = log_softmax(logits), targets.argmax(axis=1), targets.shape[1]
    predicted = said.argmax(axis=1)
    count = len(labels)
    entropies, divergences = cross_entropies(targets, said), kl_divergences(targets, said)
    found: dict[str, Any] = {
        "texts": count,
        "accuracy": asdict(wilson(int((predicted == labels).sum()), count)),
        "macro_f1": asdict(
            bootstrap(count, lambda rows: macro_f1(confusion_matrix(labels[rows], predicted[rows], classes)))
        ),
        "cross_entropy": asdict(bootstrap(count, lambda rows: float(entropies[rows].mean()))),
        "kl_labels": asdict(bootstrap(count, lambda rows: float(divergences[rows].mean()))),
        "confusion": confusion_matrix(labels, predicted, classes).tolist(),
    }
    if teacher is not None:
        against = log_softmax(teacher)
        from_teacher = kl_divergences(np.exp(against), said)
        found["kl_teacher"] = asdict(bootstrap(count, lambda rows: float(from_teacher[rows].mean())))
        found["agreement"] = asdict(wilson(int((predicted == against.argmax(axis=1)).sum()), count))
    return found


def plot_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], out: Path, *, title: str = "") -> None:
    """Draw a confusion matrix as a PNG: rows true, columns predicted, colour by share of the row.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, min(12.0, 1.6 + 0.45 * len(classes)))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")  # no pyplot: no global state, no display needed
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, parse_math=False)  # a path, in which "$" is no formula
    if len(classes) <= _MOST_CLASSES:
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
        for (row, column), number in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(number), ha="center", va="center", color=colour, fontsize="small")
    with atomic.atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
