"""The forecast on the origin's log, on 31 logs of real small trainings, and on curves whose end is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import nnls

from edgekit.compress.forecast.backtest import BASELINES, FRACTIONS, run_backtests, summary
from edgekit.compress.forecast.forecast import Forecast, forecast
from edgekit.compress.forecast.metrics_reader import MetricsTable, read_metrics
from edgekit.compress.forecast.models import LAGS, RATE_POWERS, Timeline, nonnegative_least_squares, temperatures
from edgekit.compress.forecast.timeline import MOST_POINTS, Question
from edgekit.compress.training.schedule import ScheduleConfig, factor
from edgekit.errors import DataError, UsageError

LOGS = Path(__file__).with_name("logs")
ORIGIN_PLAN = ScheduleConfig(name="cosine-restarts", t_0=30)


def table_of(values: Sequence[float], rates: Sequence[float] | None = None, name: str = "acc") -> MetricsTable:
    columns = {name: np.asarray(values, float)}
    if rates is not None:
        columns["lr"] = np.asarray(rates, float)
    return MetricsTable(Path("log.csv"), np.arange(1.0, len(values) + 1), columns)


def power_curve(epochs: int, noise: float = 0.3) -> np.ndarray:
    at = np.arange(1, epochs + 1)
    return 80 - 50 * at**-0.6 + noise * np.random.default_rng(0).standard_normal(epochs)


@pytest.fixture(scope="module")
def origin(real_data: Path) -> MetricsTable:
    return read_metrics(real_data / "resnet50_imagenet_log.csv")


@pytest.mark.realdata
def test_origin_at_epoch_23_with_its_schedule(origin: MetricsTable) -> None:
    """The origin's own forecast here was "75 % at epoch 38, 95 % interval 32-45"; epoch 31 fell to 48.55."""
    answer = forecast(origin.until(23), Question(metric="test_acc", target=75, total_epochs=60, schedule=ORIGIN_PLAN))
    assert answer.peak_before_restart.median == pytest.approx(69.07, abs=1.5)
    assert answer.peak_before_restart.low < 69.07 < answer.peak_before_restart.high
    assert answer.probability_by(30) < 0.05
    assert answer.target is not None and answer.target.probability < 0.5
    (restart,) = answer.restarts
    assert restart.epoch == 31
    assert restart.drop.low < 69.06 - 48.55 < restart.drop.high
    assert restart.drop.median > 10
    blind = answer.peak_without_schedule
    assert blind is not None and blind.width > 1.3 * answer.peak_before_restart.width
    assert answer.notes == ()


@pytest.mark.realdata
def test_origin_on_the_eve_of_the_restart(origin: MetricsTable) -> None:
    answer = forecast(origin.until(30), Question(metric="test_acc", total_epochs=60, schedule=ORIGIN_PLAN))
    assert answer.peak_before_restart.low == answer.peak_before_restart.high == pytest.approx(69.07)
    assert answer.restarts[0].drop.low < 69.06 - 48.55 < answer.restarts[0].drop.high
    assert answer.peak_without_schedule is None
    after = forecast(origin, Question(metric="test_acc", total_epochs=60, schedule=ORIGIN_PLAN))
    assert after.restarts == ()
    assert after.final.median > 65, "it recovers as the rate falls again"


@pytest.mark.realdata
@pytest.mark.parametrize("seen", [12, 15, 18, 20, 22, 25, 28])
def test_origin_peak_is_inside_the_interval_from_many_epochs(origin: MetricsTable, seen: int) -> None:
    answer = forecast(origin.until(seen), Question(metric="test_acc", total_epochs=60, schedule=ORIGIN_PLAN))
    peak = answer.peak_before_restart
    assert peak.low - peak.width < 69.07 < peak.high + peak.width
    assert abs(peak.median - 69.07) < 0.6 * (69.07 - origin.until(seen).columns["test_acc"].max()) + 0.5


