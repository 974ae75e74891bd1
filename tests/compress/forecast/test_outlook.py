"""The forecast beside a training: one line, when there is enough to go by, and never at the price of the training."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from killable_for_tests import CONFIG, Pictures

from edgekit.compress.forecast.outlook import LARGEST_SHARE, Outlook
from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Silent
from edgekit.compress.training.loop import fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig

ROWS = [{"epoch": at, "val_acc": 0.8 - 0.5 * 0.8**at, "lr": 0.01} for at in range(1, 20)]


def outlook(epochs: int = 20) -> Outlook:
    made = Outlook(FitConfig(epochs=epochs, lr=0.01, schedule=ScheduleConfig(name="constant")), "val_acc")
    made._started -= 1000  # a long training
    return made


def test_it_speaks_from_the_fourth_epoch_on_until_the_last() -> None:
    spoken = [outlook().line(ROWS[:count]) for count in range(len(ROWS) + 1)]
    assert spoken[:4] == [None] * 4
    assert all(line and line.startswith("forecast: best val_acc ") and "\n" not in line for line in spoken[4:])
    assert outlook(19).line(ROWS) is None
    assert outlook().line([*ROWS[:9], {"epoch": 10, "lr": 0.01}]) is None  # not evaluated


def test_it_speaks_in_percent_and_near_the_truth() -> None:
    line = outlook().line(ROWS[:15])
    assert line is not None
    assert float(line.split()[3]) == pytest.approx(100 * ROWS[-1]["val_acc"], abs=2)


def test_it_is_silent_where_it_would_cost_too_much() -> None:
    cheap = Outlook(FitConfig(epochs=20), "val_acc")
    began = time.perf_counter()
    while time.perf_counter() - began < 0.3:
        cheap.line(ROWS[:10])
    assert cheap._spent - cheap._dearest <= LARGEST_SHARE * (time.perf_counter() - cheap._started)


class Listening(Silent):
    forecasts = True

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_training_shows_it(tmp_path: Path) -> None:
    run, shown = RunFolder(tmp_path), Listening()
    run.create({}, {})
    fit(Pictures(pause_s=0.02), CONFIG.model_copy(update={"epochs": 8}), run, display=shown)
    assert shown.lines
    assert all("best val_acc" in line for line in shown.lines)
