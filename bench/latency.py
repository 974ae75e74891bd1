"""Time candidates in turn, so that whatever disturbs the machine disturbs them alike.

One round visits every candidate once, in a random order; a visit is one untimed call and a few timed ones. Samples
that share a round were taken within a fraction of a second of each other, which is what pairs them. Raw seconds are
kept; every number shown is derived from them in `edgekit.bench.statistics`.

A candidate may be a plain call in this process, or live in a process of its own (`edgekit.bench.worker`) where the
same `visit` runs: asking for a visit and answering it then lie outside of what is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.bench.statistics import median_interval, paired_speedup
from edgekit.bench.timing import Timer, reason_of, visit
from edgekit.errors import UsageError

StopReason = Literal["precise", "budget", "failed"]
_CHECK_RESAMPLES = 200  # a rough interval decides when to stop; the one that is reported has its own, finer


@dataclass(frozen=True)
class LatencyConfig:
    """How long and how finely to measure.

    Attributes:
        warmup_rounds: untimed rounds over all candidates before the first timed one; at least 1.
        min_rounds: timed rounds before the intervals are looked at.
        min_time_s: seconds of timed rounds before the intervals are looked at, so that slow disturbances are met.
        max_time_s: wall-clock budget for everything, warm-up included; at least one timed round is always run.
        target_halfwidth: stop when every interval's half-width is below this share of its value.
        visit_s: a visit times as many calls as fit in this, between `min_calls` and `max_calls`.
        min_calls: fewest timed calls in one visit. The fastest of 3 escapes most interruptions: under three
            competing processes a 5 % slow-down was found in 60 of 60 runs of 30 rounds, with single calls in 28.
        max_calls: most timed calls in one visit.
        window_s: a call shorter than this is timed several at a time, so that reading the clock (about 0.1 µs)
            never counts: the sample is then the mean of that many calls.
        seed: seed of the visiting order and of the bootstrap.
    """

    warmup_rounds: int = 3
    min_rounds: int = 30
    min_time_s: float = 1.0
    max_time_s: float = 30.0
    target_halfwidth: float = 0.01
    visit_s: float = 0.005
    min_calls: int = 3
    max_calls: int = 10
    window_s: float = 100e-6
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("warmup_rounds", "min_rounds", "max_time_s", "target_halfwidth", "visit_s", "min_calls", "window_s")
        wrong = [f"{name}={getattr(self, name)}" for name in positive if not getattr(self, name) > 0]
        if wrong:
            raise UsageError(f"latency settings must be greater than 0, got {', '.join(wrong)}")
        if self.max_calls < self.min_calls:
            raise UsageError(f"max_calls={self.max_calls} must be at least min_calls={self.min_calls}")
        if not 0 <= self.min_time_s <= self.max_time_s:
            raise UsageError(f"min_time_s={self.min_time_s} must lie between 0 and max_time_s={self.max_time_s}")


@dataclass(frozen=True)
class LatencySamples:
    """Raw timings of one candidate.

    Attributes:
        name: the candidate's name.
        seconds: (rounds, calls) float64, seconds per call; row i belongs to round `rounds[i]`.
        rounds: (rounds,) int64 round numbers; equal numbers of two candidates are paired.
        calls_per_sample: calls that each entry of `seconds` is the mean of; 1 for anything above `window_s`.
        stopped: why the measurement ended.
        failure: what the candidate raised, None where it did not. Samples taken before the failure are kept.
    """

    name: str
    seconds: NDArray[np.float64]
    rounds: NDArray[np.int64]
    calls_per_sample: int
    stopped: StopReason
    failure: str | None = None


def paired_s(baseline: LatencySamples, candidate: LatencySamples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return one time per shared round for both, (shared rounds,) seconds each: the fastest call of the visit.

    The fastest, because what disturbs a call can only slow it down (`paired_speedup` has the numbers). Both visits
    count the same number of calls: the fastest of more would be faster by luck.
    """
    _, at_base, at_own = np.intersect1d(baseline.rounds, candidate.rounds, assume_unique=True, return_indices=True)
    calls = min(baseline.seconds.shape[1], candidate.seconds.shape[1])
    base, own = baseline.seconds[at_base, :calls], candidate.seconds[at_own, :calls]
    return base.min(axis=1), own.min(axis=1)


