"""Forecast a training run from its log: when a target is reached, how high it gets, and what planned restarts cost.

Several learning-curve models are fitted (`.models`), weighted by how well each forecasts this very log from
its earlier epochs (`.mixture`), and thousands of futures are drawn from them. Every number below is a count
or a quantile over those futures. Knows no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.forecast.metrics_reader import MetricsTable
from edgekit.compress.forecast.mixture import Mixture, draw_futures, heat_restarts, mix
from edgekit.compress.forecast.timeline import Question, Setting, resolve

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A median and the 80 % interval around it: `low` and `high` are the 10 % and 90 % quantiles."""

    low: float
    median: float
    high: float

    @property
    def width(self) -> float:
        """Width of the 80 % interval."""
        return self.high - self.low


@dataclass(frozen=True)
class Reached:
    """When a value is reached.

    Attributes:
        value: in the metric's unit.
        probability: part of the futures that reach it by the end of the run; 1 if the log already has.
        epoch_low: 10 % of all futures have reached it by this epoch; None where fewer ever do.
        epoch_median: as `epoch_low`, for half of them.
        epoch_high: as `epoch_low`, for 90 %.
    """

    value: float
    probability: float
    epoch_low: float | None
    epoch_median: float | None
    epoch_high: float | None


@dataclass(frozen=True)
class Restart:
    """A planned jump of the rate and its price.

    Attributes:
        epoch: the first logged epoch that suffers it.
        rate_ratio: how many times the rate of the epoch before; None from a rate of zero.
        peak_before: best value from the log's start until it.
        drop: how much worse the metric is after it than just before, in the metric's unit, > 0.
        recovered_epoch: by when half of the futures are back at the value before; None if they are not by the end.
    """

    epoch: float
    rate_ratio: float | None
    peak_before: Estimate
    drop: Estimate
    recovered_epoch: float | None


@dataclass(frozen=True)
class ModelScore:
    """A learning-curve model's weight, and the mean absolute error of its backtests in the metric's unit."""

    name: str
    weight: float
    backtest_mae: float


