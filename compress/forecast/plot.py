"""Pictures of a forecast and of a schedule, as PNG. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit import atomic
from edgekit.compress.forecast.forecast import Forecast
from edgekit.compress.forecast.metrics_reader import FloatSeries
from edgekit.compress.training.schedule import ScheduleConfig, factor, planned_jumps
from edgekit.errors import MissingExtraError


def plot_forecast(forecast: Forecast, epochs: FloatSeries, values: FloatSeries, out: Path) -> None:
    """Draw the log, the median future with its 80 % band, the target and the planned restarts.

    Raises:
        MissingExtraError: matplotlib is not installed.
        WriteError: the file cannot be written.
    """
    with _drawn(out, 4.5) as axes:
        axes.plot(epochs, values, color="black", linewidth=1.8, label="logged")
        ahead = [forecast.last_epoch, *forecast.epochs]
        low, median, high = ([forecast.last_value, *line] for line in (forecast.low, forecast.median, forecast.high))
        axes.fill_between(ahead, low, high, color="tab:blue", alpha=0.2, linewidth=0, label="80 % interval")
        axes.plot(ahead, median, color="tab:blue", linewidth=1.8, label="median forecast")
        if forecast.target is not None:
            axes.axhline(
                forecast.target.value, color="tab:green", linestyle="--", label=f"target {forecast.target.value:g}"
            )
        for number, restart in enumerate(forecast.restarts):
            label = "planned restart" if number == 0 else None
            axes.axvline(restart.epoch, color="tab:red", linestyle=":", label=label)
        axes.set(xlabel="epoch", ylabel=forecast.metric, title=forecast.short_line())
        axes.title.set_fontsize("medium")
        for text in (axes.title, axes.yaxis.label):  # the name of a column, in which "$" is no formula
            text.set_parse_math(False)
        axes.legend(loc="lower right" if forecast.direction == "max" else "upper right")


def plot_schedule(config: ScheduleConfig, total_epochs: float, base_rate: float, out: Path) -> None:
    """Draw the rate over the run, with every planned jump.

    Raises:
        MissingExtraError: matplotlib is not installed.
        WriteError: the file cannot be written.
    """
    with _drawn(out, 3.6) as axes:
        at = [total_epochs * point / 2000 for point in range(2000)]
        axes.plot(at, [base_rate * factor(config, epoch, total_epochs) for epoch in at], color="black")
        jumps = planned_jumps(config, total_epochs, steps_per_epoch=100)
        for jump in jumps:
            axes.axvline(jump.epoch, color="tab:red", linestyle=":")
        title = f"{config.name} (red: the rate jumps up)" if jumps else config.name
        axes.set(xlabel="epochs", ylabel="learning rate", title=title, ylim=(0, None), xlim=(0, total_epochs))


@contextmanager
def _drawn(out: Path, height: float) -> Iterator[Any]:
    """Yield axes, and write what is drawn on them as a PNG of 8 by `height` inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
        WriteError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError("matplotlib", "report", "drawing a PNG") from e
    figure = Figure(figsize=(8, height), layout="constrained")  # no pyplot: no global state, no display needed
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    yield axes
    with atomic.atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
