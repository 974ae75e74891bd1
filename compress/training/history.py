"""A run's history as curves, earlier phases joined on. Reads run folders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import LoadError

Row = Mapping[str, Any]

LOSS_PARTS = ("loss", "feature", "response", "task", "affinity", "contrastive")
"""Names of the loss and its parts in metrics.jsonl, in the order in which they are shown."""


@dataclass(frozen=True)
class Curve:
    """Finite values over epochs; epochs count through all phases."""

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class History:
    """What a run left in its metrics.

    Attributes:
        name: of the run, for legends.
        rows: epoch rows; "epoch" counts through all phases.
        steps: rows of step groups; "epoch" is a fraction and counts through all phases.
        phase_ends: epochs after which a new phase began.
        troubles: guard rows, "epoch" as in `rows`.
    """

    name: str
    rows: Sequence[Row]
    steps: Sequence[Row]
    phase_ends: Sequence[float]
    troubles: Sequence[Row]

    def curve(self, name: str, *, by_step: bool = False, scale: float = 1.0) -> Curve:
        """Return a column's finite values times `scale`; from the step rows where wanted and there."""
        source: Iterable[Row] = self.rows
        if by_step and any(name in row for row in self.steps):
            began = self.phase_ends[-1] if self.phase_ends else 0.0  # earlier phases left their epochs only
            source = [*(row for row in self.rows if row["epoch"] <= began), *self.steps]
        points = [(row["epoch"], scale * row[name]) for row in source if _is_finite(row.get(name))]
        return Curve([float(at) for at, _ in points], [float(value) for _, value in points])


def read_history(run: Path, name: str | None = None) -> History:
    """Read the metrics of a run folder, earlier phases included; rows are put in order, of two the later counts.

    Raises:
        LoadError: there is no run folder, or it holds no epoch yet.
    """
    folder = RunFolder(run)
    if not folder.metrics_path.is_file():
        raise LoadError(f"{run} holds no metrics.jsonl: give a run folder that `edgekit distill` made")
    own = folder.read_metrics()
    rows, offset, ends = _joined(folder.read_history(), [row for row in own if row["kind"] == "epoch"])
    if not rows:
        raise LoadError(f"{run} has no finished epoch yet: there is nothing to draw")
    within = [row for row in own if row["kind"] == "step"]
    steps_per_epoch = max((row["steps"] for row in own if "steps" in row), default=0)
    steps_per_epoch = steps_per_epoch or max((row["step"] for row in within), default=1)
    steps = [{**row, "epoch": offset + row["epoch"] - 1 + row["step"] / steps_per_epoch} for row in within]
    troubles = [{**row, "epoch": offset + row["epoch"] - 1} for row in own if row["kind"] == "guard"]
    return History(name or run.name or str(run.resolve().name), rows, steps, ends, troubles)


def _joined(before: list[dict[str, Any]], own: list[dict[str, Any]]) -> tuple[list[Row], float, list[float]]:
    """Return the rows of all phases with epochs that count on, where the last phase begins, and the phases' ends."""
    phases: dict[int, list[dict[str, Any]]] = {}
    for row in before:
        phases.setdefault(row["phase"], []).append(row)
    rows: list[Row] = []
    offset, ends = 0.0, []
    for phase in (*(phases[number] for number in sorted(phases)), own):
        if rows:
            ends.append(offset)
        unique = {row["epoch"]: row for row in phase}
        rows += [{**unique[epoch], "epoch": offset + epoch} for epoch in sorted(unique)]
        if phase is not own:
            offset = float(rows[-1]["epoch"])
    return rows, offset, ends


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
