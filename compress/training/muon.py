"""Muon: momentum whose matrix is made orthogonal before each step; AdamW for everything that is no matrix.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025 (arXiv 2502.16982, §2.2), by
which one learning rate and one weight decay serve both kinds. torch's own `Muon` takes 2-d weights only; here a
convolution counts as the matrix (out, in · height · width), which is what a mobile net mostly consists of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._muon if is_matrix(parameter) else self._adam
                update(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        matrix = orthogonal(ahead.flatten(1))
        scale = _RMS * max(matrix.shape) ** 0.5
        parameter.add_(matrix.view(parameter.shape), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["first"], state["second"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        first, second = group["betas"]
        state["step"] += 1
        state["first"].lerp_(gradient, 1 - first)
        state["second"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        count = int(state["step"])
        width = (state["second"] / (1 - second**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["first"], width, value=-group["lr"] / (1 - first**count))


def orthogonal(matrix: Tensor) -> Tensor:
    """Return U Vᵀ of the matrix U S Vᵀ (m, n), its singular values within about [0.7, 1.2] in place of 1.

    Five iterations of a quintic Newton–Schulz map, which need products only.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
