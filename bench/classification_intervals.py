"""Intervals of the scores that are no plain shares: macro-F1, cross-entropy and calibration error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from edgekit.bench.metrics import (
    CALIBRATION_BINS,
    Float64,
    Labels,
    check_labels,
    check_logits,
    correct,
    cross_entropy,
    expected_calibration_error,
    log_softmax,
    macro_f1,
)
from edgekit.interval import Interval

_WEIGHTS_AT_ONCE = 4_000_000
"""Weights (resamples x pictures) drawn at a time: 32 MB."""


@dataclass(frozen=True)
class ClassificationIntervals:
    """Each with a 95 % interval over the pictures."""

    macro_f1: Interval
    cross_entropy: Interval
    calibration_error: Interval


def classification_intervals(
    logits: ArrayLike, labels: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> ClassificationIntervals:
    """Return macro-F1, cross-entropy and calibration error of logits (N, C) with basic bootstrap intervals.

    The basic interval mirrors the resampled values at the estimate (Davison & Hinkley, 1997, §5.2.1): F1 and
    calibration error of a resample are biased, and mirroring takes the bias out where percentiles would count it twice.

    Raises:
        ScoreError: shapes do not fit, a label is not a class, or a logit is not finite.
    """
    scores = check_logits(logits)
    classes = check_labels(labels, scores)
    measures = _f1_of(scores, classes), _loss_of(scores, classes), _calibration_of(scores, classes)
    drawn = [[measure(weights) for measure in measures] for weights in _weights(len(scores), resamples, seed)]
    f1, loss, calibration = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    return ClassificationIntervals(
        _mirrored(macro_f1(scores, classes), f1, level, 1.0),
        _mirrored(cross_entropy(scores, classes), loss, level, np.inf),
        _mirrored(expected_calibration_error(scores, classes), calibration, level, 1.0),
    )


def _weights(pictures: int, resamples: int, seed: int) -> Iterator[Float64]:
    """Yield (r, N) counts of how often each picture is in a resample."""
    generator = np.random.default_rng(seed)
    step = max(1, _WEIGHTS_AT_ONCE // pictures)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        yield generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=count).astype(np.float64)


def _mirrored(value: float, drawn: Float64, level: float, highest: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    # within the score's range, and never without the value that stands beside it
    return Interval(value, max(0.0, min(value, 2 * value - high)), min(highest, max(value, 2 * value - low)), level)


def _f1_of(scores: Float64, classes: Labels) -> Callable[[Float64], Float64]:
    predicted, known = scores.argmax(axis=1), np.eye(scores.shape[1])
    true, named = known[classes], known[predicted]
    hit = true * (predicted == classes)[:, None]

    def f1(weights: Float64) -> Float64:
        mentions = weights @ true + weights @ named
        share = np.divide(2 * (weights @ hit), mentions, out=np.zeros_like(mentions), where=mentions > 0)
        return np.asarray(share.sum(axis=1) / np.count_nonzero(mentions, axis=1))

    return f1


def _loss_of(scores: Float64, classes: Labels) -> Callable[[Float64], Float64]:
    losses = -log_softmax(scores)[np.arange(len(scores)), classes]
    return lambda weights: np.asarray(weights @ losses / len(losses))


def _calibration_of(scores: Float64, classes: Labels) -> Callable[[Float64], Float64]:
    confidence = np.exp(log_softmax(scores)).max(axis=1)
    bin_of = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidence)
    gaps = np.eye(CALIBRATION_BINS)[bin_of] * (correct(scores, classes) - confidence)[:, None]
    return lambda weights: np.asarray(np.abs(weights @ gaps).sum(axis=1) / len(gaps))
