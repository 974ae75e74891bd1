"""The order of visits, what is timed, and what happens when a candidate fails."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgekit.bench.latency import LatencyConfig, measure_latency, paired_s
from edgekit.bench.self_check import check_overhead, matrix_workload, products_for
from edgekit.bench.timing import measure_cold
from edgekit.errors import UsageError
from edgekit.export.session import FloatArray, RuntimeInfo

QUICK = LatencyConfig(min_rounds=10, min_time_s=0.0, max_time_s=5.0, target_halfwidth=10.0)


def pause(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_every_round_visits_every_candidate_in_an_order_that_changes() -> None:
    visits: list[str] = []

    def noted(name: str) -> Callable[[], None]:
        def call() -> None:
            time.sleep(0.002)
            visits.append(name)

        return call

    config = LatencyConfig(warmup_rounds=1, min_rounds=12, min_time_s=0.0, target_halfwidth=10.0, max_calls=3, seed=4)
    samples = measure_latency({name: noted(name) for name in "abc"}, config)
    timed = visits[3 * 2 :]  # one warm-up round: each candidate twice in a row
    starts = timed[:: 1 + 3]  # a visit is one untimed and three timed calls of the same candidate
    assert timed == [name for name in starts for _ in range(4)]
    rounds = [tuple(starts[at : at + 3]) for at in range(0, len(starts), 3)]
    assert all(set(order) == set("abc") for order in rounds)
    assert len(set(rounds)) > 1
    assert all(s.rounds.tolist() == list(range(12)) for s in samples.values())
    assert all(s.seconds.shape == (12, 3) for s in samples.values())


def test_samples_are_the_seconds_a_call_takes() -> None:
    samples = measure_latency({"long": pause(0.006), "short": pause(0.003)}, QUICK)
    assert samples["long"].seconds.min() >= 0.006
    assert 0.003 <= samples["short"].seconds.min() < 0.006


def test_the_first_slow_calls_are_not_timed() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.2 if calls <= 2 else 0.001)

    assert measure_latency({"compiles": call}, QUICK)["compiles"].seconds.max() < 0.2


def test_calls_too_short_for_the_clock_are_timed_together() -> None:
    samples = measure_latency({"tiny": int, "longer": pause(0.001)}, replace(QUICK, window_s=500e-6))
    assert samples["tiny"].calls_per_sample > 100
    assert 0 < np.median(samples["tiny"].seconds) < 2e-6
    assert samples["longer"].calls_per_sample == 1


def test_a_candidate_that_fails_does_not_end_the_others() -> None:
    calls = 0

    def breaks_later() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)
        if calls > 25:
            raise RuntimeError("device lost")

    def breaks_at_once() -> None:
        raise ValueError("input 'x' is missing")

    candidates = {"good": pause(0.001), "later": breaks_later, "never": breaks_at_once}
    samples = measure_latency(candidates, QUICK, baseline="good")
    assert samples["good"].stopped == "precise"
    assert len(samples["good"].rounds) == 10
    assert samples["later"].failure == "RuntimeError: device lost"
    assert 0 < len(samples["later"].rounds) < 10
    assert samples["never"].failure == "ValueError: input 'x' is missing"
    assert samples["never"].stopped == "failed"
    assert samples["never"].seconds.shape[0] == 0


@pytest.mark.parametrize("baseline", [None, "broken"])
def test_all_candidates_failing_ends_the_measurement(baseline: str | None) -> None:
    def broken() -> None:
        raise RuntimeError("no")

    samples = measure_latency({"broken": broken}, QUICK, baseline=baseline)
    assert samples["broken"].stopped == "failed"


def test_a_baseline_that_fails_leaves_the_others_measured() -> None:
    def broken() -> None:
        raise RuntimeError("no")

    samples = measure_latency({"base": broken, "other": pause(0.001)}, QUICK, baseline="base")
    assert samples["other"].stopped == "precise"


def test_the_budget_ends_what_would_never_be_precise() -> None:
    config = LatencyConfig(min_rounds=5, min_time_s=0.0, max_time_s=0.5, target_halfwidth=1e-9)
    start = time.perf_counter()
    samples = measure_latency({"a": pause(0.001), "b": pause(0.001)}, config, baseline="a")
    assert time.perf_counter() - start < 2.0
    assert samples["a"].stopped == samples["b"].stopped == "budget"
    assert len(samples["a"].rounds) >= 5


def test_at_least_one_round_is_measured_however_small_the_budget() -> None:
    config = LatencyConfig(max_time_s=1e-6, min_time_s=0.0)
    assert len(measure_latency({"a": pause(0.001)}, config)["a"].rounds) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_while_timed_and_is_restored(enabled: bool) -> None:
    seen: list[bool] = []

    def call() -> None:
        time.sleep(0.002)
        seen.append(gc.isenabled())

    try:
        gc.enable() if enabled else gc.disable()
        measure_latency({"a": call}, QUICK)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    timed = len(seen) - seen.count(True) if enabled else len(seen)
    assert timed >= 30  # 10 rounds of 3 calls at least
    assert (True in seen) is enabled  # the untimed calls leave it as it was


def test_an_interruption_by_the_user_is_not_swallowed() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latency({"a": interrupted}, QUICK)
    assert gc.isenabled()


def test_paired_times_share_rounds_and_calls() -> None:
    samples = measure_latency({"a": pause(0.0005), "b": pause(0.004)}, QUICK)
    first, second = paired_s(samples["a"], samples["b"])
    calls = samples["b"].seconds.shape[1]
    assert samples["a"].seconds.shape[1] > calls
    np.testing.assert_array_equal(first, samples["a"].seconds[:, :calls].min(axis=1))
    np.testing.assert_array_equal(second, samples["b"].seconds.min(axis=1))


def test_timing_costs_less_than_two_percent_of_a_millisecond() -> None:
    overhead = check_overhead(matrix_workload(products_for(1e-3)), pairs=10)
    assert abs(overhead) < 0.02, f"{100 * overhead:+.2f} % beside a bare loop"


class LinearSession:
    """A real, small model: one matrix."""

    info = RuntimeInfo("numpy", np.__version__, 1, "CPU")
    input_shape = (None, 3, 4, 4)

    def __init__(self) -> None:
        time.sleep(0.05)
        self.weights: FloatArray = np.ones((48, 5), dtype=np.float32)
        self.calls = 0

    def __call__(self, images: FloatArray) -> dict[str, FloatArray]:
        self.calls += 1
        time.sleep(0.02 if self.calls == 1 else 0.0)
        return {"logits": images.reshape(len(images), -1) @ self.weights}


def test_cold_start_separates_loading_from_the_first_call() -> None:
    cold = measure_cold(LinearSession, lambda session: np.zeros((1, *session.input_shape[1:]), np.float32))
    assert cold.load_s >= 0.05
    assert cold.first_inference_s >= 0.02 > cold.second_inference_s
    assert cold.info.runtime == "numpy"


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_rounds": 0},
        {"target_halfwidth": 0.0},
        {"max_time_s": float("nan")},
        {"min_time_s": 99.0},
        {"max_calls": 2},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LatencyConfig(**wrong)  # type: ignore[arg-type]


def test_candidates_and_baseline_must_exist() -> None:
    with pytest.raises(UsageError, match="no candidate"):
        measure_latency({})
    with pytest.raises(UsageError, match="'c' is not among the candidates: a, b"):
        measure_latency({"a": int, "b": int}, baseline="c")
