"""Make the logs beside this file: 31 real trainings of small nets, a few minutes in all on one core.

    python tests/compress/forecast/logs/make_logs.py FOLDER

Five tasks on data that scikit-learn and the standard library bring along, all eight kinds of rate course, every run
with its own seed. The forecast's constants were chosen on `tuning/` and checked on `held_out/`.
"""

from __future__ import annotations

import csv
import json
import pydoc_data.topics as python_topics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_classification
from torch import nn

from edgekit.compress.training.schedule import ScheduleConfig, factor

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Rows and labels; the first `train` rows are for training, the others for validation."""

    rows: Floats
    labels: Labels
    train: int


def digits(noise: float) -> Task:
    """Handwritten digits; a part `noise` of the training labels is random."""
    rows, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(rows))
    rows, labels = rows[order] / 16.0, labels[order].copy()
    flip = np.flatnonzero(rng.random(900) < noise)
    labels[flip] = rng.integers(0, 10, len(flip))
    return Task(rows.astype(np.float32), labels, 900)


def rotation() -> Task:
    """By how many quarter turns a digit is rotated."""
    pictures = load_digits().images / 16.0
    pictures = pictures[np.random.default_rng(1).permutation(len(pictures))]
    turned = np.stack([np.rot90(pictures, turns, (1, 2)) for turns in range(4)], axis=1)
    return Task(turned.reshape(-1, 64).astype(np.float32), np.tile(np.arange(4), len(pictures)), 3200)


def blobs(classes: int) -> Task:
    """Overlapping Gaussian clusters."""
    rows, labels = make_classification(
        9000,
        40,
        n_informative=22,
        n_classes=classes,
        n_clusters_per_class=3,
        class_sep=1.4,
        flip_y=0.03,
        random_state=3,
    )
    return Task(rows.astype(np.float32), labels.astype(np.int64), 6000)


def _letters() -> Labels:
    text = " ".join(" ".join(python_topics.topics[key] for key in sorted(python_topics.topics)).lower().split())
    return np.array([ord(c) - 97 if "a" <= c <= "z" else 26 for c in text])


def next_letter() -> Task:
    """The letter after five letters of Python's own help texts."""
    windows = np.lib.stride_tricks.sliding_window_view(_letters()[:60000], 6)[:54000]
    return Task(np.eye(27, dtype=np.float32)[windows[:, :5]].reshape(-1, 135), windows[:, 5].copy(), 50000)


def direction() -> Task:
    """Whether eight letters are read forwards or backwards."""
    windows = np.lib.stride_tricks.sliding_window_view(_letters(), 8)[::17][:14000]
    backwards = np.arange(len(windows)) % 2
    windows = np.where(backwards[:, None] == 1, windows[:, ::-1], windows)
    return Task(np.eye(27, dtype=np.float32)[windows].reshape(len(windows), -1), backwards, 10000)


TASKS: dict[str, Callable[[], Task]] = {
    "digits": lambda: digits(0.0),
    "digits-noisy": lambda: digits(0.35),
    "rotation": rotation,
    "blobs12": lambda: blobs(12),
    "blobs20": lambda: blobs(20),
    "letters": next_letter,
    "direction": direction,
}


@dataclass(frozen=True)
class Run:
    """One training."""

    folder: str
    task: str
    net: str
    schedule: ScheduleConfig
    epochs: int
    steps: int
    rate: float
    optimizer: str = "sgd"
    batch: int = field(default=64)


def plan(name: str, **values: float) -> ScheduleConfig:
    return ScheduleConfig.model_validate({"name": name, **values})


