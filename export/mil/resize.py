"""MIL operations that change the resolution, each by the grid that MIL defines for its sampling mode.

For an axis of n elements resized to m, output i reads the input at a real coordinate g(i), clamped to [0, n-1]:
    STRICT_ALIGN_CORNERS  i (n-1)/(m-1);                ALIGN_CORNERS the same, (n-1)/2 when m = 1
    DEFAULT               i (n - n/m)/(m-1)             (= i n/m)
    OFFSET_CORNERS        (i + 1/2) max(1, n-1)/m
    UNALIGN_CORNERS       (i + 1/2) n/m - 1/2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from edgekit.export.mil.kernel import Call, Kernel, Tensor, bounded


def _strict(i: Tensor, n: int, m: int) -> Tensor:
    return i * (n - 1) / max(m - 1, 1)


def _aligned(i: Tensor, n: int, m: int) -> Tensor:
    return _strict(i, n, m) if m > 1 else torch.full_like(i, (n - 1) / 2)


def _default(i: Tensor, n: int, m: int) -> Tensor:
    return i * n / m


def _offset(i: Tensor, n: int, m: int) -> Tensor:
    return (i + 0.5) * max(1, n - 1) / m


def _unaligned(i: Tensor, n: int, m: int) -> Tensor:
    return (i + 0.5) * n / m - 0.5


GRIDS: Mapping[str, Callable[[Tensor, int, int], Tensor]] = {
    "STRICT_ALIGN_CORNERS": _strict,
    "ALIGN_CORNERS": _aligned,
    "DEFAULT": _default,
    "OFFSET_CORNERS": _offset,
    "UNALIGN_CORNERS": _unaligned,
}


def resize_bilinear(call: Call) -> Kernel:
    """Resize the last two axes to a target size, linearly."""
    target = call.integer("target_size_height", 1), call.integer("target_size_width", 1)
    mode = call.text("sampling_mode", "DEFAULT", tuple(GRIDS))
    return Kernel(("x",), lambda x: _linear(x, target, mode))


def upsample_bilinear(call: Call) -> Kernel:
    """Scale the last two axes, linearly; the grid follows the sizes, not the factors."""
    factors = call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)
    mode = "STRICT_ALIGN_CORNERS" if call.flag("align_corners", True) else "UNALIGN_CORNERS"
    return Kernel(("x",), lambda x: _linear(x, _scaled(x, factors), mode))


def resize_nearest(call: Call) -> Kernel:
    """Resize the last two axes to a target size: output i copies input floor(i n/m)."""
    target = call.integer("target_size_height"), call.integer("target_size_width")
    return Kernel(("x",), lambda x: _nearest(x, target), moves=True)


def upsample_nearest(call: Call) -> Kernel:
    """Scale the last two axes: output i copies input floor(i n/m)."""
    factors = call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)
    return Kernel(("x",), lambda x: _nearest(x, _scaled(x, factors)), moves=True)


def _scaled(x: Tensor, factors: tuple[float, float]) -> tuple[int, int]:
    return math.floor(x.shape[-2] * factors[0]), math.floor(x.shape[-1] * factors[1])


def _linear(x: Tensor, target: tuple[int, int], mode: str) -> Tensor:
    bounded([*x.shape[:-2], *target])
    for axis, m in zip((x.ndim - 2, x.ndim - 1), target, strict=True):
        n = x.shape[axis]
        grid = GRIDS[mode](torch.arange(m, dtype=torch.float64), n, m).clamp(0, n - 1)
        low = grid.floor().long()
        weight = (grid - low).float().reshape([m if a == axis else 1 for a in range(x.ndim)])
        below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=n - 1))
        x = below + (above - below) * weight
    return x


def _nearest(x: Tensor, target: tuple[int, int]) -> Tensor:
    bounded([*x.shape[:-2], *target])
    for axis, m in zip((x.ndim - 2, x.ndim - 1), target, strict=True):
        x = x.index_select(axis, torch.arange(m) * x.shape[axis] // m)
    return x