def test_backtests_beat_the_simple_guesses_on_logs_not_tuned_on() -> None:
    tuned, held_out = (run_backtests(LOGS / part / "runs.json") for part in ("tuning", "held_out"))
    table = summary(held_out)
    for fraction in FRACTIONS:
        mean = {
            name: np.mean([abs(trial.errors[name]) for trial in held_out if trial.fraction == fraction])
            for name in held_out[0].errors
        }
        assert all(mean["forecast"] < 0.7 * mean[name] for name in (*BASELINES, "without schedule")), table
    assert len({trial.log for trial in held_out}) >= 6
    every = [*tuned, *held_out]
    for name in ("forecast", "without schedule"):
        held = np.mean([trial.held[name] for trial in every])
        assert 0.70 <= held <= 0.90, summary(every)


def test_power_law_is_continued() -> None:
    answer = forecast(table_of(power_curve(30)), Question(metric="acc", total_epochs=90, target=72))
    truth = 80 - 50 * 90**-0.6
    assert answer.final.median == pytest.approx(truth, abs=1.0)
    assert answer.final.low < truth < answer.final.high
    crossing = (50 / 8) ** (1 / 0.6)  # 80 − 50·t^−0.6 = 72; noise reaches it a little earlier
    assert answer.target is not None and answer.target.epoch_median is not None
    assert answer.target.epoch_median == pytest.approx(crossing, abs=6)
    assert {score.name for score in answer.models}.isdisjoint({"annealed-power", "annealed-time"})


def test_schedule_tells_of_a_decay_that_the_log_has_not_seen() -> None:
    plan = ScheduleConfig(name="wsd", decay_fraction=0.2)
    flat = np.minimum(power_curve(30), 62.0)
    knows = forecast(table_of(flat), Question(metric="acc", total_epochs=50, schedule=plan))
    blind = forecast(table_of(flat), Question(metric="acc", total_epochs=50))
    assert knows.final.median > blind.final.median + 1.0
    assert knows.final.median > knows.median[5] + 1.0, "the gain comes with the decay, not before"


def shown(answer: Forecast) -> list[float]:
    return [*answer.low, *answer.median, *answer.high, answer.peak.median, *answer.target_by_epoch]


def test_same_seed_same_answer() -> None:
    table = table_of(power_curve(20))
    question = Question(metric="acc", total_epochs=40, target=70)
    assert forecast(table, question) == forecast(table, question)
    other = forecast(table, question.model_copy(update={"seed": 1}))
    assert shown(other) != shown(forecast(table, question))
    assert other.final.median == pytest.approx(forecast(table, question).final.median, abs=0.5)


def test_percent_and_fraction_are_the_same_forecast() -> None:
    values = power_curve(20)
    percent = forecast(table_of(values), Question(metric="acc", total_epochs=40, target=70))
    fraction = forecast(table_of(values / 100), Question(metric="acc", total_epochs=40, target=0.7))
    assert np.allclose(np.array(percent.median) / 100, fraction.median, rtol=1e-6)
    assert percent.target_by_epoch == pytest.approx(fraction.target_by_epoch, abs=1e-3)


def test_a_target_in_percent_for_a_log_of_fractions() -> None:
    values = power_curve(20) / 100
    percent, fraction = (
        forecast(table_of(values), Question(metric="acc", total_epochs=40, target=target)) for target in (70, 0.7)
    )
    assert percent.target == fraction.target is not None
    assert percent.target_by_epoch == fraction.target_by_epoch
    (note,) = set(percent.notes) - set(fraction.notes)
    assert note == "the target 70 is read as 70 %: acc is logged as a fraction"


def test_error_rate_is_the_mirror_of_accuracy() -> None:
    values = power_curve(20)
    accuracy = forecast(table_of(values), Question(metric="acc", total_epochs=40, target=70))
    error = forecast(table_of(100 - values, name="val_error"), Question(metric="val_error", total_epochs=40, target=30))
    assert error.direction == "min"
    assert np.allclose(100 - np.array(accuracy.median), error.median)
    assert accuracy.target_by_epoch == pytest.approx(error.target_by_epoch)
    assert [m.value for m in error.milestones] == pytest.approx([100 - m.value for m in accuracy.milestones])


