"""TensorBoard events say what metrics.jsonl says, through a resume too, and the forecast's reader takes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from killable_for_tests import CONFIG, Pictures

from edgekit.compress.forecast.metrics_reader import read_metrics
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder

pytest.importorskip("tensorboard")


def test_events_hold_the_epochs_of_a_resumed_run_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create({}, {})
    config = CONFIG.model_copy(update={"tensorboard": True})
    fit(Pictures(), config.model_copy(update={"epochs": 2}), run)
    fit(Pictures(), config, run, resume=True)
    table, rows = read_metrics(tmp_path / "tensorboard"), read_metrics(run.metrics_path)
    assert table.epochs.tolist() == rows.epochs.tolist() == [1, 2, 3, 4]
    for name in ("loss", "val_acc", "lr", "images_per_s"):
        assert table.columns[name] == pytest.approx(rows.columns[name], rel=1e-5)


def test_without_it_no_events_are_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create({}, {})
    fit(Pictures(), CONFIG.model_copy(update={"epochs": 1}), run)
    assert not (tmp_path / "tensorboard").exists()
