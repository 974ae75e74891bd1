"""The training loop on a small real task: it learns, keeps the best, and says when it diverges."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.ema import Ema
from edgekit.compress.training.loop import DivergedError, fit, parameter_groups, pick_device
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig, factor
from edgekit.errors import UsageError
from tests.sides_for_tests import CONFIG, Sides, new_run, saved, train


def test_it_learns_and_writes_a_row_per_epoch(tmp_path: Path) -> None:
    _, result = train(tmp_path, CONFIG.model_copy(update={"epochs": 12}))
    assert result.best >= 0.95
    assert result.rows[-1]["loss"] < 0.6 * result.rows[0]["loss"]
    rows = RunFolder(tmp_path).read_metrics()
    assert rows == result.rows
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert {"kind", "epoch", "lr", "loss", "task", "train_acc", "val_acc", "seconds", "best"} <= set(rows[0])
    assert not any(name.startswith("_") for name in rows[0])
    assert 0 <= rows[0]["train_acc"] <= 1


def test_the_rate_follows_the_schedule(tmp_path: Path) -> None:
    schedule = ScheduleConfig(name="cosine", warmup_epochs=1.0)
    _, result = train(tmp_path, CONFIG.model_copy(update={"schedule": schedule}))
    for row in result.rows:
        last_step = row["epoch"] - 1 + 5 / 6
        assert row["lr"] == pytest.approx(0.02 * factor(schedule, last_step, 4))


def test_the_best_checkpoint_stays_when_later_epochs_are_worse(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 2})
    train(
        tmp_path / "short", config.model_copy(update={"schedule": ScheduleConfig(name="constant")}), values=(0.1, 0.9)
    )
    task, result = train(
        tmp_path / "long",
        CONFIG.model_copy(update={"schedule": ScheduleConfig(name="constant")}),
        values=(0.1, 0.9, 0.9, 0.2),
    )
    assert (result.best, result.best_epoch, result.last) == (0.9, 2, 0.2)
    assert [row["best"] for row in result.rows] == [True, True, False, False]
    for name, tensor in saved(tmp_path / "long").items():  # of two equals the first one
        assert torch.equal(tensor, saved(tmp_path / "short")[name])
    assert not torch.equal(task.model.state_dict()["0.weight"], saved(tmp_path / "long")["0.weight"])


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_best(tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as caught:
        train(tmp_path, poison_in_epoch=3)
    assert "the loss became nan at step 13" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert all(tensor.isfinite().all() for tensor in saved(tmp_path).values())
    assert [row["epoch"] for row in RunFolder(tmp_path).read_metrics()] == [1, 2]
    _, resumed = train(tmp_path, resume=True)  # from the last good epoch
    assert resumed.rows[-1]["epoch"] == 4


class _Exploding(Sides):
    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        weight = next(model.parameters())
        return {"loss": (weight - weight.detach()).abs().sum().sqrt()}  # 0, and its slope there is infinite


def test_an_infinite_gradient_never_reaches_the_weights(tmp_path: Path) -> None:
    task = _Exploding()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    with pytest.raises(DivergedError, match="gradient's norm became nan"):
        fit(task, CONFIG, new_run(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())


def test_the_moving_average_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    task, _ = train(tmp_path, CONFIG.model_copy(update={"ema_decay": 0.5, "epochs": 1}))
    (evaluated,) = task.evaluated
    assert evaluated is not task.model
    assert torch.equal(saved(tmp_path)["0.weight"], evaluated.state_dict()["0.weight"])
    assert not torch.equal(saved(tmp_path)["0.weight"], task.model.state_dict()["0.weight"])
    plain, _ = train(tmp_path / "plain", CONFIG.model_copy(update={"epochs": 1}))
    assert plain.evaluated == [plain.model]


def test_evaluation_may_be_rarer_than_epochs_but_never_misses_the_last(tmp_path: Path) -> None:
    task, result = train(tmp_path, CONFIG.model_copy(update={"epochs": 5, "evaluate_every": 2}))
    assert len(task.evaluated) == 3
    assert ["val_acc" in row for row in result.rows] == [False, True, False, True, True]


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    """AdamW's first step does not see the gradient's size, but SGD-like momentum sums do: the runs must differ."""
    _, clipped = train(tmp_path / "clipped", CONFIG.model_copy(update={"clip_norm": 0.01}))
    _, free = train(tmp_path / "free")
    assert clipped.rows[-1]["loss"] != free.rows[-1]["loss"]


def test_vectors_are_left_out_of_the_weight_decay_on_request() -> None:
    model = Sides().model
    (everything,) = parameter_groups(model, CONFIG)
    assert everything["weight_decay"] == 0.01
    assert len(everything["params"]) == 6
    matrices, vectors = parameter_groups(model, CONFIG.model_copy(update={"decay_matrices_only": True}))
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.01, 0.0)
    assert len(vectors["params"]) == 4
    next(model.parameters()).requires_grad_(False)
    assert len(parameter_groups(model, CONFIG)[0]["params"]) == 5


def test_weight_decay_shrinks_exactly_the_decayed(tmp_path: Path) -> None:
    """Where no gradient flows, a step of AdamW leaves w·(1 − lr·λ)."""

    class Frozen(Sides):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
            return {"loss": sum((p * 0.0).sum() for p in model.parameters()) + torch.tensor(0.0)}

    task = Frozen()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    config = FitConfig(
        epochs=1,
        lr=0.1,
        weight_decay=0.5,
        decay_matrices_only=True,
        device="cpu",
        schedule=ScheduleConfig(name="constant"),
    )
    fit(task, config, new_run(tmp_path))
    for name, parameter in task.model.named_parameters():
        shrunk = before[name] * ((1 - 0.1 * 0.5) ** 6 if parameter.ndim == 2 else 1.0)
        assert torch.allclose(parameter, shrunk, rtol=1e-5)


def test_step_rows_are_written_every_fifty_steps(tmp_path: Path) -> None:
    class Long(Sides):
        steps_per_epoch = 120

        def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(20):
                yield from super().batches(epoch, device)

    fit(Long(), CONFIG.model_copy(update={"epochs": 1}), new_run(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["kind"], row.get("step")) for row in rows] == [("step", 50), ("step", 100), ("epoch", None)]
    assert rows[0]["grad_norm"] > 0
    assert rows[0]["images_per_s"] > 0


def test_half_precision_trains_in_a_process_that_trained_in_full(tmp_path: Path) -> None:
    train(tmp_path / "full", CONFIG.model_copy(update={"epochs": 1}))
    _, result = train(tmp_path / "half", CONFIG.model_copy(update={"precision": "bf16", "epochs": 6}))
    assert result.rows[-1]["loss"] < result.rows[0]["loss"]


def test_devices_that_are_not_there_are_refused() -> None:
    assert pick_device(CONFIG) == torch.device("cpu")
    for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not there:
            with pytest.raises(UsageError, match=f"--device {name} is not available"):
                pick_device(CONFIG.model_copy(update={"device": name}))


def test_the_models_layout_survives_the_average() -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert Ema(conv, 0.9).model.state_dict()["weight"].is_contiguous(memory_format=torch.channels_last)
