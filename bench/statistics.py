"""Latency statistics from raw samples: percentiles, means and paired speed-ups, each with its interval.

Timings on a shared machine are not independent: a process that competes for a core makes many samples in a row slow.
All intervals here come from a circular block bootstrap (Politis & Romano, 1992) over rounds, so that a slow spell is
resampled whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.interval import Interval

Float64 = NDArray[np.float64]
Verdict = Literal["faster", "slower", "inconclusive"]

PERCENTILES = (50, 90, 95, 99)
MINIMUM_EFFECT = 0.02
"""Speed-ups within ±2 % are not called one. Equal candidates differ reproducibly by up to 1 % within one process (where
their buffers happen to lie in memory), and no number of rounds averages that away: without a margin 6 to 17 of 20
equal pairs were called different, with 1 % none was, and a true 5 % was still found every time with 2 %."""
_FEWEST_ROUNDS = 10
"""Below this a percentile interval of a median is the range of the data, and its coverage unknown."""
_BATCH = 4_000_000  # resampled values held at once: 32 MB


@dataclass(frozen=True)
class LatencySummary:
    """What is shown of one candidate's samples; all in seconds.

    Attributes:
        samples: number of timed samples.
        p50_s, p90_s, p95_s, p99_s: percentiles over all samples.
        mean_s: the mean with its interval.
        median_s: the median of the rounds' medians with its interval.
    """

    samples: int
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    mean_s: Interval
    median_s: Interval


@dataclass(frozen=True)
class Speedup:
    """How much faster a candidate is than the baseline.

    Attributes:
        interval: baseline time over candidate time; above 1 the candidate is faster.
        verdict: "faster" or "slower" only where the whole interval lies beyond the minimum effect.
        rounds: paired rounds it rests on.
        minimum_effect: the smallest relative difference that is called one.
    """

    interval: Interval
    verdict: Verdict
    rounds: int
    minimum_effect: float


def summarize(seconds: Float64, *, resamples: int = 2000, seed: int = 0) -> LatencySummary:
    """Summarise samples (rounds, calls) of one candidate.

    Raises:
        UsageError: there is no sample, or one is not a positive number.
    """
    samples = _check(seconds)
    by_round = samples.reshape(len(samples), -1)
    p50, p90, p95, p99 = (float(p) for p in np.percentile(samples, PERCENTILES))
    return LatencySummary(
        samples=samples.size,
        p50_s=p50,
        p90_s=p90,
        p95_s=p95,
        p99_s=p99,
        mean_s=_interval(by_round.mean(axis=1), _mean, resamples=resamples, seed=seed),
        median_s=median_interval(by_round, resamples=resamples, seed=seed),
    )


def median_interval(seconds: Float64, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the median over rounds of the median of each round's calls (rounds, calls), with its 95 % interval."""
    by_round = _check(seconds).reshape(len(seconds), -1)
    return _interval(np.median(by_round, axis=1), _median, resamples=resamples, seed=seed)


def paired_speedup(
    baseline_s: Float64,
    candidate_s: Float64,
    *,
    minimum_effect: float = MINIMUM_EFFECT,
    resamples: int = 2000,
    seed: int = 0,
) -> Speedup:
    """Return the median over rounds of baseline time / candidate time, with interval and verdict.

    The estimator was chosen by measurement: 20 runs of 100 rounds of a small matrix workload, its equal and one of
    5 % more work, on two cores with three other processes at work. Spread and largest error of the estimate for the
    equal, verdicts on it, slow-downs found (margin 2 %):

        per round          over rounds        spread   largest   false   found
        median of 4 calls  ratio of medians   39 %     129 %     1       8
        median of 4 calls  median of ratios   0.22 %   0.64 %    0       13
        fastest of 4       ratio of medians   0.19 %   0.68 %    0       20
        fastest of 4       median of ratios   0.09 %   0.51 %    0       20    <- this one

    With one other process the order is the same. Pairing cancels the machine's slow and fast spells; the fastest call
    of a visit is the one least interrupted; the median of the ratios ignores the rounds where only one of the two
    was interrupted throughout. The price: a candidate's own jitter does not show here, but in its p90 and p99.

    Args:
        baseline_s: (rounds,) seconds of the baseline, the fastest call of each round.
        candidate_s: (rounds,) seconds of the candidate in the same rounds, of as many calls each.
        minimum_effect: relative difference below which no verdict is given, in [0, 1).
        resamples: bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        UsageError: the shapes differ, there is no round, or a time is not a positive number.
    """
    base, own = _check(baseline_s), _check(candidate_s)
    if base.shape != own.shape or base.ndim != 1:
        raise UsageError(f"paired times must have the same rounds, got {base.shape} and {own.shape}")
    if not 0 <= minimum_effect < 1:
        raise UsageError(f"the minimum effect must lie in [0, 1), got {minimum_effect}")
    interval = _interval(base / own, _median, resamples=resamples, seed=seed)
    return Speedup(interval, _verdict(interval, len(base), minimum_effect), len(base), minimum_effect)


def _verdict(interval: Interval, rounds: int, minimum_effect: float) -> Verdict:
    if rounds < _FEWEST_ROUNDS:
        return "inconclusive"
    if interval.low > 1 + minimum_effect:
        return "faster"
    if interval.high < 1 / (1 + minimum_effect):
        return "slower"
    return "inconclusive"


def _interval(
    values: Float64, statistic: Callable[[Float64], Float64], *, resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """Return a statistic of (rounds,) values with its percentile interval under the circular block bootstrap."""
    rounds = len(values)
    # rounds^(1/3) is the rate at which the best block length grows (Künsch, 1989). Over 400 simulated runs of 120
    # rounds whose noise remembers half of the round before, 95 % intervals of the mean covered 88 % with these
    # blocks and 71 % with single rounds. Paired ratios have little memory: there blocks of 1, 3 and 8 agreed.
    block = max(1, round(rounds ** (1 / 3)))
    blocks = -(-rounds // block)
    random = np.random.default_rng(seed)
    drawn = []
    at_once = max(1, _BATCH // (blocks * block))
    for start in range(0, resamples, at_once):
        starts = random.integers(0, rounds, size=(min(at_once, resamples - start), blocks, 1))
        rows = ((starts + np.arange(block)) % rounds).reshape(len(starts), -1)[:, :rounds]
        drawn.append(statistic(values[rows]))
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(values[None])[0]), float(low), float(high), level)


def _median(rows: Float64) -> Float64:
    return np.asarray(np.median(rows, axis=1), dtype=np.float64)


def _mean(rows: Float64) -> Float64:
    return np.asarray(rows.mean(axis=1), dtype=np.float64)


def _check(seconds: Float64) -> Float64:
    values = np.asarray(seconds, dtype=np.float64)
    if not values.size or not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise UsageError(f"latencies must be positive numbers, at least one; got an array of {values.shape}")
    return values