@dataclass(frozen=True)
class Forecast:
    """The answer to a `Question`.

    Attributes:
        metric: the column forecast.
        direction: "max" or "min".
        last_epoch: the log ends here.
        total_epochs: the run ends here.
        last_value: the metric at the end of the log.
        best_value: its best so far.
        final: the metric at the end of the run.
        peak: its best over the whole run, the log included.
        target: when the target is reached; None without a target.
        target_by_epoch: probability that the target is reached by each of `epochs`; empty without a target.
        milestones: round values between now and what may be reached.
        restarts: planned restarts ahead.
        peak_without_schedule: `peak_before_restart` by one who does not know the schedule; None without a schedule, or
            where a restart comes next.
        epochs: the epochs ahead.
        low: 10 % quantile of the metric at each of them.
        median: its median there.
        high: its 90 % quantile there.
        models: all models by weight.
        notes: what was assumed or put in order.
    """

    metric: str
    direction: str
    last_epoch: float
    total_epochs: float
    last_value: float
    best_value: float
    final: Estimate
    peak: Estimate
    target: Reached | None
    target_by_epoch: tuple[float, ...]
    milestones: tuple[Reached, ...]
    restarts: tuple[Restart, ...]
    peak_without_schedule: Estimate | None
    epochs: tuple[float, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    models: tuple[ModelScore, ...]
    notes: tuple[str, ...]

    @property
    def peak_before_restart(self) -> Estimate:
        """The best value until the first planned restart, or over the whole run without one."""
        return self.restarts[0].peak_before if self.restarts else self.peak

    def probability_by(self, epoch: float) -> float:
        """Return the probability that the target is reached by the end of `epoch`."""
        passed = [p for e, p in zip(self.epochs, self.target_by_epoch, strict=True) if e <= epoch]
        return passed[-1] if passed else 0.0

    def short_line(self) -> str:
        """Return the forecast in one line, for the end of a training epoch."""
        peak = self.peak_before_restart
        parts = [f"best {self.metric} {peak.median:.4g} ({peak.low:.4g} to {peak.high:.4g})"]
        if self.target is not None:
            parts.append(f"P({self.target.value:g}) {percent(self.target.probability)}")
        if self.restarts:
            first = self.restarts[0]
            parts.append(f"restart at epoch {first.epoch:g} costs about {first.drop.median:.3g}")
        return " · ".join(parts)


def percent(probability: float) -> str:
    """Return a probability as text; a count over draws never proves 0 or 1."""
    if probability >= 1.0:
        return "100 %"
    return (
        "under 1 %"
        if probability < 0.01
        else "over 99 %"
        if probability > 0.99
        else f"{probability:.0%}".replace("%", " %")
    )


def forecast(table: MetricsTable, question: Question) -> Forecast:
    """Forecast one metric of a training log. The same log, question and seed give the same answer.

    Raises:
        DataError: the metric is missing, or the log is too short for a forecast.
        UsageError: the run is already over, or the target cannot be a value of this metric.
    """
    setting = resolve(table, question)
    timeline, deficit = setting.timeline, setting.deficit
    mixture = mix(timeline, deficit)
    rng = np.random.default_rng(question.seed)
    futures = draw_futures(mixture, timeline, deficit, question.draws, rng)
    restarts = [at - timeline.seen for at in setting.restarts]
    futures = heat_restarts(futures, float(deficit[-1]), restarts, rng)
    low, median, high = np.quantile(setting.to_values(futures), (0.1, 0.5, 0.9), axis=0)
    target = None if setting.target is None else _reached(setting, futures, setting.target)
    by_epoch = np.zeros(0) if setting.target is None else _hits(setting, futures, setting.target).mean(axis=0)
    return Forecast(
        metric=question.metric,
        direction="max" if setting.sign > 0 else "min",
        last_epoch=float(timeline.epochs[timeline.seen - 1]),
        total_epochs=setting.total_epochs,
        last_value=float(setting.log[1][-1]),
        best_value=setting.best - setting.sign * setting.smallest_deficit,
        final=_estimate(setting.to_values(futures[:, -1])),
        peak=_peak(setting, futures),
        target=target,
        target_by_epoch=_floats(by_epoch),
        milestones=_milestones(setting, futures),
        restarts=tuple(_restart(setting, futures, at) for at in setting.restarts),
        peak_without_schedule=_peak_without_schedule(setting, question),
        epochs=_floats(timeline.epochs[timeline.seen :]),
        low=_floats(low),
        median=_floats(median),
        high=_floats(high),
        models=_scores(mixture),
        notes=setting.notes,
    )


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _estimate(values: FloatArray) -> Estimate:
    low, median, high = np.quantile(values, (0.1, 0.5, 0.9))
    return Estimate(float(low), float(median), float(high))


def _peak(setting: Setting, futures: FloatArray) -> Estimate:
    """Return the best value of the log and the futures together."""
    smallest = np.minimum(futures.min(axis=1), setting.smallest_deficit)
    return _estimate(setting.to_values(smallest))


def _hits(setting: Setting, futures: FloatArray, value: float) -> NDArray[np.bool_]:
    """Return whether each future has reached `value` by each epoch ahead (draws, ahead)."""
    wanted = setting.sign * (setting.best - value)
    already = setting.first_epoch(wanted) is not None
    return np.logical_or.accumulate(futures <= wanted, axis=1) | already


def _reached(setting: Setting, futures: FloatArray, value: float) -> Reached:
    """Return when `value` is reached; the epochs are quantiles over all futures, those that never reach it included."""
    wanted = setting.sign * (setting.best - value)
    ahead = setting.timeline.epochs[setting.timeline.seen :]
    epoch = setting.first_epoch(wanted)
    if epoch is not None:
        return Reached(value, 1.0, epoch, epoch, epoch)
    hits = _hits(setting, futures, value)
    first = np.where(hits[:, -1], ahead[hits.argmax(axis=1)], math.inf)
    epochs = (float(np.quantile(first, q, method="higher")) for q in (0.1, 0.5, 0.9))
    low, median, high = (epoch if math.isfinite(epoch) else None for epoch in epochs)
    return Reached(value, float(hits[:, -1].mean()), low, median, high)


def _milestones(setting: Setting, futures: FloatArray) -> tuple[Reached, ...]:
    """Return up to five round values between the best so far and what one future in ten reaches."""
    now = setting.best - setting.sign * setting.smallest_deficit
    peak = _peak(setting, futures)
    far = peak.high if setting.sign > 0 else peak.low
    span = abs(far - now)
    if span < 1e-9 * max(1.0, abs(now)):
        return ()
    size = 10.0 ** math.floor(math.log10(span))
    step = next(size * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0) if span / (size * part) <= 5)
    first = math.floor(setting.sign * now / step + 1e-9) + 1
    count = math.floor(setting.sign * far / step + 1e-9) - first + 1
    values = [float(f"{setting.sign * (first + at) * step:.12g}") for at in range(max(0, count))]
    return tuple(_reached(setting, futures, value) for value in values)


def _restart(setting: Setting, futures: FloatArray, at: int) -> Restart:
    """Price the restart that the epoch with index `at` of the timeline is the first to suffer."""
    rate = setting.timeline.rate
    assert rate is not None, "a restart is found in a schedule"
    epochs, ahead = setting.timeline.epochs, at - setting.timeline.seen
    last_seen = np.full((len(futures), 1), setting.deficit[-1])
    joined = np.concatenate([last_seen, futures], axis=1)  # column j is the epoch before futures' column j
    before, after = joined[:, ahead], joined[:, ahead + 1]
    back = np.logical_or.accumulate(futures[:, ahead:] <= before[:, None], axis=1).mean(axis=0) >= 0.5
    return Restart(
        epoch=float(epochs[at]),
        rate_ratio=float(rate[at] / rate[at - 1]) if rate[at - 1] > 0 else None,
        peak_before=_peak(setting, joined[:, : ahead + 1]),
        drop=_estimate(after - before),
        recovered_epoch=float(epochs[at + int(back.argmax())]) if back.any() else None,
    )


def _peak_without_schedule(setting: Setting, question: Question) -> Estimate | None:
    """Return the peak up to the first restart that one forecasts who sees only the metric.

    None without a schedule, or where a restart comes next and the peak is known.
    """
    if setting.timeline.rate is None or setting.restarts[:1] == (setting.timeline.seen,):
        return None
    blind = setting.without_rate()
    rng = np.random.default_rng(question.seed)
    futures = draw_futures(mix(blind, setting.deficit), blind, setting.deficit, question.draws, rng)
    until = setting.restarts[0] - blind.seen if setting.restarts else futures.shape[1]
    return _peak(setting, futures[:, :until])


def _scores(mixture: Mixture) -> tuple[ModelScore, ...]:
    scores = [ModelScore(name, mixture.weight[name], mixture.backtest_mae[name]) for name in mixture.weight]
    return tuple(sorted(scores, key=lambda score: -score.weight))
