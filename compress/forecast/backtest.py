"""Measure the forecast on finished runs: cut each log early, forecast its last value, compare with the truth.

    python -m edgekit.compress.forecast.backtest tests/compress/forecast/logs/held_out/runs.json

prints one table over all logs: mean absolute error of the final metric, beside three simple ways to guess it, and how
often the 80 % interval held. Knows no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from edgekit.compress.forecast.forecast import forecast
from edgekit.compress.forecast.metrics_reader import MetricsTable, read_metrics
from edgekit.compress.forecast.timeline import Question
from edgekit.compress.training.schedule import ScheduleConfig
from edgekit.errors import LoadError
from edgekit.exits import run_command

FloatArray = NDArray[np.float64]

FRACTIONS = (0.4, 0.6, 0.8)
_PLANS = TypeAdapter(dict[str, ScheduleConfig])


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


def run_backtests(runs: Path, metric: str = "val_acc") -> list[Backtest]:
    """Backtest every log that the JSON file `runs` names, from 40, 60 and 80 % of its run.

    Args:
        runs: {path of a log, relative to the file: its schedule's settings}.
        metric: the column to forecast.

    Raises:
        LoadError: `runs` or a log cannot be read.
        DataError: a log is too short, or the metric is missing.
    """
    found = []
    for log, schedule in _plans(runs).items():
        table = read_metrics(runs.parent / log)
        found += [backtest(table, metric, schedule, fraction) for fraction in FRACTIONS]
    return found


def _plans(runs: Path) -> dict[str, ScheduleConfig]:
    try:
        plans = _PLANS.validate_json(runs.read_bytes())
    except OSError as e:
        raise LoadError(f"cannot read {runs}: {e.strerror}") from e
    except ValidationError as e:
        raise LoadError(f"{runs} is not {{log: settings of its schedule}} in JSON: {e.errors()[0]['msg']}") from e
    if not plans:
        raise LoadError(f"{runs} names no log")
    return plans


def summary(backtests: Sequence[Backtest]) -> str:
    """Return the table: mean absolute error for each method and fraction, and how often the 80 % interval held."""
    lines = ["mean absolute error of the final metric    " + "".join(f"{f:>8.0%}" for f in FRACTIONS) + "   80 % held"]
    for name in backtests[0].errors:
        cells = [np.mean([abs(b.errors[name]) for b in backtests if b.fraction == f]) for f in FRACTIONS]
        held = [b.held[name] for b in backtests if name in b.held]
        share = f"{np.mean(held):>12.0%}" if held else ""
        lines.append(f"{name:<43}" + "".join(f"{cell:8.2f}" for cell in cells) + share)
    return "\n".join(lines)


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
def main(runs: tuple[Path, ...]) -> None:
    """Print one table over all logs that the JSON files RUNS name."""
    click.echo(summary([trial for name in runs for trial in run_backtests(name)]))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], "python -m edgekit.compress.forecast.backtest"))
