"""Muon: momentum whose matrix is made orthogonal before each step; AdamW for everything that is no matrix.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025 (arXiv 2502.16982, §2.2), by
which one learning rate and one weight decay serve both kinds. torch's own `Muon` takes 2-d weights only; here a
convolution counts as the matrix (out, in · height · width), which is what a mobile net mostly consists of. Matrices of
one shape are made orthogonal together: a mobile net has many small ones, whose products one by one are overhead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.compress.training.fast_layers import has_onednn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_RMS = 0.2
"""Root mean square of AdamW's usual update, which the orthogonal one is scaled to."""


def is_matrix(parameter: nn.Parameter) -> bool:
    """Return whether Muon applies: a linear layer or a convolution over several channels, not a depthwise one."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter.shape[1] > 1


class Muon(torch.optim.Optimizer):
    """AdamW whose matrices get orthogonal updates.

    Args:
        groups: parameter groups with "weight_decay"; each holds parameters of any kind.
        lr: of both kinds.
        betas: of AdamW.
        momentum: of Muon, in Nesterov's form.
        eps: of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            if matrices := [parameter for parameter in moved if is_matrix(parameter)]:
                self._muon(matrices, group)
            if others := [parameter for parameter in moved if not is_matrix(parameter)]:
                self._adam(others, group)
        return loss

    def _held(self, parameters: list[Tensor], *names: str) -> list[list[Tensor]]:
        """Return the gradients, and of the states what has these names, from zero on."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update({name: torch.zeros_like(parameter) for name in names})
        return [gradients, *([self.state[parameter][name] for parameter in parameters] for name in names)]

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, momenta = self._held(parameters, "momentum")
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        alike: defaultdict[tuple[int, int, torch.device], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, ahead in zip(
            parameters, torch._foreach_lerp(gradients, momenta, group["momentum"]), strict=True
        ):
            rows, columns = ahead.flatten(1).shape
            alike[rows, columns, ahead.device].append((parameter, ahead.flatten(1)))
        for (rows, columns, device), members in alike.items():
            updates = orthogonal(torch.stack([ahead for _, ahead in members]), product_dtype(device))
            step = -group["lr"] * _RMS * max(rows, columns) ** 0.5
            torch._foreach_add_(
                [parameter for parameter, _ in members],
                [update.view_as(parameter) for (parameter, _), update in zip(members, updates.float(), strict=True)],
                alpha=step,
            )

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients, means, squares = self._held(parameters, "first", "second")
        first, second = group["betas"]
        counts = []
        for parameter in parameters:
            step = self.state[parameter].setdefault("step", torch.zeros(()))
            step += 1
            counts.append(int(step))
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        widths = torch._foreach_div(squares, [1 - second**count for count in counts])
        torch._foreach_sqrt_(widths)
        torch._foreach_add_(widths, group["eps"])
        rates = [-group["lr"] / (1 - first**count) for count in counts]
        torch._foreach_addcdiv_(parameters, means, widths, rates)


def product_dtype(device: torch.device) -> torch.dtype:
    """Return what orthogonal updates are computed in: bfloat16, as their author does, where the hardware multiplies it.

    Its rounding moves the singular values by about a hundredth, within a range of [0.7, 1.2] that is as good as 1.
    """
    on_cpu = device.type == "cpu" and has_onednn() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if on_cpu or (device.type == "cuda" and torch.cuda.is_bf16_supported()) else torch.float32


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return U Vᵀ of matrices U S Vᵀ (..., m, n), their singular values within about [0.7, 1.2] in place of 1.

    Five iterations of a quintic Newton–Schulz map, which need products only.

    Args:
        matrices: float32; one, or a stack of them.
        dtype: of the products, and of the result.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.flatten(0, -3) if matrices.ndim > 2 else matrices[None]
    x = x.mT if tall else x
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype).contiguous()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)
