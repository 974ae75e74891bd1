"""Accuracy of a classifier and of an embedding, as small pure functions over arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.bench.significance import ScoreError
from edgekit.interval import Interval, wilson

Float64 = NDArray[np.float64]
Labels = NDArray[np.int64]

CALIBRATION_BINS = 15
"""Equal-width bins of confidence, as in Guo et al., 2017."""


@dataclass(frozen=True)
class ClassificationScores:
    """How well logits fit labels.

    Attributes:
        pictures: number of pictures.
        top1: share of pictures whose highest logit is the label's, with Wilson's interval.
        top5: the same for the five highest; None with five classes or fewer, where it says nothing.
        macro_f1: F1 averaged over the classes that occur in labels or predictions.
        cross_entropy: mean of -log p(label), in nats.
        calibration_error: expected calibration error over 15 bins, in [0, 1].
    """

    pictures: int
    top1: Interval
    top5: Interval | None
    macro_f1: float
    cross_entropy: float
    calibration_error: float


@dataclass(frozen=True)
class CosineSummary:
    """Cosine similarity between two models' embeddings of the same pictures, each in [-1, 1]."""

    mean: float
    minimum: float


def classification_scores(logits: ArrayLike, labels: ArrayLike) -> ClassificationScores:
    """Compute every score of logits (N, C) against labels (N,).

    Raises:
        ScoreError: shapes do not fit, a label is not a class, or a logit is not finite.
    """
    scores, classes = check_logits(logits), np.asarray(labels)
    return ClassificationScores(
        pictures=len(scores),
        top1=top_k_accuracy(scores, classes, 1),
        top5=top_k_accuracy(scores, classes, 5) if scores.shape[1] > 5 else None,
        macro_f1=macro_f1(scores, classes),
        cross_entropy=cross_entropy(scores, classes),
        calibration_error=expected_calibration_error(scores, classes),
    )


def correct(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> NDArray[np.bool_]:
    """Return (N,) bool: whether the label is among the k highest logits; of equal logits the first class wins.

    That tie rule is argmax's, so k = 1 is what an application sees.

    Raises:
        ScoreError: shapes do not fit, a label is not a class, a logit is not finite, or k is not in 1..C.
    """
    scores = check_logits(logits)
    classes = check_labels(labels, scores)
    if not 1 <= k <= scores.shape[1]:
        raise ScoreError(f"top-{k} needs k between 1 and the number of classes, {scores.shape[1]}")
    own = scores[np.arange(len(scores)), classes][:, None]
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < classes[:, None]))
    return np.asarray(np.count_nonzero(ahead, axis=1) < k)


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 1, *, level: float = 0.95) -> Interval:
    """Return the share of pictures whose label is among the k highest logits, with Wilson's interval."""
    right = correct(logits, labels, k)
    return wilson(int(np.count_nonzero(right)), len(right), level)


