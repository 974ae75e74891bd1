"""Losses over pairs: against naive loops, numerical gradients, and the limits that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.distill.relations import affinity_loss, contrastive_loss

SHAPES = st.tuples(st.integers(2, 7), st.integers(2, 9))
SEEDS = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@given(SHAPES, SEEDS, st.floats(0.05, 2))
@settings(max_examples=25, deadline=None)
def test_affinity_is_the_kl_of_who_is_near_whom(shape: tuple[int, int], seed: int, temperature: float) -> None:
    student, teacher = normal(seed, *shape), F.normalize(normal(seed + 1, shape[0], shape[1] + 3), dim=1)
    total = 0.0
    for i in range(shape[0]):
        others = [j for j in range(shape[0]) if j != i]
        p = softmax([cosine(teacher[i], teacher[j]) / temperature for j in others])
        q = softmax([cosine(student[i], student[j]) / temperature for j in others])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert float(affinity_loss(student, teacher, temperature)) == pytest.approx(total / shape[0], rel=1e-6, abs=1e-9)


@given(SHAPES, SEEDS, st.floats(0.05, 2))
@settings(max_examples=25, deadline=None)
def test_contrast_is_the_cross_entropy_of_finding_ones_own(
    shape: tuple[int, int], seed: int, temperature: float
) -> None:
    student, teacher = normal(seed, *shape), F.normalize(normal(seed + 1, *shape), dim=1)
    total = 0.0
    for i, s in enumerate(student):
        total -= math.log(softmax([cosine(s, t) / temperature for t in teacher])[i])
    assert float(contrastive_loss(student, teacher, temperature)) == pytest.approx(total / shape[0], rel=1e-6)


@pytest.mark.parametrize("loss", [affinity_loss, contrastive_loss])
def test_gradients_are_those_of_finite_differences(loss: object) -> None:
    assert callable(loss)
    student, teacher = normal(0, 4, 6).requires_grad_(), F.normalize(normal(1, 4, 6), dim=1)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), (student,))


def test_affinity_does_not_see_a_rotation_and_contrast_does() -> None:
    teacher = F.normalize(normal(0, 6, 5), dim=1)
    rotation = torch.linalg.qr(normal(1, 5, 5)).Q
    assert float(affinity_loss(3 * teacher @ rotation, teacher)) == pytest.approx(0, abs=1e-9)
    assert float(contrastive_loss(teacher @ rotation, teacher)) > float(contrastive_loss(teacher, teacher)) + 0.1


def test_a_student_that_says_the_same_of_all_knows_nothing() -> None:
    teacher = F.normalize(normal(0, 8, 5), dim=1)
    same = torch.ones(8, 5, dtype=torch.float64)
    scores = same[0] @ teacher.T / math.sqrt(5) / 0.5  # each row of scores is alike: only their spread is left
    expected = float((torch.logsumexp(scores, 0) - scores).mean())
    assert float(contrastive_loss(same, teacher, 0.5)) == pytest.approx(expected)
    assert float(contrastive_loss(same, same, 0.5)) == pytest.approx(math.log(8))


def test_one_sample_has_nobody_to_be_compared_with() -> None:
    student, teacher = normal(0, 1, 5).requires_grad_(), F.normalize(normal(1, 1, 5), dim=1)
    for loss in (affinity_loss(student, teacher), contrastive_loss(student, teacher)):
        assert float(loss.detach()) == pytest.approx(0)
        loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("loss", [affinity_loss, contrastive_loss])
def test_batches_of_different_length_are_refused(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match="same B"):
        loss(torch.zeros(3, 5), torch.zeros(1, 5))
