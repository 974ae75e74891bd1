"""MIL operations that move, cut, join, pick or create elements, each against numpy or coremltools' value inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_for_tests import Build, assert_same, ct, floats, inferred, interpreted, mb

from edgekit.export.mil.kernel import ProgramError

few = settings(max_examples=4, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


def agree(build: Build, *arrays: np.ndarray) -> None:
    """Interpreter and coremltools' own inference give the very same elements."""
    for got, want in zip(interpreted(build, *arrays), inferred(build, *arrays), strict=True):
        assert_same(got, want, 0)


@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_transpose_expand_squeeze_reverse(shape: list[int], seed: int, data: st.DataObject) -> None:
    x, rank = floats(shape, seed), len(shape)
    agree(lambda a: mb.transpose(x=a, perm=data.draw(st.just(tuple(np.random.default_rng(seed).permutation(rank))))), x)
    axes = data.draw(st.lists(st.integers(0, rank), min_size=1, max_size=5 - rank, unique=True))
    agree(lambda a: mb.expand_dims(x=a, axes=axes), x)
    agree(lambda a: mb.squeeze(x=mb.expand_dims(x=a, axes=axes), axes=axes), x)
    flipped = data.draw(st.none() | st.lists(st.integers(-rank, -1), min_size=1, unique=True))
    agree(lambda a: mb.reverse(x=a, axes=flipped), x)
    flat = interpreted(lambda a: mb.flatten2d(x=a, axis=rank - 1), x)[0]
    assert_same(flat, x.reshape(int(np.prod(shape[:-1])), -1), 0)


def test_squeeze_without_axes_removes_all() -> None:
    agree(lambda a: mb.squeeze(x=a), floats((1, 3, 1, 2), 0))


@pytest.mark.parametrize(
    ("given_shape", "want"),
    [((4, 6), (4, 6)), ((-1, 3), (8, 3)), ((0, -1), (4, 6)), ((1, 0, -1, 0), (1, 2, 4, 3)), ((24,), (24,))],
)
def test_reshape_infers_and_copies_sizes(given_shape: tuple[int, ...], want: tuple[int, ...]) -> None:
    x = floats((2, 4, 3), 1)
    got = interpreted(lambda a: mb.reshape(x=a, shape=given_shape), x)[0]
    # 0 copies the size counted from the right: (0, -1) of (2, 4, 3) copies 4
    assert_same(got, x.reshape(want), 0)


def test_reshape_by_a_computed_shape() -> None:
    x, y = floats((2, 4, 3), 1), floats((6, 4), 2)
    got = interpreted(lambda a, b: mb.reshape(x=a, shape=mb.shape(x=b)), x, y)[0]
    assert_same(got, x.reshape(6, 4), 0)


