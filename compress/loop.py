"""The one training loop. A task says what a batch, a loss and an evaluation are; the loop does the rest."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from edgekit import atomic
from edgekit.compress.display import Display, Silent
from edgekit.compress.ema import Ema
from edgekit.compress.plan_ahead import refuse_restarts
from edgekit.compress.recipe import FitConfig
from edgekit.compress.run_folder import RunFolder
from edgekit.compress.schedule import factor
from edgekit.errors import EdgekitError, LoadError, UsageError, first_line

STEPS_PER_ROW = 50


class Task(Protocol):
    """What is trained: its model, batches, loss and evaluation.

    `batches(epoch)` yields opaque batches in an order that is a function of (seed, epoch). `loss` returns named
    scalars of which "loss" is minimised; names starting with "_" are counters (e.g. "_correct", "_labelled") that are
    summed over the epoch. `evaluate` returns named values; `metric` names the one that the best checkpoint maximises.
    """

    model: nn.Module
    metric: str
    checkpoint_name: str

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, epoch: int, device: torch.device) -> Iterator[Any]: ...

    def loss(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]: ...

    def batch_length(self, batch: Any) -> int: ...

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]: ...

    def save(self, path: Path, model: nn.Module) -> None: ...


class DivergedError(EdgekitError):
    """The loss is no longer a number (exit 1)."""


@dataclass
class FitResult:
    """What training reached.

    Attributes:
        best_epoch: 1-based epoch of the best checkpoint.
        best: the metric there.
        last: the metric at the last epoch.
        rows: one row per epoch, as in metrics.jsonl.
        seconds: wall time of this call.
    """

    best_epoch: int = 0
    best: float = -math.inf
    last: float = math.nan
    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def fit(
    task: Task, config: FitConfig, run: RunFolder, *, display: Display | None = None, resume: bool = False
) -> FitResult:
    """Train `task.model` and leave the best checkpoint and the metrics in the run folder.

    Weights are evaluated and saved as their moving average where `config.ema_decay` is set.

    Args:
        task: what to train.
        config: how.
        run: where the results go.
        display: shows progress.
        resume: continue after the last finished epoch of this run folder.

    Raises:
        DivergedError: loss or gradient became NaN or infinite; the best checkpoint so far stays.
        LoadError: `resume` and the state cannot be read.
        UsageError: the planned rate jumps up after warm-up, and `config.allow_restarts` is false.
    """
    return _Fit(task, config, run, display or Silent()).run(resume=resume)


def pick_device(config: FitConfig) -> torch.device:
    """Return the device that `config.device` stands for.

    Raises:
        UsageError: it is not there.
    """
    has_mps = torch.backends.mps.is_available()
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    if (config.device == "cuda" and not torch.cuda.is_available()) or (config.device == "mps" and not has_mps):
        raise UsageError(f"--device {config.device} is not available here; use --device auto or cpu")
    return torch.device(config.device)


def parameter_groups(model: nn.Module, config: FitConfig) -> list[dict[str, Any]]:
    """Split the parameters into decayed and not; `decay_matrices_only` leaves vectors (biases, norms) undecayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not config.decay_matrices_only:
        return [{"params": trained, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class _Fit:
    """One call of `fit`: the state that its steps share."""

    def __init__(self, task: Task, config: FitConfig, run: RunFolder, display: Display) -> None:
        self.task, self.config, self.folder, self.display = task, config, run, display
        self.device = pick_device(config)
        # accelerate 1.15 keeps the first precision of a process and refuses another one; the process group stays
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no"
        )
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = task.model.to(device=self.device, memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, betas=config.betas)
        self.ema = Ema(model, config.ema_decay) if config.ema_decay else None
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.result = FitResult()
        self.first_epoch = 1

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the moving average where there is one."""
        if self.ema is not None:
            return self.ema.model
        unwrapped: nn.Module = self.accelerator.unwrap_model(self.model)
        return unwrapped

    def run(self, *, resume: bool) -> FitResult:
        started = time.perf_counter()
        if resume:
            self._load_state()
        done_steps = (self.first_epoch - 1) * self.task.steps_per_epoch
        refuse_restarts(self.config, self.task.steps_per_epoch, done_steps=done_steps)
        self.display.start(self.config.epochs, self.task.steps_per_epoch)
        try:
            for epoch in range(self.first_epoch, self.config.epochs + 1):
                epoch_started = time.perf_counter()
                row = self._train_epoch(epoch)
                row["evaluated"] = epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs
                if row["evaluated"]:
                    row.update(self._evaluate(epoch))
                row["seconds"] = time.perf_counter() - epoch_started
                self._finish_epoch(epoch, row)
        finally:
            self.display.finish()
        self.result.seconds = time.perf_counter() - started
        return self.result

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        self.model.train()
        sums: dict[str, float] = {}
        images, group_started, group_images = 0, time.perf_counter(), 0
        lr = 0.0
        history = [row[self.task.metric] for row in self.result.rows if self.task.metric in row]
        for step, batch in enumerate(self.task.batches(epoch, self.device)):
            at = epoch - 1 + step / self.task.steps_per_epoch
            lr = self.config.lr * factor(self.config.schedule, at, self.config.epochs, history)
            parts, grad_norm = self._step(batch, lr, (epoch - 1) * self.task.steps_per_epoch + step)
            count = self.task.batch_length(batch)
            images, group_images = images + count, group_images + count
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + (value if name.startswith("_") else value * count)
            self.display.step(epoch, count, parts["loss"])
            if (step + 1) % STEPS_PER_ROW == 0:
                now = time.perf_counter()
                self.folder.append_metrics(
                    {"kind": "step", "epoch": epoch, "step": step + 1, "lr": lr, "grad_norm": grad_norm}
                    | {name: value for name, value in parts.items() if not name.startswith("_")}
                    | {"images_per_s": group_images / (now - group_started)}
                )
                group_started, group_images = now, 0
        means = {name: value / images for name, value in sums.items() if not name.startswith("_")}
        row = {"kind": "epoch", "epoch": epoch, "lr": lr, **means}
        if sums.get("_labelled"):
            row["train_acc"] = sums["_correct"] / sums["_labelled"]
        return row

    def _step(self, batch: Any, lr: float, global_step: int) -> tuple[dict[str, float], float]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # dropout and stochastic depth draw from torch's generator: seeded per step, so that resuming is exact
        torch.manual_seed(self.config.seed * 1_000_003 + global_step)
        with self.accelerator.autocast():
            losses = self.task.loss(self.model, batch)
        parts = {name: float(value.detach()) for name, value in losses.items()}
        self._check_finite("loss", parts["loss"], parts, global_step)
        self.accelerator.backward(losses["loss"])
        limit = self.config.clip_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))
        self._check_finite("gradient's norm", norm, parts, global_step)  # before it reaches the weights
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model))
        return parts, norm

    def _check_finite(self, what: str, value: float, parts: Mapping[str, float], global_step: int) -> None:
        if math.isfinite(value):
            return
        shown = ", ".join(f"{k} {v:.4g}" for k, v in parts.items() if not k.startswith("_"))
        best = f"of epoch {self.result.best_epoch}" if self.result.best_epoch else "that there was not yet"
        raise DivergedError(
            f"the {what} became {value} at step {global_step + 1} ({shown}). The best checkpoint, {best}, stays in "
            f"{self.folder.path}. Lower --lr, or set clip_norm in the recipe"
        )

    def _evaluate(self, epoch: int) -> dict[str, float]:
        model = self.evaluated.eval()
        with torch.no_grad():
            values = dict(self.task.evaluate(model, self.device))
        value = values[self.task.metric]
        if value > self.result.best:
            self.result.best, self.result.best_epoch = value, epoch
            self.task.save(self.folder.path / self.task.checkpoint_name, model)
        self.result.last = value
        return values

    def _finish_epoch(self, epoch: int, row: dict[str, Any]) -> None:
        row["best"] = self.result.best_epoch == epoch
        self.result.rows.append(row)
        self.folder.append_metrics(row)
        self._save_state(epoch)
        self.display.epoch(row)

    def _save_state(self, epoch: int) -> None:
        state = {
            "epoch": epoch,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "ema_steps": 0 if self.ema is None else self.ema.steps,
            "best": self.result.best,
            "best_epoch": self.result.best_epoch,
        }
        buffer = io.BytesIO()  # not straight to the disk: torch hides a full one behind a RuntimeError of its own
        torch.save(state, buffer)
        atomic.write_bytes(self.folder.state_path, buffer.getvalue())

    def _load_state(self) -> None:
        path = self.folder.state_path
        if not path.is_file():
            self.folder.keep_metrics(0)  # killed before the first epoch ended: start over
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.model.load_state_dict(state["ema"])
                self.ema.steps = state["ema_steps"]
            self.first_epoch = state["epoch"] + 1
            self.result.best, self.result.best_epoch = state["best"], state["best_epoch"]
        # fed with another run's or a broken file, torch raises nearly anything
        except Exception as e:
            raise LoadError(
                f"{path} cannot be resumed from: {first_line(e)}. Give the settings it was trained with, or start "
                f"over with --overwrite"
            ) from e
        self.folder.keep_metrics(state["epoch"])
        self.result.rows = [row for row in self.folder.read_metrics() if row["kind"] == "epoch"]
        self.result.last = next(
            (row[self.task.metric] for row in reversed(self.result.rows) if self.task.metric in row), math.nan
        )
