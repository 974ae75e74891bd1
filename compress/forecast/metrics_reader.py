"""Read a training log: edgekit's `metrics.jsonl`, a CSV, TensorBoard events or a Hugging Face `trainer_state.json`.

Logs come from killed, resumed and hand-edited runs. What can be put in order is, and a note says so; what cannot be
read is an error with its line. Knows no torch.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, LoadError, MissingExtraError, did_you_mean

FloatSeries = NDArray[np.float64]
Row = Mapping[str, float]

MAX_LOG_BYTES = 256 * 2**20
RATE_NAMES = ("lr", "learning_rate", "train/learning_rate", "rate")
FORMATS = "metrics.jsonl, .csv, TensorBoard events, trainer_state.json, or a folder with one of them"


@dataclass(frozen=True)
class MetricsTable:
    """A training log with one row per logged epoch.

    Attributes:
        source: the file it was read from.
        epochs: (N,) strictly increasing, > 0 or = 0 for a value before training; fractions are allowed.
        columns: name -> (N,) values, NaN where the log has none.
        notes: what had to be put in order, for the user to see.
    """

    source: Path
    epochs: FloatSeries
    columns: Mapping[str, FloatSeries]
    notes: tuple[str, ...] = ()

    def series(self, name: str) -> tuple[FloatSeries, FloatSeries]:
        """Return (epochs, values) of the rows in which the column `name` has a finite value.

        Raises:
            DataError: there is no such column, or nothing finite in it.
        """
        if name not in self.columns:
            raise DataError(f"{self.source} has no column '{name}': {did_you_mean(name, self.columns)}.")
        kept = np.isfinite(self.columns[name])
        if not kept.any():
            raise DataError(f"{self.source}: the column '{name}' has no finite value.")
        return self.epochs[kept], self.columns[name][kept]

    def rate(self) -> FloatSeries | None:
        """Return the learning rate (N,), carried forward over rows without one; None where the log has none."""
        for name in RATE_NAMES:
            values = self.columns.get(name)
            if values is None or not np.isfinite(values).any():
                continue
            known = np.flatnonzero(np.isfinite(values))
            latest = np.searchsorted(known, np.arange(len(values)), side="right") - 1
            return values[known[np.maximum(latest, 0)]]
        return None

    def until(self, epoch: float) -> MetricsTable:
        """Return the log as it was at the end of `epoch`.

        Raises:
            DataError: nothing was logged by then.
        """
        kept = self.epochs <= epoch
        if not kept.any():
            raise DataError(f"{self.source} begins at epoch {self.epochs[0]:g}, after epoch {epoch:g}.")
        columns = {name: values[kept] for name, values in self.columns.items()}
        return MetricsTable(self.source, self.epochs[kept], columns, self.notes)


def read_metrics(path: Path) -> MetricsTable:
    """Read a training log of any supported format, known by its name.

    Raises:
        LoadError: the file is not there, too large, damaged, or of no supported format.
        DataError: it holds no row with an epoch.
        MissingExtraError: TensorBoard events without the `tensorboard` extra.
    """
    path = _find_log(path)
    if path.is_dir() or "tfevents" in path.name:
        rows, notes = _tensorboard_rows(path)
    else:
        rows, notes = _text_rows(path)
    return _to_table(path, rows, notes)


def _find_log(path: Path) -> Path:
    """Return the log itself where `path` is a run folder; a folder of TensorBoard events is a log."""
    if not path.exists():
        raise LoadError(f"{path} does not exist. Give {FORMATS}.")
    if not path.is_dir():
        return path
    for name in ("metrics.jsonl", "trainer_state.json"):
        if (path / name).is_file():
            return path / name
    if any(path.glob("*tfevents*")):
        return path  # a resumed run leaves several event files, which are read together
    raise LoadError(f"the folder {path} holds no training log. Give {FORMATS}.")


def _text_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Read the rows of a JSONL, CSV or JSON log."""
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            raise LoadError(f"{path} is larger than {MAX_LOG_BYTES // 2**20} MiB: this is no training log.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise LoadError(f"cannot read {path}: {e}.") from e
    if path.suffix == ".jsonl":
        return _jsonl_rows(path, text)
    if path.suffix == ".csv":
        return _csv_rows(path, text), []
    if path.suffix == ".json":
        return _trainer_state_rows(path, text), []
    raise LoadError(f"{path}: unknown kind of log '{path.suffix or path.name}'. Give {FORMATS}.")


def _jsonl_rows(path: Path, text: str) -> tuple[list[Row], list[str]]:
    """Read the rows with kind "epoch" (or no kind). A torn last line is what a killed run leaves, and is only noted."""
    rows: list[Row] = []
    notes = []
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:  # also an integer of thousands of digits, and lists in lists in lists
            if (number, line) == lines[-1] and not text.endswith("\n"):
                notes.append(f"line {number} is torn (the run was stopped while it wrote) and is left out")
                continue
            raise LoadError(f"{path} line {number} is no JSON: {e}. Repair or remove the line.") from e
        if not isinstance(row, dict):
            raise LoadError(f"{path} line {number} is no JSON object. Repair or remove the line.")
        if row.get("kind", "epoch") == "epoch":
            rows.append(_numbers(row))
    return rows, notes


def _csv_rows(path: Path, text: str) -> list[Row]:
    """Read a CSV with a header; empty cells are missing values, columns of words are left out."""
    reader = csv.reader(io.StringIO(text))
    rows: list[Row] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                given = f"{len(cells)} cells, the header has {len(header)}"
                raise LoadError(f"{path} line {reader.line_num}: {given}. Repair or remove the line.")
            rows.append(_numbers(dict(zip(header, cells, strict=True))))
    except csv.Error as e:  # an open quote makes one cell of all that follows
        raise LoadError(f"{path} line {reader.line_num}: {e}. Close the quotes, or remove the line.") from e
    return rows


def _trainer_state_rows(path: Path, text: str) -> list[Row]:
    """Read `log_history`: training and evaluation rows of the same epoch are one row of the table."""
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise LoadError(f"{path} is no JSON: {e}.") from e
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise LoadError(f"{path} has no 'log_history' list: it is no Hugging Face trainer_state.json.")
    return [_numbers(row) for row in history]


def _tensorboard_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Read the scalars of event files. A scalar "epoch" maps steps to epochs; without one a step is an epoch."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
            EventAccumulator,
        )
    except ImportError as e:
        raise MissingExtraError("tensorboard", "tensorboard", "reading TensorBoard events") from e
    try:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    except Exception as e:  # the parser raises whatever the damaged bytes happen to hit
        raise LoadError(f"cannot read the TensorBoard events {path}: {e}.") from e
    epoch_tag = next((tag for tag in scalars if tag.lower() in ("epoch", "train/epoch")), None)
    epoch_of = {event.step: event.value for event in scalars.pop(epoch_tag, [])} if epoch_tag else {}
    rows: list[Row] = []
    for tag, scalar in scalars.items():
        for event in scalar:
            epoch = epoch_of.get(event.step, math.nan) if epoch_tag else float(event.step)
            rows.append({"epoch": epoch, tag: float(event.value)})
    return rows, [] if epoch_tag else ["the events have no scalar 'epoch': their steps are taken for epochs"]


