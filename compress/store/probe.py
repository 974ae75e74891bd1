"""A linear probe: class scores for a teacher that has no text encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_PENALTIES = (3e-4, 1e-4, 3e-5, 1e-5)
_VIEWS = 2  # more views of a picture add rows, not accuracy


@dataclass(frozen=True)
class ClassHead:
    """Class scores from embeddings: logits = embedding · weightᵀ + bias.

    Attributes:
        weight: (C, D).
        bias: (C,).
        source: "prompts" or "linear probe".
    """

    weight: Tensor
    bias: Tensor
    source: str

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Map unit embeddings (B, D), on any device, to logits (B, C)."""
        weight, bias = self.weight.to(embeddings.device), self.bias.to(embeddings.device)
        return embeddings.float() @ weight.T + bias


def fit_probe(embeddings: Tensor, labels: Tensor, num_classes: int, *, seed: int = 0) -> ClassHead:
    """Fit multinomial logistic regression on unit embeddings; the L2 penalty is chosen on a tenth of the pictures.

    Args:
        embeddings: (N, V, D) unit rows, V views of each training picture; never of the evaluation split.
        labels: (N,) int64; pictures with −1 are left out.
        num_classes: C.
        seed: of the hold-out split, which is by picture: two views of one picture never face each other.
    """
    x, y = embeddings[labels >= 0, :_VIEWS].float(), labels[labels >= 0]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held, used = order[: len(x) // 10], order[len(x) // 10 :]
    best = _PENALTIES[1]
    if len(held) >= num_classes:
        losses: dict[float, float] = {}
        head: ClassHead | None = None
        for penalty in _PENALTIES:  # from strong to weak, each solution the start of the next
            head = _solve(x[used, :1], y[used], num_classes, penalty, head)
            losses[penalty] = float(F.cross_entropy(head(x[held, 0]), y[held]))
        best = min(losses, key=losses.__getitem__)
    return _solve(x, y, num_classes, best, None)


def _solve(x: Tensor, y: Tensor, num_classes: int, penalty: float, start: ClassHead | None) -> ClassHead:
    """Minimise cross-entropy + penalty · ‖W‖² over all views (N, V, D) by L-BFGS."""
    rows, targets = x.flatten(0, 1), y.repeat_interleave(x.shape[1])
    weight = start.weight.clone() if start else torch.zeros(num_classes, x.shape[2])
    bias = start.bias.clone() if start else torch.zeros(num_classes)
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, tolerance_change=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(rows @ weight.T + bias, targets) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return ClassHead(weight.detach(), bias.detach(), "linear probe")