@dataclass
class _Candidate:
    """A candidate under measurement."""

    name: str
    timer: Timer
    calls: int = 1
    calls_per_sample: int = 1
    rows: list[list[float]] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    failure: str | None = None
    fastest_s: float = math.inf

    def warm_up(self) -> None:
        """Call twice and remember the fastest so far; on an exception note it."""
        try:
            nanoseconds = max(1, self.timer(1, 1)[0])
        except Exception as e:  # as in visit
            self.failure = reason_of(e)
            return
        self.fastest_s = min(self.fastest_s, nanoseconds * 1e-9)

    def visit(self, round_number: int) -> None:
        """Take one visit's samples; on an exception note it and take none."""
        try:
            ticks = self.timer(self.calls, self.calls_per_sample)
        except Exception as e:  # whatever a foreign runtime raises must not end the others' measurement
            self.failure = reason_of(e)
            return
        self.rows.append([t * 1e-9 / self.calls_per_sample for t in ticks])
        self.rounds.append(round_number)

    def samples(self, stopped: StopReason) -> LatencySamples:
        """Freeze what was measured."""
        return LatencySamples(
            name=self.name,
            seconds=np.asarray(self.rows, dtype=np.float64).reshape(len(self.rows), self.calls),
            rounds=np.asarray(self.rounds, dtype=np.int64),
            calls_per_sample=self.calls_per_sample,
            stopped="failed" if self.failure else stopped,
            failure=self.failure,
        )


def measure_latency(
    candidates: Mapping[str, Callable[[], object]], config: LatencyConfig | None = None, *, baseline: str | None = None
) -> dict[str, LatencySamples]:
    """Time all candidates in interleaved rounds of random order.

    A candidate that raises is recorded as failed and left out from then on; the others go on.

    Args:
        candidates: name -> a call that returns when its work is done (a device queue must be waited for).
        config: how long to measure.
        baseline: the candidate to pair the others with; the measurement then ends when the paired speed-ups are
            known well enough. Without one, or with a single candidate, it is the medians that must be.

    Raises:
        UsageError: there is no candidate, or the baseline is not one of them.
    """
    return measure_timers({name: partial(visit, call) for name, call in candidates.items()}, config, baseline=baseline)


def measure_timers(
    candidates: Mapping[str, Timer], config: LatencyConfig | None = None, *, baseline: str | None = None
) -> dict[str, LatencySamples]:
    """Do what `measure_latency` does with candidates that time themselves, as those in other processes must."""
    config = config or LatencyConfig()
    if not candidates:
        raise UsageError("nothing to measure: no candidate was given")
    if baseline is not None and baseline not in candidates:
        raise UsageError(f"the baseline '{baseline}' is not among the candidates: {', '.join(candidates)}")
    states = [_Candidate(name, timer) for name, timer in candidates.items()]
    begin = time.perf_counter()
    _warm_up(states, config)
    stopped = _run_rounds(states, config, begin, baseline)
    return {state.name: state.samples(stopped) for state in states}


def _warm_up(states: Sequence[_Candidate], config: LatencyConfig) -> None:
    """Call every candidate a few times and set how many calls its visits take."""
    for _ in range(config.warmup_rounds):
        for state in states:
            if state.failure is None:
                state.warm_up()
    for state in states:
        if state.failure is None:
            state.calls_per_sample = max(1, math.ceil(config.window_s / state.fastest_s))
            sample_s = state.fastest_s * state.calls_per_sample
            state.calls = min(config.max_calls, max(config.min_calls, round(config.visit_s / sample_s)))


def _run_rounds(states: Sequence[_Candidate], config: LatencyConfig, begin: float, baseline: str | None) -> StopReason:
    """Run timed rounds until the intervals are narrow or the budget is spent."""
    order = np.random.default_rng(config.seed)
    timed_from = time.perf_counter()
    next_check = config.min_rounds
    round_number = 0
    while alive := [s for s in states if s.failure is None]:
        for at in order.permutation(len(alive)):
            alive[at].visit(round_number)
        round_number += 1
        now = time.perf_counter()
        if round_number >= next_check and now - timed_from >= config.min_time_s:
            if _narrow(alive, config, baseline):
                return "precise"
            next_check = math.ceil(round_number * 1.25)
        if now - begin >= config.max_time_s:
            return "budget"
    return "failed"


def _narrow(states: Sequence[_Candidate], config: LatencyConfig, baseline: str | None) -> bool:
    """Say whether every interval is narrower than the target."""
    samples = {s.name: s.samples("precise") for s in states if s.failure is None}
    base = samples.pop(baseline, None) if baseline is not None else None
    if base is None or not samples:
        measured = [*samples.values(), *([base] if base is not None else [])]
        intervals = [median_interval(s.seconds, resamples=_CHECK_RESAMPLES, seed=config.seed) for s in measured]
    else:
        intervals = [
            paired_speedup(*paired_s(base, s), resamples=_CHECK_RESAMPLES, seed=config.seed).interval
            for s in samples.values()
        ]
    return all(i.high - i.low <= 2 * config.target_halfwidth * i.value for i in intervals)
