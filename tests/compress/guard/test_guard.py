"""The guard names trouble before it is too late, stays quiet over healthy runs, and its rollback saves a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from killable_for_tests import Pictures
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.guard.guard import WINDOW, Guard, StepFacts, Trouble, judge_epoch, ran_out_of_patience
from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Silent
from edgekit.compress.training.gradients import GradientNorms, locate_not_finite
from edgekit.compress.training.loop import DivergedError, FitResult, fit
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig

LAYERS = ("stem.weight", "blocks.0.weight", "head.weight")
CONFIG = FitConfig(epochs=6, lr=0.01, device="cpu", schedule=ScheduleConfig(name="constant"))


def weigh() -> NDArray[np.float64]:
    return np.array([5.0, 8.0, 2.0])


def healthy(guard: Guard, steps: int, *, first: int = 0, seed: int = 0) -> list[Trouble]:
    """Feed steps of an ordinary training: log-normal norms, a loss that falls and jitters."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(first, first + steps):
        loss = 1.0 + 2.0 * np.exp(-step / 100) + 0.1 * rng.normal()
        norms = np.exp(0.5 * rng.normal(size=3)) * (1.0, 0.1, 3.0)
        found += guard.step(StepFacts(step, float(loss), norms, 0.01, 0.01), weigh)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_left_in_peace(seed: int) -> None:
    assert healthy(Guard(LAYERS), 1000, seed=seed) == []


def test_the_exploding_layer_is_named_and_gets_serious_when_it_goes_on() -> None:
    guard = Guard(LAYERS)
    healthy(guard, 100)
    found = []
    for number in range(12):
        norms = np.array([1.0, 0.1 * 3.0**number, 3.0])
        found += guard.step(StepFacts(100 + number, 1.0, norms, 0.01, 0.01), weigh)
    assert [trouble.kind for trouble in found] == ["gradient"] * len(found)
    assert {trouble.layer for trouble in found} == {"blocks.0.weight"}
    assert not found[0].serious
    assert found[-1].serious
    assert len(found) == 2  # a notice, and once more when it is serious


def test_weights_that_grow_take_the_blame_and_are_named_without_a_gradient_too() -> None:
    """Exploding weights show in the gradients of the layers before theirs, and in none where the loss is 0."""
    heavy = lambda: np.array([5.0, 8.0, 2.0 * 20.0])  # noqa: E731
    guard = Guard(LAYERS)
    healthy(guard, 105)
    (found,) = guard.step(StepFacts(105, 1.0, np.array([100.0, 10.0, 3.0]), 0.01, 0.01), heavy)
    assert (found.kind, found.layer) == ("gradient", "head.weight")
    assert "grew 20 times in the last 5 steps" in found.message
    quiet = Guard(LAYERS)
    told = []
    for step in range(60):
        told += quiet.step(StepFacts(step, 0.0, np.zeros(3), 0.01, 0.01), heavy if step >= 30 else weigh)
    (found,) = told
    assert (found.kind, found.layer, found.serious) == ("weights", "head.weight", True)


def test_one_odd_step_is_a_notice_said_once_in_a_window() -> None:
    guard = Guard(LAYERS)
    healthy(guard, 100)
    odd = np.array([200.0, 0.1, 3.0])
    (found,) = guard.step(StepFacts(100, 1.0, odd, 0.01, 0.01), weigh)
    assert (found.kind, found.layer, found.serious) == ("gradient", "stem.weight", False)
    healthy(guard, 30, first=101)
    assert guard.step(StepFacts(131, 1.0, odd, 0.01, 0.01), weigh) == []
    healthy(guard, WINDOW, first=132)
    assert len(guard.step(StepFacts(132 + WINDOW, 1.0, odd, 0.01, 0.01), weigh)) == 1


def test_a_loss_spike_and_a_rate_out_of_plan() -> None:
    guard = Guard(LAYERS)
    healthy(guard, 100)
    (spike,) = guard.step(StepFacts(100, 40.0, np.ones(3), 0.01, 0.01), weigh)
    assert spike.kind == "loss spike"
    assert "40" in spike.message
    (rate,) = guard.step(StepFacts(101, 1.5, np.ones(3), 0.01, 0.002), weigh)
    assert rate.kind == "rate"
    assert "0.002" in rate.message


