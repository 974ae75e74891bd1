"""Ranges of activations that are trained with the weights, by the gradient of what they round and what they clip.

Learned step size quantization (Esser et al. 2020, arXiv 1902.08153, §2.1), for the two ends of a range in place of one
step (Jain et al. 2020, arXiv 1903.08066, §3.2, trains a threshold; Bhalgat et al. 2020, arXiv 2004.09576, §3.1, a step
and an offset). With the step s = (high − low) / 255, x̂ the rounded x, and g the gradient of x̂:

    ∂/∂high = Σ g over x > high + Σ g (x̂ − x) / (high − low) over what is inside
    ∂/∂low  = Σ g over x < low  − Σ g (x̂ − x) / (high − low) over what is inside

A symmetric range has one end r, and ∂/∂r = Σ ± g over what is clipped + Σ g (x̂ − x) / r over what is inside.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

RATE = 30.0
"""Steps of a range in units of its logarithm, over those of a weight: at 3e-5 an end moves by up to 0.1 % a step. One
parameter, one rate: AdamW's steps have the size of the rate, whatever a gradient's."""


PART = 9
"""Every ninth row of a batch says where the ranges should go: six passes over all of a tensor took 40 % of a step. Rows
spread over the batch, as it is sorted by class; and an odd number of them apart, as the rows of MobileViT's tokens are
the four places of a patch by turns."""


class LearnedSpan(nn.Module):
    """What the codes of some activations span: low₀ · exp(RATE (a − 1)) to high₀ · exp(RATE (b − 1)), so that no end
    changes sign.

    Attributes:
        shifts: (2,) a and b, or (1,) the one of a symmetric range. From 1 on, as the guard looks at how weights grow.
    """

    def __init__(self, low: float, high: float, *, symmetric: bool) -> None:
        super().__init__()
        self.start = (low, high)
        self.shifts = nn.Parameter(torch.ones(1 if symmetric else 2))

    def bounds(self) -> tuple[float, float]:
        """Return (low, high) as they are now."""
        factors = [math.exp(RATE * (shift - 1)) for shift in self.shifts.tolist()]
        return self.start[0] * factors[0], self.start[1] * factors[-1]


def rounded(x: Tensor, scale: float, least: int, most: int) -> Tensor:
    """Round any shape to codes and back; codes less the zero point run from `least` to `most`.

    Four passes over memory; torch's own fake_quantize takes several times as long.
    """
    return x.mul(1 / scale).round_().clamp_(least, most).mul_(scale)


class LearnedRound(torch.autograd.Function):
    """Round to codes and back, with gradients for x and for the shifts of a `LearnedSpan`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shifts: Tensor, scale: float, least: int, most: int) -> Tensor:
        """Map any shape to the same shape; codes less the zero point run from `least` to `most`."""
        ctx.save_for_backward(x)  # not the result, which an activation in place may overwrite
        ctx.codes = (scale, least, most, len(shifts))
        return rounded(x, scale, least, most)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Let pass what was not clipped, and say where the ends of the range should go."""
        (x,) = ctx.saved_tensors
        scale, least, most, ends = ctx.codes
        passed = torch.ops.aten.hardtanh_backward(grads[0], x, (least - 0.5) * scale, (most + 0.5) * scale)
        x, through = x[::PART], passed[::PART]
        inside = (through * (rounded(x, scale, least, most) - x)).sum()
        clipped = grads[0][::PART] - through
        total, above = clipped.sum(), (clipped * (x > 0)).sum()
        low, high = least * scale, most * scale
        if ends == 1:
            found = (above * high + (total - above) * low + inside)[None]
        else:
            share = inside / (high - low)
            found = torch.stack(((total - above - share) * low, (above + share) * high))
        # LSQ's factor (§2.2), so that a sum over a whole tensor is no more than other gradients are
        return passed, found * (RATE / math.sqrt(x.numel() * 127)), None, None, None
