"""What a burst of a few seconds does not show: throughput at a batch, and the drift of a device that grows warm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.statistics import LatencySummary, median_interval
from edgekit.bench.timing import Timer
from edgekit.errors import UsageError
from edgekit.interval import Interval

Drift = Literal["steady", "slowed", "quickened", "inconclusive"]
DRIFT_MARGIN = 0.05
"""Drifts within ±5 % count as steady: a throttled phone loses 20 to 50 %, a neighbour on a desktop takes a few."""
_PIECE_S = 0.25
_MAX_POINTS = 240
_RESAMPLES = 2000


@dataclass(frozen=True)
class Throughput:
    """How many pictures go through in a second when they come in batches.

    Attributes:
        batch: pictures of one call.
        images_per_s: batch over the median time of a call, with its interval.
        latency: of one call with the whole batch, seconds.
    """

    batch: int
    images_per_s: Interval
    latency: LatencySummary


@dataclass(frozen=True)
class SustainedSummary:
    """A model called without a pause.

    Attributes:
        seconds: how long.
        calls: how many calls were made.
        images_per_s: over the whole time.
        at_s: (points,) seconds since the start, middle of each stretch.
        p50_s: (points,) median seconds of a call in each stretch.
        drift: median of the last quarter of the stretches over that of the first; above 1 it grew slower.
        verdict: "slowed" (as by thermal throttling) or "quickened" only where the whole interval lies beyond ±5 %,
            "steady" only where it lies within.
    """

    seconds: float
    calls: int
    images_per_s: float
    at_s: tuple[float, ...]
    p50_s: tuple[float, ...]
    drift: Interval
    verdict: Drift


def throughput(seconds: NDArray[np.float64], batch: int, summary: LatencySummary) -> Throughput:
    """Return pictures per second from samples (rounds, calls) of calls with `batch` pictures."""
    time_s = median_interval(seconds)
    return Throughput(batch, Interval(batch / time_s.value, batch / time_s.high, batch / time_s.low), summary)


def run_sustained(
    timer: Timer, duration_s: float, *, batch: int = 1, now: Callable[[], float] = time.perf_counter
) -> SustainedSummary:
    """Call a model for `duration_s` seconds and say how its speed drifts.

    The calls come in pieces of about a quarter of a second, so that a process of its own can report.

    Args:
        timer: takes the time.
        duration_s: seconds, > 0.
        batch: pictures of one call.
        now: clock, seconds.

    Raises:
        UsageError: the duration is not a positive number.
        LoadError: the model failed.
    """
    if not 0 < duration_s < float("inf"):
        raise UsageError(f"--duration must be a positive number of seconds, got {duration_s}")
    call_s = max(1e-7, 1e-9 * min(timer(3, 1)))
    at, medians, calls = [], [], 0
    start = now()
    while (begun := now() - start) < duration_s:
        count = max(1, min(100_000, round(min(_PIECE_S, duration_s - begun) / call_s)))
        ticks = np.asarray(timer(count, 1), np.float64) * 1e-9
        call_s = max(1e-7, float(np.median(ticks)))
        at.append((begun + now() - start) / 2)
        medians.append(call_s)
        calls += count + 1  # and the untimed one
    seconds = now() - start
    drift = drift_of(np.asarray(medians))
    at_s, p50_s = _thinned(np.asarray(at), np.asarray(medians))
    return SustainedSummary(seconds, calls, batch * calls / seconds, at_s, p50_s, drift, drift_verdict(drift))


def drift_of(medians_s: NDArray[np.float64], *, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the median of the last quarter over that of the first, with a bootstrap interval over each quarter's own.

    Fewer than two pieces in a quarter cannot tell: the interval is then as wide as can be.
    """
    quarter = len(medians_s) // 4
    if quarter < 2:
        ratio = float(medians_s[-1] / medians_s[0])
        return Interval(ratio, 0.0, float(max(2 * ratio, 2.0)), level)
    first, last = medians_s[:quarter], medians_s[-quarter:]
    random = np.random.default_rng(seed)
    drawn = [np.median(part[random.integers(0, quarter, (_RESAMPLES, quarter))], axis=1) for part in (first, last)]
    low, high = np.quantile(drawn[1] / drawn[0], [(1 - level) / 2, (1 + level) / 2])
    ratio = float(np.median(last) / np.median(first))
    return Interval(ratio, float(min(low, ratio)), float(max(high, ratio)), level)


def drift_verdict(drift: Interval) -> Drift:
    """Call a drift one only where its interval lies beyond the margin."""
    slow, quick = 1 + DRIFT_MARGIN, 1 / (1 + DRIFT_MARGIN)
    if drift.low > slow:
        return "slowed"
    if drift.high < quick:
        return "quickened"
    return "steady" if quick <= drift.low and drift.high <= slow else "inconclusive"


def _thinned(at: NDArray[np.float64], medians: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return at most a page's worth of points: the median of neighbours."""
    groups = np.array_split(np.arange(len(at)), min(len(at), _MAX_POINTS))
    return (
        tuple(float(np.mean(at[group])) for group in groups),
        tuple(float(np.median(medians[group])) for group in groups),
    )
