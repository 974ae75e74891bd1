"""The losses of distillation, each with its formula and source.

Shapes: B samples, D embedding dimensions, C classes. All are means over the samples that count and differentiable
in the student's side only; the teacher's side is data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

FeatureLoss = Literal["cosine", "mse"]


def cosine_feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1/B Σ_i (1 − cos(s_i, t_i)), in [0, 2]; 0 when student and teacher point the same way.

    Args:
        student: raw embeddings (B, D).
        teacher: unit rows (B, D).
    """
    _check_same(student, teacher, "embeddings")
    return (1.0 - F.cosine_similarity(_full(student), _full(teacher), dim=-1)).mean()


def mse_feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1/(B·D) Σ_i ‖s_i − t_i‖², the regression of FitNets (arXiv 1412.6550, eq. 3) on raw embeddings.

    Args:
        student: raw embeddings (B, D).
        teacher: unit rows (B, D).
    """
    _check_same(student, teacher, "embeddings")
    return F.mse_loss(_full(student), _full(teacher))


FEATURE_LOSSES: Mapping[FeatureLoss, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_feature_loss,
    "mse": mse_feature_loss,
}


def response_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · 1/B Σ_i KL(softmax(t_i/T) ‖ softmax(s_i/T)), in nats (Hinton et al. 2015, §2).

    The mean is over samples ("batchmean"), not over samples and classes: with the latter the weight of the loss
    would shrink with the number of classes. T² keeps the gradient's size when T changes.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.

    Raises:
        ValueError: shapes differ, or T is not positive.
    """
    _check_same(student_logits, teacher_logits, "logits")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    log_student = F.log_softmax(_full(student_logits) / temperature, dim=-1)
    log_teacher = F.log_softmax(_full(teacher_logits) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def task_loss(student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over the labelled samples, in nats; 0 where no sample has a label.

    Args:
        student_logits: (B, C).
        labels: (B,) int64 class indices; −1 marks an unlabelled sample.
        label_smoothing: mass spread evenly over all classes (Szegedy et al. 2016, §7), in [0, 1).
    """
    labelled = int((labels >= 0).sum())
    if labelled == 0:
        return _full(student_logits).sum() * 0.0  # keeps the graph, so that every rank calls backward alike
    return F.cross_entropy(_full(student_logits), labels, ignore_index=-1, label_smoothing=label_smoothing)


def distillation_loss(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return Σ weights[k] · parts[k], e.g. α·feature + β·response + γ·task.

    Raises:
        ValueError: a weight names no part.
    """
    unknown = set(weights) - set(parts)
    if unknown:
        raise ValueError(f"weights for parts that were not computed: {sorted(unknown)}")
    return torch.stack([weights[name] * parts[name] for name in weights]).sum()


def _full(values: Tensor) -> Tensor:
    """Raise half precision to float32, in which sums over classes keep their digits; float64 stays, for gradcheck."""
    return values if values.dtype == torch.float64 else values.float()


def _check_same(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"{what} must be (B, n) alike, got student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
