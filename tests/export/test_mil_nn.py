"""MIL operations of neural networks, each against its definition written out naively."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_for_tests import assert_same, ct, floats, inferred, interpreted, mb

few = settings(max_examples=8, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
Pairs = list[tuple[int, int]]


def naive_padding(kind: str, custom: Pairs, sizes: list[int], extents: list[int], strides: list[int]) -> Pairs:
    """Padding as TensorFlow defines SAME: ceil(size / stride) outputs, an odd element after (or before: same_lower)."""
    if kind in ("valid", "custom"):
        return custom if kind == "custom" else [(0, 0)] * len(sizes)
    totals = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, extents, strides, strict=True)]
    halves = [(t // 2, t - t // 2) for t in totals]
    return halves if kind == "same" else [(b, a) for a, b in halves]


def windows(padded: np.ndarray, kernel: list[int], strides: list[int], dilations: list[int]) -> np.ndarray:
    """Cut (N, C, *D) into (N, C, *outputs, *kernel) by loops."""
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    outs = [(n - e) // s + 1 for n, e, s in zip(padded.shape[2:], extents, strides, strict=True)]
    cut = np.empty((*padded.shape[:2], *outs, *kernel))
    for at in itertools.product(*map(range, outs)):
        index = tuple(slice(i * s, i * s + e, d) for i, s, e, d in zip(at, strides, extents, dilations, strict=True))
        cut[(slice(None), slice(None), *at)] = padded[(slice(None), slice(None), *index)]
    return cut


def draw_spatial(data: st.DataObject, rank: int) -> tuple[list[int], list[int], list[int], Pairs]:
    """Draw sizes, kernel, strides and a custom padding smaller than the kernel."""
    sizes = [data.draw(st.integers(5, 8)) for _ in range(rank)]
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    strides = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    return (
        sizes,
        kernel,
        strides,
        [(data.draw(st.integers(0, k - 1)), data.draw(st.integers(0, k - 1))) for k in kernel],
    )


@pytest.mark.parametrize("kind", ["valid", "same", "same_lower", "custom"])
@few
@given(seed=seeds, data=st.data(), rank=st.integers(1, 2), groups=st.sampled_from([1, 2]), bias=st.booleans())
def test_convolution(kind: str, seed: int, data: st.DataObject, rank: int, groups: int, bias: bool) -> None:
    sizes, kernel, strides, custom = draw_spatial(data, rank)
    dilations = [data.draw(st.integers(1, 2)) for _ in range(rank)]
    x, w = floats([2, 4, *sizes], seed), floats([6, 4 // groups, *kernel], seed + 1)
    b = floats([6], seed + 2)
    got = interpreted(
        lambda a: mb.conv(
            x=a, weight=w, strides=strides, pad_type=kind, dilations=dilations, groups=groups,
            **({"bias": b} if bias else {}), **({"pad": np.ravel(custom)} if kind == "custom" else {}),
        ),
        x,
    )[0]  # fmt: skip
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pairs = naive_padding(kind, custom, sizes, extents, strides)
    cut = windows(np.pad(x, [(0, 0), (0, 0), *pairs]), kernel, strides, dilations)
    halves = []
    for g in range(groups):
        mine = cut[:, g * 4 // groups : (g + 1) * 4 // groups]
        weights = w[g * 6 // groups : (g + 1) * 6 // groups].astype(np.float64)
        axes = [1, *range(2 + rank, 2 + 2 * rank)]
        halves.append(np.moveaxis(np.tensordot(mine, weights, (axes, list(range(1, 2 + rank)))), -1, 1))
    want = np.concatenate(halves, 1) + (b.reshape(-1, *[1] * rank) if bias else 0)
    assert_same(got, want, 1e-4)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["valid", "custom"])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_scatters_each_input(rank: int, kind: str, groups: int) -> None:
    x, w = floats([1, 4, *[4] * rank], 1), floats([4, 6 // groups, *[3] * rank], 2)
    pad = [1, 0] * rank if kind == "custom" else [0, 0] * rank
    got = interpreted(
        lambda a: mb.conv_transpose(
            x=a,
            weight=w,
            strides=[2] * rank,
            pad_type=kind,
            groups=groups,
            **({"pad": pad} if kind == "custom" else {}),
        ),
        x,
    )[0]
    full = np.zeros((1, 6, *[(4 - 1) * 2 + 3] * rank))
    for at in itertools.product(range(4), repeat=rank):
        window = tuple(slice(i * 2, i * 2 + 3) for i in at)
        for c in range(4):
            group = c // (4 // groups)
            outs = slice(group * 6 // groups, (group + 1) * 6 // groups)
            full[(0, outs, *window)] += x[(0, c, *at)] * w[c]
    cut = (slice(None), slice(None), *[slice(pad[0], full.shape[2] - pad[1])] * rank)
    assert_same(got, full[cut], 1e-4)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool", "l2_pool"])
@pytest.mark.parametrize("kind", ["valid", "same", "same_lower", "custom"])
@few
@given(seed=seeds, data=st.data(), rank=st.integers(1, 2), exclude=st.booleans())
def test_pooling(name: str, kind: str, seed: int, data: st.DataObject, rank: int, exclude: bool) -> None:
    sizes, kernel, strides, custom = draw_spatial(data, rank)
    x = floats([1, 2, *sizes], seed)
    extra = {"exclude_padding_from_average": exclude} if name == "avg_pool" else {}
    extra |= {"pad": np.ravel(custom).astype(np.int32)} if kind == "custom" else {}
    got = interpreted(
        lambda a: getattr(mb, name)(x=a, kernel_sizes=kernel, strides=strides, pad_type=kind, **extra), x
    )[0]
    pairs = [(0, 0), (0, 0), *naive_padding(kind, custom, sizes, kernel, strides)]
    axes = tuple(range(2 + rank, 2 + 2 * rank))
    cut = lambda a, fill: windows(np.pad(a, pairs, constant_values=fill), kernel, strides, [1] * rank)  # noqa: E731
    if name == "max_pool":
        want = cut(x, -np.inf).max(axes)
    elif name == "l2_pool":
        want = np.sqrt((cut(x, 0).astype(np.float64) ** 2).sum(axes))
    else:
        want = cut(x, 0).sum(axes) / cut(np.ones_like(x), 0 if exclude else 1).sum(axes)
    assert_same(got, want)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_ceil_mode_is_pytorchs(name: str, pad: int, size: int) -> None:
    import torch.nn.functional as F
    from torch import from_numpy

    x = floats([1, 2, size, size], size)
    got = interpreted(
        lambda a: getattr(mb, name)(
            x=a, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[pad] * 4, ceil_mode=True
        ),
        x,
    )[0]
    pool = {"max_pool": F.max_pool2d, "avg_pool": F.avg_pool2d}[name]
    assert_same(got, pool(from_numpy(x), 3, 2, pad, ceil_mode=True).numpy())


@few
@given(seed=seeds, data=st.data(), batch=st.lists(st.integers(1, 3), max_size=2))
def test_matrix_products(seed: int, data: st.DataObject, batch: list[int]) -> None:
    turn_x, turn_y = data.draw(st.booleans()), data.draw(st.booleans())
    x = floats([*batch, *((3, 4) if turn_x else (4, 3))], seed)
    y = floats([*(batch[1:] if data.draw(st.booleans()) else batch), *((5, 3) if turn_y else (3, 5))], seed + 1)
    got = interpreted(lambda a, b: mb.matmul(x=a, y=b, transpose_x=turn_x, transpose_y=turn_y), x, y)[0]
    want = (np.swapaxes(x, -1, -2) if turn_x else x) @ (np.swapaxes(y, -1, -2) if turn_y else y)
    assert_same(got, want)
    w, b = floats([6, x.shape[-1]], seed + 2), floats([6], seed + 3)
    assert_same(interpreted(lambda a: mb.linear(x=a, weight=w, bias=b), x)[0], x @ w.T + b)


def test_einsum() -> None:
    x, y = floats((2, 3, 4, 5), 1), floats((2, 5, 4, 6), 2)
    got = interpreted(lambda a, b: mb.einsum(values=[a, b], equation="nchw,nwhu->nchu"), x, y)[0]
    assert_same(got, np.einsum("nchw,nwhu->nchu", x, y))


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_attention(mask: str) -> None:
    q, k, v = floats((2, 3, 5, 4), 1), floats((2, 3, 6, 4), 2), floats((2, 3, 6, 7), 3)
    allowed = np.random.default_rng(4).random((5, 6)) < 0.7
    allowed[:, 0] = True
    added = {"none": np.zeros((5, 6)), "float": floats((5, 6), 5), "bool": np.where(allowed, 0, -np.inf)}[mask]
    given_mask = {"none": {}, "float": {"attn_mask": added.astype(np.float32)}, "bool": {"attn_mask": allowed}}[mask]
    got = interpreted(
        lambda a, b, c: mb.scaled_dot_product_attention(query=a, key=b, value=c, **given_mask),
        q, k, v, target=ct.target.iOS18,
    )[0]  # fmt: skip
    scores = q.astype(np.float64) @ np.swapaxes(k, -1, -2) / np.sqrt(4) + added
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    assert_same(got, weights / weights.sum(-1, keepdims=True) @ v)


@few
@given(seed=seeds, data=st.data(), shape=st.lists(st.integers(2, 4), min_size=1, max_size=4), affine=st.booleans())
def test_layer_norm_over_any_axes(seed: int, data: st.DataObject, shape: list[int], affine: bool) -> None:
    axes = sorted(data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True)))
    normalised = [shape[axis] for axis in axes]
    extra = {"gamma": floats(normalised, seed + 1), "beta": floats(normalised, seed + 2)} if affine else {}
    build = lambda a: mb.layer_norm(x=a, axes=axes, epsilon=np.float32(1e-3), **extra)  # noqa: E731
    x = floats(shape, seed)
    assert_same(interpreted(build, x)[0], inferred(build, x)[0])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
def test_batch_and_instance_norm(affine: bool, shape: tuple[int, ...]) -> None:
    x, epsilon = floats(shape, 1), np.float32(1e-2)
    gamma, beta, mean, variance = (floats((3,), seed, 0.5, 1.5) for seed in range(4))
    extra = {"gamma": gamma, "beta": beta} if affine else {}
    column = (3, *[1] * (len(shape) - 2))
    scale, shift = (gamma.reshape(column), beta.reshape(column)) if affine else (1.0, 0.0)
    got = interpreted(lambda a: mb.batch_norm(x=a, mean=mean, variance=variance, epsilon=epsilon, **extra), x)[0]
    centred = (x - mean.reshape(column)) / np.sqrt(variance.reshape(column) + epsilon)
    assert_same(got, centred * scale + shift)
    axes = tuple(range(2, len(shape)))
    got = interpreted(lambda a: mb.instance_norm(x=a, epsilon=epsilon, **extra), x)[0]
    centred = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    assert_same(got, centred * scale + shift)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 3, 4), (2, 1, 2, 3, 4)])
def test_l2_norm_covers_the_last_three_axes(shape: tuple[int, ...]) -> None:
    build = lambda a: mb.l2_norm(x=a, epsilon=np.float32(0.1))  # noqa: E731
    x = floats(shape, 3)
    assert_same(interpreted(build, x)[0], inferred(build, x)[0])


def grid_point(mode: str, i: int, n: int, m: int) -> float:
    """Where output i of m reads an axis of n: the formulas of MIL's page on resize_bilinear, as they stand there."""
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if m == 1:
            return (n - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0
        point = i * (n - 1) / (m - 1)
    elif mode == "DEFAULT":
        point = i * (n - n / m) / (m - 1) if m > 1 else 0.0
    elif mode == "OFFSET_CORNERS":
        delta = max(1, n - 1) / m
        point = 0.5 * delta + i * delta
    else:
        point = i * n / m + 0.5 * n / m - 0.5
    return min(n - 1.0, max(0.0, point))


def naive_linear(x: np.ndarray, target: tuple[int, int], mode: str) -> np.ndarray:
    want = np.zeros((*x.shape[:-2], *target))
    for i, j in itertools.product(range(target[0]), range(target[1])):
        y, z = grid_point(mode, i, x.shape[-2], target[0]), grid_point(mode, j, x.shape[-1], target[1])
        for row, across in ((math.floor(y), 1 - y % 1), (math.ceil(y), y % 1)):
            for column, along in ((math.floor(z), 1 - z % 1), (math.ceil(z), z % 1)):
                want[..., i, j] += x[..., row, column] * across * along
    return want


@pytest.mark.parametrize(
    "mode", ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]
)
@few
@given(seed=seeds, sizes=st.tuples(*[st.integers(1, 6)] * 4))
def test_bilinear_resizing_in_every_sampling_mode(mode: str, seed: int, sizes: tuple[int, int, int, int]) -> None:
    x, target = floats((1, 2, *sizes[:2]), seed), sizes[2:]
    got = interpreted(
        lambda a: mb.resize_bilinear(
            x=a, target_size_height=target[0], target_size_width=target[1], sampling_mode=mode
        ),
        x,
    )[0]
    assert_same(got, naive_linear(x, target, mode))


@pytest.mark.parametrize("align", [True, False])
def test_upsampling(align: bool) -> None:
    x = floats((1, 2, 3, 4), 5)
    got = interpreted(
        lambda a: mb.upsample_bilinear(x=a, scale_factor_height=2, scale_factor_width=3, align_corners=align), x
    )[0]
    assert_same(got, naive_linear(x, (6, 12), "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS"))
    got = interpreted(lambda a: mb.upsample_nearest_neighbor(x=a, scale_factor_height=2, scale_factor_width=3), x)[0]
    assert_same(got, x.repeat(2, -2).repeat(3, -1), 0)
    got = interpreted(lambda a: mb.resize_nearest_neighbor(x=a, target_size_height=2, target_size_width=6), x)[0]
    assert_same(got, x[..., [0, 1], :][..., [0, 0, 1, 2, 2, 3]], 0)
