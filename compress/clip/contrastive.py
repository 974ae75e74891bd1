"""The losses that bring an image and its caption together.

Shapes: B pairs, D embedding dimensions; row i of both sides belongs together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.models.clip import ClipOutput, ContrastiveLoss


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Return ½·[CE(s·I·Tᵀ, i) + CE(s·T·Iᵀ, i)], in nats: CLIP's symmetric InfoNCE (arXiv 2103.00020, §2.3, Fig. 3).

    ln B when all rows are alike; tends to 0 as pairs match, others do not, and the scale grows.

    Args:
        image: unit rows (B, D).
        text: unit rows (B, D).
        scale: factor s > 0 on the cosines.
    """
    _check(image, text)
    logits = _logits(image, text, scale)
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
    logits = _logits(image, text, scale) + bias
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(logits)


CONTRASTIVE_LOSSES: Mapping[ContrastiveLoss, Callable[[ClipOutput], Tensor]] = {
    "infonce": lambda output: contrastive_loss(output.image, output.text, output.scale),
    "sigmoid": lambda output: sigmoid_loss(
        output.image, output.text, output.scale, -10.0 if output.bias is None else output.bias
    ),
}


def _logits(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Return s·I·Tᵀ (B, B), in float32 at least: bfloat16 has too few bits for a softmax over near cosines."""
    precision = torch.promote_types(image.dtype, torch.float32)
    return scale * image.to(precision) @ text.to(precision).T


def _check(image: Tensor, text: Tensor) -> None:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"need two (B, D) batches of pairs, got {tuple(image.shape)} and {tuple(text.shape)}")
