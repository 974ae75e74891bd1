"""Say how sure a proportion or a difference of accuracies is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import EdgekitError
from edgekit.export.choice.mcnemar import McNemar, mcnemar_of_counts
from edgekit.interval import Interval

BoolArray = NDArray[np.bool_]
AccuracyVerdict = Literal["better", "worse", "inconclusive"]


class ScoreError(EdgekitError):
    """A score cannot be computed from what a model put out, or from the labels given for it (exit 1)."""


@dataclass(frozen=True)
class AccuracyComparison:
    """A candidate's accuracy against a baseline's on the same pictures.

    Attributes:
        difference: candidate minus baseline, in [-1, 1], with a paired bootstrap interval.
        test: McNemar's test; its first model is the candidate.
        verdict: "better" or "worse" only where the mid-p value is below 1 - level.
    """

    difference: Interval
    test: McNemar
    verdict: AccuracyVerdict


def compare_accuracy(
    candidate_right: BoolArray, baseline_right: BoolArray, *, level: float = 0.95, seed: int = 0
) -> AccuracyComparison:
    """Compare two models on the same pictures and call a difference one only when it is.

    Args:
        candidate_right: (N,) bool, whether the candidate is right on each picture.
        baseline_right: (N,) bool, the same pictures in the same order.
        level: coverage of the interval; 1 - level is the test's level.
        seed: seed of the bootstrap.

    Raises:
        ScoreError: the shapes differ, or there is no picture.
    """
    test = mcnemar(candidate_right, baseline_right)
    difference = accuracy_difference(candidate_right, baseline_right, level=level, seed=seed)
    if test.p_mid >= 1 - level:
        return AccuracyComparison(difference, test, "inconclusive")
    return AccuracyComparison(difference, test, "better" if test.only_first > test.only_second else "worse")


def mcnemar(first_right: BoolArray, second_right: BoolArray) -> McNemar:
    """Test whether two models are equally accurate on the same pictures (McNemar, 1947).

    Args:
        first_right: (N,) bool, whether the first model is right on each picture.
        second_right: (N,) bool, the same pictures in the same order.

    Raises:
        ScoreError: the shapes differ, or there is no picture.
    """
    return mcnemar_of_counts(*_discordant(first_right, second_right))


def accuracy_difference(
    first_right: BoolArray, second_right: BoolArray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the accuracy of the first model minus that of the second, with a paired bootstrap interval.

    The pictures are resampled, both models' answers with them. That is the same as drawing the three counts (only
    the first right, only the second, both or neither) from a multinomial, which is what is done here.
    With no picture between the models the bootstrap would claim certainty; the rule of three (±3/N) stands in.

    Args:
        first_right: (N,) bool, whether the first model is right on each picture.
        second_right: (N,) bool, the same pictures in the same order.
        level: coverage, within (0, 1).
        resamples: bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ScoreError: the shapes differ, or there is no picture.
    """
    only_first, only_second = _discordant(first_right, second_right)
    total = len(first_right)
    difference = (only_first - only_second) / total
    if only_first + only_second == 0:
        bound = min(1.0, -math.log(1 - level) / total)
        return Interval(0.0, -bound, bound, level)
    shares = np.array([only_first, only_second, total - only_first - only_second]) / total
    drawn = np.random.default_rng(seed).multinomial(total, shares, size=resamples)
    differences = (drawn[:, 0] - drawn[:, 1]) / total
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Interval(difference, float(low), float(high), level)


def _discordant(first_right: BoolArray, second_right: BoolArray) -> tuple[int, int]:
    """Count the pictures that only the first, and only the second model gets right."""
    first, second = np.asarray(first_right), np.asarray(second_right)
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise ScoreError(f"right or wrong must be bool, got {first.dtype} and {second.dtype}")
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ScoreError(f"the two models must answer the same pictures, got {first.shape} and {second.shape}")
    return int(np.count_nonzero(first & ~second)), int(np.count_nonzero(second & ~first))
