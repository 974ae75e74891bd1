"""Contrastive losses: against naive formulas, known limits, and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.compress.clip.contrastive import CONTRASTIVE_LOSSES, contrastive_loss, sigmoid_loss
from edgekit.models.clip import ClipOutput
from tests.tolerances import FP32_EXACT


def rows(seed: int, count: int = 6, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive_infonce(image: Tensor, text: Tensor, scale: float) -> float:
    total = 0.0
    for i in range(len(image)):
        to_texts = [math.exp(scale * float(image[i] @ text[j])) for j in range(len(text))]
        to_images = [math.exp(scale * float(image[j] @ text[i])) for j in range(len(text))]
        total -= 0.5 * (math.log(to_texts[i] / sum(to_texts)) + math.log(to_images[i] / sum(to_images)))
    return total / len(image)


def naive_sigmoid(image: Tensor, text: Tensor, scale: float, bias: float) -> float:
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            z = 1 if i == j else -1
            total += math.log1p(math.exp(-z * (scale * float(image[i] @ text[j]) + bias)))
    return total / len(image)


@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_infonce_is_the_naive_formula(scale: float) -> None:
    image, text = rows(0), rows(1)
    expected = naive_infonce(image, text, scale)
    assert float(contrastive_loss(image, text, scale)) == pytest.approx(expected, abs=FP32_EXACT)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0)])
def test_sigmoid_is_the_naive_formula(scale: float, bias: float) -> None:
    image, text = rows(0), rows(1)
    expected = naive_sigmoid(image, text, scale, bias)
    assert float(sigmoid_loss(image, text, scale, bias)) == pytest.approx(expected, rel=1e-5)


def test_limits() -> None:
    alike = rows(0)[:1].expand(8, -1)
    assert float(contrastive_loss(alike, alike, 5.0)) == pytest.approx(math.log(8), abs=FP32_EXACT)
    matched = torch.eye(8)
    assert float(contrastive_loss(matched, matched, 100.0)) < 1e-6
    assert float(sigmoid_loss(matched, matched, 200.0, -100.0)) < 1e-6
    assert float(contrastive_loss(matched, matched.roll(1, 0), 100.0)) == pytest.approx(100.0, rel=1e-4)


def test_infonce_does_not_care_which_side_is_which() -> None:
    image, text = rows(0), rows(1)
    torch.testing.assert_close(contrastive_loss(image, text, 7.0), contrastive_loss(text, image, 7.0))


def test_gradients_are_right() -> None:
    image, text = rows(0).double().requires_grad_(), rows(1).double().requires_grad_()
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (2.0, -1.0))

    def infonce(i: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return contrastive_loss(i, t, s)

    assert torch.autograd.gradcheck(infonce, (image, text, scale))
    assert torch.autograd.gradcheck(sigmoid_loss, (image, text, scale, bias))


def test_the_mapping_uses_the_learned_bias() -> None:
    output = ClipOutput(rows(0), rows(1), torch.tensor(10.0), torch.tensor(-3.0))
    expected = naive_sigmoid(output.image, output.text, 10.0, -3.0)
    assert float(CONTRASTIVE_LOSSES["sigmoid"](output)) == pytest.approx(expected, rel=1e-5)
    expected = naive_infonce(output.image, output.text, 10.0)
    assert float(CONTRASTIVE_LOSSES["infonce"](output)) == pytest.approx(expected, abs=FP32_EXACT)


def test_batches_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs"):
        contrastive_loss(rows(0), rows(1, count=5), 1.0)