@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_concat_split_stack(shape: list[int], seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, y = floats(shape, seed), floats(shape, seed + 1)
    agree(lambda a, b: mb.concat(values=[a, b], axis=axis), x, y)
    agree(lambda a, b: mb.stack(values=[a, b], axis=axis), x, y)
    interleaved = interpreted(lambda a, b: mb.concat(values=[a, b], axis=axis, interleave=True), x, y)[0]
    want = np.empty_like(np.concatenate([x, y], axis))
    np.moveaxis(want, axis, 0)[0::2], np.moveaxis(want, axis, 0)[1::2] = (
        np.moveaxis(x, axis, 0),
        np.moveaxis(y, axis, 0),
    )
    assert_same(interleaved, want, 0)
    agree(lambda a, b: mb.split(x=mb.concat(values=[a, b], axis=axis), num_splits=2, axis=axis), x, y)
    first = data.draw(st.integers(1, 2 * shape[axis] - 1))
    sizes = [first, 2 * shape[axis] - first]
    agree(lambda a, b: mb.split(x=mb.concat(values=[a, b], axis=axis), split_sizes=sizes, axis=axis), x, y)


@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_slices(shape: list[int], seed: int, data: st.DataObject) -> None:
    x = floats(shape, seed)
    begin, end, stride, masks = [], [], [], [[], [], []]
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        backwards = data.draw(st.booleans())
        begin.append(start)
        stride.append(data.draw(st.integers(1, 3)) * (-1 if backwards else 1))
        end.append(data.draw(st.integers(start + 1, size)) if not backwards else 0)
        masks[0].append(data.draw(st.booleans()))
        masks[1].append(True if backwards else data.draw(st.booleans()))
        masks[2].append(data.draw(st.booleans()) and len(shape) > 1 and not any(masks[2]))
    stride = [abs(s) if squeezed else s for s, squeezed in zip(stride, masks[2], strict=True)]
    build = lambda a: mb.slice_by_index(  # noqa: E731
        x=a, begin=begin, end=end, stride=stride, begin_mask=masks[0], end_mask=masks[1], squeeze_mask=masks[2]
    )
    index = tuple(
        b if dropped else slice(None if ob else b, None if oe else e, s)
        for b, e, s, ob, oe, dropped in zip(begin, end, stride, *masks, strict=True)
    )
    assert_same(interpreted(build, x)[0], x[index], 0)
    size = [data.draw(st.sampled_from([-1, n - b])) for n, b in zip(shape, begin, strict=True)]
    agree(lambda a: mb.slice_by_size(x=a, begin=begin, size=size), x)


def test_slice_with_negative_ends() -> None:
    agree(lambda a: mb.slice_by_index(x=a, begin=[-3, 0], end=[-1, 2]), floats((5, 4), 3))


@pytest.mark.parametrize(
    ("mode", "numpy_mode"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge")]
)
@few
@given(shape=st.lists(st.integers(3, 5), min_size=1, max_size=4), seed=seeds, data=st.data())
def test_padding_modes(mode: str, numpy_mode: str, shape: list[int], seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(shape)))
    pairs = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(count)]
    x = floats(shape, seed)
    value = {"constant_val": np.float32(1.5)} if mode == "constant" else {}
    got = interpreted(lambda a: mb.pad(x=a, pad=np.ravel(pairs).astype(np.int32), mode=mode, **value), x)[0]
    extra = {"constant_values": 1.5} if mode == "constant" else {}
    assert_same(got, np.pad(x, [(0, 0)] * (len(shape) - count) + pairs, mode=numpy_mode, **extra), 0)


def test_tile_fill_range_one_hot_band() -> None:
    agree(lambda a: mb.tile(x=a, reps=[2, 1, 3]), floats((2, 3, 1), 4))
    x = floats((4, 5), 5)
    assert_same(interpreted(lambda a: mb.fill(shape=mb.shape(x=a), value=2.5), x)[0], np.full((4, 5), 2.5), 0)
    got = interpreted(lambda a: mb.fill_like(ref_tensor=a, value=3), x)[0]
    assert got.dtype == np.int32
    assert_same(got, np.full((4, 5), 3), 0)
    start = np.array(2, np.int32).reshape(())
    limit = np.array([11], np.int32)
    got = interpreted(lambda a: mb.range_1d(start=start, end=mb.squeeze(x=a), step=np.int32(3)), limit)[0]
    assert got.tolist() == [2, 5, 8]
    for lower in (-1, 0, 1):
        for upper in (-1, 0, 2):
            keep = lambda i, j, lo=lower, up=upper: (lo < 0 or i - j <= lo) and (up < 0 or j - i <= up)  # noqa: E731
            want = np.array([[x[i, j] if keep(i, j) else 0 for j in range(5)] for i in range(4)])
            assert_same(interpreted(lambda a, lo=lower, up=upper: mb.band_part(x=a, lower=lo, upper=up), x)[0], want, 0)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot_along_any_axis(axis: int) -> None:
    indices = np.array([[0, 2], [1, 0]], np.int32)
    got = interpreted(
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=3, axis=axis, on_value=5.0, off_value=-1.0), indices
    )[0]
    assert_same(got, np.moveaxis(np.where(np.eye(3)[indices] == 1, 5.0, -1.0), -1, axis), 0)


