"""The calibration engine against naive formulas on the raw values, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.errors import DataError, LoadError
from edgekit.export.calibration.measured import CANDIDATES, nearest_ranges, noise_share
from edgekit.export.calibration.ranges import (
    RANGE_METHODS,
    Distribution,
    RangeConfig,
    RangeMethod,
    kl_divergence,
    quantization_error,
)
from edgekit.export.calibration.statistics import BINS, ZERO_RANGE, Histograms, check_no_overlap, collect
from edgekit.export.session import FloatArray
from edgekit.terminal import Terminal


def observed(values: NDArray[np.float32], pieces: int = 3) -> Histograms:
    """Observe values in pieces, as batches arrive."""
    histograms = Histograms()
    for part in np.array_split(values, pieces):
        histograms.observe_range("x", part)
    for part in np.array_split(values, pieces):
        histograms.observe_histogram("x", part)
    return histograms


def silu_like(seed: int, count: int = 20_000) -> NDArray[np.float32]:
    """Return lopsided activations with a long tail, as SiLU gives."""
    x = np.random.default_rng(seed).standard_t(4, count)
    return (x / (1 + np.exp(-x))).astype(np.float32)


def distribution_of(values: NDArray[np.float32]) -> Distribution:
    counts, _ = np.histogram(values, bins=BINS, range=(values.min(), values.max()))
    return Distribution(float(values.min()), float(values.max()), counts)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), share=st.sampled_from([99.0, 99.9, 99.99]))
def test_percentile_is_that_of_the_raw_values_within_a_bin(seed: int, share: float) -> None:
    values = silu_like(seed)
    low, high = observed(values).ranges(RangeConfig("percentile", percentile=share))["x"]
    wanted = np.percentile(values.astype(np.float64), [100 - share, share])
    # within a bin, or between the neighbouring order statistics where the tail is thinner than a bin
    ordered = np.sort(values.astype(np.float64))
    width = (ordered[-1] - ordered[0]) / BINS
    at = round(share / 100 * (len(ordered) - 1))
    assert abs(high - wanted[1]) <= width + ordered[min(at + 1, len(ordered) - 1)] - ordered[at - 1]
    assert abs(low - wanted[0]) <= width + ordered[len(ordered) - at] - ordered[max(len(ordered) - at - 2, 0)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), pieces=st.integers(1, 7))
def test_minmax_does_not_forget_whatever_the_batches(seed: int, pieces: int) -> None:
    values = silu_like(seed, 500)
    low, high = observed(values, pieces).ranges(RangeConfig("minmax"))["x"]
    assert (low, high) == (min(float(values.min()), 0.0), max(float(values.max()), 0.0))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_mse_range_is_as_good_as_brute_force_on_the_raw_values(seed: int) -> None:
    values = silu_like(seed, 4000)

    def raw_error(low: float, high: float) -> float:
        step = (high - low) / 255
        codes = np.clip(np.rint((values - low) / step), 0, 255)
        return float(np.mean((values - (low + codes * step)) ** 2))

    low, high = observed(values).ranges(RangeConfig("mse"))["x"]
    fractions = np.linspace(0.02, 1, 40)
    brute = min(raw_error(float(values.min()) * f, float(values.max()) * g) for f in fractions for g in fractions)
    assert raw_error(low, high) <= 1.05 * brute


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), fraction=st.floats(0.1, 1.0))
def test_quantization_error_matches_the_raw_values(seed: int, fraction: float) -> None:
    values = silu_like(seed, 50_000)
    distribution = distribution_of(values)
    bounds = (distribution.low * fraction, distribution.high * fraction)
    step = (bounds[1] - bounds[0]) / 255
    codes = np.clip(np.rint((values - bounds[0]) / step), 0, 255)
    naive = float(np.mean((values - (bounds[0] + codes * step)) ** 2))
    assert quantization_error(distribution, bounds, 8) == pytest.approx(naive, rel=0.1)


def naive_kl(counts: list[float], levels: int) -> float:
    """KL of a histogram and its merge into `levels`, in plain loops, nothing clipped."""
    spread = [0.0] * len(counts)
    for level in range(levels):
        members = [i for i in range(len(counts)) if i * levels // len(counts) == level]
        filled = [i for i in members if counts[i] > 0]
        for i in filled:
            spread[i] = sum(counts[j] for j in members) / len(filled)
    total = sum(counts)
    return sum(c / total * np.log(c / s) for c, s in zip(counts, spread, strict=True) if c > 0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=512, max_size=600).filter(lambda counts: sum(counts) > 0))
def test_divergence_of_the_whole_range_against_plain_loops(counts: list[int]) -> None:
    distribution = Distribution(-1.0, 1.0, np.array(counts, np.int64))
    assert kl_divergence(distribution, (-1.0, 1.0), 8) == pytest.approx(naive_kl([float(c) for c in counts], 256))


def test_divergence_is_zero_where_nothing_is_merged() -> None:
    counts = np.random.default_rng(0).integers(1, 100, 256)
    assert kl_divergence(Distribution(-1.0, 1.0, counts), (-1.0, 1.0), 8) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_one_outlier_is_clipped(method: RangeMethod) -> None:
    """Not so by "mse": losing one 300 costs more squared error than coarse steps for 100,000 others."""
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[0] = 300.0
    low, high = observed(values).ranges(RangeConfig(method))["x"]
    assert 2 < high < 150, f"{method} kept the outlier: {high}"
    assert low < -2


@pytest.mark.parametrize("method", get_args(RangeMethod))
def test_zero_is_inside_every_range(method: RangeMethod) -> None:
    for values in (np.linspace(2, 3, 1000), np.linspace(-3, -2, 1000), np.full(10, 2.5), np.full(10, -2.5)):
        low, high = observed(values.astype(np.float32)).ranges(RangeConfig(method))["x"]
        assert low <= 0 <= high and low < high
    assert set(RANGE_METHODS) == set(get_args(RangeMethod))


def test_a_dead_activation_gets_a_small_range_and_is_reported() -> None:
    histograms = observed(np.zeros(100, np.float32))
    assert histograms.ranges()["x"] == ZERO_RANGE
    assert histograms.always_zero == ("x",)
    assert observed(np.array([0.0, 1e-6, 0.0], np.float32)).always_zero == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_range_that_is_not_finite_names_the_tensor(bad: float) -> None:
    with pytest.raises(DataError, match="stages/2/attention"):
        Histograms().observe_range("stages/2/attention", np.array([1.0, bad], np.float32))


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    histograms = observed(silu_like(3))
    histograms.observe_range("dead", np.zeros(4, np.float32))
    histograms.images = 64
    histograms.save(tmp_path / "statistics.npz")
    loaded = Histograms.load(tmp_path / "statistics.npz")
    assert loaded.images == 64 and loaded.names == ("x", "dead") and loaded.always_zero == ("dead",)
    for method in get_args(RangeMethod):
        assert loaded.ranges(RangeConfig(method)) == histograms.ranges(RangeConfig(method))


def test_dead_activations_are_named_where_statistics_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.export.export import keep_statistics

    (tmp_path / "bundle").mkdir()
    for name, last in (("calibration.onnx.npz", 0.0), ("calibration.tflite.npz", 1.0)):
        observed(np.array([0.0, last], np.float32)).save(tmp_path / name)
        keep_statistics(tmp_path / name, tmp_path / "bundle", Terminal())
        assert [path.name for path in tmp_path.glob("*.npz")] == []
    said = " ".join(capsys.readouterr().err.split())
    assert "dead activations, zero for every calibration picture: x (calibration.onnx.npz)" in said
    assert "tflite" not in said
    keep_statistics(tmp_path / "calibration.coreml.npz", tmp_path / "bundle", Terminal())
    assert len(list((tmp_path / "bundle").iterdir())) == 2


def test_a_damaged_file_of_statistics_is_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(LoadError, match=r"torn\.npz"):
        Histograms.load(tmp_path / "torn.npz")


def images(count: int, side: int = 8, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).random((count, 3, side, side), dtype=np.float32)


def identity(batch: FloatArray, observe: Callable[[str, NDArray[np.float32]], None]) -> None:
    observe("image", batch)


def test_collect_sees_every_value_of_every_image() -> None:
    given_images = images(20)
    histograms = collect(identity, lambda: (given_images[at : at + 6] for at in range(0, 20, 6)))
    assert histograms.images == 20
    assert histograms.bounds("image") == (float(given_images.min()), float(given_images.max()))
    low, high = histograms.ranges(RangeConfig("percentile", percentile=75))["image"]
    assert low == 0.0
    assert high == pytest.approx(float(np.percentile(given_images, 75)), abs=2 / BINS)


def test_too_few_images() -> None:
    with pytest.raises(DataError, match=r"^7 usable calibration images are too few; at least 8"):
        collect(identity, lambda: [images(7)])


def test_images_of_one_colour_do_not_count() -> None:
    blank = np.full((9, 3, 8, 8), 0.5, np.float32)
    with pytest.raises(DataError, match=r"9 of 12 are of one colour"):
        collect(identity, lambda: [blank, images(3)])


def test_images_of_several_sizes() -> None:
    with pytest.raises(DataError, match="several sizes"):
        collect(identity, lambda: [images(8), images(8, side=16)])


def test_a_source_that_cannot_start_anew() -> None:
    source: Iterable[FloatArray] = iter([images(8)])
    with pytest.raises(DataError, match="changed between the passes"):
        collect(identity, lambda: source)


def test_overlap_is_by_content_and_names_both_files() -> None:
    train = {"train/a.jpg": "11", "train/b.jpg": "22"}
    check_no_overlap(train, {"val/a.jpg": "33"})
    with pytest.raises(DataError, match=r"1 calibration images .* train/b\.jpg = val/renamed\.jpg"):
        check_no_overlap(train, {"val/renamed.jpg": "22", "val/c.jpg": "44"})


def test_ways_of_choosing_ranges_are_tried_on_the_outputs() -> None:
    seen = observed(np.concatenate([np.random.default_rng(0).normal(size=200_000), [30.0]]).astype(np.float32))
    uppers = [seen.ranges(config)["x"][1] for config in CANDIDATES]
    assert len(set(uppers)) == len(CANDIDATES)
    for upper in uppers:
        least = nearest_ranges(seen, lambda ranges: abs(ranges["x"][1] - upper))  # noqa: B023
        assert least["x"][1] == upper


def test_noise_is_relative_to_each_output() -> None:
    want = [np.array([3.0, 4.0]), np.array([100.0])]
    assert noise_share(want, want) == 0
    assert noise_share(want, [np.array([3.0, 5.0]), np.array([110.0])]) == pytest.approx((1 / 25 + 100 / 10_000) / 2)
