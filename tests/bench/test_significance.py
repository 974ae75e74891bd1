"""Proportions and paired comparisons against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.bench.significance import ScoreError, accuracy_difference, compare_accuracy, mcnemar
from edgekit.interval import wilson

Bools = NDArray[np.bool_]


def answers(only_first: int, only_second: int, both: int, neither: int) -> tuple[Bools, Bools]:
    """Return right and wrong of two models with the given counts."""
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return np.array(first, dtype=bool), np.array(second, dtype=bool)


@settings(deadline=None)
@given(total=st.integers(1, 3000), share=st.floats(0, 1), level=st.floats(0.5, 0.999))
def test_wilson_is_scipys(total: int, share: float, level: float) -> None:
    successes = round(share * total)
    oracle = scipy.stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    interval = wilson(successes, total, level)
    assert (interval.low, interval.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_wilson_is_not_certain_at_the_ends() -> None:
    assert wilson(100, 100).low == pytest.approx(0.963, abs=1e-3)
    assert wilson(100, 100).high == 1.0
    assert wilson(0, 100).low == 0.0
    for successes, total in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match="proportion"):
            wilson(successes, total)


@settings(deadline=None)
@given(only_first=st.integers(0, 400), only_second=st.integers(0, 400))
def test_mcnemar_is_the_binomial_test_of_the_discordant(only_first: int, only_second: int) -> None:
    result = mcnemar(*answers(only_first, only_second, 3, 2))
    discordant = only_first + only_second
    exact = scipy.stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    observed = scipy.stats.binom.pmf(only_first, discordant, 0.5) if discordant else 0.0
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_exact == pytest.approx(exact, rel=1e-8)
    # half of the observed outcome's mass leaves each tail (Fagerland et al., 2013)
    expected = exact - observed if only_first != only_second else 1 - observed / 2
    assert result.p_mid == pytest.approx(expected if discordant else 1.0, rel=1e-6, abs=1e-12)


def test_mcnemar_of_very_many_pictures_does_not_underflow() -> None:
    result = mcnemar(*answers(5200, 5000, 0, 0))
    assert result.p_exact == pytest.approx(scipy.stats.binomtest(5200, 10200).pvalue, rel=1e-6)


def test_mid_p_keeps_its_level_where_the_exact_test_is_timid() -> None:
    """Over 4000 pairs of equally good models, the share called different is near 5 % with mid-p, and above exact's."""
    random = np.random.default_rng(0)
    called = np.zeros(2)
    for _ in range(4000):
        only_first, only_second, rest = random.multinomial(200, [0.06, 0.06, 0.88])
        result = mcnemar(*answers(only_first, only_second, rest, 0))
        called += [result.p_exact < 0.05, result.p_mid < 0.05]
    exact, mid = called / 4000
    assert exact < mid < 0.06
    assert mid > 0.035


def test_difference_interval_agrees_with_resampled_pictures() -> None:
    first, second = answers(60, 30, 700, 210)
    ours = accuracy_difference(first, second)
    random = np.random.default_rng(0)
    rows = random.integers(0, 1000, (4000, 1000))
    naive = first[rows].mean(axis=1) - second[rows].mean(axis=1)
    assert ours.value == pytest.approx(0.03)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(naive, [0.025, 0.975]).tolist(), abs=0.0015)


def test_difference_of_models_that_never_differ_is_not_certain() -> None:
    interval = accuracy_difference(*answers(0, 0, 90, 10))
    assert interval.value == 0.0
    assert interval.high == -interval.low == pytest.approx(0.03, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [((40, 10, 900, 50), "better"), ((10, 40, 900, 50), "worse"), ((12, 9, 900, 79), "inconclusive")],
)
def test_a_difference_is_called_one_only_when_it_is(counts: tuple[int, int, int, int], verdict: str) -> None:
    result = compare_accuracy(*answers(*counts))
    assert result.verdict == verdict
    assert result.difference.value == pytest.approx((counts[0] - counts[1]) / sum(counts))
    assert (result.difference.low > 0 or result.difference.high < 0) == (verdict != "inconclusive")


def test_answers_to_different_pictures_are_refused() -> None:
    with pytest.raises(ScoreError, match="same pictures"):
        mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(ScoreError, match="same pictures"):
        accuracy_difference(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
    with pytest.raises(ScoreError, match="must be bool"):
        mcnemar(np.ones(3), np.ones(3))  # type: ignore[arg-type]
