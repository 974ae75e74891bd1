"""The forecast's short line while a run trains, as long as it costs next to nothing. Knows no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.compress.forecast.forecast import forecast
from edgekit.compress.forecast.metrics_reader import MetricsTable
from edgekit.compress.forecast.timeline import Question
from edgekit.compress.recipe import FitConfig
from edgekit.errors import UsageError

LARGEST_SHARE = 0.01
"""Part of the training time that forecasting may take; an epoch's line is left out beyond it."""
DRAWS = 1000


class Outlook:
    """Forecasts one run at the ends of its epochs."""

    def __init__(self, config: FitConfig, metric: str) -> None:
        self._config, self._metric = config, metric
        self._started, self._spent, self._dearest = time.perf_counter(), 0.0, 0.0

    def line(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """Return the forecast in one line; None at the end, with too few epochs, or where it would cost too much."""
        if not rows or rows[-1]["epoch"] >= self._config.epochs or self._metric not in rows[-1]:
            return None
        began = time.perf_counter()
        if self._spent + self._dearest > LARGEST_SHARE * (began - self._started):
            return None
        try:
            line = self._forecast(rows)
        except UsageError:  # too few epochs yet, or all values alike
            line = None
        took = time.perf_counter() - began
        self._spent, self._dearest = self._spent + took, max(self._dearest, took)
        return line

    def _forecast(self, rows: Sequence[Mapping[str, Any]]) -> str:
        values = np.array([float(row.get(self._metric, math.nan)) for row in rows])
        # the rows above it show percent
        scale = 100.0 if self._metric.endswith("acc") and np.nanmax(values) <= 1 else 1.0
        columns = {self._metric: values * scale, "lr": np.array([float(row["lr"]) for row in rows])}
        epochs = np.array([float(row["epoch"]) for row in rows])
        question = Question(
            metric=self._metric,
            total_epochs=self._config.epochs,
            schedule=self._config.schedule,
            best=100.0 if scale > 1 else None,
            direction="max",
            draws=DRAWS,
        )
        return f"forecast: {forecast(MetricsTable(Path('metrics.jsonl'), epochs, columns), question).short_line()}"
