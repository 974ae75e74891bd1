"""Measure the forecast on finished runs: cut each log early, forecast its last value, compare with the truth.

    python -m edgekit.compress.forecast_backtest LOG.csv …

prints one table over all logs: mean absolute error of the final metric, beside three simple ways to guess it, and how
often the 80 % interval held. Knows no torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.compress.forecast import forecast
from edgekit.compress.forecast_timeline import Question
from edgekit.compress.metrics_reader import MetricsTable, read_metrics
from edgekit.compress.schedule import ScheduleConfig

FloatArray = NDArray[np.float64]

FRACTIONS = (0.4, 0.6, 0.8)


def last_value(epochs: FloatArray, values: FloatArray, end: float) -> float:
    """Guess that nothing changes any more."""
    return float(values[-1])


def linear_fit(epochs: FloatArray, values: FloatArray, end: float) -> float:
    """Guess by a straight line through the later half of what is seen."""
    half = len(epochs) // 2
    return float(np.polyval(np.polyfit(epochs[half:], values[half:], 1), end))


def log_fit(epochs: FloatArray, values: FloatArray, end: float) -> float:
    """Guess by a + b·log(epoch) through all that is seen."""
    return float(np.polyval(np.polyfit(np.log(epochs), values, 1), np.log(end)))


BASELINES: Mapping[str, Callable[[FloatArray, FloatArray, float], float]] = {
    "last value": last_value,
    "linear fit": linear_fit,
    "log fit": log_fit,
}


@dataclass(frozen=True)
class Backtest:
    """One forecast of one finished run's last value.

    Attributes:
        log: the log's name.
        fraction: part of the run that was seen.
        errors: method -> guess minus truth, in the metric's unit.
        held: the 80 % interval of "forecast" held the truth; "without schedule" likewise.
    """

    log: str
    fraction: float
    errors: Mapping[str, float]
    held: Mapping[str, bool]


def backtest(table: MetricsTable, metric: str, schedule: ScheduleConfig | None, fraction: float) -> Backtest:
    """Forecast a finished run's last value from its first `fraction`, with and without the schedule.

    Raises:
        DataError: the part is too short for a forecast, or the metric is missing.
    """
    epochs, values = table.series(metric)
    end, truth = float(epochs[-1]), float(values[-1])
    seen = table.until(float(epochs[round(fraction * len(epochs)) - 1]))
    errors, held = {}, {}
    for name, known in (("forecast", schedule), ("without schedule", None)):
        final = forecast(seen, Question(metric=metric, total_epochs=end, schedule=known)).final
        errors[name] = final.median - truth
        held[name] = final.low <= truth <= final.high
    for name, guess in BASELINES.items():
        errors[name] = guess(*seen.series(metric), end) - truth
    return Backtest(table.source.stem, fraction, errors, held)


def schedule_from_rates(table: MetricsTable) -> ScheduleConfig | None:
    """Return the schedule named in the log's file name, with its parameters read off the finished rate column.

    Understands the names that tests/compress/logs/make_logs.py gives; None where there is none.
    """
    rate = table.rate()
    known = re.search(r"_(constant|cosine-restarts|cosine|linear|step|one-cycle|wsd)_\d+$", table.source.stem)
    if rate is None or known is None:
        return None
    fields: dict[str, object] = {"name": known[1]}
    falls, rises = np.flatnonzero(np.diff(rate) < 0) + 1, np.flatnonzero(np.diff(rate) > 0) + 1
    if known[1] == "step":
        fields |= {"step_epochs": float(falls[0]), "gamma": float(rate[falls[0]] / rate[0])}
    elif known[1] == "wsd":
        fields |= {"decay_fraction": (len(rate) - float(falls[0]) + 1) / len(rate)}
    elif known[1] == "cosine-restarts":
        fields |= {"t_0": float(rises[0])}
        if len(rises) > 1:
            fields |= {"t_mult": float(rises[1] - rises[0]) / float(rises[0])}
    elif known[1] == "cosine" and len(rises):
        fields |= {"warmup_epochs": float(rises[-1]), "start_factor": float(rate[0] / rate.max())}
    return ScheduleConfig.model_validate(fields)


def run_backtests(logs: Sequence[Path], metric: str = "val_acc") -> list[Backtest]:
    """Backtest every log from 40, 60 and 80 % of its run."""
    tables = [read_metrics(path) for path in logs]
    return [backtest(table, metric, schedule_from_rates(table), part) for table in tables for part in FRACTIONS]


def summary(backtests: Sequence[Backtest]) -> str:
    """Return the table: mean absolute error for each method and fraction, and how often the 80 % interval held."""
    lines = ["mean absolute error of the final metric    " + "".join(f"{f:>8.0%}" for f in FRACTIONS) + "   80 % held"]
    for name in backtests[0].errors:
        cells = [np.mean([abs(b.errors[name]) for b in backtests if b.fraction == f]) for f in FRACTIONS]
        held = [b.held[name] for b in backtests if name in b.held]
        share = f"{np.mean(held):>12.0%}" if held else ""
        lines.append(f"{name:<43}" + "".join(f"{cell:8.2f}" for cell in cells) + share)
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary(run_backtests([Path(name) for name in sys.argv[1:]])))
