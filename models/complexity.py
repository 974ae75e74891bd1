"""Size of a network: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass of one picture, or one clip.

    Attributes:
        parameters: number of learned values.
        macs: multiply-accumulates of convolutions and matrix products, attention included.
        size_bytes: float32 size of the parameters.
    """

    parameters: int
    macs: int
    size_bytes: int


def count_parameters(model: nn.Module) -> int:
    """Return the number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_complexity(model: nn.Module, image_size: int, frames: int = 1) -> Complexity:
    """Count parameters and MACs of `model` for one picture (1, 3, image_size, image_size), or one clip (1, F, 3, …)."""
    device = next(model.parameters()).device
    was_training = model.training
    counter = FlopCounterMode(display=False)
    # the fused CPU attention kernel is unknown to the counter (torch 2.14); the plain one is two counted products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        shape = (3, image_size, image_size) if frames == 1 else (frames, 3, image_size, image_size)
        model.eval()(torch.zeros(1, *shape, device=device))
    model.train(was_training)
    parameters = count_parameters(model)
    return Complexity(parameters, counter.get_total_flops() // 2, 4 * parameters)
