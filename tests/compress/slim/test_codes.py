"""Fake quantization: the same numbers as torch's own kernels, the straight-through gradient, and a clean way back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.compress.slim.codes import (
    ActivationCodes,
    CodedSiLU,
    RowCodes,
    code_input,
    code_output,
    set_ranges,
    without_codes,
)
from edgekit.compress.slim.weight_codes import CodedConv2d, WeightCodes, code_weights
from edgekit.errors import DataError
from edgekit.export.tflite.static import quantize_weights


@pytest.mark.parametrize(("low", "high", "symmetric"), [(-1.0, 3.0, False), (0.0, 2.0, False), (-0.3, 0.2, True)])
def test_activations_are_rounded_as_torch_does_it(low: float, high: float, symmetric: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    codes = ActivationCodes("x", symmetric=symmetric)
    codes.span(low, high)
    found = codes(x)
    least = -127 if symmetric else -128
    want = torch.fake_quantize_per_tensor_affine(x, codes.scale, codes.zero_point, least, 127)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
    assert len(torch.unique(found)) <= 256
    (gradient,) = torch.autograd.grad(found.sum(), x)
    (theirs,) = torch.autograd.grad(want.sum(), x)
    assert torch.equal(gradient, theirs)
    assert 0 < int((gradient == 0).sum()) < len(x)


def test_no_code_is_spent_below_the_floor() -> None:
    codes = ActivationCodes("before a SiLU", floor=-6.0)
    codes.span(-40.0, 2.0)
    assert codes.low == -6.0
    assert float(codes(torch.tensor(-30.0))) == pytest.approx(-6.0, abs=codes.scale)


def test_silu_looks_up_256_values() -> None:
    x = torch.linspace(-8, 8, 401, requires_grad=True)
    silu = CodedSiLU()
    want = x * torch.fake_quantize_per_tensor_affine(torch.sigmoid(x), 1 / 256, -128, -128, 127)
    torch.testing.assert_close(silu(x), want, rtol=0, atol=1e-6)
    (rounded,) = torch.autograd.grad(silu(x).sum(), x)
    (exact,) = torch.autograd.grad(F.silu(x).sum(), x)
    torch.testing.assert_close(rounded, exact)
    silu.rounded = False
    torch.testing.assert_close(silu(x), F.silu(x))


def test_weights_are_rounded_as_the_exporter_does_it() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3)
    codes, scales = quantize_weights(layer.weight.detach().numpy(), 0)
    code_weights(layer)
    assert isinstance(layer, CodedConv2d)
    torch.testing.assert_close(
        layer.weight_codes(layer.weight), torch.from_numpy(codes * scales.reshape(-1, 1, 1, 1)).float()
    )
    layer(torch.randn(1, 4, 5, 5)).sum().backward()
    assert layer.weight.grad is not None and bool((layer.weight.grad != 0).all())


def test_what_writes_to_the_residual_stream_stays_centred() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 8)
    weight = layer.weight.detach().clone()
    code_weights(layer, centred=True)
    plain = WeightCodes(centred=True)
    plain.rounded = False
    assert float(plain(weight).sum(0).abs().max()) < 1e-6
    without_codes(layer)
    torch.testing.assert_close(layer.weight, weight - weight.mean(0))
    assert abs(float(layer.bias.detach().sum())) < 1e-6


def test_rows_have_a_range_each() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5], [-100.0, 100.0, 30.0]], requires_grad=True)
    y = RowCodes()(x)
    error = (y - x).detach().abs().amax(1)
    assert float(error[0]) <= 0.5 / 255 + 1e-6
    assert 0.01 < float(error[1]) <= 0.5 * 200 / 255 + 1e-3
    y.sum().backward()
    assert x.grad is not None and bool((x.grad == 1).all())


def test_a_copy_has_codes_of_its_own() -> None:
    """The moving average is a deep copy; hooks that kept hold of the first net would round with its ranges."""
    layer = nn.Linear(2, 2)
    codes = ActivationCodes("in")
    code_input(layer, codes)
    codes.span(0.0, 1.0)
    other = copy.deepcopy(layer)
    assert isinstance(other.input_codes, ActivationCodes)
    other.input_codes.span(0.0, 100.0)
    x = torch.tensor([[50.0, 50.0]])
    torch.testing.assert_close(layer(x), F.linear(torch.ones(1, 2), layer.weight, layer.bias))
    assert not torch.allclose(other(x), layer(x))


def test_everything_comes_out_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.SiLU())
    plain = copy.deepcopy(net)
    code_weights(net[0])
    code_input(net[0], ActivationCodes("in"))
    code_output(net[1], ActivationCodes("out"))
    set_ranges(net, {"in": (-1.0, 1.0), "out": (0.0, 1.0)})
    x = torch.randn(4, 3)
    assert not torch.equal(net(x), plain(x))
    other = copy.deepcopy(net)
    rounded = net(x)
    without_codes(other)
    assert torch.equal(net(x), rounded)
    without_codes(net)
    assert torch.equal(net(x), plain(x))
    assert net.state_dict().keys() == plain.state_dict().keys()


def test_an_activation_without_a_range_is_named() -> None:
    net = nn.Linear(2, 2)
    code_input(net, ActivationCodes("stem.in"))
    with pytest.raises(DataError, match=r"no range is known for the activation 'stem\.in'"):
        set_ranges(net, {})
