"""Exponential moving average of the weights: smoother than the last step, and what is evaluated and exported."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """Keep avg ← d·avg + (1 − d)·weights over steps t = 0, 1, …, with d = min(decay, (1 + t)/(10 + t)).

    The warm-up of d (as in TensorFlow's ExponentialMovingAverage) forgets the random start quickly. Buffers of batch
    norm are averaged alike, integer buffers copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights of `model` by one step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return list(model.state_dict(keep_vars=True).values())
