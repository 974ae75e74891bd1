"""The guard in the loop: trouble is named before the loss is NaN, a rollback saves the run, patience ends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from killable_for_tests import Pictures
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Silent
from edgekit.compress.training.loop import DivergedError, FitResult, fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig

CONFIG = FitConfig(epochs=6, lr=0.01, device="cpu", schedule=ScheduleConfig(name="constant"))


class Listening(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)

    def note(self, text: str) -> None:
        self.lines.append(text)


class Faulty(Pictures):
    """From step `bad_from` of the first life on, one layer's weights grow 20 times per step, as in a bad machine."""

    def __init__(self, bad_from: int = 40) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, 3),
        )
        self.y = torch.where(torch.arange(192) % 8 == 0, (self.y + 1) % 3, self.y)  # else the loss ends at 0
        self.bad_from, self.steps, self.lives = bad_from, 0, 0

    def batches(self, epoch: int, device: torch.device, start: int = 0):  # type: ignore[no-untyped-def]
        self.lives += start > 0 or self.steps > (epoch - 1) * self.steps_per_epoch
        self.steps = (epoch - 1) * self.steps_per_epoch + start
        return super().batches(epoch, device, start)

    def loss(self, model: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
        if model.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps > self.bad_from and not self.lives:
                with torch.no_grad():
                    self.model[2].weight.mul_(20.0)  # type: ignore[index]
        return {"loss": F.cross_entropy(model(self.x[batch]), self.y[batch])}


def run_faulty(folder: Path, **changes: object) -> tuple[FitResult, Listening, list[dict[str, object]]]:
    run, shown = RunFolder(folder), Listening()
    if not run.facts_path.is_file():
        run.create({}, {})
    try:
        result = fit(Faulty(), CONFIG.model_copy(update=changes), run, display=shown)
    finally:
        found = [row for row in run.read_metrics() if row["kind"] == "guard"]
    return result, shown, found


@pytest.mark.parametrize("bad_from", [40, 45, 53])
def test_a_planted_exploding_layer_is_named_before_the_loss_turns_nan(tmp_path: Path, bad_from: int) -> None:
    run, shown = RunFolder(tmp_path), Listening()
    run.create({}, {})
    with pytest.raises(DivergedError, match=r"became (nan|inf) at step") as caught:
        fit(Faulty(bad_from), CONFIG, run, display=shown)
    found = [row for row in run.read_metrics() if row["kind"] == "guard"]
    assert found[0]["trouble"] in ("gradient", "weights")
    first = (found[0]["epoch"] - 1) * 12 + found[0]["step"]
    nan_at = int(str(caught.value).split("at step ")[1].split(",")[0])
    assert bad_from <= first < nan_at - 3
    assert found[0]["layer"] == "2.weight"  # the planted one; the largest gradient is that of the layer before it
    assert any("the weights of 2.weight grew" in line for line in shown.lines)
    json.dumps(found)


def test_units_that_died_are_named_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    run, shown, task = RunFolder(tmp_path), Listening(), Faulty(bad_from=10**6)
    run.create({}, {})
    with torch.no_grad():
        task.model[0].bias[:3] = -1e3  # type: ignore[index,operator]
    fit(task, CONFIG.model_copy(update={"epochs": 2}), run, display=shown)
    found = [row for row in run.read_metrics() if row["kind"] == "guard" and row["trouble"] == "dead units"]
    assert [row["layer"] for row in found] == ["0"]
    assert any("3 of 8 in 0" in line for line in shown.lines)


def test_rollback_recovers_the_run_and_says_so(tmp_path: Path) -> None:
    result, shown, found = run_faulty(tmp_path, guard="rollback")
    assert [row["epoch"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    assert result.last > 0.8
    (said,) = [line for line in shown.lines if "Rolled back" in line]
    assert "Rolled back to epoch 4, step 0; the rate is now 0.5 of what is planned" in said
    assert [row["lr"] for row in result.rows] == pytest.approx([0.01] * 3 + [0.005] * 3)
    (row,) = [row for row in found if row["action"] == "rollback"]
    assert row["epoch"] == 4
    kinds = [row["kind"] for row in RunFolder(tmp_path).read_metrics()]
    assert kinds.count("epoch") == 6


def test_stop_ends_the_run_at_serious_trouble_with_the_last_good_state_left(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create({}, {})
    with pytest.raises(DivergedError, match=r"weights of 2\.weight grew"):
        fit(Faulty(), CONFIG.model_copy(update={"guard": "stop"}), run)
    result = fit(Pictures2(), CONFIG, run, resume=True)
    assert result.rows[-1]["epoch"] == 6


class Pictures2(Faulty):
    """The same without the fault."""

    def __init__(self) -> None:
        super().__init__(bad_from=10**9)


def test_damaged_weights_to_start_from_are_one_line(tmp_path: Path) -> None:
    task = Pictures2()
    task.model[0].weight.data[0] = float("nan")
    run = RunFolder(tmp_path)
    run.create({}, {})
    with pytest.raises(DivergedError, match="the weights to start from are damaged"):
        fit(task, CONFIG.model_copy(update={"guard": "rollback"}), run)


def test_a_trouble_that_comes_back_every_time_ends_the_run(tmp_path: Path) -> None:
    class Poisoned(Pictures):
        def loss(self, model: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
            bad = float("nan") if 7 in batch else 1.0
            return {"loss": F.cross_entropy(model(self.x[batch] * bad), self.y[batch])}

    run, shown = RunFolder(tmp_path), Listening()
    run.create({}, {})
    with pytest.raises(DivergedError, match="after 5 rollbacks") as caught:
        fit(Poisoned(), CONFIG.model_copy(update={"guard": "rollback"}), run, display=shown)
    assert "whose input is so already" in str(caught.value)
    assert len(shown.lines) == 5


def test_training_ends_early_and_a_resume_does_not_go_on(tmp_path: Path) -> None:
    class Flat(Pictures):
        def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
            return {"val_acc": 0.5}

    run, shown = RunFolder(tmp_path), Listening()
    run.create({}, {})
    config = CONFIG.model_copy(update={"patience": 2, "epochs": 30})
    assert len(fit(Flat(), config, run, display=shown).rows) == 3
    assert "stopped early after epoch 3" in shown.lines[-1]
    assert len(fit(Flat(), config, run, display=shown, resume=True).rows) == 3
