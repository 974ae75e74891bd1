"""Half precision keeps what it can: no overflow in norms, no lost balance in the first filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.export.coreml.convert import export_coreml
from edgekit.export.coreml.fp16 import ScaledLayerNorm, prepared_for_fp16, rounded_keeping_sum
from edgekit.export.mil.interpreter import MilSession


class LoudNet(nn.Module):
    """A group norm over activations of several hundred, as MobileViTv2 has at 256 px."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.norm = nn.GroupNorm(1, 16)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)
        self.head = nn.Linear(16, 8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        loud = 600 * self.bn(self.stem(images)).relu()
        return self.head(self.norm(loud).mean((2, 3))), loud


def test_a_norm_of_large_activations_survives_half_precision(tmp_path: Path) -> None:
    net = LoudNet().eval()
    images = torch.randint(0, 256, (1, 3, 32, 32)).float() / 255
    with torch.inference_mode():
        wanted, loud = net(images)
    assert (loud - loud.mean()).abs().max() > 256, "its square is beyond float16"
    path = tmp_path / "m.mlpackage"
    export_coreml(net, 32, path, precision="fp16", output_names=("logits", "loud"))
    found = MilSession(path)(images.numpy())["logits"]
    assert np.abs(found - wanted.numpy()).max() < 0.01


def test_prepared_net_is_the_same_function_and_leaves_the_given_one_alone() -> None:
    net = LoudNet().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    prepared = prepared_for_fp16(net)
    assert any(isinstance(module, ScaledLayerNorm) for module in prepared.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(prepared(images)[0], net(images)[0], atol=5e-3, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_rounding_keeps_the_sum_and_stays_on_half_values(seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, 9))
    rounded = rounded_keeping_sum(values)
    assert torch.equal(rounded, rounded.half().double()), "float16 values"
    spacing = (
        torch.nextafter(values.abs().half(), torch.tensor(torch.inf).half()).double() - values.abs().half().double()
    )
    assert ((rounded - values).abs() <= spacing).all(), "nearest or second nearest"
    plain = values.half().double()
    assert (rounded - values).sum().abs() <= (plain - values).sum().abs()


def test_values_that_are_halves_stay() -> None:
    values = torch.tensor([0.5, -0.25, 0.0, 3.0], dtype=torch.float64)
    assert torch.equal(rounded_keeping_sum(values), values)
