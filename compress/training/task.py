"""What the loop trains: the contract between a task and `edgekit.compress.training.loop.fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgekit.compress.parallel.shares import Split


class Task(Protocol):
    """What is trained: its model, batches, loss and evaluation.

    `batches(epoch, device, start)` yields opaque batches in an order that is a function of (seed, epoch), from number
    `start` (0-based) on: a resumed epoch goes on at its next batch. `loss` returns named scalars of which "loss" is
    minimised; names starting with "_" are counters (e.g. "_correct", "_labelled") that are summed over the epoch.
    `evaluate` returns named values; `metric` names the one that the best checkpoint maximises. A task may have a
    `layer_decay` (`edgekit.compress.training.layer_decay`).
    """

    model: nn.Module
    metric: str
    checkpoint_name: str

    @property
    def steps_per_epoch(self) -> int: ...

    def batches(self, epoch: int, device: torch.device, start: int = 0) -> Iterator[Any]: ...

    def loss(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]: ...

    def batch_length(self, batch: Any) -> int: ...

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]: ...

    def save(self, path: Path, model: nn.Module) -> None: ...


@runtime_checkable
class DivisibleTask(Task, Protocol):
    """A task whose steps can be divided between processes and micro-batches.

    `shares` yields `split.accumulate` batches for every step from number `start` on: this process's part of each
    micro-batch. `loss` returns of such a batch what it contributes to the means over the whole step: summed over all
    parts they are the loss of the undivided batch, and so are their gradients. `evaluate` may share the work by
    `edgekit.compress.parallel.processes.joined`, and returns the same in every process.
    """

    def shares(self, epoch: int, device: torch.device, start: int, split: Split) -> Iterator[Any]: ...
