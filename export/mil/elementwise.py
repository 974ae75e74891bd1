"""MIL operations that work element by element, and reductions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from edgekit.export.mil.kernel import Call, Kernel, OpFunction, Tensor

_NO_EPSILON = 1e-45  # MIL's default for log: the smallest float32


def unary(function: Callable[[Tensor], Tensor]) -> OpFunction:
    """Give function(x)."""
    return lambda call: Kernel(("x",), function)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> OpFunction:
    """Give function(x, y), broadcast."""
    return lambda call: Kernel(("x", "y"), function)


def shifted(function: Callable[[Tensor], Tensor], epsilon: float = _NO_EPSILON) -> OpFunction:
    """Give function(x + epsilon), with the operation's own default for epsilon."""

    def build(call: Call) -> Kernel:
        shift = call.number("epsilon", epsilon)
        return Kernel(("x",), lambda x: function(x + shift))

    return build


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x). F.softplus turns linear above 20, this does not."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def clip(call: Call) -> Kernel:
    """Give min(max(x, alpha), beta)."""
    low, high = call.number("alpha"), call.number("beta")
    return Kernel(("x",), lambda x: x.clamp(low, high))


def threshold(call: Call) -> Kernel:
    """Give max(x, alpha)."""
    low = call.number("alpha")
    return Kernel(("x",), lambda x: x.clamp(min=low))


def clamped_relu(call: Call) -> Kernel:
    """Give min(beta, x) where x >= 0, min(beta, alpha x) elsewhere."""
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(("x",), lambda x: torch.where(x >= 0, x, alpha * x).clamp(max=beta))


def elu(call: Call) -> Kernel:
    """Give x where x > 0, alpha (e^x - 1) elsewhere."""
    alpha = call.number("alpha")
    return Kernel(("x",), lambda x: torch.where(x > 0, x, alpha * torch.expm1(x)))


def gelu(call: Call) -> Kernel:
    """Give 0.5 x (1 + erf(x / sqrt 2)), or its tanh or sigmoid approximation."""
    mode = call.text("mode", "EXACT", ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"))
    if mode == "SIGMOID_APPROXIMATION":
        return Kernel(("x",), lambda x: x * torch.sigmoid(1.702 * x))
    approximate = "tanh" if mode == "TANH_APPROXIMATION" else "none"
    return Kernel(("x",), lambda x: F.gelu(x, approximate=approximate))


def leaky_relu(call: Call) -> Kernel:
    """Give x where x >= 0, alpha x elsewhere."""
    alpha = call.number("alpha")
    return Kernel(("x",), lambda x: torch.where(x >= 0, x, alpha * x))


def linear_activation(call: Call) -> Kernel:
    """Give alpha x + beta."""
    alpha, beta = call.number("alpha"), call.number("beta", 0.0)
    return Kernel(("x",), lambda x: alpha * x + beta)


def prelu(call: Call) -> Kernel:
    """Give x where x >= 0, alpha_c x elsewhere; one alpha per channel (axis 1)."""
    return Kernel(("x", "alpha"), lambda x, alpha: torch.where(x >= 0, x, _per_channel(alpha, x) * x))


def scaled_tanh(call: Call) -> Kernel:
    """Give alpha tanh(beta x)."""
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(("x",), lambda x: alpha * torch.tanh(beta * x))


def sigmoid_hard(call: Call) -> Kernel:
    """Give min(max(alpha x + beta, 0), 1)."""
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(("x",), lambda x: (alpha * x + beta).clamp(0.0, 1.0))


def softplus_parametric(call: Call) -> Kernel:
    """Give alpha_c log(1 + e^(beta_c x)); one pair per channel (axis 1)."""
    return Kernel(
        ("x", "alpha", "beta"), lambda x, alpha, beta: _per_channel(alpha, x) * softplus(x * _per_channel(beta, x))
    )


def thresholded_relu(call: Call) -> Kernel:
    """Give x where x >= alpha, 0 elsewhere."""
    alpha = call.number("alpha")
    return Kernel(("x",), lambda x: torch.where(x >= alpha, x, torch.zeros((), dtype=x.dtype)))


def select(call: Call) -> Kernel:
    """Give a where cond, b elsewhere, broadcast."""
    return Kernel(("cond", "a", "b"), lambda cond, a, b: torch.where(cond.bool(), a, b), moves=True)


def softmax(call: Call) -> Kernel:
    """Give e^x / sum(e^x) along `axis`."""
    axis = call.integer("axis", -1)
    return Kernel(("x",), lambda x: torch.softmax(x, axis))


def reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> OpFunction:
    """Give function(x, axes, keep_dims); all axes by default."""

    def build(call: Call) -> Kernel:
        keep = call.flag("keep_dims", False)
        axes = call.ints("axes") if call.has("axes") else None
        return Kernel(("x",), lambda x: function(x, list(range(x.ndim)) if axes is None else axes, keep))

    return build


def reduce_arg(function: Callable[[Tensor, int, bool], Tensor]) -> OpFunction:
    """Give function(x, axis, keep_dims): the index of an extremum along one axis; the first of equals."""

    def build(call: Call) -> Kernel:
        axis, keep = call.integer("axis", -1), call.flag("keep_dims", False)
        return Kernel(("x",), lambda x: function(x, axis, keep))

    return build


def total(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return the sum over axes."""
    return x.sum(axes, keepdim=keep)


def mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return the mean over axes."""
    return x.mean(axes, keepdim=keep)


def highest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return the maximum over axes."""
    return x.amax(axes, keepdim=keep)


def lowest(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return the minimum over axes."""
    return x.amin(axes, keepdim=keep)


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return the product over axes."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Return log(sum(e^x)) over axes."""
    return torch.logsumexp(x, axes, keepdim=keep)


def cumsum(call: Call) -> Kernel:
    """Sum up along `axis`; exclusive starts from 0, reverse runs from the end."""
    axis = call.integer("axis", 0)
    exclusive, reverse = call.flag("exclusive", False), call.flag("reverse", False)

    def run(x: Tensor) -> Tensor:
        turned = x.flip(axis) if reverse else x
        summed = turned.cumsum(axis)
        if exclusive:
            summed = summed - turned
        return summed.flip(axis) if reverse else summed

    return Kernel(("x",), run)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))
