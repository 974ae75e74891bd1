"""Intervals that cover what they say, and verdicts that hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.bench.statistics import median_interval, paired_speedup, summarize
from edgekit.errors import UsageError


def correlated_times(random: np.random.Generator, rounds: int, memory: float) -> NDArray[np.float64]:
    """Return (rounds,) seconds around 10 ms whose deviations remember the round before."""
    noise = np.zeros(rounds)
    for at in range(1, rounds):
        noise[at] = memory * noise[at - 1] + random.normal()
    return np.asarray(0.01 + 2e-4 * noise)


def test_percentiles_and_mean_are_those_of_all_samples() -> None:
    seconds = np.random.default_rng(0).gamma(4.0, 1e-3, size=(50, 4))
    summary = summarize(seconds)
    assert summary.samples == 200
    assert [summary.p50_s, summary.p90_s, summary.p95_s, summary.p99_s] == pytest.approx(
        np.quantile(seconds, [0.5, 0.9, 0.95, 0.99]).tolist()
    )
    assert summary.mean_s.value == pytest.approx(seconds.mean())
    assert summary.median_s.value == pytest.approx(np.median(np.median(seconds, axis=1)))


def test_the_mean_interval_agrees_with_scipy_on_independent_rounds() -> None:
    values = np.random.default_rng(1).normal(0.01, 1e-3, size=(400, 1))
    ours = summarize(values).mean_s
    oracle = scipy.stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=0).confidence_interval
    width = oracle.high - oracle.low
    assert ours.low == pytest.approx(oracle.low, abs=0.15 * width)
    assert ours.high == pytest.approx(oracle.high, abs=0.15 * width)


@pytest.mark.parametrize(("memory", "least"), [(0.0, 0.90), (0.5, 0.82)])
def test_intervals_cover_the_truth(memory: float, least: float) -> None:
    """Of 200 runs of 120 rounds the 95 % interval must cover nearly 95 %, and not collapse under correlation.

    Resampling single rounds instead of blocks covers 71 % at memory 0.5, blocks 88 %.
    """
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        interval = summarize(correlated_times(random, 120, memory)[:, None], resamples=300).mean_s
        covered += interval.low <= 0.01 <= interval.high
    assert covered / 200 >= least


def test_speedup_is_paired_so_a_slow_spell_of_the_machine_cancels() -> None:
    random = np.random.default_rng(3)
    spell = np.where(np.arange(90) // 15 % 2, 3.0, 1.0)  # every other 15 rounds everything takes three times as long
    base = 0.01 * spell * random.normal(1, 0.005, 90)
    slower = 0.0105 * spell * random.normal(1, 0.005, 90)
    result = paired_speedup(base, slower)
    assert result.verdict == "slower"
    assert result.interval.value == pytest.approx(1 / 1.05, rel=0.003)
    assert result.interval.high - result.interval.low < 0.01


def test_rounds_in_which_one_was_interrupted_do_not_count_for_the_other() -> None:
    random = np.random.default_rng(4)
    base, same = 0.01 * random.normal(1, 0.003, (2, 60))
    same[random.permutation(60)[:15]] *= 4.0
    assert paired_speedup(base, same).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (1.05, "faster"),
        (1.015, "inconclusive"),
        (1.0, "inconclusive"),
        (1 / 1.015, "inconclusive"),
        (1 / 1.05, "slower"),
    ],
)
def test_a_verdict_needs_more_than_the_minimum_effect(ratio: float, verdict: str) -> None:
    base = np.random.default_rng(5).uniform(0.01, 0.02, 40)
    result = paired_speedup(base, base / ratio)
    assert result.interval.value == pytest.approx(ratio)
    assert result.verdict == verdict


def test_no_verdict_from_a_handful_of_rounds() -> None:
    base = np.full(9, 0.01)
    assert paired_speedup(base, base / 3).verdict == "inconclusive"
    assert paired_speedup(np.full(10, 0.01), np.full(10, 0.01) / 3).verdict == "faster"


def test_a_smaller_minimum_effect_sees_smaller_differences() -> None:
    base = 0.01 * np.random.default_rng(6).normal(1, 0.002, 60)
    assert paired_speedup(base, base / 1.01).verdict == "inconclusive"
    assert paired_speedup(base, base / 1.01, minimum_effect=0.005).verdict == "faster"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rounds=st.integers(10, 60), scale=st.floats(1e-6, 1e3))
def test_speedup_has_no_unit_and_turns_over_when_the_roles_do(seed: int, rounds: int, scale: float) -> None:
    first, second = np.random.default_rng(seed).uniform(0.01, 0.02, (2, rounds))
    there = paired_speedup(first, second, resamples=200)
    scaled = paired_speedup(scale * first, scale * second, resamples=200)
    back = paired_speedup(second, first, resamples=200)
    assert there.interval.low <= there.interval.value <= there.interval.high
    assert scaled.interval.value == pytest.approx(there.interval.value)
    # the median of an even number of ratios and of their reciprocals differ in the middle pair
    if rounds % 2:
        assert back.interval.value == pytest.approx(1 / there.interval.value)
    opposite = {"faster": "slower", "slower": "faster", "inconclusive": "inconclusive"}
    if rounds % 2:
        assert back.verdict == opposite[there.verdict]


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(7).uniform(0.01, 0.02, (50, 3))
    assert summarize(values, seed=1) == summarize(values, seed=1)
    assert summarize(values, seed=1).mean_s != summarize(values, seed=2).mean_s


@pytest.mark.parametrize("wrong", [np.array([]), np.array([[0.01], [np.nan]]), np.array([[0.0]]), np.array([[-1.0]])])
def test_what_is_no_latency_is_refused(wrong: NDArray[np.float64]) -> None:
    with pytest.raises(UsageError, match="positive"):
        summarize(wrong)
    with pytest.raises(UsageError, match="positive"):
        median_interval(wrong)


def test_unpaired_times_are_refused() -> None:
    with pytest.raises(UsageError, match="same rounds"):
        paired_speedup(np.ones(10), np.ones(11))
    with pytest.raises(UsageError, match="minimum effect"):
        paired_speedup(np.ones(10), np.ones(10), minimum_effect=1.0)