RUNS = [
    Run("tuning", "digits", "cnn", plan("cosine"), 30, 14, 0.05),
    Run("tuning", "digits", "cnn", plan("step", step_epochs=10, gamma=0.2), 30, 14, 0.05),
    Run("tuning", "digits-noisy", "mlp", plan("linear"), 40, 14, 0.1),
    Run("tuning", "rotation", "cnn", plan("one-cycle"), 25, 40, 0.1),
    Run("tuning", "rotation", "mlp", plan("constant"), 40, 20, 1e-3, "adamw"),
    Run("tuning", "blobs12", "mlp", plan("cosine", warmup_epochs=2), 30, 60, 0.03),
    Run("tuning", "blobs12", "mlp", plan("wsd", decay_fraction=0.25), 40, 40, 0.05),
    Run("tuning", "letters", "mlp", plan("cosine"), 24, 100, 0.3),
    Run("tuning", "letters", "mlp", plan("step", step_epochs=8, gamma=0.3), 24, 100, 0.3),
    Run("tuning", "letters", "mlp", plan("cosine-restarts", t_0=10), 30, 100, 0.3),
    Run("tuning", "letters", "mlp", plan("wsd", decay_fraction=0.2), 40, 60, 0.3),
    Run("tuning", "blobs12", "mlp", plan("linear"), 20, 60, 2e-3, "adamw"),
    Run("tuning", "digits-noisy", "cnn", plan("one-cycle"), 30, 14, 0.1),
    Run("tuning", "rotation", "mlp", plan("cosine"), 60, 20, 0.05),
    Run("tuning", "blobs12", "mlp", plan("constant"), 30, 40, 0.01),
    Run("tuning", "letters", "mlp", plan("linear"), 30, 60, 2e-3, "adamw"),
    Run("tuning", "rotation", "cnn", plan("step", step_epochs=12), 36, 30, 0.1),
    Run("held_out", "digits-noisy", "cnn", plan("wsd", decay_fraction=0.3), 30, 10, 0.03),
    Run("held_out", "blobs20", "mlp", plan("step", step_epochs=12, gamma=0.2), 36, 50, 0.06),
    Run("held_out", "blobs20", "mlp", plan("cosine", warmup_epochs=3), 40, 50, 0.06),
    Run("held_out", "digits", "mlp", plan("linear"), 30, 10, 0.02),
    Run("held_out", "blobs20", "mlp", plan("cosine-restarts", t_0=10), 30, 60, 0.03),
    Run("held_out", "rotation", "mlp", plan("constant"), 40, 15, 2e-3, "adamw"),
    Run("held_out", "direction", "mlp", plan("linear"), 30, 40, 0.1),
    Run("held_out", "direction", "mlp", plan("wsd", decay_fraction=0.2), 35, 40, 0.1),
    Run("held_out", "direction", "mlp", plan("one-cycle"), 24, 60, 0.2),
    Run("held_out", "rotation", "cnn", plan("cosine-restarts", t_0=12), 36, 20, 0.05),
    Run("held_out", "letters", "mlp", plan("cosine", warmup_epochs=1), 40, 40, 0.2),
    Run("held_out", "direction", "mlp", plan("step", step_epochs=15), 40, 40, 0.1),
    Run("held_out", "blobs20", "mlp", plan("one-cycle"), 25, 60, 1e-2, "adamw"),
    Run("held_out", "letters", "mlp", plan("cosine-restarts", t_0=6, t_mult=2), 30, 60, 0.2),
]


class Cnn(nn.Module):
    """Three convolutions for pictures of 8x8 pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(24, classes),
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(rows.view(-1, 1, 8, 8))
        return logits


def net_for(run: Run, width: int, classes: int) -> nn.Module:
    if run.net == "cnn":
        return Cnn(classes)
    return nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, classes))


def train(run: Run, seed: int) -> list[tuple[int, str, str, str]]:
    """Train and return (epoch, validation accuracy in percent, validation loss, rate at the epoch's start)."""
    task = TASKS[run.task]()
    torch.manual_seed(seed)
    rows, labels = torch.from_numpy(task.rows), torch.from_numpy(np.asarray(task.labels))
    net = net_for(run, rows.shape[1], int(labels.max()) + 1)
    optimizer: torch.optim.Optimizer
    if run.optimizer == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), run.rate, weight_decay=0.01)
    else:
        optimizer = torch.optim.SGD(net.parameters(), run.rate, momentum=0.9, weight_decay=1e-4)
    log = []
    for epoch in range(run.epochs):
        net.train()
        for step in range(run.steps):
            optimizer.param_groups[0]["lr"] = run.rate * factor(run.schedule, epoch + step / run.steps, run.epochs)
            chosen = torch.randint(task.train, (run.batch,))
            loss = nn.functional.cross_entropy(net(rows[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            logits = net(rows[task.train :])
        accuracy = 100 * float((logits.argmax(1) == labels[task.train :]).float().mean())
        held_out = float(nn.functional.cross_entropy(logits, labels[task.train :]))
        rate = run.rate * factor(run.schedule, epoch, run.epochs)
        log.append((epoch + 1, f"{accuracy:.3f}", f"{held_out:.5f}", f"{rate:.6g}"))
    return log


def name_of(run: Run, seed: int) -> str:
    return f"{run.task}_{run.net}_{run.optimizer}_{run.schedule.name}_{seed}.csv"


def write_plans(folder: Path) -> None:
    """Write each run's schedule beside the logs, as {log: settings}."""
    for part in ("tuning", "held_out"):
        plans = {
            name_of(run, seed): run.schedule.model_dump(exclude_defaults=True) | {"name": run.schedule.name}
            for seed, run in enumerate(RUNS)
            if run.folder == part
        }
        (folder / part / "runs.json").write_text(json.dumps(plans, indent=2) + "\n")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for seed, run in enumerate(RUNS):
        path = folder / run.folder / name_of(run, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = train(run, seed)
        with path.open("w", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([("epoch", "val_acc", "val_loss", "lr"), *rows])
        print(path, rows[0][1], rows[len(rows) // 2][1], rows[-1][1], flush=True)
    write_plans(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
