"""The training loop on a small real task: it learns, keeps the best, survives a kill, and says when it diverges."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.atomic import WriteError
from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Silent
from edgekit.compress.training.checkpointing import Checkpoints
from edgekit.compress.training.ema import Ema
from edgekit.compress.training.loop import DivergedError, FitResult, fit, parameter_groups, pick_device
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.schedule import ScheduleConfig, factor
from edgekit.errors import LoadError, UsageError

CONFIG = FitConfig(epochs=4, batch_size=16, lr=0.02, device="cpu")
X = torch.randn(96, 10, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long()


class Interrupted(Exception):
    """Stands for a kill in the middle of an epoch."""


class Listening(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Sides:
    """Tell on which side of a plane a point lies; with dropout and batch norm, as real nets have them."""

    metric = "val_acc"
    checkpoint_name = "best.pt"
    steps_per_epoch = 6

    def __init__(self, *, stop_in_epoch: int = 0, poison_in_epoch: int = 0, values: tuple[float, ...] = ()) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)
        )
        self.stop_in_epoch, self.poison_in_epoch, self.values = stop_in_epoch, poison_in_epoch, values
        self.evaluated: list[nn.Module] = []
        self.epochs: list[int] = []

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs.append(epoch)
        order = torch.randperm(len(X), generator=torch.Generator().manual_seed(epoch))
        for number, rows in list(enumerate(order.split(16)))[start:]:  # type: ignore[no-untyped-call]
            if epoch == self.stop_in_epoch and number == 3:
                raise Interrupted
            x = X[rows].to(device)
            yield (x * float("nan") if epoch == self.poison_in_epoch else x), Y[rows].to(device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        logits = model(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        correct = (logits.argmax(1) == batch[1]).sum()
        return {"loss": loss, "task": loss, "_correct": correct, "_labelled": torch.tensor(len(batch[1]))}

    def batch_length(self, batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[1])

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        self.evaluated.append(model)
        if self.values:
            return {"val_acc": self.values[len(self.evaluated) - 1]}
        return {"val_acc": float((model(X.to(device)).argmax(1).cpu() == Y).float().mean())}

    def save(self, path: Path, model: nn.Module) -> None:
        torch.save(model.state_dict(), path)


def new_run(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.create({}, {})
    return run


def train(path: Path, config: FitConfig = CONFIG, *, resume: bool = False, **options: Any) -> tuple[Sides, FitResult]:
    task = Sides(**options)
    run = RunFolder(path) if resume else new_run(path)
    return task, fit(task, config, run, resume=resume)


def saved(path: Path, name: str = "best.pt") -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path / name, weights_only=True)
    return state


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s", "peak_memory_bytes")} for row in rows]


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


def test_a_plateau_follows_the_metric_through_a_resume_too(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"schedule": ScheduleConfig(name="plateau", patience=0, gamma=0.5)})
    values = (0.5, 0.6, 0.6, 0.6)
    _, result = train(tmp_path / "whole", config, values=values)
    assert [row["lr"] for row in result.rows] == pytest.approx([0.02, 0.02, 0.02, 0.01])
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", config, values=values, stop_in_epoch=4)
    _, resumed = train(tmp_path / "cut", config, values=values[3:], resume=True)
    assert without_time(resumed.rows) == without_time(result.rows)


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


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_in_epoch", [1, 3])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(tmp_path: Path, ema_decay: float, stop_in_epoch: int) -> None:
    config = CONFIG.model_copy(update={"ema_decay": ema_decay, "clip_norm": 1.0, "decay_matrices_only": True})
    whole_task, whole = train(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", config, stop_in_epoch=stop_in_epoch)
    torch.manual_seed(999)  # a new process is in another state
    task, resumed = train(tmp_path / "cut", config, resume=True)
    assert task.epochs == list(range(stop_in_epoch, 5))
    for name, tensor in task.model.state_dict().items():
        assert torch.equal(tensor, whole_task.model.state_dict()[name]), name
    for name, tensor in saved(tmp_path / "cut").items():
        assert torch.equal(tensor, saved(tmp_path / "whole")[name]), name
    assert without_time(resumed.rows) == without_time(whole.rows)
    assert without_time(RunFolder(tmp_path / "cut").read_metrics()) == without_time(whole.rows)
    assert replace(resumed, seconds=0, rows=[]) == replace(whole, seconds=0, rows=[])


def test_resuming_a_finished_run_trains_nothing_and_knows_the_result(tmp_path: Path) -> None:
    _, whole = train(tmp_path)
    task, again = train(tmp_path, resume=True)
    assert task.epochs == []
    assert (again.best, again.best_epoch, again.last) == (whole.best, whole.best_epoch, whole.last)
    assert again.rows == whole.rows


def test_more_epochs_continue_a_finished_run(tmp_path: Path) -> None:
    train(tmp_path)
    task, longer = train(tmp_path, CONFIG.model_copy(update={"epochs": 6}), resume=True)
    assert task.epochs == [5, 6]
    assert [row["epoch"] for row in longer.rows] == [1, 2, 3, 4, 5, 6]


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


def states(path: Path) -> Checkpoints:
    return Checkpoints(path / "last", lambda text: None)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "gone"])
def test_a_damaged_newest_state_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    _, whole = train(tmp_path)
    newest = tmp_path / "last" / states(tmp_path).entries()[0].name
    content = newest.read_bytes()
    newest.write_bytes({"cut": content[: len(content) // 2], "garbage": b"garbage"}.get(damage, b""))
    if damage == "gone":
        newest.unlink()
    shown = Listening()
    task = Sides()
    again = fit(task, CONFIG, RunFolder(tmp_path), display=shown, resume=True)
    assert task.epochs == [4]
    (warning,) = shown.warnings
    assert str(newest) in warning
    assert "going back to the one before" in warning
    assert without_time(again.rows) == without_time(whole.rows)


def test_without_any_whole_state_it_is_one_line(tmp_path: Path) -> None:
    train(tmp_path)
    for entry in states(tmp_path).entries():
        (tmp_path / "last" / entry.name).write_bytes(b"garbage")
    with pytest.raises(LoadError, match="none of its 2 training states is whole") as caught:
        train(tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1, "states": [{"name": "../../x", "epoch": 1}]}'])
def test_a_lost_manifest_is_made_up_for_by_the_states(tmp_path: Path, content: str) -> None:
    _, whole = train(tmp_path)
    (tmp_path / "last" / "manifest.json").write_text(content, encoding="utf-8")
    shown = Listening()
    again = fit(Sides(), CONFIG, RunFolder(tmp_path), display=shown, resume=True)
    assert "is damaged" in shown.warnings[0]
    assert again.rows == whole.rows


@pytest.mark.parametrize("damage", ["list", "foreign", "version", "state.pt", "manifest"])
def test_a_state_of_something_else_is_one_line(tmp_path: Path, damage: str) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    store = states(tmp_path)
    (entry,) = store.entries()
    state = torch.load(tmp_path / "last" / entry.name, weights_only=True)
    foreign = {
        "list": [1, 2],
        "foreign": state | {"model": nn.Linear(2, 2).state_dict()},
        "version": state | {"version": 99},
    }
    if damage in foreign:
        store.save(lambda stream: torch.save(foreign[damage], stream), epoch=2, step=0)  # type: ignore[arg-type]
    elif damage == "manifest":
        (tmp_path / "last" / "manifest.json").write_text('{"version": 99, "states": []}', encoding="utf-8")
    else:
        store.clear()
        (tmp_path / "last" / "state.pt").write_bytes(b"of an old version")
    with pytest.raises(LoadError) as caught:
        train(tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "last") in str(caught.value)


def test_a_moving_average_switched_on_at_resume_is_refused(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 1}))
    with pytest.raises(LoadError, match="Give the settings it was trained with"):
        train(tmp_path, CONFIG.model_copy(update={"ema_decay": 0.9}), resume=True)


def test_a_full_disk_leaves_the_state_before_it(tmp_path: Path) -> None:
    train(tmp_path, CONFIG.model_copy(update={"epochs": 2}))
    before = {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(WriteError, match="state-000004"):
            train(tmp_path, resume=True, values=(0.0, 0.0, 0.0))  # no better checkpoint to write first
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in (tmp_path / "last").iterdir()} == before


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
