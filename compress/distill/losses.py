"""The losses of distillation, each with its formula and source.

Shapes: B samples, D embedding dimensions, C classes. All are means over the samples that count and differentiable
in the student's side only; the teacher's side is data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.recipe import FeatureLoss, ResponseLoss

NON_TARGET_WEIGHT = 2.0
"""β of the decoupled loss; the paper takes 0.5 to 8 (§4.2), the more, the surer the teacher is."""


_MEAN_KL: Mapping[str, Any] = {"reduction": "batchmean", "log_target": True}


def cosine_feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1/B Σ_i (1 − cos(s_i, t_i)), in [0, 2]; 0 when student and teacher point the same way.

    Args:
        student: raw embeddings (B, D).
        teacher: unit rows (B, D).
    """
    _check_same(student, teacher, "embeddings")
    return (1.0 - F.cosine_similarity(full_precision(student), full_precision(teacher), dim=-1)).mean()


def mse_feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1/(B·D) Σ_i ‖s_i − t_i‖², the regression of FitNets (arXiv 1412.6550, eq. 3) on raw embeddings.

    Args:
        student: raw embeddings (B, D).
        teacher: unit rows (B, D).
    """
    _check_same(student, teacher, "embeddings")
    return F.mse_loss(full_precision(student), full_precision(teacher))


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
    log_student = F.log_softmax(full_precision(student_logits) / temperature, dim=-1)
    log_teacher = F.log_softmax(full_precision(teacher_logits) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, **_MEAN_KL)


def decoupled_response_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Return T² · 1/B Σ_i (TCKD_i + β · NCKD_i), in nats: decoupled distillation (arXiv 2203.08679, eq. 7).

    TCKD compares how sure both are of the target class; NCKD what they make of the others among themselves. In the
    plain KL the second is damped by how sure the teacher is of the target.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,) int64 target classes; where there is none (−1) the teacher's first choice is the target.
        temperature: T > 0.
    """
    _check_same(student_logits, teacher_logits, "logits")
    target = torch.where(labels >= 0, labels, teacher_logits.argmax(1))
    is_target = F.one_hot(target, student_logits.shape[1]).bool()
    student, teacher = full_precision(student_logits) / temperature, full_precision(teacher_logits) / temperature
    binary = F.kl_div(_target_or_not(student, is_target), _target_or_not(teacher, is_target), **_MEAN_KL)
    others = ~is_target
    shape = (len(student), student.shape[1] - 1)
    log_student, log_teacher = (F.log_softmax(x[others].view(shape), dim=1) for x in (student, teacher))
    return temperature**2 * (binary + NON_TARGET_WEIGHT * F.kl_div(log_student, log_teacher, **_MEAN_KL))


def _target_or_not(scores: Tensor, is_target: Tensor) -> Tensor:
    """Return the log-probabilities (B, 2) of the target class and of all others together."""
    log_p = F.log_softmax(scores, dim=1)
    rest = log_p.masked_fill(is_target, -torch.inf).logsumexp(1)
    return torch.stack([log_p[is_target], rest], dim=1)


def standardised_response_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return the response loss of logits that were z-scored over the classes (arXiv 2403.01976, §4.1, alg. 1).

    Only the shape of the teacher's logits counts, not their size, which a small student cannot match.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.
    """
    return response_loss(
        _standardise(full_precision(student_logits)), _standardise(full_precision(teacher_logits)), temperature
    )


def _standardise(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.std(1, keepdim=True, correction=0) + 1e-7)


RESPONSE_LOSSES: Mapping[ResponseLoss, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kl": lambda student, teacher, labels, temperature: response_loss(student, teacher, temperature),
    "decoupled": decoupled_response_loss,
    "standardised": lambda student, teacher, labels, temperature: standardised_response_loss(
        student, teacher, temperature
    ),
}


def task_loss(student_logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over the labelled samples, in nats; 0 where no sample has a label.

    Args:
        student_logits: (B, C).
        labels: (B,) int64 class indices; −1 marks an unlabelled sample.
        label_smoothing: mass spread evenly over all classes (Szegedy et al. 2016, §7), in [0, 1).
    """
    labelled = int((labels >= 0).sum())
    if labelled == 0:
        return full_precision(student_logits).sum() * 0.0  # keeps the graph, so that every rank calls backward alike
    return F.cross_entropy(full_precision(student_logits), labels, ignore_index=-1, label_smoothing=label_smoothing)


def distillation_loss(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return Σ weights[k] · parts[k], e.g. α·feature + β·response + γ·task.

    Raises:
        ValueError: a weight names no part.
    """
    unknown = set(weights) - set(parts)
    if unknown:
        raise ValueError(f"weights for parts that were not computed: {sorted(unknown)}")
    return torch.stack([weights[name] * parts[name] for name in weights]).sum()


def full_precision(values: Tensor) -> Tensor:
    """Raise half precision to float32, in which sums over classes keep their digits; float64 stays, for gradcheck."""
    return values if values.dtype == torch.float64 else values.float()


def _check_same(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            f"{what} must be (B, n) alike, got student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
