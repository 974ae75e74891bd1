"""One optimizer step: losses of the micro-batches, of all processes together, the guard's look, and the update."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from edgekit.compress.guard.watch import Watch
from edgekit.compress.parallel.shares import Split
from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.task import DivisibleTask, Task
from edgekit.compress.training.training_state import TrainingState
from edgekit.errors import UsageError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PART_STRIDE = 0x9E3779B97F4A7C15  # odd, so that no two parts of nearby steps share a seed


@dataclass(frozen=True)
class Wishes:
    """What one process wants done after the step, or all of them agreed on.

    Attributes:
        signal: the number of a signal that came.
        save: a save is due.
    """

    signal: int | None = None
    save: bool = False


@dataclass(frozen=True)
class Taken:
    """What a step did.

    Attributes:
        parts: the losses over the whole step, and the counters.
        grad_norm: before clipping.
        count: samples of all processes.
        wishes: of any process, and the main one's for saving.
    """

    parts: dict[str, float]
    grad_norm: float
    count: int
    wishes: Wishes


class Steps:
    """Takes the optimizer steps of one run.

    Args:
        task: what is trained.
        state: its weights.
        watch: looks at every loss and gradient.
        config: how.

    Raises:
        UsageError: the task cannot be divided, and there are several processes or micro-batches.
    """

    def __init__(self, task: Task, state: TrainingState, watch: Watch, config: FitConfig) -> None:
        self._task, self._state, self._watch, self._config = task, state, watch, config
        self.split = Split(state.processes.rank, state.processes.world, config.accumulate)
        if not self.split.whole and not isinstance(task, DivisibleTask):
            raise UsageError(
                f"this task ({type(task).__name__}) cannot be divided into {self.split.world} process(es) × "
                f"{self.split.accumulate} micro-batch(es): its loss looks at the whole batch at once. Start one "
                f"process, without --accumulate"
            )

    def batches(self, epoch: int, start: int) -> Iterator[Iterable[Any]]:
        """Yield for every step of a 1-based epoch, from number `start` on, the batches of this process."""
        if self.split.whole:
            for batch in self._task.batches(epoch, self._state.device, start):
                yield (batch,)
            return
        assert isinstance(self._task, DivisibleTask)
        parts = self._task.shares(epoch, self._state.device, start, self.split)
        for _ in range(start, self._task.steps_per_epoch):
            yield islice(parts, self.split.accumulate)  # one at a time: memory is why one accumulates

    def take(self, batches: Iterable[Any], lr: float, number: int, wishes: Callable[[], Wishes]) -> Taken:
        """Move the weights by one step.

        Args:
            batches: this process's micro-batches.
            lr: rate.
            number: of the step, 0-based over the whole run.
            wishes: what this process wants done after the step.

        Raises:
            TroubleError: the guard's; in all processes alike.
        """
        state = self._state
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        parts: dict[str, float] = {}
        count, agreed = 0, Wishes()
        for micro, batch in enumerate(batches):
            with state.exchange_later() if micro + 1 < self.split.accumulate else nullcontext():
                losses = self._losses(batch, number, micro)
                own = {name: float(value.detach()) for name, value in losses.items()}
                own, samples, agreed = self._together(own, self._task.batch_length(batch), wishes)
                count += samples
                # bound now: the names move on to the next micro-batch
                self._watch.loss(own, lambda batch=batch, micro=micro: self._rerun(batch, number, micro))  # type: ignore[misc]
                # DDP takes the mean over the processes, whose losses are parts of a sum
                loss = losses["loss"] * self.split.world if self.split.world > 1 else losses["loss"]
                state.accelerator.backward(loss)
            parts = {name: parts[name] + value for name, value in own.items()} if parts else own
        norm, norms = self._watch.gradients.clip(self._config.clip_norm)
        self._watch.gradient(parts, norm, norms, lr)  # before it reaches the weights
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.ema is not None:
            state.ema.update(state.plain)
        return Taken(parts, norm, count, agreed)

    def agree(self, wishes: Wishes) -> Wishes:
        """Return what any process wants; of saving, what the main one wants."""
        return self._together({}, 0, lambda: wishes)[2]

    def _together(
        self, parts: dict[str, float], count: int, wishes: Callable[[], Wishes]
    ) -> tuple[dict[str, float], int, Wishes]:
        """Return the sums over all processes, in one message, and what they want."""
        processes = self._state.processes
        wish = wishes()
        if processes.world == 1:
            return parts, count, wish
        flags = [float(wish.signal == number) for number in _SIGNALS]
        save = float(wish.save and processes.is_main)
        *sums, samples, interrupted, terminated, due = processes.sum([*parts.values(), count, *flags, save])
        number = _SIGNALS[0] if interrupted else _SIGNALS[1] if terminated else None
        return dict(zip(parts, sums, strict=True)), round(samples), Wishes(number, bool(due))

    def _losses(self, batch: Any, number: int, micro: int) -> Mapping[str, Tensor]:
        # dropout and stochastic depth draw from torch's generator: seeded per step, so that resuming is exact, and
        # per part, as two processes with the same masks would drop less than one; with either of them in the net the
        # result depends on the number of processes
        part = micro * self.split.world + self.split.rank
        torch.manual_seed((self._config.seed * 1_000_003 + number + part * _PART_STRIDE) % 2**63)
        return self._state.losses(batch)

    def _rerun(self, batch: Any, number: int, micro: int) -> Mapping[str, Tensor]:
        return self._losses(batch, number, micro)
