"""Weights as the int8 files hold them: codes per output channel, or float16; the exact ones are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.errors import UsageError

SMALLEST_SCALE = 1e-9


class WeightCodes(nn.Module):
    """Round weights (out, …) to int8 codes in [−127, 127] with one scale per output channel, the largest weight being
    127; or to float16, as the layers of an int8 file are stored that stay float.

    Attributes:
        centred: take its mean over output channels from the layer first: it writes to a residual stream whose mean
            nobody reads (`edgekit.export.rewrites.transformer.centre_residual_stream`).
        as_half: round to float16.
        rounded: whether to round; else only centre.
    """

    def __init__(self, *, centred: bool = False, as_half: bool = False) -> None:
        super().__init__()
        self.centred, self.as_half, self.rounded = centred, as_half, True

    def forward(self, weight: Tensor) -> Tensor:
        """Map (out, …) to the same shape."""
        if self.centred:
            weight = weight - weight.mean(0, keepdim=True)
        if not self.rounded:
            return weight
        if self.as_half:
            return weight + (weight.half().float() - weight).detach()
        largest = weight.detach().abs().flatten(1).amax(1)
        scale = (largest / 127).clamp(min=SMALLEST_SCALE)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """Map a bias (out,), which integer kernels hold in 32 bits, to itself or to its centred form."""
        return bias - bias.mean() if bias is not None and self.centred else bias


class CodedLinear(nn.Linear):
    """A linear layer that computes with `weight_codes` of its weight."""

    weight_codes: WeightCodes

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight_codes(self.weight), self.weight_codes.bias(self.bias))


class CodedConv2d(nn.Conv2d):
    """A convolution that computes with `weight_codes` of its weight."""

    weight_codes: WeightCodes

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        y: Tensor = self._conv_forward(x, self.weight_codes(self.weight), self.weight_codes.bias(self.bias))
        return y


_CODED: Mapping[type[nn.Module], type[nn.Module]] = {nn.Linear: CodedLinear, nn.Conv2d: CodedConv2d}


def code_weights(layer: nn.Module, *, centred: bool = False, as_half: bool = False) -> None:
    """Let `layer` compute with rounded weights; the exact ones are trained.

    In place, by its class, so that its name, its weights and everyone who holds it stay. `torch.nn.utils.parametrize`
    makes a class for each layer, which copies share: taking it off one of them (torch 2.14) breaks the others.

    Raises:
        UsageError: a kind of layer that the exporters know and this does not.
    """
    coded = _CODED.get(type(layer))
    if coded is None:
        raise UsageError(
            f"a layer of type {type(layer).__name__} cannot be trained for 8 bits; plain Linear and Conv2d can"
        )
    layer.add_module("weight_codes", WeightCodes(centred=centred, as_half=as_half))
    layer.__class__ = coded


@torch.no_grad()
def plain_layer(layer: nn.Module) -> None:
    """Let a layer compute with its exact weights again, centred ones where they were; others stay as they are."""
    if not isinstance(layer, CodedLinear | CodedConv2d):
        return
    codes = layer.weight_codes
    codes.rounded = False
    layer.weight.copy_(codes(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(cast(Tensor, codes.bias(layer.bias)))
    del layer._modules["weight_codes"]
    _plain_again(layer)


def _plain_again(layer: nn.Module) -> None:
    layer.__class__ = next(plain for plain, coded in _CODED.items() if coded is type(layer))
