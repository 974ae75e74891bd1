"""Training as it is shown: rows of an epoch, and the picture of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgekit.compress.show.plots import plot_run
from edgekit.compress.show.progress import TrainingDisplay
from edgekit.terminal import Terminal


def row(epoch: int, *, evaluated: bool = True, **values: float) -> dict[str, Any]:
    measured = {"train_acc": 0.5, "val_acc": 0.25 * epoch, "agreement": 0.9} if evaluated else {"train_acc": 0.5}
    return {
        "kind": "epoch", "epoch": epoch, "lr": 1e-3, "loss": 1 / epoch, "feature": 0.1, "response": 0.2, "task": 0.3,
        "seconds": 12.34, "best": epoch == 2, "evaluated": evaluated, **measured, **values,
    }  # fmt: skip


def test_a_row_per_evaluated_epoch_under_one_header(capsys: pytest.CaptureFixture[str]) -> None:
    display = TrainingDisplay(Terminal())
    display.start(3, 10)
    display.step(1, 64, 0.5)
    display.epoch(row(1))
    display.epoch(row(2))
    display.epoch(row(3, evaluated=False))
    display.finish()
    header, first, second = capsys.readouterr().err.splitlines()
    assert header.split() == [
        "epoch", "loss", "feature", "response", "task", "train", "%", "val", "%", "agree", "%", "lr", "seconds", "best",
    ]  # fmt: skip
    assert first.split() == [
        "1", "1.0000", "0.1000", "0.2000", "0.3000", "50.00", "25.00", "90.00", "1.00e-03", "12.3",
    ]  # fmt: skip
    assert second.split()[-1] == "*"
    assert len(header.rstrip()) >= len(first.rstrip()) - len("seconds  best")


@pytest.mark.parametrize(
    ("done_steps", "said"),
    [
        (0, []),
        (13, ["resumed  in epoch 2 of 3, after 3 of its 10 steps"]),
        (20, ["resumed  in epoch 3 of 3"]),
        (30, ["resumed  after all 3 epochs"]),
    ],
)
def test_a_resumed_run_says_from_where(done_steps: int, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    display = TrainingDisplay(Terminal())
    display.start(3, 10, done_steps)
    display.finish()
    assert capsys.readouterr().err.splitlines() == said


@pytest.mark.parametrize("rows", [[row(1)], [row(1, evaluated=False), row(2), row(3)]])
def test_a_run_is_drawn_with_what_was_measured(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    plot_run(rows, tmp_path / "plots" / "training.png", teacher_acc=0.8, title=r"runs/[a] $\frac$ ü")
    with Image.open(tmp_path / "plots" / "training.png") as picture:
        picture.load()
        assert picture.width > 1000
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 50  # lines were drawn, not only axes
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["training.png"]
