"""Losses over the pairs of a batch: what is near what, not where each picture lies.

Shapes: B samples, D embedding dimensions. Both need other samples to compare with: with one they are 0, and a larger
batch is another loss. All are differentiable in the student's side only; the teacher's side is data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.distill.losses import full_precision

AFFINITY_TEMPERATURE = 0.1
"""Of the softmax over the other pictures of a batch; sharper than 1, because cosines lie within [-1, 1]."""

CONTRAST_TEMPERATURE = 0.07
"""Where CLIP's learned temperature starts (arXiv 2103.00020, §2.5)."""


def affinity_loss(student: Tensor, teacher: Tensor, temperature: float = AFFINITY_TEMPERATURE) -> Tensor:
    """Return 1/B Σ_i KL(softmax_j(t_i·t_j/τ) ‖ softmax_j(s_i·s_j/τ)) over j ≠ i, in nats.

    TinyCLIP's affinity mimicking (arXiv 2309.12314, §3.1) between the pictures of a batch, in place of pictures and
    texts: it says how near each picture is to the others, whatever the axes of the space.

    Args:
        student: raw embeddings (B, D).
        teacher: unit rows (B, E); E may differ from D.
        temperature: τ > 0.
    """
    _check_batch(student, teacher)
    if len(student) < 2:
        return full_precision(student).sum() * 0.0
    log_student = _log_affinities(full_precision(student), temperature)
    log_teacher = _log_affinities(full_precision(teacher), temperature)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def contrastive_loss(student: Tensor, teacher: Tensor, temperature: float = CONTRAST_TEMPERATURE) -> Tensor:
    """Return −1/B Σ_i log softmax_j(s_i·t_j/τ)_i, in nats; ln B for a student that knows nothing.

    CLIP-KD's interactive contrastive learning (arXiv 2307.12732, §3.2, eq. 8) with the teacher's picture embeddings:
    each student's embedding must find its own teacher's embedding among those of the batch.

    Args:
        student: raw embeddings (B, D).
        teacher: unit rows (B, D).
        temperature: τ > 0.
    """
    _check_batch(student, teacher)
    scores = F.normalize(full_precision(student), dim=1) @ full_precision(teacher).T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def _log_affinities(embeddings: Tensor, temperature: float) -> Tensor:
    """Return the log-softmax (B, B − 1) of each row's cosines with the others."""
    unit = F.normalize(embeddings, dim=1)
    count = len(unit)
    others = ~torch.eye(count, dtype=torch.bool, device=unit.device)
    return F.log_softmax((unit @ unit.T / temperature)[others].view(count, count - 1), dim=1)


def _check_batch(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"embeddings must be (B, n) for the same B, got student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)}"
        )