def test_depth_and_space() -> None:
    x = floats((2, 8, 4, 6), 6)
    tensor = torch.from_numpy(x)
    assert_same(
        interpreted(lambda a: mb.pixel_shuffle(x=a, upscale_factor=2), x)[0], torch.pixel_shuffle(tensor, 2).numpy(), 0
    )
    got = interpreted(lambda a: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)), x)[0]
    assert_same(got, torch.pixel_unshuffle(tensor, 2).numpy(), 0)
    # TensorFlow's order: output channel c of block (i, j) is input channel (2 i + j) C + c
    blocks = interpreted(lambda a: mb.depth_to_space(x=a, block_size=2), x)[0]
    for i in range(2):
        for j in range(2):
            assert_same(blocks[:, :, i::2, j::2], x[:, (2 * i + j) * 2 :][:, :2], 0)
    back = interpreted(lambda a: mb.space_to_depth(x=mb.depth_to_space(x=a, block_size=2), block_size=2), x)[0]
    assert_same(back, x, 0)


@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_gather_along_any_axis(shape: list[int], seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    random = np.random.default_rng(seed)
    indices = random.integers(0, shape[axis], data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    x, indices = floats(shape, seed), indices.astype(np.int32)
    got = interpreted(lambda a, i: mb.gather(x=a, indices=i, axis=axis), x, indices)[0]
    assert_same(got, np.take(x, indices, axis), 0)
    same_rank = random.integers(0, shape[axis], shape).astype(np.int32)
    got = interpreted(lambda a, i: mb.gather_along_axis(x=a, indices=i, axis=axis), x, same_rank)[0]
    assert_same(got, np.take_along_axis(x, same_rank, axis), 0)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_gather_with_a_batch(axis: int) -> None:
    x = floats((2, 3, 4, 5), 7)
    indices = np.random.default_rng(7).integers(0, 3, (2, 2, 3)).astype(np.int32)
    got = interpreted(lambda a, i: mb.gather(x=a, indices=i, axis=axis, batch_dims=1), x, indices)[0]
    assert_same(got, np.stack([np.take(x[b], indices[b], axis - 1) for b in range(2)]), 0)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_gather_nd_picks_by_tuples(batch_dims: int) -> None:
    x = floats((2, 3, 4, 5), 8)
    indices = np.random.default_rng(8).integers(0, 2, (2, 3, 2)).astype(np.int32)
    got = interpreted(lambda a, i: mb.gather_nd(x=a, indices=i, batch_dims=batch_dims), x, indices)[0]
    if batch_dims:
        want = np.stack([x[b][indices[b][:, 0], indices[b][:, 1]] for b in range(2)])
    else:
        want = x[indices[..., 0], indices[..., 1]]
    assert_same(got, want, 0)


def test_an_index_outside_is_an_error_that_names_the_operation() -> None:
    x, indices = floats((3, 2), 9), np.array([3], np.int32)
    with pytest.raises(ProgramError, match=r"operation 0 'gather' that gives 'picked' failed: an index is outside"):
        interpreted(lambda a, i: mb.gather(x=a, indices=i, axis=0, name="picked"), x, indices)


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("axis", [0, -1])
def test_order(ascending: bool, axis: int) -> None:
    x = np.random.default_rng(10).permutation(20).reshape(4, 5).astype(np.float32)
    order = np.argsort(x if ascending else -x, axis)
    assert_same(interpreted(lambda a: mb.argsort(x=a, axis=axis, ascending=ascending), x)[0], order, 0)
    values, indices = interpreted(lambda a: mb.topk(x=a, k=2, axis=axis, ascending=ascending), x)
    best = np.take(order, [0, 1], axis)
    assert_same(indices, best, 0)
    assert_same(values, np.take_along_axis(x, best, axis), 0)


def test_identity_keeps_and_shape_tells() -> None:
    x = floats((2, 3), 11)
    assert_same(interpreted(lambda a: mb.identity(x=a), x)[0], x, 0)
    assert interpreted(lambda a: mb.shape(x=a), x, target=ct.target.iOS16)[0].tolist() == [2, 3]
