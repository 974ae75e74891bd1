"""Units that no gradient reaches any more: a ReLU that is never on, a range that clips all there is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekit.compress.guard.guard import Trouble

EVERY = 10
"""Steps between two looks; fewer in short epochs, which get at least `FEWEST_LOOKS` if they have as many steps."""
FEWEST_LOOKS = 5
"""Looks in an epoch before anything is said: a unit may well be silent on one batch."""
MANY = 0.05
"""Share of a layer's units that may be dead without a word."""
_SHOWN = 3


class DeadUnits:
    """Looks at the gradients of an epoch now and then; a unit is dead when it had none in any of them.

    A unit is an output of a linear layer or a convolution. Layers that get no gradient at all are not trained, and
    said nothing of. Resumed within an epoch, it looks at the rest of it.
    """

    def __init__(self, model: nn.Module, steps_per_epoch: int) -> None:
        self._every = max(1, min(EVERY, steps_per_epoch // FEWEST_LOOKS))
        self._weights = {
            name: module.weight
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module.weight.requires_grad
        }
        self._alive: dict[str, Tensor] = {}
        self._looks = 0
        self._told: dict[str, int] = {}

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Look at the gradients of a step, numbered from 0 in its epoch, if it is one to look at."""
        if step % self._every:
            return
        self._looks += 1
        for name, weight in self._weights.items():
            if weight.grad is not None:
                reached = (weight.grad.flatten(1) != 0).any(1)
                self._alive[name] = self._alive[name] | reached if name in self._alive else reached

    def judge(self) -> list[Trouble]:
        """Return what there is to say of the epoch and begin the next; a layer is named again when it gets worse."""
        alive, looks = self._alive, self._looks
        self._alive, self._looks = {}, 0
        if looks < FEWEST_LOOKS:
            return []
        found = []
        for name, units in alive.items():
            dead, count = int((~units).sum()), len(units)
            if 0 < dead < count and dead > MANY * count and dead > self._told.get(name, 0):
                found.append((dead / count, dead, count, name))
                self._told[name] = dead
        if not found:
            return []
        worst = sorted(found, reverse=True)
        shown = ", ".join(f"{dead} of {count} in {name}" for _, dead, count, name in worst[:_SHOWN])
        more = f" and in {len(worst) - _SHOWN} more layers" if len(worst) > _SHOWN else ""
        said = (
            f"units that no gradient reached in this epoch: {shown}{more}. They learn nothing any more; lower --lr, or "
            f"warm up for longer, and after quantization-aware steps widen the ranges that clip them"
        )
        return [Trouble("dead units", said, worst[0][3])]
