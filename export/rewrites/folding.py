"""The linear algebra of folding: each function changes a layer so that its neighbour can go. Sums are in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Linear = nn.Linear | nn.Conv2d
"""A linear layer over channels: nn.Linear, or a convolution."""


def _bias(layer: Linear) -> Tensor:
    if layer.bias is None:
        return torch.zeros(layer.weight.shape[0], dtype=torch.float64, device=layer.weight.device)
    return layer.bias.detach().double()


def set_weights(layer: Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give `layer` new float64 weights and bias, in the type it had."""
    kind = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(kind), requires_grad=False)


def scale_outputs(layer: Linear, scale: Tensor | float, shift: Tensor | float = 0.0) -> None:
    """Make y' = scale · y + shift per output channel: W' = diag(scale) W, b' = scale · b + shift.

    With scale = γ / sqrt(σ² + ε) and shift = β - μ · scale this folds the BatchNorm (γ, β, μ, σ²) that reads `layer`.
    """
    weight = layer.weight.detach().double()
    factors = torch.as_tensor(scale, dtype=torch.float64, device=weight.device).expand(weight.shape[0])
    set_weights(layer, weight * factors.reshape(-1, *[1] * (weight.ndim - 1)), _bias(layer) * factors + shift)


def absorb_input_affine(layer: nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Make layer'(x) = layer(scale · x + shift) per input channel: W' = W diag(scale), b' = b + W shift.

    With (γ, β) of a LayerNorm that `layer` reads this folds the norm's affine part.
    """
    weight = layer.weight.detach().double()
    set_weights(layer, weight * scale.detach().double(), _bias(layer) + weight @ shift.detach().double())


def centre_outputs(layer: nn.Linear) -> None:
    """Make the outputs of each token sum to zero: W' = (I - 11ᵀ/d) W, b' = b - mean(b), so that y' = y - mean(y)."""
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else _bias(layer) - _bias(layer).mean()
    set_weights(layer, weight - weight.mean(0, keepdim=True), bias)


def pointwise_to_linear(conv: nn.Conv2d) -> nn.Linear:
    """Return the nn.Linear that does to a token (C,) what the 1x1 convolution does to a pixel: W = K[:, :, 0, 0]."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    bias = None if conv.bias is None else conv.bias.detach()
    set_weights(linear.to(conv.weight.dtype), conv.weight.detach()[:, :, 0, 0], bias)
    return linear


def rows_of(layer: Linear, rows: slice) -> nn.Linear:
    """Return the nn.Linear that computes the outputs `rows` of a Linear or of a 1x1 convolution."""
    part = nn.Linear(layer.weight.shape[1], 1, bias=False)
    weight = layer.weight.detach().flatten(1)[rows]
    part.out_features = weight.shape[0]
    part.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.detach()[rows].clone(), requires_grad=False)
    return part


def is_pointwise(conv: nn.Module) -> bool:
    """Return whether `conv` is a 1x1 convolution that acts on each pixel alone."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding in ((0, 0), 0)
        and conv.groups == 1
    )
