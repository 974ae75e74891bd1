"""MIL operations on compressed weights (constexpr_*) and on quantized activations (quantize, dequantize).

The constexpr operations exist in an iOS 16 form, packed vectors with a separate shape, and an iOS 18 form, typed
sub-byte tensors with blocks; both are here under the one name. All have constant operands, so the executor runs them
once, when a program is loaded.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from edgekit.export.mil.blob import unpack_bits
from edgekit.export.mil.kernel import Call, Kernel, Tensor, bounded


def affine_dequantize(call: Call) -> Kernel:
    """Give scale (data - zero_point), per tensor or along `axis` (iOS 16)."""
    axis = call.integer("axis")

    def run(data: Tensor, zero_point: Tensor, scale: Tensor) -> Tensor:
        return (data.float() - along(zero_point, data, axis)) * along(scale, data, axis)

    return Kernel(("quantized_data", "zero_point", "scale"), run)


def blockwise_shift_scale(call: Call) -> Kernel:
    """Give scale (data - offset) for each block; the block sizes are data.shape / scale.shape (iOS 18)."""
    return Kernel(("data", "scale", "offset"), _shift_scale)


def sparse_blockwise_shift_scale(call: Call) -> Kernel:
    """Shift and scale only the non-zero elements; give the mask and the non-zero elements (iOS 18)."""

    def run(mask: Tensor, nonzero: Tensor, scale: Tensor, offset: Tensor | None) -> list[Tensor]:
        dense = _shift_scale(_scattered(nonzero, mask), scale, offset)
        return [mask, dense[mask != 0]]

    return Kernel(("data_mask", "nonzero_data", "scale", "offset"), run)


def lut_to_dense(call: Call) -> Kernel:
    """Look weights up in a palette: iOS 16 with packed indices and a `shape`, iOS 18 with a palette per block."""
    if call.has("shape"):
        shape = tuple(bounded(call.ints("shape")))

        def unpack(indices: Tensor, lut: Tensor) -> Tensor:
            bits = int(math.log2(lut.numel()))
            flat = torch.from_numpy(unpack_bits(indices.numpy(), bits, math.prod(shape)))
            return lut[flat.long()].reshape(shape)

        return Kernel(("indices", "lut"), unpack, moves=True)
    axis = call.integer("vector_axis", -1)
    return Kernel(("indices", "lut"), lambda indices, lut: _look_up(indices, lut, axis), moves=True)


def lut_to_sparse(call: Call) -> Kernel:
    """Look only the non-zero elements up; give the mask, widened for vectors, and the elements (iOS 18)."""
    axis = call.integer("vector_axis", -1)

    def run(mask: Tensor, nonzero: Tensor, lut: Tensor) -> list[Tensor]:
        dense = _look_up(_scattered(nonzero, mask), lut, axis)
        wide = mask.repeat_interleave(lut.shape[-1], axis) if lut.shape[-1] > 1 else mask
        return [wide, dense[wide != 0]]

    return Kernel(("indices_mask", "indices_nonzero_data", "lut"), run, moves=True)


def sparse_to_dense(call: Call) -> Kernel:
    """Put non-zero elements where the mask has a bit: iOS 16 a packed mask and a `shape`, iOS 18 a mask tensor."""
    if not call.has("shape"):
        return Kernel(("nonzero_data", "mask"), _scattered, moves=True)
    shape = tuple(bounded(call.ints("shape")))

    def run(nonzero: Tensor, mask: Tensor) -> Tensor:
        bits = np.asarray(unpack_bits(mask.numpy(), 1, math.prod(shape)))
        return _scattered(nonzero, torch.from_numpy(bits).reshape(shape))

    return Kernel(("nonzero_data", "mask"), run, moves=True)


def constexpr_cast(call: Call) -> Kernel:
    """Widen stored fp16 weights to fp32."""
    return Kernel(("source_val",), lambda source: source, moves=True)


def quantize(call: Call) -> Kernel:
    """Give clip(round(input / scale) + zero_point) to int8 or uint8; halves round to even."""
    axis = call.integer("axis", 0)
    unsigned = call.text("output_dtype", allowed=("int8", "uint8")) == "uint8"
    low, high, dtype = (0, 255, torch.uint8) if unsigned else (-128, 127, torch.int8)

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        steps = torch.round(x / along(scale, x, axis))
        if zero_point is not None:
            steps = steps + along(zero_point, x, axis)
        return steps.clamp(low, high).to(dtype)

    return Kernel(("input", "scale", "zero_point"), run, moves=True)


def dequantize(call: Call) -> Kernel:
    """Give scale (input - zero_point)."""
    axis = call.integer("axis", 0)

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
        steps = x.float() if zero_point is None else x.float() - along(zero_point, x, axis)
        return steps * along(scale, x, axis)

    return Kernel(("input", "scale", "zero_point"), run)


def along(values: Tensor, data: Tensor, axis: int) -> Tensor:
    """Return a scalar, or a vector shaped to broadcast along one axis of `data`, in float32."""
    if values.ndim == 0:
        return values.float()
    shape = [1] * data.ndim
    shape[axis] = -1
    return values.float().reshape(shape)


def _shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    # view every axis as (blocks, block size) so that one scale meets its whole block
    blocks = [n for pair in zip(scale.shape, _block_sizes(data, scale), strict=True) for n in pair]
    per_block = [n for size in scale.shape for n in (size, 1)]
    values = data.float().reshape(blocks)
    if offset is not None:
        values = values - offset.float().reshape(per_block)
    return (values * scale.reshape(per_block)).reshape(data.shape)


def _block_sizes(data: Tensor, blocks: Tensor) -> list[int]:
    if any(size % count for size, count in zip(data.shape, blocks.shape, strict=True)):
        raise ValueError(f"blocks {tuple(blocks.shape)} do not divide the shape {tuple(data.shape)}")
    return [size // count for size, count in zip(data.shape, blocks.shape, strict=True)]


def _look_up(indices: Tensor, lut: Tensor, vector_axis: int) -> Tensor:
    """Look up with one palette per block. lut: (*blocks, palettes, vector size); indices: any shape it divides."""
    blocks, palettes, width = lut.shape[:-2], lut.shape[-2], lut.shape[-1]
    if len(blocks) != indices.ndim:
        raise ValueError(f"a palette of shape {tuple(lut.shape)} does not fit indices of {indices.ndim} axes")
    number = torch.arange(blocks.numel()).reshape(blocks)
    for axis, size in enumerate(_block_sizes(indices, number)):
        number = number.repeat_interleave(size, axis)
    found = lut.reshape(-1, width)[number * palettes + indices.long()]
    if width == 1:
        return found.squeeze(-1)
    at = vector_axis % indices.ndim
    return found.movedim(-1, at + 1).flatten(at, at + 1)


def _scattered(nonzero: Tensor, mask: Tensor) -> Tensor:
    chosen = mask != 0
    if int(chosen.sum()) != nonzero.numel():
        raise ValueError(f"the mask has {int(chosen.sum())} bits for {nonzero.numel()} values")
    dense = torch.zeros(mask.shape, dtype=nonzero.dtype)
    dense[chosen] = nonzero.reshape(-1)
    return dense
