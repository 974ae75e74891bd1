"""Fake quantization: values rounded to 8-bit codes and back, gradients as if nothing had happened within the range.

Jacob et al. 2018 (arXiv 1712.05877), §3: the forward pass rounds as integer kernels will; the backward pass is the
straight-through estimator, 1 inside the range and 0 where a value was clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.compress.slim.learned_ranges import LearnedRound, LearnedSpan, rounded
from edgekit.compress.slim.weight_codes import SMALLEST_SCALE, plain_layer
from edgekit.errors import DataError
from edgekit.export.tflite.plan import LOGISTIC_CODES
from edgekit.export.tflite.static import activation_codes

Observe = Callable[["ActivationCodes", Tensor], None]


class _Round(torch.autograd.Function):
    """Round to codes and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, least: int, most: int) -> Tensor:
        """Map any shape to the same shape; codes less the zero point run from `least` to `most`."""
        ctx.save_for_backward(x)
        ctx.bounds = ((least - 0.5) * scale, (most + 0.5) * scale)
        return rounded(x, scale, least, most)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Let pass what was not clipped."""
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grads[0], x, *ctx.bounds), None, None, None


class _RoundedSiLU(torch.autograd.Function):
    """x · round(256 σ(x)) / 256, with the gradient of the exact SiLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        ctx.save_for_backward(x)
        scale, zero_point = LOGISTIC_CODES
        return torch.sigmoid(x).div_(scale).round_().clamp_(0, 127 - zero_point).mul_(scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient of x · σ(x)."""
        (x,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.silu_backward(grads[0], x)
        return result


class ActivationCodes(nn.Module):
    """Round a tensor of any shape to the int8 codes of one range, and back.

    Attributes:
        name: in statistics and records.
        symmetric: the zero point is 0 and the codes are −127 to 127.
        floor: no code below this: where a SiLU reads the tensor, what is lower makes no difference.
        low, high: what the codes span.
        observer: takes what passes, instead of rounding it; None rounds.
        redundant: others have rounded this very tensor already, to the same codes.
        learned: the span in training, one for all that hold the same codes; empty where ranges are held. In a tuple, as
            it belongs to the net, in which a parameter has one name.
    """

    def __init__(self, name: str, *, symmetric: bool = False, floor: float = -np.inf) -> None:
        super().__init__()
        self.name, self.symmetric, self.floor = name, symmetric, floor
        self.low, self.high, self.scale, self.zero_point = 0.0, 0.0, 1.0, 0
        self.observer: Observe | None = None
        self.redundant = False
        self.learned: tuple[LearnedSpan, ...] = ()

    def span(self, low: float, high: float) -> None:
        """Let the codes span [low, high], low ≤ 0 ≤ high."""
        self.low, self.high = max(low, self.floor), high
        self.scale, self.zero_point = activation_codes(self.low, self.high, symmetric=self.symmetric)

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        if self.observer is not None:
            self.observer(self, x)
            return x
        if self.redundant:
            return x
        if self.learned:
            (learned,) = self.learned
            self.span(*learned.bounds())
            trained: Tensor = LearnedRound.apply(x, learned.shifts, *self._codes())
            return trained
        held: Tensor = _Round.apply(x, *self._codes())
        return held

    def _codes(self) -> tuple[float, int, int]:
        """Return the scale, and the least and the most code less the zero point."""
        least = -127 if self.symmetric else -128 - self.zero_point
        return self.scale, least, 127 - self.zero_point


class LeftFloat(nn.Module):
    """In the place of the codes of a tensor that a `mixed` file leaves float.

    Attributes:
        name: that of the codes.
        observer: is told the name and the tensor that passes.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.observer: Callable[[str, Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of any shape as it is."""
        if self.observer is not None:
            self.observer(self.name, x)
        return x


class CodedSiLU(nn.Module):
    """x · σ(x) with σ(x) rounded to 256 codes of [0, 1): LiteRT's LOGISTIC has these codes and no others.

    Attributes:
        rounded: whether to round.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded = True

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same shape."""
        if not self.rounded:
            return F.silu(x)
        y: Tensor = _RoundedSiLU.apply(x)
        return y


class RowCodes(nn.Module):
    """Round each row (B, d) to 256 codes of its own range, as a runtime does that quantizes a layer's input anew.

    Attributes:
        rounded: whether to round.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rounded = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, d) to (B, d)."""
        if not self.rounded:
            return x
        with torch.no_grad():
            low = x.amin(1, keepdim=True).clamp(max=0)
            scale = ((x.amax(1, keepdim=True).clamp(min=0) - low) / 255).clamp(min=SMALLEST_SCALE)
            zero_point = torch.round(-128 - low / scale)
            rounded = (torch.round(x / scale + zero_point).clamp(-128, 127) - zero_point) * scale
        return x + (rounded - x).detach()


def code_input(module: nn.Module, codes: nn.Module) -> None:
    """Let `module` read its first input after `codes`."""
    module.add_module("input_codes", codes)
    module.register_forward_pre_hook(_encode_input)


def code_output(module: nn.Module, codes: nn.Module) -> None:
    """Let others read the output of `module` after `codes`."""
    module.add_module("output_codes", codes)
    module.register_forward_hook(_encode_output)


# functions of the module, not closures: a deep copy (the moving average) must use its own codes
def _encode_input(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (cast(nn.Module, module.input_codes)(given[0]), *given[1:])


def _encode_output(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
    encoded: Tensor = cast(nn.Module, module.output_codes)(output)
    return encoded


def activation_points(model: nn.Module) -> list[ActivationCodes]:
    """Return the activation codes of a net, each once, in order."""
    return [module for module in model.modules() if isinstance(module, ActivationCodes)]


def learn_ranges(model: nn.Module) -> None:
    """Let the ranges of a calibrated net be trained with its weights, in place.

    Those who hold one tensor, or tensors that one operator wants in the same codes, have equal ranges from calibration
    and go on together.
    """
    spans: dict[tuple[float, float, bool], LearnedSpan] = {}
    for codes in activation_points(model):
        key = (codes.low, codes.high, codes.symmetric)
        if key not in spans:
            spans[key] = LearnedSpan(codes.low, codes.high, symmetric=codes.symmetric)
        codes.learned = (spans[key],)
    model.add_module("learned_ranges", nn.ModuleList(spans.values()))


def record_ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return what every activation's codes span, by name."""
    for codes in activation_points(model):
        for learned in codes.learned:
            codes.span(*learned.bounds())
    return {codes.name: (codes.low, codes.high) for codes in activation_points(model)}


def set_ranges(model: nn.Module, ranges: dict[str, tuple[float, float]]) -> None:
    """Let every activation's codes span a given range.

    Raises:
        DataError: an activation has none.
    """
    for codes in activation_points(model):
        if codes.name not in ranges:
            raise DataError(f"no range is known for the activation '{codes.name}'; calibrate this student")
        codes.span(*ranges[codes.name])


@torch.no_grad()
def without_codes(model: nn.Module) -> None:
    """Take the codes of weights, inputs and outputs out of `model`, in place; the exact weights stay."""
    for module in list(model.modules()):
        plain_layer(module)
        take_out(module)
    model._modules.pop("learned_ranges", None)


def take_out(module: nn.Module, *kinds: str) -> None:
    """Take the codes of its inputs and outputs out of `module`, or only "input_codes" or "output_codes"."""
    for kind, hooks in (("input_codes", module._forward_pre_hooks), ("output_codes", module._forward_hooks)):
        if kind in module._modules and kind in (kinds or (kind,)):
            del module._modules[kind]
            hooks.clear()
