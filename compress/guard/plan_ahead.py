"""Play the planned rate ahead of the first step, and refuse a plan that is known to cost accuracy. Knows no torch."""

from __future__ import annotations

import math

from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.schedule import planned_jumps
from edgekit.errors import UsageError

JUMP_RATIO = 3.0
"""A rate that rises more than this from one step to the next, after warm-up, is a restart."""


def refuse_restarts(config: FitConfig, steps_per_epoch: int, *, done_steps: int = 0) -> None:
    """Raise if the schedule, played to its end, lifts the rate more than `JUMP_RATIO` times in one step.

    Args:
        config: the training's settings; `allow_restarts` lets any plan pass.
        steps_per_epoch: optimizer steps.
        done_steps: steps that a resumed run has behind it: what happened there is no plan any more.

    Raises:
        UsageError: naming the epoch, what such a jump did to another run, and what to change.
    """
    jumps = planned_jumps(config.schedule, config.epochs, steps_per_epoch=steps_per_epoch, ratio=JUMP_RATIO)
    ahead = [jump for jump in jumps if jump.step >= done_steps]
    if not ahead or config.allow_restarts:
        return
    more = f" (and {len(ahead) - 1} more)" if len(ahead) > 1 else ""
    floor = math.ceil(100 / JUMP_RATIO) / 100  # of min_factor, from which no restart is a jump
    raise UsageError(
        f"the planned schedule '{config.schedule.name}' restarts the learning rate at {ahead[0]}{more}. "
        f"A restart like it took 20.5 points of accuracy in one epoch of a ResNet-50 on ImageNet. "
        f"Take another schedule (cosine, wsd), or schedule.min_factor {floor} or more in the recipe; "
        f"or go on with --allow-restarts"
    )
