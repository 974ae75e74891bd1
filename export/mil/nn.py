"""MIL operations of neural networks: convolution, matrix products, attention, normalisation, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from edgekit.export.mil.kernel import Call, Kernel, OpFunction, Tensor, bounded

_PAD_TYPES = ("valid", "same", "same_lower", "custom")
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMUM: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

Pairs = list[tuple[int, int]]
"""Padding (before, after) of each spatial axis."""


def padding(call: Call, sizes_in: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> Pairs:
    """Return the padding of each spatial axis.

    "same" gives ceil(size / stride) outputs and puts an odd element after, "same_lower" before. MIL's own page of conv
    describes "same" without the stride; its shape inference and TensorFlow, where it comes from, count it.

    Args:
        call: the operation, with `pad_type` and `pad`.
        sizes_in: spatial sizes of the input.
        kernel: extent of the kernel, dilation included.
        strides: strides.
    """
    kind = call.text("pad_type", "valid", _PAD_TYPES)
    if kind == "valid":
        return [(0, 0)] * len(kernel)
    if kind == "custom":
        pad = call.ints("pad", [0] * 2 * len(kernel))
        return list(zip(pad[::2], pad[1::2], strict=True))
    pairs: Pairs = []
    for size, extent, stride in zip(sizes_in, kernel, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if kind == "same" else (large, small))
    return pairs


def _padded(x: Tensor, pairs: Pairs, value: float = 0.0) -> Tensor:
    """Pad the spatial axes; a negative amount cuts.

    Raises:
        ValueError: the result is too large to be honest.
    """
    bounded([*x.shape[:2], *(size + before + after for size, (before, after) in zip(x.shape[2:], pairs, strict=True))])
    return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)


def conv(call: Call) -> Kernel:
    """Convolve x (N, C, *D) with weight (O, C/groups, *K), 1-D to 3-D."""
    groups = call.integer("groups", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = x.ndim - 2
        strides, dilations = call.ints("strides", [1] * rank), call.ints("dilations", [1] * rank)
        extent = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
        pairs = padding(call, x.shape[2:], extent, strides)
        if any(before != after for before, after in pairs) or max(map(max, pairs)) > max(x.shape):
            x, pairs = _padded(x, pairs), [(0, 0)] * rank
        return _CONVOLUTIONS[rank](x, weight, bias, strides, [before for before, _ in pairs], dilations, groups)

    return Kernel(("x", "weight", "bias"), run)


def conv_transpose(call: Call) -> Kernel:
    """Convolve transposed: x (N, C, *D) with weight (C, O/groups, *K); the padding is cut off the full result."""
    groups = call.integer("groups", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rank = x.ndim - 2
        strides, dilations = call.ints("strides", [1] * rank), call.ints("dilations", [1] * rank)
        bounded(
            [*x.shape[:2], *((size + k) * s for size, k, s in zip(x.shape[2:], weight.shape[2:], strides, strict=True))]
        )
        full = _TRANSPOSED[rank](x, weight, bias, strides, 0, 0, groups, dilations)
        wanted = call.ints("output_shape")[-rank:] if call.has("output_shape") else None
        kind = call.text("pad_type", "valid", _PAD_TYPES)
        if kind == "custom":
            pad = call.ints("pad", [0] * 2 * rank)
            pairs = list(zip(pad[::2], pad[1::2], strict=True))
        elif kind == "valid":
            pairs = [(0, 0)] * rank
        else:
            target = wanted or [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
            extra = [size - want for size, want in zip(full.shape[2:], target, strict=True)]
            pairs = [(amount // 2, amount - amount // 2) for amount in extra]
            pairs = [(b, a) if kind == "same" else (a, b) for b, a in pairs]
        if wanted is not None and kind != "same_lower":  # what is missing or too much stands at the end
            pairs = [(b, size - b - want) for (b, _), size, want in zip(pairs, full.shape[2:], wanted, strict=True)]
        return _padded(full, [(-before, -after) for before, after in pairs])

    return Kernel(("x", "weight", "bias"), run)


def linear(call: Call) -> Kernel:
    """Give x W^T + b."""
    return Kernel(("x", "weight", "bias"), F.linear)


def matmul(call: Call) -> Kernel:
    """Multiply matrices in the last two axes, the others broadcast; either may be transposed first."""
    turn_x, turn_y = call.flag("transpose_x", False), call.flag("transpose_y", False)

    def run(x: Tensor, y: Tensor) -> Tensor:
        left = x.transpose(-1, -2) if turn_x and x.ndim > 1 else x
        return left @ (y.transpose(-1, -2) if turn_y and y.ndim > 1 else y)

    return Kernel(("x", "y"), run)


def einsum(call: Call) -> Kernel:
    """Sum products as `equation` says."""
    equation = call.text("equation")
    return Kernel(("values",), lambda *values: torch.einsum(equation, *values))


def attention(call: Call) -> Kernel:
    """Give softmax(Q K^T / sqrt(E) + mask) V; a boolean mask says what takes part."""

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    return Kernel(("query", "key", "value", "attn_mask"), run)


def batch_norm(call: Call) -> Kernel:
    """Give gamma (x - mean) / sqrt(variance + epsilon) + beta, per channel (axis 1)."""
    epsilon = call.number("epsilon", 1e-5)

    def run(x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)

    return Kernel(("x", "mean", "variance", "gamma", "beta"), run)


def instance_norm(call: Call) -> Kernel:
    """Normalise each channel of each sample over its spatial axes."""
    epsilon = call.number("epsilon", 1e-5)

    def run(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        return _normalised(x, list(range(2, x.ndim)), (gamma, beta), epsilon, channels=True)

    return Kernel(("x", "gamma", "beta"), run)


def layer_norm(call: Call) -> Kernel:
    """Normalise over `axes` (all by default): gamma (x - E[x]) / sqrt(Var[x] + epsilon) + beta, biased variance."""
    epsilon = call.number("epsilon", 1e-5)
    given = call.ints("axes") if call.has("axes") else None

    def run(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        axes = sorted(axis % x.ndim for axis in given) if given else list(range(x.ndim))
        if axes == list(range(axes[0], x.ndim)):
            return F.layer_norm(x, x.shape[axes[0] :], gamma, beta, epsilon)
        return _normalised(x, axes, (gamma, beta), epsilon, channels=False)

    return Kernel(("x", "gamma", "beta"), run)


def _normalised(
    x: Tensor, axes: list[int], affine: tuple[Tensor | None, Tensor | None], epsilon: float, *, channels: bool
) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + epsilon)
    kept = [1] if channels else axes
    shape = [size if axis in kept else 1 for axis, size in enumerate(x.shape)]
    gamma, beta = affine
    if gamma is not None:
        y = y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def l2_norm(call: Call) -> Kernel:
    """Divide by sqrt(sum of squares over the last three axes + epsilon)."""
    epsilon = call.number("epsilon", 1e-6)
    return Kernel(("x",), lambda x: x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon))


def _pool(call: Call, x: Tensor) -> tuple[list[int], list[int], Pairs, list[int]]:
    """Return kernel, strides, padding, and how much to add after each axis for a ceiled output size.

    As in PyTorch, ceil_mode may add a last window that hangs over the padding but not one that starts in it.
    """
    kernel = call.ints("kernel_sizes")
    strides = call.ints("strides", [1] * len(kernel))
    pairs = padding(call, x.shape[2:], kernel, strides)
    ceiled = call.flag("ceil_mode", False)
    overhang = []
    for size, k, stride, (before, after) in zip(x.shape[2:], kernel, strides, pairs, strict=True):
        room = size + before + after - k
        windows = (math.ceil(room / stride) if ceiled else room // stride) + 1
        if ceiled and (windows - 1) * stride >= size + before:
            windows -= 1
        overhang.append(max(0, (windows - 1) * stride + k - size - before - after))
    return kernel, strides, pairs, overhang


def max_pool(call: Call) -> Kernel:
    """Give the maximum of each window; padding never wins."""

    def run(x: Tensor) -> Tensor:
        kernel, strides, pairs, overhang = _pool(call, x)
        room = [(before, after + more) for (before, after), more in zip(pairs, overhang, strict=True)]
        return _MAXIMUM[len(kernel)](_padded(x, room, -math.inf), kernel, strides)

    return Kernel(("x",), run)


def average_pool(power: float) -> OpFunction:
    """Build avg_pool (power 1: the mean of each window) or l2_pool (power 2: the root of the sum of squares)."""

    def build(call: Call) -> Kernel:
        exclude = call.flag("exclude_padding_from_average", False)

        def run(x: Tensor) -> Tensor:
            kernel, strides, pairs, overhang = _pool(call, x)
            over = [(0, more) for more in overhang]
            padded = _padded(_padded(x.pow(power), pairs), over)
            summed = _AVERAGE[len(kernel)](padded, kernel, strides) * math.prod(kernel)
            if power == 2:
                return summed.sqrt()
            # what counts as an element: the input, and the padding unless excluded; never the overhang of ceil_mode
            ones = _padded(torch.ones(1, 1, *x.shape[2:]), pairs, 0.0 if exclude else 1.0)
            counted = _AVERAGE[len(kernel)](_padded(ones, over), kernel, strides) * math.prod(kernel)
            return summed / counted

        return Kernel(("x",), run)

    return build