def test_a_restored_guard_judges_as_the_one_that_was_saved() -> None:
    one, other = Guard(LAYERS), Guard(LAYERS)
    healthy(one, 110)
    other.restore(one.state())
    for step in range(110, 120):
        facts = StepFacts(step, 1.0, np.array([1.0, 9.0, 50.0]) * (step - 108), 0.01, 0.01)
        assert one.step(facts, weigh) == other.step(facts, weigh)
    other.restore({})
    Guard(LAYERS[:2]).restore(one.state())  # another model's: left alone


def rows(*values: float, train: float | None = None) -> list[dict[str, float]]:
    made = [{"epoch": float(at), "val_acc": value} for at, value in enumerate(values, 1)]
    return made if train is None else [{**row, "train_acc": train} for row in made]


def test_the_end_of_the_origin_is_a_collapse_and_its_good_days_are_none() -> None:
    good = (0.31, 0.44, 0.52, 0.56, 0.60, 0.63, 0.66, 0.6907)
    assert all(judge_epoch(rows(*good[:at]), "val_acc") == [] for at in range(1, 9))
    (found,) = judge_epoch(rows(*good, 0.486), "val_acc")
    assert (found.kind, found.serious) == ("collapse", True)
    assert "best of epoch 8" in found.message
    assert judge_epoch(rows(*good, 0.486, 0.49), "val_acc") == []  # told already
    assert len(judge_epoch(rows(*good, 0.486, 0.66, 0.49), "val_acc")) == 1  # it had recovered
    assert judge_epoch(rows(0.1, 0.5, 0.2, 0.6, 0.3), "val_acc") == []  # as unsteady as ever


def test_overfitting_is_the_gap_that_grew_while_nothing_got_better() -> None:
    memorised = rows(0.60, 0.70, 0.69, 0.69, 0.68, 0.69, 0.68)
    for at, row in enumerate(memorised):
        row["train_acc"] = 0.7 + 0.04 * at
    assert judge_epoch(memorised[:6], "val_acc") == []
    (found,) = judge_epoch(memorised, "val_acc")
    assert (found.kind, found.serious) == ("overfitting", False)
    assert judge_epoch(rows(0.60, 0.70, 0.71, 0.72, 0.73, 0.74, 0.75, train=0.99), "val_acc") == []


def test_patience() -> None:
    assert not ran_out_of_patience(rows(0.5, 0.6, 0.6, 0.6), "val_acc", 3)
    assert ran_out_of_patience(rows(0.5, 0.6, 0.6, 0.6, 0.5), "val_acc", 3)
    assert not ran_out_of_patience(rows(*[0.5] * 99), "val_acc", 0)
    assert not ran_out_of_patience(rows(0.5), "val_acc", 1)


def test_norms_and_clipping_are_torchs() -> None:
    torch.manual_seed(0)
    for limit in (0.0, 0.1, 1e9):
        models = [nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        x = torch.randn(4, 5)
        for model in models:
            model(x).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(models[0].parameters(), limit or torch.inf)
        norms = [p.grad.norm() for p in models[1].parameters() if p.grad is not None]
        total, measured = GradientNorms(models[1]).clip(limit)
        assert total == float(expected)
        assert np.allclose(measured, [float(n) for n in norms], rtol=1e-6)
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert one.grad is not None and other.grad is not None
            assert torch.equal(one.grad, other.grad)


def test_parameters_without_a_gradient_are_no_trouble() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    assert GradientNorms(model).clip(1.0)[0] == 0.0
    model["used"](torch.ones(1, 2)).sum().backward()
    total, norms = GradientNorms(model).clip(1.0)
    assert total > 0
    assert norms[2:].tolist() == [0.0, 0.0]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_the_first_layer_with_nan_is_found_in_weights_outputs_inputs_and_the_loss() -> None:
    model, x = net(), torch.randn(8, 4)

    def losses(scale: float = 1.0) -> Mapping[str, Tensor]:
        return {"loss": model(x).sum() * scale}

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert "the loss itself" in locate_not_finite(model, lambda: losses(float("nan")))[1]
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model[3].weight.data.fill_(3e38)
    assert locate_not_finite(model, losses)[1] == "first in the output of layer 3"
    x[0, 0] = float("nan")
    assert locate_not_finite(model, losses)[1] == "first in the output of layer 0, whose input is so already"
    model[1].bias.data[1] = float("inf")
    assert locate_not_finite(model, losses)[1] == "first in the weights of 1.bias"


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
