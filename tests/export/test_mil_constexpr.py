"""Compressed weights and quantized activations, against coremltools' own decompression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_for_tests import assert_same, ct, floats, inferred, interpreted, mb, types

few = settings(max_examples=6, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
INTEGERS = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}
FLOATS = {"fp32": np.float32, "fp16": np.float16}


def both_ways(build: Any, target: Any, zero: np.ndarray | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Decode a constant operation with our interpreter and with coremltools; build() gives its results."""
    decoded: list[np.ndarray] = []

    def program(a: Any) -> list[Any]:
        results = build()
        results = results if isinstance(results, list | tuple) else [results]
        values = results[0].op.materialized_val_inference()
        decoded[:] = [np.asarray(v) for v in (values if isinstance(values, tuple) else (values,))]
        zeros = [np.zeros((), types.nptype_from_builtin(var.dtype)) for var in results]
        return [mb.add(x=var, y=mb.cast(x=a, dtype=_name(z))) for var, z in zip(results, zeros, strict=True)]

    got = interpreted(program, np.zeros((), np.float32).reshape(1), target=target)
    return got, decoded


def _name(zero: np.ndarray) -> str:
    return {"float32": "fp32", "float16": "fp16"}[zero.dtype.name]


def random_integers(kind: str, shape: list[int], seed: int) -> np.ndarray:
    """Return integers of a MIL type; below 8 bits as coremltools' own numpy type for it."""
    low, high = INTEGERS.get(kind) or (0, 2 ** int(kind.removeprefix("uint")))
    values = np.random.default_rng(seed).integers(low, high, shape)
    return values.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("dtype", sorted(FLOATS))
@few
@given(seed=seeds, shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_affine_weights(kind: str, dtype: str, seed: int, shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = [shape[axis]] if data.draw(st.booleans()) else []
    scale = np.asarray(floats(size, seed, 0.01, 0.1)).astype(FLOATS[dtype])
    build = lambda: mb.constexpr_affine_dequantize(  # noqa: E731
        quantized_data=random_integers(kind, shape, seed), zero_point=random_integers(kind, size, seed + 1),
        scale=scale if size else scale[()], axis=np.int32(axis),
    )  # fmt: skip
    (got,), (want,) = both_ways(build, ct.target.iOS16)
    assert_same(got, want, 1e-6 if dtype == "fp32" else 2e-3)


@pytest.mark.parametrize("kind", sorted(INTEGERS))
@pytest.mark.parametrize("offset", [True, False])
@few
@given(seed=seeds, blocks=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4))
def test_blockwise_weights(kind: str, offset: bool, seed: int, blocks: list[tuple[int, int]]) -> None:
    shape, counts = [count * size for count, size in blocks], [count for count, _ in blocks]
    build = lambda: mb.constexpr_blockwise_shift_scale(  # noqa: E731
        data=random_integers(kind, shape, seed), scale=floats(counts, seed, 0.01, 0.1),
        offset=random_integers(kind, counts, seed + 1) if offset else None,
    )  # fmt: skip
    (got,), (want,) = both_ways(build, ct.target.iOS18)
    assert_same(got, want, 1e-6)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
@few
@given(seed=seeds, shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_packed_palettes(bits: int, seed: int, shape: list[int]) -> None:
    random = np.random.default_rng(seed)
    indices = random.integers(0, 2**bits, int(np.prod(shape)))
    planes = (indices[:, None] >> np.arange(bits)) & 1  # lowest bit first, across bytes
    packed = np.packbits(planes.astype(np.uint8).ravel(), bitorder="little")
    lut = floats((2**bits,), seed)
    build = lambda: mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array(shape, np.uint32))  # noqa: E731
    (got,), (want,) = both_ways(build, ct.target.iOS16)
    assert_same(got, want, 0)
    assert_same(got, lut[indices].reshape(shape), 0)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("width", [1, 2])
@few
@given(
    seed=seeds,
    blocks=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=4),
    data=st.data(),
)
def test_palettes_per_block(
    bits: int, width: int, seed: int, blocks: list[tuple[int, int]], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, len(blocks) - 1))
    shape, counts = [count * size for count, size in blocks], [count for count, _ in blocks]
    build = lambda: mb.constexpr_lut_to_dense(  # noqa: E731
        indices=random_integers(f"uint{bits}", shape, seed), lut=floats([*counts, 2**bits, width], seed),
        vector_axis=np.int32(axis) if width > 1 else None,
    )  # fmt: skip
    (got,), (want,) = both_ways(build, ct.target.iOS18)
    assert_same(got, want, 0)


