"""MIL operations that work element by element and reductions, each against its definition in numpy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_for_tests import assert_same, ct, floats, inferred, interpreted, mb
from scipy.special import erf

from edgekit.export.mil.ops import OPS

Formula = Callable[..., np.ndarray]
few = settings(max_examples=4, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)

UNARY: dict[str, tuple[Formula, float, float]] = {  # operation: formula, range of x
    "abs": (np.abs, -2, 2),
    "acos": (np.arccos, -0.9, 0.9),
    "asin": (np.arcsin, -0.9, 0.9),
    "atan": (np.arctan, -2, 2),
    "atanh": (np.arctanh, -0.9, 0.9),
    "ceil": (np.ceil, -9, 9),
    "cos": (np.cos, -9, 9),
    "cosh": (np.cosh, -2, 2),
    "erf": (erf, -3, 3),
    "exp": (np.exp, -3, 3),
    "exp2": (np.exp2, -3, 3),
    "floor": (np.floor, -9, 9),
    "relu": (lambda x: np.maximum(x, 0), -2, 2),
    "relu6": (lambda x: np.clip(x, 0, 6), -2, 9),
    "round": (np.round, -9, 9),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -9, 9),
    "sign": (np.sign, -2, 2),
    "silu": (lambda x: x / (1 + np.exp(-x)), -9, 9),
    "sin": (np.sin, -9, 9),
    "sinh": (np.sinh, -2, 2),
    "softplus": (lambda x: np.log1p(np.exp(x)), -9, 30),
    "softsign": (lambda x: x / (1 + np.abs(x)), -9, 9),
    "sqrt": (np.sqrt, 0, 9),
    "square": (np.square, -3, 3),
    "tan": (np.tan, -1, 1),
    "tanh": (np.tanh, -3, 3),
}
SHIFTED: dict[str, tuple[Formula, float]] = {  # operation of x + epsilon: formula, default epsilon
    "inverse": (lambda x: 1 / x, 1e-4),
    "log": (np.log, 1e-45),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1e-12),
}
WITH_PARAMETERS: dict[str, tuple[tuple[str, ...], Formula]] = {  # operation: scalar parameters, formula
    "clamped_relu": (("alpha", "beta"), lambda x, a, b: np.minimum(np.where(x >= 0, x, a * x), b)),
    "clip": (("alpha", "beta"), lambda x, a, b: np.minimum(np.maximum(x, a), b)),
    "elu": (("alpha",), lambda x, a: np.where(x > 0, x, a * (np.exp(x) - 1))),
    "leaky_relu": (("alpha",), lambda x, a: np.where(x >= 0, x, a * x)),
    "linear_activation": (("alpha", "beta"), lambda x, a, b: a * x + b),
    "scaled_tanh": (("alpha", "beta"), lambda x, a, b: a * np.tanh(b * x)),
    "sigmoid_hard": (("alpha", "beta"), lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1)),
    "threshold": (("alpha",), lambda x, a: np.maximum(x, a)),
    "thresholded_relu": (("alpha",), lambda x, a: np.where(x >= a, x, 0)),
}
BINARY: dict[str, Formula] = {
    "add": np.add, "floor_div": np.floor_divide, "maximum": np.maximum, "minimum": np.minimum, "mod": np.mod,
    "mul": np.multiply, "pow": np.power, "real_div": np.true_divide, "sub": np.subtract,
    "equal": np.equal, "not_equal": np.not_equal, "greater": np.greater, "greater_equal": np.greater_equal,
    "less": np.less, "less_equal": np.less_equal,
}  # fmt: skip
LOGICAL: dict[str, Formula] = {
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
REDUCED: dict[str, Formula] = {
    "reduce_l1_norm": lambda x, **k: np.abs(x).sum(**k),
    "reduce_l2_norm": lambda x, **k: np.sqrt((x * x).sum(**k)),
    "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)),
    "reduce_log_sum_exp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    "reduce_max": np.max,
    "reduce_mean": np.mean,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **k: (x * x).sum(**k),
}


@pytest.mark.parametrize("name", sorted(UNARY))
@few
@given(shape=shapes, seed=seeds)
def test_unary_operations_follow_their_formulas(name: str, shape: list[int], seed: int) -> None:
    formula, low, high = UNARY[name]
    x = floats(shape, seed, low, high)
    assert_same(interpreted(lambda a: getattr(mb, name)(x=a), x)[0], formula(x.astype(np.float64)))


def test_rounding_takes_halves_to_even() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    assert interpreted(lambda a: mb.round(x=a), x)[0].tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("name", sorted(SHIFTED))
@pytest.mark.parametrize("epsilon", [None, 0.5])
def test_epsilon_is_added_before_the_function(name: str, epsilon: float | None) -> None:
    formula, default = SHIFTED[name]
    x = floats((3, 4), 1, 0.05, 2.0)
    given_epsilon = {} if epsilon is None else {"epsilon": np.float32(epsilon)}
    got = interpreted(lambda a: getattr(mb, name)(x=a, **given_epsilon), x)[0]
    assert_same(got, formula(x.astype(np.float64) + (default if epsilon is None else epsilon)))


@pytest.mark.parametrize("name", sorted(WITH_PARAMETERS))
@few
@given(shape=shapes, seed=seeds, alpha=st.floats(-0.75, 0.75, width=16))
def test_activations_follow_their_formulas(name: str, shape: list[int], seed: int, alpha: float) -> None:
    parameters, formula = WITH_PARAMETERS[name]
    values = [np.float32(alpha), np.float32(alpha + 0.5)][: len(parameters)]
    x = floats(shape, seed)
    got = interpreted(lambda a: getattr(mb, name)(x=a, **dict(zip(parameters, values, strict=True))), x)[0]
    assert_same(got, formula(x.astype(np.float64), *values))


@pytest.mark.parametrize("mode", ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_gelu_has_three_modes(mode: str) -> None:
    x = floats((3, 5), 2, -4, 4)
    build = lambda a: mb.gelu(x=a, mode=mode)  # noqa: E731
    assert_same(interpreted(build, x)[0], inferred(build, x)[0], 2e-5)


def test_channel_activations_broadcast_over_axis_1() -> None:
    x, alpha, beta = floats((2, 3, 4, 5), 3), floats((3,), 4), floats((3,), 5)
    a, b = alpha[:, None, None].astype(np.float64), beta[:, None, None].astype(np.float64)
    assert_same(interpreted(lambda t: mb.prelu(x=t, alpha=alpha), x)[0], np.where(x >= 0, x, a * x))
    got = interpreted(lambda t: mb.softplus_parametric(x=t, alpha=alpha, beta=beta), x)[0]
    assert_same(got, a * np.log1p(np.exp(b * x)))


@few
@given(shape=shapes, seed=seeds, data=st.data())
def test_softmax_on_any_axis(shape: list[int], seed: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = floats(shape, seed, -20, 20)
    build = lambda a: mb.softmax(x=a, axis=axis)  # noqa: E731
    assert_same(interpreted(build, x)[0], inferred(build, x)[0])


@pytest.mark.parametrize("name", sorted(BINARY))
@few
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=seeds, data=st.data())
def test_binary_operations_broadcast(name: str, shape: list[int], seed: int, data: st.DataObject) -> None:
    other = [data.draw(st.sampled_from([1, size])) for size in shape][data.draw(st.integers(0, len(shape) - 1)) :]
    x, y = np.round(floats(shape, seed), 1), np.round(floats(other, seed + 1), 1)
    y[y == 0] = 0.5
    x.flat[0] = y.flat[0]  # so that equality happens
    x = np.abs(x) + np.float32(0.5) if name == "pow" else x
    got = interpreted(lambda a, b: getattr(mb, name)(x=a, y=b), x, y)[0]
    want = BINARY[name](x, y)
    if name in ("floor_div", "mod"):  # a quotient next to an integer may fall on either side
        settled = np.abs(x / y - np.round(x / y)) > 1e-3
        got, want = got[np.broadcast_to(settled, got.shape)], want[np.broadcast_to(settled, want.shape)]
    assert_same(got, want)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "maximum", "minimum", "floor_div", "mod"])
def test_integers_stay_integers(name: str) -> None:
    x, y = np.array([[7, -7, 3], [2**30, 5, -1]], np.int32), np.array([2, 2, 3], np.int32)
    got = interpreted(lambda a, b: getattr(mb, name)(x=a, y=b), x, y)[0]
    want = BINARY[name](x, y)
    assert got.dtype == want.dtype
    assert_same(got, want, 0)


@pytest.mark.parametrize("name", sorted(LOGICAL))
def test_logic(name: str) -> None:
    x, y = np.array([[True], [False]]), np.array([True, False])
    assert_same(interpreted(lambda a, b: getattr(mb, name)(x=a, y=b), x, y)[0], LOGICAL[name](x, y))


def test_not_and_select() -> None:
    condition, a, b = np.array([[True, False, True]]), floats((2, 3), 1), floats((2, 3), 2)
    condition = np.broadcast_to(condition, (2, 3)).copy()
    assert_same(interpreted(lambda c: mb.logical_not(x=c), condition)[0], ~condition)
    got = interpreted(lambda c, p, q: mb.select(cond=c, a=p, b=q), condition, a, b)[0]
    assert_same(got, np.where(condition, a, b), 0)


@pytest.mark.parametrize("name", sorted(REDUCED))
@few
@given(shape=shapes, seed=seeds, keep=st.booleans(), data=st.data())
def test_reductions_over_any_axes(name: str, shape: list[int], seed: int, keep: bool, data: st.DataObject) -> None:
    rank = len(shape)
    axes = data.draw(st.none() | st.lists(st.integers(-rank, rank - 1), min_size=1, unique_by=lambda a: a % rank))
    x = floats(shape, seed, 0.2, 2.0)
    got = interpreted(lambda a: getattr(mb, name)(x=a, axes=axes, keep_dims=keep), x)[0]
    want = REDUCED[name](x.astype(np.float64), axis=None if axes is None else tuple(axes), keepdims=keep)
    assert_same(got.reshape(want.shape) if axes is None and not keep else got, want)


@pytest.mark.parametrize("name", ["reduce_argmax", "reduce_argmin"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("keep", [True, False])
def test_arg_reductions_take_the_first_of_equals(name: str, axis: int, keep: bool) -> None:
    x = np.array([[3, 1, 3], [1, 1, 0], [3, 0, 0]], np.float32)
    build = lambda a: getattr(mb, name)(x=a, axis=axis, keep_dims=keep)  # noqa: E731
    assert_same(interpreted(build, x)[0], inferred(build, x)[0], 0)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("axis", [0, -1])
def test_cumsum(exclusive: bool, reverse: bool, axis: int) -> None:
    x = floats((3, 4), 7)
    turned = np.flip(x, axis) if reverse else x
    want = np.cumsum(turned, axis) - (turned if exclusive else 0)
    want = np.flip(want, axis) if reverse else want
    assert_same(interpreted(lambda a: mb.cumsum(x=a, axis=axis, exclusive=exclusive, reverse=reverse), x)[0], want)


def test_casts() -> None:
    x = np.array([-1.75, 0.0, 0.25, 70000.0, 1 / 3], np.float32)
    cast = lambda dtype: interpreted(lambda a: mb.cast(x=a, dtype=dtype), x)[0]  # noqa: E731
    assert cast("int32").tolist() == [-1, 0, 0, 70000, 0]
    assert cast("bool").tolist() == [True, False, True, True, True]
    with np.errstate(over="ignore"):
        assert cast("fp16").tolist() == x.astype(np.float16).tolist()


def test_every_fp16_result_is_rounded_to_half() -> None:
    x, y = floats((64,), 8, 0.1, 200.0).astype(np.float16), floats((64,), 9, 0.1, 900.0).astype(np.float16)
    with np.errstate(over="ignore"):
        product = x * y  # numpy rounds, and overflows to inf, as a half-precision unit does
    got = interpreted(lambda a, b: mb.mul(x=a, y=b), x, y, target=ct.target.iOS17)[0]
    assert np.isinf(product).any()
    assert_same(got, product, 0)


def test_every_operation_of_the_table_has_a_test() -> None:
    sources = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_mil*.py"))
    named = set(re.findall(r"mb\.(\w+)\(|\"(\w+)\"", sources))
    assert set(OPS) <= {name for pair in named for name in pair if name}
