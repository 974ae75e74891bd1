"""Everything that training changes, in one place: what a checkpoint holds, and how it comes back bit for bit."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import IO, Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from edgekit.compress.parallel.launcher import world_size
from edgekit.compress.parallel.processes import join
from edgekit.compress.parallel.replica import Replica
from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.checkpointing import Stream
from edgekit.compress.training.ema import Ema
from edgekit.compress.training.fast_layers import use_fast_layers
from edgekit.compress.training.layer_decay import rate_factors, split_by_factor
from edgekit.compress.training.muon import Muon
from edgekit.compress.training.task import Task
from edgekit.errors import LoadError, UsageError, first_line

STATE_VERSION = 2


@dataclass
class Position:
    """Where in the run training is, and what the epoch has summed up so far.

    Attributes:
        epoch: 1-based epoch in progress.
        step: its steps that are done.
        images: samples seen in it.
        sums: named sums over it; loss parts are weighted by the batch's length.
        seconds: wall time spent in it.
        lr: rate of its last step.
    """

    epoch: int = 1
    step: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    lr: float = 0.0

    def add(self, parts: Mapping[str, float], grad_norm: float, count: int) -> None:
        """Count a step of `count` samples, with its loss parts and counters."""
        self.step, self.images = self.step + 1, self.images + count
        self.sums["_grad_norm"] = self.sums.get("_grad_norm", 0.0) + grad_norm
        for name, value in parts.items():
            weighted = value if name.startswith("_") else value * count
            self.sums[name] = self.sums.get(name, 0.0) + weighted


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


def epoch_row(position: Position, device: torch.device) -> dict[str, Any]:
    """Return a trained epoch's means as a row of metrics.jsonl, with its throughput and this process's peak memory."""
    sums = position.sums
    means = {name: value / position.images for name, value in sums.items() if not name.startswith("_")}
    row = {"kind": "epoch", "epoch": position.epoch, "lr": position.lr, **means}
    if sums.get("_labelled"):
        row["train_acc"] = sums["_correct"] / sums["_labelled"]
    row["steps"] = position.step
    row["grad_norm"] = sums["_grad_norm"] / position.step
    row["images_per_s"] = position.images / position.seconds
    row["peak_memory_bytes"] = _peak_memory_bytes(device)
    return row


def _peak_memory_bytes(device: torch.device) -> int | None:
    """Return the most memory that was held so far: of the GPU, else of the process; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def pick_device(config: FitConfig) -> torch.device:
    """Return the device that `config.device` stands for.

    Raises:
        UsageError: it is not there.
    """
    has_mps = torch.backends.mps.is_available() and world_size() == 1  # its processes could not talk to each other
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


def make_optimizer(model: nn.Module, config: FitConfig, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    """Return the optimizer that `config` names, over all trained parameters; `layer_decay` 1 is one rate for all."""
    groups = parameter_groups(model, config)
    if layer_decay != 1.0:
        groups = split_by_factor(model, groups, rate_factors(model, layer_decay))
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


class TrainingState:
    """Model, optimizer, moving average, position and result of one run.

    Attributes:
        processes: this one and the others.
        model: as Accelerate wraps it.
        plain: the same weights unwrapped.
        steps_per_epoch: of the task, by which a changed batch size is noticed.
        lr_scale: factor on every planned rate; below 1 after a rollback.
    """

    def __init__(self, task: Task, config: FitConfig) -> None:
        self.processes = join(pick_device(config))
        self.device, self.steps_per_epoch = self.processes.device, task.steps_per_epoch
        # accelerate 1.15 keeps the first precision of a process and refuses another one; the process group stays
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            cpu=self.device.type == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no"
        )
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model = task.model.to(device=self.device, memory_format=memory_format)  # type: ignore[call-overload]
        use_fast_layers(model)
        self._loss, self._replica = task.loss, None
        if self.processes.world > 1:
            self._replica = Replica(model, task.loss, self.accelerator, self.processes)
        optimizer = make_optimizer(model, config, getattr(task, "layer_decay", 1.0))
        self.ema = Ema(model, config.ema_decay) if config.ema_decay else None
        self.optimizer = self.accelerator.prepare(optimizer)
        # several processes evaluate and save the model itself, and train it through the replica
        self.model: nn.Module = model if self._replica else self.accelerator.prepare(model)
        self.plain: nn.Module = self.accelerator.unwrap_model(self.model)
        if config.compile and self._replica is None:
            self.plain.compile()  # in place: the names of its weights stay, and the moving average is a plain copy
        self.position, self.result, self.lr_scale = Position(), FitResult(), 1.0

    def losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the task's losses of a batch; with several processes, of this one's share of it."""
        with self.accelerator.autocast():
            if self._replica is not None and torch.is_grad_enabled():
                return self._replica.losses(batch)
            return self._loss(self.model, batch)

    def exchange_later(self) -> AbstractContextManager[None]:
        """Return the block for all micro-batches but the last: gradients stay within the process."""
        return nullcontext() if self._replica is None else self._replica.exchange_later()

    @property
    def evaluated(self) -> nn.Module:
        """The weights that count: the moving average where there is one."""
        return self.plain if self.ema is None else self.ema.model

    def write(self, stream: Stream, guard: Mapping[str, Any]) -> None:
        """Write the state as a checkpoint; `guard` is the guard's, plain values and tensors."""
        state = {
            "version": STATE_VERSION,
            "position": asdict(self.position),
            "steps_per_epoch": self.steps_per_epoch,
            "model": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "ema_steps": 0 if self.ema is None else self.ema.steps,
            "result": {name: value for name, value in vars(self.result).items() if name != "seconds"},
            "lr_scale": self.lr_scale,
            "guard": dict(guard),
        }
        torch.save(state, cast(IO[bytes], stream))

    def restore(self, content: bytes, name: str) -> Mapping[str, Any]:
        """Take over what `write` wrote, and return the guard's part of it.

        Raises:
            LoadError: broken, of another version, or of a run with other settings; nothing is guaranteed of the
                weights then.
        """
        try:
            state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
            version = state["version"]
            if version == STATE_VERSION:
                self._take(state)
                return dict(state["guard"])
        # fed with another run's or a broken file, torch raises nearly anything
        except Exception as e:
            raise LoadError(
                f"{name} cannot be resumed from: {first_line(e)}. Give the settings it was trained with, or start "
                f"over with --overwrite"
            ) from e
        raise LoadError(
            f"{name} cannot be resumed from: it is of version {version}, this edgekit reads {STATE_VERSION}. Use the "
            f"edgekit that began the run (run.json names it), or start over with --overwrite"
        )

    def _take(self, state: Mapping[str, Any]) -> None:
        steps = state["steps_per_epoch"]
        if steps != self.steps_per_epoch and state["position"]["step"]:
            raise ValueError(f"it stopped within an epoch of {steps} steps, which has {self.steps_per_epoch} now")
        if (state["ema"] is None) != (self.ema is None):
            raise ValueError(f"it was trained {'without' if state['ema'] is None else 'with'} a moving average")
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
            self.ema.steps = state["ema_steps"]
        self.position = Position(**state["position"])
        self.result = FitResult(**state["result"])
        self.lr_scale = state["lr_scale"]
