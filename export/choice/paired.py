"""Paired comparisons for the choice of a precision: accuracy on the same pictures, time in the same rounds."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgekit.export.choice.mcnemar import mcnemar_of_counts
from edgekit.interval import Interval

BoolArray = NDArray[np.bool_]
Float64 = NDArray[np.float64]


def accuracy_drop(baseline_right: BoolArray, candidate_right: BoolArray, level: float = 0.95) -> Interval:
    """Return the baseline's accuracy minus the candidate's on the same pictures, with its interval, in [-1, 1].

    The interval is the adjusted Wald interval for paired proportions (Agresti and Min, 2005, Stat Med 24:729): half a
    picture is added to each of the four cells, so that it has a width even where the two never differ.

    Args:
        baseline_right, candidate_right: (N,) whether each is right on each picture, in the same order; N ≥ 1.
        level: coverage, within (0, 1).
    """
    lost, won, total = _discordant(baseline_right, candidate_right)
    adjusted = total + 2
    centre = (lost - won) / adjusted
    spread = math.sqrt((lost + won + 1) - (lost - won) ** 2 / adjusted) / adjusted
    half = NormalDist().inv_cdf(0.5 + level / 2) * spread
    value = (lost - won) / total
    return Interval(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)), level)


def mcnemar_mid_p(baseline_right: BoolArray, candidate_right: BoolArray) -> float:
    """Return the two-sided mid-p value of McNemar's test."""
    lost, won, _ = _discordant(baseline_right, candidate_right)
    return mcnemar_of_counts(lost, won).p_mid


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int = 40, budget_s: float = 10.0, seed: int = 0
) -> dict[str, Float64]:
    """Time all calls in rounds of random order; return (rounds,) seconds of each, the fastest of three per round.

    What disturbs the machine then disturbs all alike, and can only slow a call down. The first call of a visit is not
    timed: it brings the weights back into the caches.

    Args:
        calls: name to a call that returns when its work is done.
        rounds: rounds at most, after one that is not counted.
        budget_s: seconds after which no further round begins; at least five are made.
        seed: of the order.
    """
    order = np.random.default_rng(seed)
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for number in range(rounds + 1):
        if number > 5 and time.perf_counter() - begin > budget_s:
            break
        for at in order.permutation(len(names)):
            seconds[names[at]].append(_fastest_of_three(calls[names[at]]))
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def speedup(baseline_s: Float64, candidate_s: Float64, level: float = 0.95) -> Interval:
    """Return the median over rounds of baseline time / candidate time; above 1 the candidate is faster.

    The interval runs between order statistics of the paired ratios (Conover, Practical Nonparametric Statistics, §3.2):
    a binomial count says which two hold the median with probability `level`. It assumes nothing of the noise's shape.

    Args:
        baseline_s, candidate_s: (rounds,) seconds in the same rounds.
        level: coverage, within (0, 1).
    """
    ratios = np.sort(baseline_s / candidate_s)
    count = len(ratios)
    below = 0.0
    rank = 0  # the largest number of ratios that may be cut off at each end
    while rank < (count - 1) // 2:
        below += math.comb(count, rank) / 2**count
        if below > (1 - level) / 2:
            break
        rank += 1
    low = max(0, rank - 1)
    return Interval(float(np.median(ratios)), float(ratios[low]), float(ratios[count - 1 - low]), level)


def _fastest_of_three(call: Callable[[], object]) -> float:
    call()
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would hit whichever call happens to trigger it
    try:
        fastest = math.inf
        for _ in range(3):
            start = time.perf_counter()
            call()
            fastest = min(fastest, time.perf_counter() - start)
        return fastest
    finally:
        if was_enabled:
            gc.enable()


def _discordant(baseline_right: BoolArray, candidate_right: BoolArray) -> tuple[int, int, int]:
    """Return the pictures that only the baseline gets right, those that only the candidate does, and all."""
    assert baseline_right.shape == candidate_right.shape and baseline_right.ndim == 1 and baseline_right.size
    lost = int(np.count_nonzero(baseline_right & ~candidate_right))
    won = int(np.count_nonzero(candidate_right & ~baseline_right))
    return lost, won, len(baseline_right)
