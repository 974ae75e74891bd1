"""MIL operations that move, cut, join or create tensors without computing on their elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgekit.export.mil.kernel import Call, Kernel, Tensor, bounded, sizes


def reshape(call: Call) -> Kernel:
    """View x in `shape`: -1 is inferred, 0 copies the size of x counted from the right (iOS 17; same before)."""

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = sizes(shape)
        offset = x.ndim - len(wanted)
        kept = [x.shape[i + offset] if i + offset >= 0 else 1 for i in range(len(wanted))]
        return x.reshape([kept[i] if size == 0 and x.numel() else size for i, size in enumerate(wanted)])

    return Kernel(("x", "shape"), run, moves=True)


def transpose(call: Call) -> Kernel:
    """Permute the axes."""
    perm = call.ints("perm")
    return Kernel(("x",), lambda x: x.permute(perm), moves=True)


def expand_dims(call: Call) -> Kernel:
    """Insert axes of size 1 so that they stand at `axes` of the result."""
    axes = call.ints("axes")

    def run(x: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return Kernel(("x",), run, moves=True)


def squeeze(call: Call) -> Kernel:
    """Remove axes of size 1: those named, else all."""
    axes = call.ints("axes") if call.has("axes") else None

    def run(x: Tensor) -> Tensor:
        if axes is None:
            return x.squeeze()
        if any(x.shape[axis] != 1 for axis in axes):
            raise ValueError(f"axes {axes} of shape {tuple(x.shape)} are not all of size 1")
        return x.squeeze(axes)

    return Kernel(("x",), run, moves=True)


def flatten2d(call: Call) -> Kernel:
    """Reshape to 2-D: the axes before `axis`, and the rest."""
    axis = call.integer("axis", 1)
    return Kernel(("x",), lambda x: x.reshape(x.shape[: axis % x.ndim].numel(), -1), moves=True)


def concat(call: Call) -> Kernel:
    """Join along `axis`; interleaved, element i of every operand comes before element i + 1 of any."""
    axis, interleave = call.integer("axis"), call.flag("interleave", False)

    def run(*values: Tensor) -> Tensor:
        if not interleave:
            return torch.cat(values, axis)
        at = axis % values[0].ndim
        return torch.stack(values, at + 1).flatten(at, at + 1)

    return Kernel(("values",), run, moves=True)


def stack(call: Call) -> Kernel:
    """Join along a new axis."""
    axis = call.integer("axis")
    return Kernel(("values",), lambda *values: torch.stack(values, axis), moves=True)


def split(call: Call) -> Kernel:
    """Cut along `axis` into `num_splits` equal pieces or pieces of `split_sizes`."""
    axis = call.integer("axis")
    if call.has("split_sizes"):
        pieces = call.ints("split_sizes")
        return Kernel(("x",), lambda x: x.split(pieces, axis), moves=True)
    count = call.integer("num_splits")
    return Kernel(("x",), lambda x: x.split(x.shape[axis] // count, axis), moves=True)


def slice_by_index(call: Call) -> Kernel:
    """x[begin:end:stride] per axis; masks open an end, or take one element and drop the axis."""

    def run(x: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        rank = x.ndim
        stride = call.ints("stride", [1] * rank)
        open_begin, open_end, drop = (
            call.ints(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")
        )
        first, last = sizes(begin), sizes(end)
        for axis in range(rank):
            if drop[axis]:
                continue
            cut = slice(None if open_begin[axis] else first[axis], None if open_end[axis] else last[axis], stride[axis])
            x = _slice_axis(x, axis, cut)
        for axis in reversed(range(rank)):
            if drop[axis]:
                x = x.select(axis, first[axis])
        return x

    return Kernel(("x", "begin", "end"), run, moves=True)


def slice_by_size(call: Call) -> Kernel:
    """Cut `size` elements from `begin` per axis; -1 takes the rest."""

    def run(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
        for axis, (start, length) in enumerate(zip(sizes(begin), sizes(size), strict=True)):
            start %= max(x.shape[axis], 1)
            x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
        return x

    return Kernel(("x", "begin", "size"), run, moves=True)


def _slice_axis(x: Tensor, axis: int, cut: slice) -> Tensor:
    start, stop, step = cut.indices(x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, max(stop, start), step),)]
    return x.index_select(axis, torch.arange(start, stop, step))  # torch slices only forwards


def pad(call: Call) -> Kernel:
    """Pad the last axes: (before, after) for each, first axis first; constant, reflect or replicate."""
    mode = call.text("mode", "constant", ("constant", "reflect", "replicate"))
    value = call.number("constant_val", 0.0)

    def run(x: Tensor, pad: Tensor) -> Tensor:
        pairs = sizes(pad)
        count = len(pairs) // 2
        bounded([size + sum(pairs[2 * i : 2 * i + 2]) for i, size in enumerate(x.shape[x.ndim - count :])])
        if mode == "constant":
            backwards = [amount for i in reversed(range(count)) for amount in pairs[2 * i : 2 * i + 2]]
            return F.pad(x, backwards, value=value)
        for i in range(count):
            x = _extend(x, x.ndim - count + i, pairs[2 * i], pairs[2 * i + 1], reflect=mode == "reflect")
        return x

    return Kernel(("x", "pad"), run, moves=True)


def _extend(x: Tensor, axis: int, before: int, after: int, *, reflect: bool) -> Tensor:
    """Pad one axis by index: F.pad reflects only the last axes of some ranks."""
    size = x.shape[axis]
    if reflect and max(before, after) >= size:
        raise ValueError(f"cannot reflect {max(before, after)} elements of an axis of {size}")
    index = torch.arange(-before, size + after)
    if reflect:
        index = (size - 1) - (index.abs() - (size - 1)).abs()
    return x.index_select(axis, index.clamp(0, size - 1))


def tile(call: Call) -> Kernel:
    """Repeat along each axis."""

    def run(x: Tensor, reps: Tensor) -> Tensor:
        times = sizes(reps)
        bounded([size * count for size, count in zip(x.shape, times, strict=True)])
        return x.repeat(times)

    return Kernel(("x", "reps"), run, moves=True)


def reverse(call: Call) -> Kernel:
    """Reverse along axes; along all by default."""
    axes = call.ints("axes") if call.has("axes") else None
    return Kernel(("x",), lambda x: x.flip(list(range(x.ndim)) if axes is None else axes), moves=True)


def shape(call: Call) -> Kernel:
    """Give the shape as a 1-D integer tensor."""
    return Kernel(("x",), lambda x: torch.tensor(x.shape, dtype=torch.int32), moves=True)


def fill(call: Call) -> Kernel:
    """Make a tensor of `shape` full of `value`."""
    value = call.number("value", 0.0)
    return Kernel(("shape",), lambda shape: torch.full(bounded(sizes(shape)), value, dtype=torch.float64), moves=True)


def fill_like(call: Call) -> Kernel:
    """Make a tensor of the reference's shape full of `value`."""
    value = call.number("value", 0.0)
    return Kernel(("ref_tensor",), lambda ref: torch.full(ref.shape, value, dtype=torch.float64), moves=True)


