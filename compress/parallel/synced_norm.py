"""Batch norm over the batches of all processes, so that a net trains as it would in one.

CUDA has torch's own `SyncBatchNorm`, in fused kernels that other devices lack; here is the same for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Replace every batch norm within `model` by one that is synchronised; parameters and names stay.

    Args:
        model: changed in place; not itself a batch norm. Frozen norms stay, as they keep their statistics.
        device: CUDA takes torch's own, anything else ours.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not (child.affine and not child.weight.requires_grad):
                setattr(module, name, _cuda_norm(child) if device.type == "cuda" else SyncedBatchNorm(child))


def _cuda_norm(norm: _BatchNorm) -> nn.Module:
    from timm.layers import convert_sync_batchnorm  # torch's own would drop the activations in timm's norms

    converted: nn.Module = convert_sync_batchnorm(norm)
    return converted


class SyncedBatchNorm(nn.Module):
    """A batch norm whose mean and variance are those of all processes' samples together.

    Statistics are combined from each process's (count, mean, variance), exact up to rounding (Chan et al. 1983, eq.
    1.5), and bitwise the same in all processes. Evaluates as any batch norm.

    Args:
        norm: takes its place, with its parameters and, of timm's, dropout and activation.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum, self.training = norm.eps, norm.momentum, norm.training
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, …) per channel."""
        tracked = self.running_mean is not None and self.running_var is not None
        if not self.training:  # each process may evaluate on its own
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, not tracked, 0.0, self.eps)
        else:
            mean, variance, count = _statistics(x)
            if tracked:
                self._track(mean, variance, count)
            y = _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)
        return self.act(self.drop(y))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # a plain average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        assert momentum is not None
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return mean and biased variance (C,) over all processes, float32, and how many values each is of."""
    variance, mean = torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0)
    own = torch.stack([mean, variance, torch.full_like(mean, x.numel() / x.shape[1])]).double()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.stack(parts, 1)
    shares = counts / counts.sum(0)
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean.float(), variance.float(), float(counts[:, 0].sum())


class _Normalise(torch.autograd.Function):
    """γ·(x − mean)/√(variance + ε) + β, with the gradient that flows through mean and variance of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps = count, eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        # as if mean and variance were constants; its sums Σ dy·x̂ and Σ dy are the parameters' gradients
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            gradients[0].contiguous(memory_format=torch.channels_last)
            if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
            else gradients[0].contiguous(),
            x,
            weight,
            mean,
            variance,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        sums = torch.stack([dbias, dweight]).float()
        dist.all_reduce(sums)
        # the rest, −γ/σ · (Σdy + x̂·Σdy·x̂)/n over all processes, is affine in x
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight.float()
        slope = -scale * inverse * sums[1] / ctx.count
        offset = -scale * sums[0] / ctx.count - slope * mean
        shape = [1, -1] + [1] * (x.ndim - 2)
        dx = dx + (offset.view(shape) + slope.view(shape) * x).to(dx.dtype)
        if weight is None:
            return dx, None, None, None, None, None, None
        return dx, dweight, dbias, None, None, None, None
