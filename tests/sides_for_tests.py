"""A small real training: on which side of a plane does a point lie?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Silent
from edgekit.compress.training.loop import FitResult, fit
from edgekit.compress.training.run_folder import RunFolder

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