def range_1d(call: Call) -> Kernel:
    """Count from start to before end by step."""

    def run(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
        first, last, by = start.item(), end.item(), step.item()
        bounded([max(0, int((last - first) / by))])
        return torch.arange(first, last, by)

    return Kernel(("start", "end", "step"), run)


def one_hot(call: Call) -> Kernel:
    """Put `on_value` at each index along a new axis, `off_value` elsewhere; an index outside gives no `on_value`."""
    axis, on, off = call.integer("axis", -1), call.number("on_value", 1.0), call.number("off_value", 0.0)

    def run(indices: Tensor, size: Tensor) -> Tensor:
        count = int(size.item())
        bounded([*indices.shape, count])
        hot = indices.unsqueeze(-1) == torch.arange(count)
        at = axis % (indices.ndim + 1)
        return torch.where(hot, torch.tensor(on, dtype=torch.float64), off).movedim(-1, at)

    return Kernel(("indices", "one_hot_vector_size"), run)


def band_part(call: Call) -> Kernel:
    """Keep `lower` diagonals below and `upper` above the main one of the last two axes; -1 keeps all."""
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)

    def run(x: Tensor) -> Tensor:
        below = x if lower < 0 else x.triu(-lower)
        return below if upper < 0 else below.tril(upper)

    return Kernel(("x",), run, moves=True)


def depth_to_space(call: Call) -> Kernel:
    """(N, b*b*C, H, W) -> (N, C, b*H, b*W); the block is the outer part of the channels (TensorFlow's DCR order)."""
    block = call.integer("block_size")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, block, block, c // block**2, h, w)
        return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block**2, h * block, w * block)

    return Kernel(("x",), run, moves=True)


def space_to_depth(call: Call) -> Kernel:
    """(N, C, b*H, b*W) -> (N, b*b*C, H, W); the block becomes the outer part of the channels."""
    block = call.integer("block_size")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // block, block, w // block, block)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block**2, h // block, w // block)

    return Kernel(("x",), run, moves=True)


def pixel_shuffle(call: Call) -> Kernel:
    """(N, C*f*f, H, W) -> (N, C, f*H, f*W); the block is the inner part of the channels (PyTorch's order)."""
    factor = call.integer("upscale_factor")
    return Kernel(("x",), lambda x: F.pixel_shuffle(x, factor), moves=True)


def pixel_unshuffle(call: Call) -> Kernel:
    """(N, C, f*H, f*W) -> (N, C*f*f, H, W); the inverse of pixel_shuffle."""
    factor = call.integer("downscale_factor")
    return Kernel(("x",), lambda x: F.pixel_unshuffle(x, factor), moves=True)
