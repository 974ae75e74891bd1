"""The guard at work beside the loop: it measures, warns, writes its findings to the metrics, and asks for action."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.compress.guard.dead_units import DeadUnits
from edgekit.compress.guard.guard import CURABLE, Guard, StepFacts, Trouble, judge_epoch
from edgekit.compress.recipe import FitConfig
from edgekit.compress.show.display import Display
from edgekit.compress.training.gradients import GradientNorms, locate_not_finite
from edgekit.compress.training.run_folder import RunFolder
from edgekit.compress.training.training_state import TrainingState
from edgekit.errors import EdgekitError

RATE_FACTOR = 0.5
"""What a rollback does to the rate."""
MOST_ROLLBACKS = 5


class DivergedError(EdgekitError):
    """The loss is no longer a number, or the guard was told to stop at serious trouble (exit 1)."""


class TroubleError(Exception):
    """Serious trouble on its way to the loop, which rolls back or ends the run."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


class Watch:
    """Watches one call of `fit`.

    Attributes:
        gradients: measures and clips.
        rollbacks: how often this call has rolled back.
    """

    def __init__(self, state: TrainingState, config: FitConfig, folder: RunFolder, display: Display) -> None:
        self.gradients = GradientNorms(state.plain)
        self._units = DeadUnits(state.plain, state.steps_per_epoch)
        self._state, self._config, self._folder, self._display = state, config, folder, display
        self._guard = Guard(self.gradients.names)
        self.rollbacks = 0
        if config.compile and state.processes.world > 1:
            display.warn("compile is left out: several processes train uncompiled")

    def loss(self, parts: Mapping[str, float], rerun: Callable[[], Mapping[str, Tensor]]) -> None:
        """Raise at a loss that is no number, naming the layer that met it first.

        Raises:
            TroubleError: it is not finite.
        """
        if not math.isfinite(parts["loss"]):
            # all processes see the same loss, so all are here; synchronised norms spread NaN to those that had none
            _, where = min(self._state.processes.gather(locate_not_finite(self._state.plain, rerun)))
            self._not_finite("loss", parts["loss"], where, parts)

    def gradient(
        self, parts: Mapping[str, float], total: float, norms: NDArray[np.float64], planned_rate: float
    ) -> None:
        """Judge a step before its gradient reaches the weights.

        Raises:
            TroubleError: the gradient is not finite; or the trouble is serious and `config.guard` says to act.
        """
        if not math.isfinite(total):
            layer = self.gradients.first_not_finite()
            where = f"first in {layer}" if layer else "by the sum over finite layers"
            self._not_finite("gradient's norm", total, where, parts)
        self._units.look(self._state.position.step)
        position = self._state.position
        rate = max(float(group["lr"]) for group in self._state.optimizer.param_groups)
        facts = StepFacts(self._step(), parts["loss"], norms, rate, planned_rate)
        self._take(self._guard.step(facts, self.gradients.weigh), position.step)

    def weights(self) -> None:
        """Refuse weights that are no numbers: no state with them is ever saved.

        Raises:
            TroubleError: naming the first such layer.
        """
        layer = self.gradients.first_bad_weights()
        if layer is not None:
            said = f"the weights of {layer} are no longer finite at step {self._step()}"
            raise TroubleError(Trouble("not finite", said, layer, serious=True))

    def epoch(self, rows: list[dict[str, Any]], metric: str) -> None:
        """Judge an epoch after its evaluation.

        Raises:
            TroubleError: the trouble is serious and `config.guard` says to act.
        """
        self._take([*judge_epoch(rows, metric), *self._units.judge()], None)

    def roll_back(self, trouble: Trouble, place: str) -> None:
        """Say that the run was rolled back to `place`, and go on with a lower rate."""
        self.rollbacks += 1
        self._state.lr_scale *= RATE_FACTOR
        self._guard.forget()
        said = f"{trouble.message}. Rolled back to {place}; the rate is now {self._state.lr_scale:g} of what is planned"
        self._record(trouble, said, "rollback")
        self._display.warn(said)

    def state(self) -> dict[str, Any]:
        """Return the guard's state for a checkpoint."""
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in self._guard.state().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the guard's state over from a checkpoint."""
        self._guard.restore({k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in state.items()})

    def _take(self, found: list[Trouble], step: int | None) -> None:
        for trouble in found:
            acts = trouble.serious and self._config.guard != "warn"
            if acts and (self._config.guard == "stop" or trouble.kind in CURABLE):
                raise TroubleError(trouble)
            place = f"epoch {self._state.position.epoch}" + ("" if step is None else f", step {step + 1}")
            self._record(trouble, trouble.message, "warn")
            self._display.warn(f"{place}: {trouble.message}")

    def _record(self, trouble: Trouble, message: str, action: str) -> None:
        position = self._state.position
        self._folder.append_metrics(
            {
                "kind": "guard",
                "epoch": position.epoch,
                "step": position.step,
                "trouble": trouble.kind,
                "layer": trouble.layer,
                "action": action,
                "message": message,
            }
        )

    def _not_finite(self, what: str, value: float, where: str, parts: Mapping[str, float]) -> None:
        shown = ", ".join(f"{k} {v:.4g}" for k, v in parts.items() if not k.startswith("_"))
        said = f"the {what} became {value} at step {self._step() + 1}, {where} ({shown})"
        raise TroubleError(Trouble("not finite", said, where.removeprefix("first in "), serious=True))

    def _step(self) -> int:
        """Return the global 0-based number of the step in progress."""
        position = self._state.position
        return (position.epoch - 1) * self._state.steps_per_epoch + position.step
