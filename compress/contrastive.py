"""The losses that bring an image and its caption together.

Shapes: B pairs, D embedding dimensions; row i of both sides belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ContrastiveLoss = Literal["infonce", "sigmoid"]


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Return ½·[CE(s·I·Tᵀ, i) + CE(s·T·Iᵀ, i)], in nats: CLIP's symmetric InfoNCE (arXiv 2103.00020, §2.3, Fig. 3).

    ln B when all rows are alike; tends to 0 as pairs match, others do not, and the scale grows.

    Args:
        image: unit rows (B, D).
        text: unit rows (B, D).
        scale: factor s > 0 on the cosines.
    """
    _check(image, text)
    logits = scale * image.float() @ text.float().T
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor | float, bias: Tensor | float = -10.0) -> Tensor:
    """Return −1/B Σ_i Σ_j ln σ(z_ij·(s·I_i·T_j + b)), z_ij = 1 for a pair, else −1 (SigLIP, arXiv 2303.15343, §3.2).

    The bias starts at −10, so that the B² − B negatives do not swamp the first steps (same section).

    Args:
        image: unit rows (B, D).
        text: unit rows (B, D).
        scale: factor s > 0 on the cosines; SigLIP starts at 10.
        bias: b.
    """
    _check(image, text)
    logits = scale * image.float() @ text.float().T + bias
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(logits)


CONTRASTIVE_LOSSES: Mapping[ContrastiveLoss, Callable[[Tensor, Tensor, Tensor | float], Tensor]] = {
    "infonce": contrastive_loss,
    "sigmoid": sigmoid_loss,
}


def _check(image: Tensor, text: Tensor) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"need two (B, D) batches of pairs, got {tuple(image.shape)} and {tuple(text.shape)}")