@settings(max_examples=40, deadline=None)  # the machine may be busy
@given(st.integers(0, 2**31), st.integers(5, 30), st.floats(0.0, 3.0))
def test_answers_hang_together(seed: int, seen: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    values = 90 - rng.uniform(10, 60) * np.arange(1, seen + 1) ** -rng.uniform(0.1, 1.5) + noise * rng.normal(size=seen)
    plan = ScheduleConfig(name="cosine-restarts", t_0=float(seen + 2))
    target = float(values.max() + 1)
    answer = forecast(
        table_of(values), Question(metric="acc", total_epochs=2 * seen + 6, target=target, schedule=plan, draws=200)
    )
    assert answer.target is not None
    assert list(answer.target_by_epoch) == sorted(answer.target_by_epoch)
    assert answer.target_by_epoch[-1] == answer.target.probability
    assert all(
        low <= middle <= high <= 100 for low, middle, high in zip(answer.low, answer.median, answer.high, strict=True)
    )
    assert answer.peak.low >= answer.best_value - 1e-9
    assert math.isclose(sum(score.weight for score in answer.models), 1.0)
    assert [restart.epoch for restart in answer.restarts] == [seen + 3, 2 * seen + 5]
    chances = [milestone.probability for milestone in answer.milestones]
    assert chances == sorted(chances, reverse=True)


def test_target_already_reached() -> None:
    answer = forecast(table_of([10, 20, 30, 40, 50]), Question(metric="acc", total_epochs=8, target=30))
    assert answer.target is not None
    assert (answer.target.probability, answer.target.epoch_low, answer.target.epoch_high) == (1.0, 3.0, 3.0)
    assert answer.probability_by(6) == 1.0


@pytest.mark.parametrize(
    ("values", "question", "error", "says"),
    [
        ([50.0], {}, DataError, "1 epochs with a finite acc; a forecast needs at least 4"),
        ([1, math.nan, math.nan, 2, 3], {}, DataError, "has 3 epochs"),
        ([1, 2, 3, 4, 5], {"total_epochs": 5}, UsageError, "already has epoch 5 of 5"),
        ([0.1, 0.2, 0.3, 0.4], {"target": 101}, UsageError, "beyond the best possible acc, 1;"),
        ([0.1, 0.2, 0.3, 0.4], {"target": 75, "best": 0.9}, UsageError, "beyond the best possible acc, 0.9;"),
        ([10, 20, 30, 40], {"target": 101}, UsageError, "beyond the best possible acc, 100"),
        ([10, 20, 30, 40], {"best": 35}, UsageError, "no bound of acc"),
        ([10, 20, 30, 40], {"metric": "ac"}, DataError, "did you mean 'acc'"),
    ],
)
def test_what_cannot_be_forecast_is_refused(
    values: list[float], question: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        forecast(table_of(values), Question.model_validate({"metric": "acc", "total_epochs": 9, **question}))


def test_rate_that_does_not_follow_the_schedule_is_noted() -> None:
    rates = [0.1 * factor(ScheduleConfig(name="cosine"), epoch, 40) for epoch in range(20)]
    right = forecast(
        table_of(power_curve(20), rates),
        Question(metric="acc", total_epochs=40, schedule=ScheduleConfig(name="cosine")),
    )
    wrong = forecast(
        table_of(power_curve(20), rates),
        Question(metric="acc", total_epochs=80, schedule=ScheduleConfig(name="cosine")),
    )
    assert not any("does not follow" in note for note in right.notes)
    assert any("does not follow the schedule given" in note for note in wrong.notes)


def test_plateau_is_taken_to_stay() -> None:
    plan = ScheduleConfig(name="plateau")
    rates = [0.1] * 10 + [0.01] * 10
    answer = forecast(table_of(power_curve(20), rates), Question(metric="acc", total_epochs=40, schedule=plan))
    assert any("plateau schedule cannot be played ahead" in note for note in answer.notes)
    assert answer.restarts == ()


def test_flat_and_perfect_logs() -> None:
    flat = forecast(table_of([50.0] * 12), Question(metric="acc", total_epochs=24))
    assert flat.final.median == pytest.approx(50, abs=0.5)
    perfect = forecast(table_of([90, 99, 100, 100, 100, 100]), Question(metric="acc", total_epochs=12))
    assert 99 < perfect.final.low <= perfect.final.high <= 100


def test_long_log_with_steps_is_thinned() -> None:
    answer = forecast(table_of(power_curve(5000, noise=2.0)), Question(metric="acc", total_epochs=6000))
    assert any(f"averaged down to {MOST_POINTS}" in note for note in answer.notes)
    assert answer.final.low < 80 - 50 * 6000**-0.6 < answer.final.high


def test_the_best_row_of_a_long_log_is_not_averaged_away() -> None:
    """The best of a noisy log stands alone: its block's mean is far below it."""
    values = power_curve(2000, noise=2.0) / 100
    values[1234] = 0.853
    best = forecast(table_of(values), Question(metric="acc", total_epochs=2500, target=0.852))
    assert (best.best_value, best.last_value) == (pytest.approx(0.853), values[-1])
    assert best.target is not None
    assert (best.target.probability, best.target.epoch_low, best.target.epoch_high) == (1.0, 1235.0, 1235.0)
    assert best.target_by_epoch[0] == 1.0
    assert best.peak.low >= best.best_value and all(milestone.value > 0.853 for milestone in best.milestones)


def test_a_negated_loss_is_higher_is_better_up_to_zero() -> None:
    loss = 1 + 3 * np.arange(1, 21.0) ** -0.7
    plain = forecast(table_of(loss, name="val_loss"), Question(metric="val_loss", total_epochs=40, target=1.2))
    negated = forecast(
        table_of(-loss, name="neg_val_loss"), Question(metric="neg_val_loss", total_epochs=40, target=-1.2)
    )
    assert (plain.direction, negated.direction) == ("min", "max")
    assert negated.best_value == -plain.best_value == -loss.min()
    assert np.allclose(-np.array(plain.median), negated.median)
    assert plain.target_by_epoch == pytest.approx(negated.target_by_epoch)
    with pytest.raises(UsageError, match="beyond the best possible neg_val_loss, 0"):
        forecast(table_of(-loss, name="neg_val_loss"), Question(metric="neg_val_loss", total_epochs=40, target=0.5))


def test_temperature_heats_at_once_and_cools_with_its_lag() -> None:
    rate = np.array([1.0, 1.0, 0.5, 0.25, 0.0, 0.0, 1.0, 1.0])
    shapes = temperatures(Timeline(np.arange(1.0, 9.0), rate, 4))
    assert len(shapes) == len(LAGS) * len(RATE_POWERS)
    assert np.array_equal(shapes[0], rate), "no lag, first power"
    assert (shapes[:, 6:] == 1.0).all()
    lagged = shapes[1]
    # The annealing area of arXiv 2408.11029: S2 sums the falls so far, each fading in with (1 − λ^age) / (1 − λ).
    falls = -np.diff(rate[:6], prepend=1.0)
    area = [sum(falls[j] * (1 - LAGS[1] ** (i - j + 1)) / (1 - LAGS[1]) for j in range(i + 1)) for i in range(6)]
    assert lagged[:6] == pytest.approx(1 - (1 - LAGS[1]) * np.array(area))


@given(arrays(int, (12, 3), elements=st.integers(0, 16)), arrays(int, 12, elements=st.integers(-16, 16)))
def test_nonnegative_least_squares_against_scipy(shapes: np.ndarray, values: np.ndarray) -> None:
    gram, moment = shapes.T @ shapes, shapes.T @ values
    ours = nonnegative_least_squares(gram[None], moment[None])[0]
    _, residual = nnls(shapes, values)
    assert (ours >= 0).all()
    assert np.linalg.norm(shapes @ ours - values) == pytest.approx(residual, abs=1e-4)