def macro_f1(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return F1 averaged over the classes that occur in labels or predictions; in [0, 1]."""
    scores = check_logits(logits)
    classes = check_labels(labels, scores)
    predicted = scores.argmax(axis=1)
    count = scores.shape[1]
    hits = np.bincount(classes[predicted == classes], minlength=count)
    # F1 = 2 TP / (2 TP + FP + FN), and the denominator is predictions plus labels of the class
    mentions = np.bincount(classes, minlength=count) + np.bincount(predicted, minlength=count)
    occurring = mentions > 0
    return float(np.mean(2 * hits[occurring] / mentions[occurring]))


def cross_entropy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log softmax(logits)[label], in nats, >= 0."""
    scores = check_logits(logits)
    classes = check_labels(labels, scores)
    return float(-np.mean(log_softmax(scores)[np.arange(len(scores)), classes]))


def kl_divergence(teacher_logits: ArrayLike, student_logits: ArrayLike, temperature: float = 1.0) -> float:
    """Return the mean over pictures of KL(teacher ‖ student) between softmax(logits / temperature), in nats, >= 0.

    Raises:
        ScoreError: shapes differ, a logit is not finite, or the temperature is not positive.
    """
    if not temperature > 0:
        raise ScoreError(f"the temperature must be greater than 0, got {temperature}")
    teacher, student = _same_shape(teacher_logits, student_logits)
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    # a difference of logarithms: p log(p / q) would be NaN where p underflows to 0
    per_picture = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    return float(max(0.0, np.mean(per_picture)))


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Return the mean distance between confidence and accuracy, in [0, 1] (Guo et al., 2017, arXiv 1706.04599, eq. 3).

    Confidence is the highest softmax probability; `bins` equal-width bins, each (low, high].
    """
    if bins < 1:
        raise ScoreError(f"the calibration error needs at least 1 bin, got {bins}")
    scores = check_logits(logits)
    right = correct(scores, labels)
    confidence = np.exp(log_softmax(scores)).max(axis=1)
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.sum(np.abs(gaps)) / len(scores))


def agreement(first_logits: ArrayLike, second_logits: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the share of pictures on which two models name the same class, with Wilson's interval.

    Raises:
        ScoreError: shapes differ or a logit is not finite.
    """
    first, second = _same_shape(first_logits, second_logits)
    same = first.argmax(axis=1) == second.argmax(axis=1)
    return wilson(int(np.count_nonzero(same)), len(same), level)


def embedding_cosine(reference: ArrayLike, candidate: ArrayLike) -> CosineSummary:
    """Compare embeddings (N, D) of the same pictures row by row.

    Raises:
        ScoreError: shapes differ, a value is not finite, or a row is zero and has no direction.
    """
    if np.shape(reference) != np.shape(candidate):
        raise ScoreError(f"embeddings of different shapes: {np.shape(reference)} and {np.shape(candidate)}")
    cosines = np.sum(unit_rows(reference) * unit_rows(candidate), axis=1)
    return CosineSummary(float(cosines.mean()), float(cosines.min()))


def log_softmax(logits: ArrayLike) -> Float64:
    """Return log softmax over the last axis in float64; safe for logits of any finite size."""
    scores = np.asarray(logits, dtype=np.float64)
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))


def unit_rows(embeddings: ArrayLike, name: str = "embedding") -> Float64:
    """Return embeddings (N, D) as float64 rows of length 1.

    Raises:
        ScoreError: not two-dimensional, empty, not finite, or a row is zero.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ScoreError(f"{name} must be (N, D) with N and D at least 1, got {rows.shape}")
    _check_finite(rows, name)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.all(lengths > 0):
        raise ScoreError(f"{name} {int(np.argmin(lengths))} is all zeros and has no direction")
    return np.asarray(rows / lengths)


def check_logits(logits: ArrayLike) -> Float64:
    """Return logits (N, C) as float64.

    Raises:
        ScoreError: not two-dimensional, no picture, fewer than 2 classes, or not finite.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2 or not len(scores) or scores.shape[1] < 2:
        raise ScoreError(f"logits must be (pictures, classes), at least 1 and 2 of them, got {scores.shape}")
    _check_finite(scores, "logits")
    return scores


def check_labels(labels: ArrayLike, logits: Float64) -> Labels:
    """Return labels (N,) as int64, each a column of logits (N, C).

    Raises:
        ScoreError: the lengths differ, labels are not whole numbers, or one is not a class.
    """
    classes = np.asarray(labels)
    if classes.ndim != 1 or len(classes) != len(logits):
        raise ScoreError(f"{len(logits)} rows of logits need as many labels, got labels of shape {classes.shape}")
    if not np.issubdtype(classes.dtype, np.integer):
        raise ScoreError(f"labels must be class numbers (integers), got {classes.dtype}")
    outside = (classes < 0) | (classes >= logits.shape[1])
    if outside.any():
        at = int(np.argmax(outside))
        raise ScoreError(f"label {classes[at]} of picture {at} is not one of the model's {logits.shape[1]} classes")
    return classes.astype(np.int64)


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[Float64, Float64]:
    a, b = check_logits(first), check_logits(second)
    if a.shape != b.shape:
        raise ScoreError(f"logits of different shapes cannot be compared: {a.shape} and {b.shape}")
    return a, b


def _check_finite(values: Float64, name: str) -> None:
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ScoreError(
            f"{name}: {np.count_nonzero(bad)} of {len(values)} rows hold NaN or infinity, the first is row "
            f"{int(np.argmax(bad))}. In fp16 this is an overflow; keep the layer in fp32."
        )
