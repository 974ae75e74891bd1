"""Long runs: drift is found where there is some, and only there; throughput is batch over time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgekit.bench.statistics import summarize
from edgekit.bench.sustained import drift_of, drift_verdict, run_sustained, throughput
from edgekit.errors import UsageError
from edgekit.interval import Interval
from tests.bench.reports_for_tests import sustained


@pytest.mark.parametrize(("slow_down", "verdict"), [(1.0, "steady"), (1.5, "slowed"), (0.7, "quickened")])
def test_drift_is_the_end_against_the_beginning(slow_down: float, verdict: str) -> None:
    found = sustained(slow_down)
    assert found.verdict == verdict
    assert 20.0 <= found.seconds < 21.0
    assert found.images_per_s == pytest.approx(found.calls / found.seconds)
    assert len(found.at_s) == len(found.p50_s) > 50
    assert found.p50_s[-1] / found.p50_s[0] == pytest.approx(slow_down, rel=0.1)


def test_noise_without_drift_is_no_drift() -> None:
    random = np.random.default_rng(0)
    verdicts = [drift_verdict(drift_of(random.normal(1.0, 0.2, 80))) for _ in range(40)]
    assert not {"slowed", "quickened"} & set(verdicts)


def test_an_interval_across_the_margin_is_inconclusive() -> None:
    assert drift_verdict(Interval(1.05, 1.0, 1.1)) == "inconclusive"
    assert drift_verdict(drift_of(np.array([1.0, 9.0]))) == "inconclusive", "too short to tell"


def test_real_calls_fill_the_time_asked_for() -> None:
    def timer(samples: int, calls: int) -> list[int]:
        time.sleep(0.002 * (samples + 1))
        return [2_000_000] * samples

    found = run_sustained(timer, 0.4)
    assert 0.4 <= found.seconds < 1.5
    assert found.calls > 50


@pytest.mark.parametrize("duration_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_durations_are_refused(duration_s: float) -> None:
    with pytest.raises(UsageError, match="positive number of seconds"):
        run_sustained(lambda samples, calls: [1] * samples, duration_s)


def test_throughput_is_batch_over_median_time() -> None:
    seconds = np.full((20, 3), 0.5)
    found = throughput(seconds, 8, summarize(seconds))
    assert found.images_per_s == Interval(16.0, 16.0, 16.0)
