"""The same layers computed faster while training: other kernels and other layouts, weights and names untouched.

Two things cost a MobileViT a quarter of its step on a CPU (LOG.md, "Training steps"). PyTorch multiplies float32
matrices by MKL, which takes its slow path on processors that are not Intel's, while oneDNN, which computes the
convolutions, does not. And timm's unfold and fold move every element three times where once is enough.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn
from torch.nn import functional as F


def use_fast_layers(model: nn.Module) -> None:
    """Let the layers of `model` that are known here compute by faster ways; in place.

    Only classes change, so that names, weights, checkpoints, and whoever holds a layer stay as they are.
    """
    for module in model.modules():
        fast = _FAST.get(type(module))
        if fast is not None and (fast is not FastLinear or has_onednn()):
            module.__class__ = fast


def use_own_layers(model: nn.Module) -> None:
    """Undo `use_fast_layers`, in place: who prunes a net or rounds it knows layers by their classes."""
    own = {fast: module for module, fast in _FAST.items()}
    for module in model.modules():
        module.__class__ = own.get(type(module), type(module))


def has_onednn() -> bool:
    """Return whether this PyTorch can multiply matrices by oneDNN."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class FastLinear(nn.Linear):
    """A linear layer by oneDNN, forward and backward, where it computes in float32 on a CPU; else as it was."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not on_cpu or not x.numel() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(x)
        y: Tensor = _OneDnnLinear.apply(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return y.view(*x.shape[:-1], len(self.weight))


class _OneDnnLinear(torch.autograd.Function):
    """x Wᵀ + b, its gradients as products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map x (n, in), weight (out, in) and bias (out,) to (n, out)."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Map the gradient of the result (n, out) to those of x, weight and bias."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t().contiguous()) if wants_x else None,
            _product(grad.t(), x.t()) if wants_weight else None,
            grad.sum(0) if wants_bias else None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a bᵀ + bias for a (m, k) and b (n, k)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


class FastMobileVitBlock(MobileVitBlock):  # type: ignore[misc]
    """timm's block with an unfold and a fold that move every element once, pixels' channels staying together."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        shortcut = x
        x = self.conv_1x1(self.conv_kxk(x))
        height, width = x.shape[2:]
        even = _even((height, width), self.patch_size)
        if even != (height, width):
            x = F.interpolate(x, size=even, mode="bilinear", align_corners=False)
        tokens = _unfold(x, self.patch_size).flatten(0, 1)
        tokens = self.norm(self.transformer(tokens))
        x = _fold(tokens.unflatten(0, (len(x), -1)), even, self.patch_size)
        if even != (height, width):
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        x = self.conv_proj(x)
        if self.conv_fusion is not None:
            x = self.conv_fusion(torch.cat((shortcut, x), dim=1))
        return x


class FastMobileVitV2Block(MobileVitV2Block):  # type: ignore[misc]
    """timm's block of version 2, unfolded and folded as `FastMobileVitBlock` does it."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W'), of sides that the patch divides."""
        even = _even((x.shape[2], x.shape[3]), self.patch_size)
        if even != (x.shape[2], x.shape[3]):
            x = F.interpolate(x, size=even, mode="bilinear", align_corners=True)
        x = self.conv_1x1(self.conv_kxk(x))
        even = (x.shape[2], x.shape[3])
        tokens = _unfold(x, self.patch_size).permute(0, 3, 1, 2)  # (B, C, P, N), channels last in memory
        tokens = self.norm(self.transformer(tokens))
        y: Tensor = self.conv_proj(_fold(tokens.permute(0, 2, 3, 1), even, self.patch_size))
        return y


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FastLinear,
    MobileVitBlock: FastMobileVitBlock,
    MobileVitV2Block: FastMobileVitV2Block,
}


def _even(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Return the sides rounded up to whole patches."""
    return math.ceil(size[0] / patch[0]) * patch[0], math.ceil(size[1] / patch[1]) * patch[1]


def _unfold(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Map (B, C, H, W) to tokens (B, P, N, C): N patches, of whose P places each is a sequence."""
    batch, channels, height, width = x.shape
    rows, columns = height // patch[0], width // patch[1]
    tokens = x.permute(0, 2, 3, 1).reshape(batch, rows, patch[0], columns, patch[1], channels)
    return tokens.permute(0, 2, 4, 1, 3, 5).reshape(batch, patch[0] * patch[1], rows * columns, channels)


def _fold(tokens: Tensor, size: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Map tokens (B, P, N, C) back to (B, C, H, W), channels last in memory."""
    batch, channels = len(tokens), tokens.shape[-1]
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    pixels = tokens.reshape(batch, *patch, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    return pixels.reshape(batch, *size, channels).permute(0, 3, 1, 2)