def _numbers(row: Mapping[str, object]) -> dict[str, float]:
    """Keep the cells that are numbers; "epoch" in any case, "" and null are missing values."""
    kept = {}
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            continue
        try:
            number = float(value)
        except (ValueError, OverflowError):
            continue
        kept["epoch" if name.lower() == "epoch" else name] = number
    return kept


def _to_table(path: Path, rows: Iterable[Row], notes: list[str]) -> MetricsTable:
    """Sort by epoch, join rows of one epoch (the later row wins), and note what was out of order."""
    merged: dict[float, dict[str, float]] = {}
    without_epoch, again, backwards, last = 0, 0, False, -math.inf
    for row in rows:
        epoch = row.get("epoch", math.nan)
        if not math.isfinite(epoch) or epoch < 0:
            without_epoch += 1
            continue
        backwards |= epoch < last
        last = epoch
        values = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        again += bool(merged.get(epoch, {}).keys() & values.keys())
        merged.setdefault(epoch, {}).update(values)
    if not merged:
        raise DataError(f"{path} has no row with an epoch. A log needs a column 'epoch' and one row per epoch.")
    epochs = np.array(sorted(merged))
    names = sorted({name for values in merged.values() for name in values})
    columns = {name: np.array([merged[epoch].get(name, math.nan) for epoch in epochs]) for name in names}
    if without_epoch:
        notes.append(f"{without_epoch} rows without a valid epoch are left out")
    if backwards:
        notes.append("the rows were out of order and are sorted by epoch")
    if again:
        notes.append(f"{again} epochs were logged more than once (a resumed run?): the last row counts")
    return MetricsTable(path, epochs, columns, (*notes, *_gap_notes(epochs)))


def _gap_notes(epochs: FloatSeries) -> list[str]:
    """Name the first hole in the epochs, if any."""
    if len(epochs) < 3:
        return []
    steps = np.diff(epochs)
    wide = np.flatnonzero(steps > 1.5 * np.median(steps))
    if not len(wide):
        return []
    at = wide[0]
    more = f", and {len(wide) - 1} more" if len(wide) > 1 else ""
    return [f"nothing was logged between epoch {epochs[at]:g} and {epochs[at + 1]:g}{more}"]
