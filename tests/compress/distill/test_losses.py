"""Distillation losses: against naive formulas, numerical gradients, and the limits that are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.distill.losses import (
    FEATURE_LOSSES,
    NON_TARGET_WEIGHT,
    RESPONSE_LOSSES,
    FeatureLoss,
    ResponseLoss,
    cosine_feature_loss,
    decoupled_response_loss,
    distillation_loss,
    mse_feature_loss,
    response_loss,
    standardised_response_loss,
    task_loss,
)
from tests.tolerances import FP32_EXACT

SHAPES = st.tuples(st.integers(1, 9), st.integers(2, 17))
SEEDS = st.integers(0, 2**31)
TEMPERATURES = st.floats(0.5, 16)


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_softmax(row: Tensor, temperature: float) -> list[float]:
    powers = [math.exp(float(value) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@given(SHAPES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_cosine_loss_is_one_minus_the_mean_cosine(shape: tuple[int, int], seed: int) -> None:
    student, teacher = normal(seed, *shape), F.normalize(normal(seed + 1, *shape), dim=1)
    cosines = [float(s @ t) / math.sqrt(float(s @ s) * float(t @ t)) for s, t in zip(student, teacher, strict=True)]
    assert float(cosine_feature_loss(student, teacher)) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-12)
    assert float(cosine_feature_loss(student.float(), teacher.float())) == pytest.approx(
        1 - sum(cosines) / len(cosines), abs=FP32_EXACT
    )


@given(SHAPES, SEEDS)
@settings(max_examples=25, deadline=None)
def test_mse_loss_is_the_mean_squared_difference(shape: tuple[int, int], seed: int) -> None:
    student, teacher = normal(seed, *shape), normal(seed + 1, *shape)
    squares = [float(s - t) ** 2 for s, t in zip(student.flatten(), teacher.flatten(), strict=True)]
    assert float(mse_feature_loss(student, teacher)) == pytest.approx(sum(squares) / len(squares), rel=1e-12)


@given(SHAPES, SEEDS, TEMPERATURES)
@settings(max_examples=25, deadline=None)
def test_response_loss_is_squared_temperature_times_kl_per_sample(
    shape: tuple[int, int], seed: int, temperature: float
) -> None:
    student, teacher = normal(seed, *shape, scale=3), normal(seed + 1, *shape, scale=3)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        q, p = naive_softmax(s, temperature), naive_softmax(t, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = temperature**2 * total / len(student)
    assert float(response_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(SHAPES, SEEDS, st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_task_loss_is_smoothed_cross_entropy_of_the_labelled(
    shape: tuple[int, int], seed: int, smoothing: float
) -> None:
    logits = normal(seed, *shape)
    labels = torch.randint(-1, shape[1], (shape[0],), generator=torch.Generator().manual_seed(seed))
    terms = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        p = naive_softmax(row, 1.0)
        target = [smoothing / len(p) + (1 - smoothing) * (c == label) for c in range(len(p))]
        if label >= 0:
            terms.append(-sum(t * math.log(q) for t, q in zip(target, p, strict=True)))
    expected = sum(terms) / len(terms) if terms else 0.0
    assert float(task_loss(logits, labels, smoothing)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", list(FEATURE_LOSSES))
def test_feature_gradients_are_those_of_finite_differences(name: FeatureLoss) -> None:
    student, teacher = normal(0, 4, 6).requires_grad_(), F.normalize(normal(1, 4, 6), dim=1)
    assert torch.autograd.gradcheck(lambda s: FEATURE_LOSSES[name](s, teacher), (student,))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_response_gradients_are_those_of_finite_differences(temperature: float) -> None:
    student, teacher = normal(0, 4, 6).requires_grad_(), normal(1, 4, 6)
    assert torch.autograd.gradcheck(lambda s: response_loss(s, teacher, temperature), (student,))


def test_task_gradients_are_those_of_finite_differences_and_zero_without_label() -> None:
    logits, labels = normal(0, 5, 6).requires_grad_(), torch.tensor([3, -1, 0, 5, -1])
    assert torch.autograd.gradcheck(lambda s: task_loss(s, labels, 0.1), (logits,))
    task_loss(logits, labels, 0.1).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[labels < 0].abs().max() == 0
    assert logits.grad[labels >= 0].abs().min() > 0


def test_a_student_that_equals_its_teacher_has_no_loss() -> None:
    same = F.normalize(normal(0, 7, 8), dim=1)
    assert float(cosine_feature_loss(5 * same, same)) == pytest.approx(0, abs=1e-12)  # the length does not count
    assert float(mse_feature_loss(same, same)) == 0
    assert float(response_loss(same, same, 4.0)) == pytest.approx(0, abs=1e-12)
    assert float(response_loss(same + 3.0, same, 4.0)) == pytest.approx(0, abs=1e-12)  # nor does a common shift
    assert float(cosine_feature_loss(-same, same)) == pytest.approx(2, abs=1e-12)


def test_response_loss_does_not_shrink_with_more_classes() -> None:
    """`reduction="mean"` would divide by the classes too; with "batchmean", classes nobody believes in are free."""
    student, teacher = normal(0, 4, 3), normal(1, 4, 3)
    impossible = torch.full((4, 97), -1e4, dtype=torch.float64)
    padded = response_loss(torch.cat([student, impossible], 1), torch.cat([teacher, impossible], 1), 1.0)
    assert float(padded) == pytest.approx(float(response_loss(student, teacher, 1.0)), rel=1e-9)


def test_squared_temperature_keeps_the_size_of_the_gradient() -> None:
    """Hinton et al. 2015, §2.1: for T far above the logits the gradient tends to (z_i − v_i) / C, whatever T."""
    student, teacher = normal(0, 1, 5), normal(1, 1, 5)
    student, teacher = student - student.mean(), teacher - teacher.mean()
    student.requires_grad_()
    for temperature in (1e3, 1e4):
        (gradient,) = torch.autograd.grad(response_loss(student, teacher, temperature), student)
        assert torch.allclose(gradient, (student - teacher) / 5, atol=1 / temperature)  # the next term of the series


def test_a_batch_without_labels_gives_zero_and_keeps_the_graph() -> None:
    logits = normal(0, 3, 4).requires_grad_()
    loss = task_loss(logits, torch.full((3,), -1))
    assert float(loss.detach()) == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = normal(0, 4, 1000).to(dtype), torch.arange(4)
    assert response_loss(logits, logits.flip(0), 2.0).dtype == torch.float32
    assert float(task_loss(logits, labels)) == pytest.approx(float(task_loss(logits.double(), labels)), rel=FP32_EXACT)


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    parts = {"feature": torch.tensor(2.0), "response": torch.tensor(3.0), "task": torch.tensor(5.0)}
    assert float(distillation_loss(parts, {"feature": 0.5, "task": 2.0})) == 11.0
    with pytest.raises(ValueError, match="contrastive"):
        distillation_loss(parts, {"contrastive": 1.0})


@pytest.mark.parametrize("loss", [cosine_feature_loss, mse_feature_loss, lambda s, t: response_loss(s, t, 1.0)])
def test_shapes_that_would_broadcast_are_refused(loss: object) -> None:
    assert callable(loss)
    for student, teacher in (((4, 1), (4, 5)), ((4,), (4,)), ((1, 5), (4, 5))):
        with pytest.raises(ValueError, match="alike"):
            loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        response_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature)


@given(SHAPES, SEEDS, TEMPERATURES)
@settings(max_examples=25, deadline=None)
def test_decoupled_loss_compares_the_target_and_the_others_apart(
    shape: tuple[int, int], seed: int, temperature: float
) -> None:
    student, teacher = normal(seed, *shape, scale=3), normal(seed + 1, *shape, scale=3)
    labels = torch.randint(-1, shape[1], (shape[0],), generator=torch.Generator().manual_seed(seed))
    total = 0.0
    for s, t, label in zip(student, teacher, labels.tolist(), strict=True):
        target = label if label >= 0 else int(t.argmax())
        q, p = naive_softmax(s, temperature), naive_softmax(t, temperature)
        # 1 − p would lose all digits of a sure target
        rest_q, rest_p = (sum(x for c, x in enumerate(row) if c != target) for row in (q, p))
        total += p[target] * math.log(p[target] / q[target]) + rest_p * math.log(rest_p / rest_q)
        others = [c for c in range(len(p)) if c != target]
        total += NON_TARGET_WEIGHT * sum(p[c] / rest_p * math.log((p[c] / rest_p) / (q[c] / rest_q)) for c in others)
    expected = temperature**2 * total / len(student)
    value = decoupled_response_loss(student, teacher, labels, temperature)
    assert float(value) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_decoupled_with_weight_of_the_teachers_doubt_is_the_plain_kl() -> None:
    """arXiv 2203.08679, eq. 5: KL = TCKD + (1 − p_target) · NCKD, for each sample."""
    student, teacher, labels = normal(0, 1, 6), normal(1, 1, 6), torch.tensor([2])
    binary_and_rest = float(decoupled_response_loss(student, teacher, labels, 1.0))
    others = torch.tensor([0, 1, 3, 4, 5])
    rest = float(response_loss(student[:, others], teacher[:, others], 1.0))
    doubt = 1 - float(F.softmax(teacher, 1)[0, 2])
    plain = binary_and_rest + (doubt - NON_TARGET_WEIGHT) * rest
    assert plain == pytest.approx(float(response_loss(student, teacher, 1.0)), rel=1e-9)


@given(SHAPES, SEEDS, TEMPERATURES)
@settings(max_examples=25, deadline=None)
def test_standardised_loss_sees_neither_scale_nor_shift_of_the_logits(
    shape: tuple[int, int], seed: int, temperature: float
) -> None:
    student, teacher = normal(seed, *shape), normal(seed + 1, *shape)
    plain = float(standardised_response_loss(student, teacher, temperature))
    assert float(standardised_response_loss(student, 7 * teacher + 3, temperature)) == pytest.approx(plain, rel=1e-4)
    rows = [[(float(v) - float(x.mean())) / (float(x.std(correction=0)) + 1e-7) for v in x] for x in student]
    other = [[(float(v) - float(x.mean())) / (float(x.std(correction=0)) + 1e-7) for v in x] for x in teacher]
    expected = float(response_loss(torch.tensor(rows).double(), torch.tensor(other).double(), temperature))
    assert plain == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", list(RESPONSE_LOSSES))
def test_response_gradients_of_every_kind_are_those_of_finite_differences(name: ResponseLoss) -> None:
    student, teacher, labels = normal(0, 4, 6).requires_grad_(), normal(1, 4, 6), torch.tensor([0, -1, 5, 2])
    assert torch.autograd.gradcheck(lambda s: RESPONSE_LOSSES[name](s, teacher, labels, 2.0), (student,))
