"""The moving average of the weights against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.compress.training.ema import Ema
from tests.tolerances import FP32_EXACT


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_the_closed_form(decay: float) -> None:
    """With weights x_t and d_t = min(d, (1 + t)/(10 + t)): avg_n = avg_0·Πd_t + Σ_t x_t·(1 − d_t)·Π_{s>t} d_s."""
    model = net()
    set_all(model, 2.0)
    ema = Ema(model, decay)
    values = [5.0, -1.0, 0.5, 8.0, 3.0]
    expected = 2.0
    for step, value in enumerate(values):
        d = min(decay, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
        set_all(model, value)
        ema.update(model)
    for tensor in ema.model.state_dict().values():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, torch.full_like(tensor, expected), rtol=FP32_EXACT)


def test_batch_norm_statistics_are_averaged_and_its_counter_copied() -> None:
    model = net().train()
    ema = Ema(model, 0.9)
    model(torch.randn(8, 3))
    ema.update(model)
    averaged, trained = ema.model.state_dict(), model.state_dict()
    assert averaged["1.num_batches_tracked"] == trained["1.num_batches_tracked"] == 1
    assert torch.allclose(averaged["1.running_mean"], 0.9 * trained["1.running_mean"])  # d_0 = 0.1, from 0


def test_the_average_is_apart_from_the_model() -> None:
    model = net().train()
    ema = Ema(model, 0.9)
    before = {name: tensor.clone() for name, tensor in ema.model.state_dict().items()}
    set_all(model, 9.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ema.model.state_dict().items())
    assert model.training
    assert all(not module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
