"""Turn a log and a question into what the models work on: epochs, deficits, and the learning rate past and planned.

Knows no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from edgekit.compress.forecast.metrics_reader import MetricsTable
from edgekit.compress.forecast.mixture import FEWEST_EPOCHS
from edgekit.compress.forecast.models import Timeline
from edgekit.compress.training.schedule import ScheduleConfig, factor, planned_jumps
from edgekit.errors import DataError, UsageError

FloatArray = NDArray[np.float64]

LOWER_IS_BETTER = re.compile(
    r"(^|[_/\-. ])(loss|error|err|perplexity|ppl|mae|mse|rmse|nll|ce|wer|cer)($|[_/\-. \d@])", re.I
)
NEGATED = re.compile(r"(^|[_/\-. ])neg(ative)?[_/\-. ]", re.I)
"""A loss under a minus sign, as where runs are compared by the highest value."""
MOST_POINTS = 400
"""Longer logs are averaged down to this many points: a curve has no more than that to say."""
LOGGED_RATE_MATCHES = 0.1


class Question(BaseModel):
    """What is asked of a log.

    Attributes:
        metric: the column to forecast.
        target: the value to reach, in the metric's own unit, or in percent where the best possible value is 1.
        total_epochs: where the run ends; twice the epochs seen if not given.
        schedule: the learning-rate schedule of the run, if known.
        direction: "max" for higher-is-better; from the metric's name if not given.
        best: the best value possible; 0 for losses and negated ones, 1 or 100 for rates if not given.
        seed: seed of the drawn futures.
        draws: number of drawn futures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    target: float | None = Field(default=None, allow_inf_nan=False)
    total_epochs: float | None = Field(default=None, gt=0, le=1e6)
    schedule: ScheduleConfig | None = None
    direction: Literal["max", "min"] | None = None
    best: float | None = Field(default=None, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    draws: int = Field(default=4000, ge=100, le=100_000)


@dataclass(frozen=True)
class Setting:
    """A question resolved against a log.

    Attributes:
        timeline: seen and coming epochs, with the rate where a schedule is given.
        values: (seen,) the metric.
        log: epochs and values (rows,) of every row, of which `values` are averages where the log is long.
        total_epochs: where the run ends.
        sign: +1 for higher-is-better, −1 for lower-is-better.
        best: the best value possible.
        target: the value to reach, in the metric's own unit.
        restarts: index of the first epoch of the timeline that suffers each planned jump of the rate.
        notes: what was assumed or put in order.
    """

    timeline: Timeline
    values: FloatArray
    log: tuple[FloatArray, FloatArray]
    total_epochs: float
    sign: float
    best: float
    target: float | None
    restarts: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def deficit(self) -> FloatArray:
        """What is left to gain (seen,), >= 0."""
        return np.maximum(self.sign * (self.best - self.values), 0.0)

    @property
    def smallest_deficit(self) -> float:
        """What was left to gain at the best row of the log, >= 0."""
        return max(0.0, float((self.sign * (self.best - self.log[1])).min()))

    def first_epoch(self, deficit: float) -> float | None:
        """Return the first logged epoch with no more than `deficit` left to gain."""
        rows = np.flatnonzero(self.sign * (self.best - self.log[1]) <= deficit)
        return float(self.log[0][rows[0]]) if len(rows) else None

    def to_values(self, deficit: FloatArray) -> FloatArray:
        """Return the metric for deficits of any shape."""
        return self.best - self.sign * deficit

    def without_rate(self) -> Timeline:
        """Return the timeline as one who does not know the schedule sees it."""
        return Timeline(self.timeline.epochs, None, self.timeline.seen)


def resolve(table: MetricsTable, question: Question) -> Setting:
    """Resolve a question against a log.

    Raises:
        DataError: the metric is missing, or the log is too short for a forecast.
        UsageError: the run is already over, or the target cannot be a value of this metric.
    """
    notes = list(table.notes)
    epochs, values = table.series(question.metric)
    rate = table.rate()
    rate = None if rate is None else rate[np.isfinite(table.columns[question.metric])]
    if len(epochs) < len(table.epochs):
        notes.append(f"{len(table.epochs) - len(epochs)} rows without a finite {question.metric} are left out")
    trained = epochs > 0
    epochs, values, rate = epochs[trained], values[trained], None if rate is None else rate[trained]
    if len(epochs) < FEWEST_EPOCHS:
        raise DataError(
            f"{table.source} has {len(epochs)} epochs with a finite {question.metric}; "
            f"a forecast needs at least {FEWEST_EPOCHS}. Let it train on."
        )
    lower = question.direction == "min" or (question.direction is None and _is_loss(question.metric))
    best = _best_possible(question, values, lower=lower)
    target = _target(question, values, best, notes, lower=lower)
    log = epochs, values
    epochs, values, rate = _thin(epochs, values, rate, notes)
    total = _total_epochs(table, question, epochs, notes)
    coming = _coming_epochs(epochs, total)
    every = np.concatenate([epochs, coming])
    planned = None
    restarts: tuple[int, ...] = ()
    if question.schedule is not None:
        planned = _rates(question.schedule, every, total, rate, notes)
        found = planned_jumps(question.schedule, total, steps_per_epoch=100)
        suffering = {int(np.searchsorted(every, jump.epoch + 1e-9, side="right")) for jump in found}
        restarts = tuple(sorted(at for at in suffering if len(epochs) <= at < len(every)))
    timeline = Timeline(every, planned, len(epochs))
    return Setting(timeline, values, log, total, -1.0 if lower else 1.0, best, target, restarts, tuple(notes))


def _is_loss(metric: str) -> bool:
    return bool(LOWER_IS_BETTER.search(metric)) and not NEGATED.search(metric)


def _best_possible(question: Question, values: FloatArray, *, lower: bool) -> float:
    """Return the bound of the metric."""
    low, high = float(values.min()), float(values.max())
    if question.best is not None:
        best = question.best
    elif lower:
        best = 0.0 if low >= 0 else low - 3.0 * (high - low)
    else:
        bounds = (0.0, 1.0, 100.0) if NEGATED.search(question.metric) else (1.0, 100.0)
        best = next((bound for bound in bounds if high <= bound), high + 3.0 * max(high - low, 1e-9))
    beyond = max(values.max() - best, 0.0) if not lower else max(best - values.min(), 0.0)
    if beyond > 0:
        raise UsageError(f"best={best:g} is no bound of {question.metric}, which lies in {low:g} to {high:g}.")
    return best


def _target(question: Question, values: FloatArray, best: float, notes: list[str], *, lower: bool) -> float | None:
    """Return the target in the metric's own unit, and refuse one beyond the best possible value.

    Logs hold fractions while tables and plots show percent: a target of 75 for a metric of at most 1 means 0.75.
    """
    target, metric = question.target, question.metric
    if target is None or (target >= best if lower else target <= best):
        return target
    if best == 1.0 and 1.0 < target <= 100.0:
        notes.append(f"the target {target:g} is read as {target:g} %: {metric} is logged as a fraction")
        return target / 100.0
    raise UsageError(
        f"the target {target:g} is beyond the best possible {metric}, {best:g}; the log has {values.min():g} to "
        f"{values.max():g}. Give a target in the metric's own unit, or --best."
    )


def _thin(
    epochs: FloatArray, values: FloatArray, rate: FloatArray | None, notes: list[str]
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Average a very long log over blocks; each block stands at its last epoch."""
    if len(epochs) <= MOST_POINTS:
        return epochs, values, rate
    notes.append(f"{len(epochs)} rows are averaged down to {MOST_POINTS} points")
    ends = np.linspace(0, len(epochs), MOST_POINTS + 1).round().astype(int)
    sizes = np.diff(ends)
    means = np.add.reduceat(values, ends[:-1]) / sizes
    thin_rate = None if rate is None else np.add.reduceat(rate, ends[:-1]) / sizes
    return epochs[ends[1:] - 1], means, thin_rate


def _total_epochs(table: MetricsTable, question: Question, epochs: FloatArray, notes: list[str]) -> float:
    """Return where the run ends."""
    if question.total_epochs is None:
        notes.append(f"no total epochs given: looking ahead to {2 * epochs[-1]:g}, twice what is seen")
        return float(2 * epochs[-1])
    if question.total_epochs <= epochs[-1]:
        raise UsageError(
            f"{table.source} already has epoch {epochs[-1]:g} of {question.total_epochs:g}: nothing is left to "
            "forecast. Give more total epochs, or an earlier epoch to look from."
        )
    return question.total_epochs


def _coming_epochs(epochs: FloatArray, total: float) -> FloatArray:
    """Continue the log's own spacing up to the end of the run."""
    spacing = float(np.median(np.diff(epochs)))
    count = max(1, math.floor((total - epochs[-1]) / spacing + 1e-6))
    count = min(count, 5 * MOST_POINTS)
    last = float(epochs[-1])
    coming: FloatArray = last + (total - last) * np.arange(1, count + 1) / count
    return coming


def _rates(
    schedule: ScheduleConfig, epochs: FloatArray, total: float, logged: FloatArray | None, notes: list[str]
) -> FloatArray:
    """Return the rate of every epoch relative to the highest seen: as logged where logged, else as planned.

    Logs write the rate at an epoch's start or end; whichever fits the log best is taken for the epochs ahead.
    """
    starts = np.maximum(np.concatenate([[0.0], epochs[:-1]]), epochs - 2 * np.median(np.diff(epochs)))
    starts[0] = max(0.0, 2 * epochs[0] - epochs[1])
    inside = (np.arange(8) + 0.5) / 8

    def planned(position: float) -> list[float]:
        return [factor(schedule, s + position * (e - s), total) for s, e in zip(starts, epochs, strict=True)]

    average = np.mean([planned(float(position)) for position in inside], axis=0)
    if logged is None or not (logged > 0).any():
        seen_peak = max(1e-12, float(average[: len(logged)].max()) if logged is not None else float(average.max()))
        return np.asarray(average / seen_peak)
    seen, logged_peak = len(logged), float(logged.max())
    if schedule.name == "plateau":
        notes.append("a plateau schedule cannot be played ahead: the rate is taken to stay as it is")
        return np.concatenate([logged, np.full(len(epochs) - seen, logged[-1])]) / logged_peak
    best_misfit, best_rate = math.inf, average
    for candidate in (np.array(planned(1e-9)), average, np.array(planned(1 - 1e-9))):
        scale = float(logged @ candidate[:seen]) / max(float(candidate[:seen] @ candidate[:seen]), 1e-12)
        misfit = float(np.abs(logged - scale * candidate[:seen]).max()) / logged_peak
        if misfit < best_misfit:
            best_misfit, best_rate = misfit, scale * candidate
    if best_misfit > LOGGED_RATE_MATCHES:
        notes.append(
            f"the logged rate does not follow the schedule given (off by up to {best_misfit:.0%} of its peak): "
            "check its epochs and parameters"
        )
    return np.concatenate([logged, best_rate[seen:]]) / logged_peak