@few
@given(seed=seeds, shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_pruned_weights(seed: int, shape: list[int]) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.5
    mask.flat[0] = True
    nonzero = floats((int(mask.sum()),), seed)
    want = np.zeros(shape, np.float32)
    want[mask] = nonzero
    packed = np.packbits(mask.ravel(), bitorder="little")
    build = lambda: mb.constexpr_sparse_to_dense(  # noqa: E731
        nonzero_data=nonzero, mask=packed, shape=np.array(shape, np.uint32)
    )
    assert_same(both_ways(build, ct.target.iOS16)[0][0], want, 0)
    bits = mask.astype(types.np_uint1_dtype)
    build = lambda: mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=bits)  # noqa: E731
    assert_same(both_ways(build, ct.target.iOS18)[0][0], want, 0)


@pytest.mark.parametrize("width", [1, 2])
def test_pruned_and_quantized_weights(width: int) -> None:
    mask = (np.random.default_rng(1).random((4, 6)) < 0.5).astype(types.np_uint1_dtype)
    count = int((mask != 0).sum())

    def palettized() -> Any:
        sparse_mask, nonzero = mb.constexpr_lut_to_sparse(
            indices_mask=mask, indices_nonzero_data=random_integers("uint2", [count], 2),
            lut=floats([1, 1, 4, width], 3), vector_axis=np.int32(0) if width > 1 else None,
        )  # fmt: skip
        return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=sparse_mask)

    def scaled() -> Any:
        sparse_mask, nonzero = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=random_integers("int8", [count], 4), scale=floats([2, 3], 5, 0.01, 0.1),
            offset=random_integers("int8", [2, 3], 6),
        )  # fmt: skip
        return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=sparse_mask)

    for build in (palettized, scaled):
        (got,), (want,) = both_ways(build, ct.target.iOS18)
        assert_same(got, want, 1e-6)


def test_stored_halves_widen() -> None:
    half = floats((3, 5), 7).astype(np.float16)
    build = lambda: mb.constexpr_cast(source_val=half, output_dtype="fp32")  # noqa: E731
    assert_same(both_ways(build, ct.target.iOS16)[0][0], half.astype(np.float32), 0)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@few
@given(seed=seeds, shape=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_quantize_and_dequantize(kind: str, seed: int, shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1)) if data.draw(st.booleans()) else None
    size = [] if axis is None else [shape[axis]]
    scale, zero = floats(size, seed, 0.005, 0.05), random_integers(kind, size, seed + 1)
    extra = {"scale": scale if size else scale[()], "zero_point": zero if size else zero[()], "axis": axis}
    x = floats(shape, seed)
    quantized = lambda a: mb.quantize(input=a, output_dtype=kind, **extra)  # noqa: E731
    got = interpreted(lambda a: mb.cast(x=quantized(a), dtype="int32"), x)[0]
    want = inferred(quantized, x)[0].astype(np.int32)
    # x / scale next to a half may round to either side: coremltools divides in the other order
    assert np.abs(got - want).max() <= 1
    assert (got != want).mean() < 0.05 or got.size < 40
    steps = inferred(quantized, x)[0]
    back = interpreted(lambda a: mb.dequantize(input=quantized(a), **extra), x)[0]
    shaped = lambda v: v.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if size else v  # noqa: E731
    exact = (got.astype(np.float64) - shaped(zero).astype(np.float64)) * shaped(scale)
    assert steps.shape == back.shape
    assert_same(back, exact, 1e-6)
