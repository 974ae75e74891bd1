"""Gradients measured, clipped, and the first layer that went wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.compress.training.gradients import GradientNorms, locate_not_finite


def test_norms_and_clipping_are_torchs() -> None:
    torch.manual_seed(0)
    for limit in (0.0, 0.1, 1e9):
        models = [nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
        x = torch.randn(4, 5)
        for model in models:
            model(x).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(models[0].parameters(), limit or torch.inf)
        norms = [p.grad.norm() for p in models[1].parameters() if p.grad is not None]
        total, measured = GradientNorms(models[1]).clip(limit)
        assert total == float(expected)
        assert np.allclose(measured, [float(n) for n in norms], rtol=1e-6)
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert one.grad is not None and other.grad is not None
            assert torch.equal(one.grad, other.grad)


def test_parameters_without_a_gradient_are_no_trouble() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    assert GradientNorms(model).clip(1.0)[0] == 0.0
    model["used"](torch.ones(1, 2)).sum().backward()
    total, norms = GradientNorms(model).clip(1.0)
    assert total > 0
    assert norms[2:].tolist() == [0.0, 0.0]


def test_clipping_does_not_spread_nan_over_the_layers_that_have_none() -> None:
    for limit in (0.0, 1.0):
        model = net()
        model(torch.randn(8, 4)).sum().backward()
        first = model[0].weight.grad
        assert first is not None
        first[0, 0] = float("nan")
        norms = GradientNorms(model)
        assert np.isnan(norms.clip(limit)[0])
        assert norms.first_not_finite() == "0.weight"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_the_first_layer_with_nan_is_found_in_weights_outputs_inputs_and_the_loss() -> None:
    model, x = net(), torch.randn(8, 4)

    def losses(scale: float = 1.0) -> Mapping[str, Tensor]:
        return {"loss": model(x).sum() * scale}

    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert "the loss itself" in locate_not_finite(model, lambda: losses(float("nan")))[1]
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model[3].weight.data.fill_(3e38)
    assert locate_not_finite(model, losses)[1] == "first in the output of layer 3"
    x[0, 0] = float("nan")
    assert locate_not_finite(model, losses)[1] == "first in the output of layer 0, whose input is so already"
    model[1].bias.data[1] = float("inf")
    assert locate_not_finite(model, losses)[1] == "first in the weights of 1.bias"
