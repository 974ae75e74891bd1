"""Make a net safe for float16 arithmetic: the same function, arranged so that half precision loses little of it."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_SCALE = 2.0**-4
"""Activations of MobileViTv2 reach 300 at 256 px, and 256² is more than a float16 holds (65,504)."""


def prepared_for_fp16(model: nn.Module) -> nn.Module:
    """Return a copy of `model` whose norms do not overflow and whose first filters keep their sums in float16.

    In float32 it computes the same up to rounding, and up to the rounding of the first weights to float16 values.
    """
    prepared = copy.deepcopy(model).eval()
    for parent in list(prepared.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm) and child.num_groups == 1:
                setattr(parent, name, ScaledLayerNorm(child))
    _round_first_filters(prepared)
    return prepared


class ScaledLayerNorm(nn.Module):
    """GroupNorm of one group, as one layer norm of the input times `NORM_SCALE`; norms do not depend on scale.

    Core ML decomposes a group norm into subtract, square, mean, root and divide, each rounded to half: where one value
    is 256 from the mean its square is infinite, and the picture is lost. A power of two as scale rounds nothing.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps = norm.eps * NORM_SCALE**2
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, …) to the same shape, normalised over all but the batch."""
        normed = F.layer_norm(x * NORM_SCALE, x.shape[1:], eps=self.eps)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return normed * self.weight.reshape(shape) + self.bias.reshape(shape)


def _round_first_filters(model: nn.Module) -> None:
    """Round the first convolution to float16 so that the sum of each filter stays.

    Pixels are all positive and neighbours alike, so a filter that takes differences cancels most of what it sees. The
    rounding errors of its weights do not cancel: in MobileViTv2-050 they were 84 % of all noise of float16 weights.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    if not layers or not isinstance(layers[0], nn.Conv2d):
        return
    first = layers[0]
    factor = torch.ones(len(first.weight), dtype=torch.float64)
    if len(layers) > 1 and isinstance(layers[1], nn.BatchNorm2d) and layers[1].num_features == len(factor):
        norm = layers[1]  # the converter folds it into the weights before it rounds them
        variance = cast(Tensor, norm.running_var).double()
        factor = norm.weight.detach().double() / (variance + norm.eps).sqrt()
    if bool((factor == 0).any()):
        return
    factor = factor.reshape(-1, 1, 1, 1)
    folded = first.weight.detach().double() * factor
    kernels = [rounded_keeping_sum(kernel) for kernel in folded.reshape(-1, folded[0, 0].numel())]
    with torch.no_grad():
        first.weight.copy_((torch.stack(kernels).reshape(folded.shape) / factor).float())


def rounded_keeping_sum(values: Tensor) -> Tensor:
    """Round (n,) float64 to float16 values, a few of them to their second nearest, so that the sum changes least."""
    nearest = values.half()
    towards = torch.where(nearest.double() < values, torch.inf, -torch.inf).half()
    other = torch.nextafter(nearest.float().half(), towards).double()
    rounded = nearest.double()
    step = other - rounded
    free = torch.isfinite(other) & (rounded != values)
    for _ in range(len(values)):
        error = (rounded - values).sum()
        after = torch.where(free, (error + step).abs(), torch.inf)
        best = int(after.argmin())
        if not after[best] < error.abs():
            break
        rounded[best], free[best] = other[best], False
    return rounded
