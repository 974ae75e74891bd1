"""Rounded weights lie on the converters' own grid, and change what a net computes less than the nearest ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nets_for_tests import TwoHeads, pictures
from torch import Tensor, nn

from edgekit.errors import DataError
from edgekit.export.calibration.weight_rounding import (
    LEAST_WEIGHTS,
    LEVELS,
    least_quantized,
    round_to_grid,
    with_rounded_weights,
)
from edgekit.export.coreml.convert import export_coreml, quantize_weights
from edgekit.export.mil.interpreter import MilSession
from edgekit.export.rewrites.batchnorm import fold_batch_norms


def nearest(weights: Tensor) -> Tensor:
    step = weights.abs().amax(dim=1, keepdim=True) / LEVELS
    return (weights / step).round() * step


def correlated_inputs(size: int, count: int = 4000) -> Tensor:
    """Return (count, size): positive, and neighbours alike, as activations are."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(count, size // 4, generator=generator) @ torch.randn(size // 4, size, generator=generator)
    return (mixed + 0.3 * torch.randn(count, size, generator=generator)).relu()


def test_outputs_change_least() -> None:
    torch.manual_seed(1)
    weights, x = torch.randn(16, 96), correlated_inputs(96)
    rounded = round_to_grid(weights, (x.T @ x).double())
    ours, plain = (float((x @ (q - weights).T).square().mean()) for q in (rounded, nearest(weights)))
    assert ours < 0.35 * plain  # 4.5 dB and more


def test_the_grid_is_the_converters() -> None:
    """Each row's largest weight stays, so that max|q| / 127 is the step again, and all others are whole steps."""
    torch.manual_seed(2)
    weights, x = torch.randn(16, 96), correlated_inputs(96)
    rounded = round_to_grid(weights, (x.T @ x).double())
    assert torch.allclose(rounded.abs().amax(1), weights.abs().amax(1), rtol=1e-6)
    assert torch.equal(rounded.abs().argmax(1), weights.abs().argmax(1))
    levels = rounded / (rounded.abs().amax(1, keepdim=True) / LEVELS)
    assert float((levels - levels.round()).abs().max()) < 1e-3


def test_unrelated_inputs_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(3)
    weights = torch.randn(8, 40)
    assert torch.allclose(round_to_grid(weights, torch.eye(40).double()), nearest(weights), atol=1e-6)


@pytest.mark.parametrize("moments", ["zero", "one dead input", "one input"])
def test_inputs_that_are_always_zero(moments: str) -> None:
    x = torch.zeros(10, 12) if moments == "zero" else torch.rand(200, 12)
    if moments == "one dead input":
        x[:, 3] = 0
    if moments == "one input":
        x[:, 1:] = 0
    weights = torch.randn(5, 12)
    rounded = round_to_grid(weights, (x.T @ x).double())
    assert bool(rounded.isfinite().all())
    assert float((rounded - weights).abs().max()) < float(weights.abs().max())


def test_a_row_of_zeros_stays() -> None:
    weights = torch.randn(3, 12)
    weights[1] = 0
    assert torch.equal(round_to_grid(weights, torch.eye(12).double())[1], torch.zeros(12))


def test_activations_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        round_to_grid(torch.randn(3, 4), torch.full((4, 4), torch.inf).double())


@pytest.mark.parametrize("arch", ["mobilevit_xxs", "mobilevitv2_050", "test_resnet"])
def test_whole_nets(arch: str) -> None:
    """Convolutions with and without groups, and linear layers; the original is not touched."""
    torch.set_num_threads(1)
    net = TwoHeads(arch).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    calibration, others = pictures(24, 64), pictures(16, 64, seed=1)
    rounded = with_rounded_weights(net, (batch.numpy() for batch in calibration.split(4)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    plain = TwoHeads(arch).eval()
    fold_batch_norms(plain)
    for layer in plain.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() >= LEAST_WEIGHTS:
            layer.weight.data = nearest(layer.weight.detach().flatten(1)).reshape(layer.weight.shape)
    with torch.no_grad():
        expected = net(others)[0]
        ours, theirs = (float((found(others)[0] - expected).square().mean()) for found in (rounded, plain))
    assert 0 < ours < 0.7 * theirs


def test_the_smallest_layers_stay_float_and_those_of_one_size_together() -> None:
    def linears(*sizes: int) -> nn.Module:
        return nn.ModuleList(nn.Linear(size, 100, bias=False) for size in sizes)

    assert least_quantized(linears(5, 15, 1000)) == 2048  # 500 weights are always float, 1,500 as well
    assert least_quantized(linears(25, 1000)) == 2501
    assert least_quantized(linears(25, 25, 1000)) == 2048  # both would be 4.8 %
    assert least_quantized(linears(10, 15, 6)) == 1  # all of a narrow net is small: none of it may stay float
    net = TwoHeads("mobilevit_xxs").eval()
    images = pictures(8, 64)
    rounded = with_rounded_weights(net, [images.numpy()], least=6000)
    plain = TwoHeads("mobilevit_xxs").eval()
    fold_batch_norms(plain)
    for (name, ours), theirs in zip(rounded.named_modules(), plain.modules(), strict=True):
        if isinstance(ours, nn.Conv2d | nn.Linear) and isinstance(theirs, nn.Conv2d | nn.Linear):
            assert torch.equal(ours.weight, theirs.weight) == (ours.weight.numel() < 6000), name


def test_core_ml_finds_the_same_weights_again(tmp_path: Path) -> None:
    net = TwoHeads("mobilevit_xxs").eval()
    calibration = pictures(16, 64).numpy()
    rounded = with_rounded_weights(net, [calibration])
    export_coreml(rounded, 64, tmp_path / "float.mlpackage", precision="fp32")
    quantize_weights(tmp_path / "float.mlpackage", tmp_path / "w8.mlpackage")
    whole, small = (MilSession(tmp_path / f"{name}.mlpackage")(calibration[:1]) for name in ("float", "w8"))
    exact = net(torch.from_numpy(calibration[:1]))[0].detach().numpy()
    assert abs(whole["logits"] - small["logits"]).max() < 0.02 * abs(whole["logits"] - exact).max()
