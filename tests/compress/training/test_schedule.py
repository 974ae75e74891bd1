"""Schedules against torch.optim.lr_scheduler as the oracle, and the properties that every schedule must keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler

from edgekit.compress.training.schedule import (
    SCHEDULES,
    ScheduleConfig,
    ScheduleName,
    factor,
    planned_jumps,
    plateau_factor,
)
from edgekit.errors import UsageError

EPOCHS = 60
NAMES = get_args(ScheduleName)
configs = st.builds(
    ScheduleConfig,
    name=st.sampled_from([name for name in NAMES if name != "one-cycle"]),
    warmup_epochs=st.floats(0, 5),
    start_factor=st.floats(0, 1),
    min_factor=st.floats(0, 1),
    step_epochs=st.floats(0.5, 40),
    gamma=st.floats(0.01, 0.99),
    decay_fraction=st.floats(0.01, 1),
    t_0=st.floats(0.5, 40),
    t_mult=st.floats(1, 3),
) | st.builds(
    ScheduleConfig, name=st.just("one-cycle"), peak_fraction=st.floats(0.01, 0.99), min_factor=st.floats(0, 1)
)


def rates_of(make: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (
            ScheduleConfig(name="cosine", min_factor=0.1),
            lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS, eta_min=0.1),
        ),
        (ScheduleConfig(name="step", step_epochs=7, gamma=0.3), lambda o: lr_scheduler.StepLR(o, 7, 0.3)),
        (
            ScheduleConfig(name="linear", min_factor=0.2),
            lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=EPOCHS),
        ),
        (
            ScheduleConfig(name="cosine-restarts", t_0=30),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 30),
        ),
        (
            ScheduleConfig(name="cosine-restarts", t_0=4, t_mult=2, min_factor=0.01),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2, eta_min=0.01),
        ),
    ],
    ids=["cosine", "step", "linear", "restarts", "restarts-doubling"],
)
def test_follows_torch_at_every_epoch(
    config: ScheduleConfig, make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
) -> None:
    ours = [factor(config, epoch, EPOCHS) for epoch in range(EPOCHS)]
    assert ours == pytest.approx(rates_of(make, EPOCHS), abs=1e-9)


def test_one_cycle_follows_torch() -> None:
    # torch places the peak at 0.3·N − 1 and the end at N − 1 steps; N = 101 and 0.3·N = 31 make both whole.
    total, peak = 100.0, 30.0 / 100.0
    config = ScheduleConfig(name="one-cycle", peak_fraction=peak, start_factor=1 / 25, min_factor=1 / 25 / 1e4)

    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=101, pct_start=31 / 101, cycle_momentum=False)

    ours = [factor(config, epoch, total) for epoch in range(100)]
    assert ours == pytest.approx(rates_of(make, 100), abs=1e-9)


@given(values=st.lists(st.floats(0, 1), max_size=40), patience=st.integers(0, 5))
def test_plateau_follows_torch(values: list[float], patience: int) -> None:
    config = ScheduleConfig(name="plateau", patience=patience, gamma=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience, threshold=0.0, threshold_mode="abs", eps=0.0
    )
    for value in values:
        scheduler.step(value)
    assert plateau_factor(values, config) == pytest.approx(float(optimizer.param_groups[0]["lr"]))


def test_wsd_is_stable_then_decays() -> None:
    config = ScheduleConfig(name="wsd", decay_fraction=0.2)
    assert [factor(config, epoch, 100) for epoch in (0, 50, 80, 90, 100)] == pytest.approx([1, 1, 1, 0.5, 0])
    root = ScheduleConfig(name="wsd", decay_fraction=0.2, decay_shape="sqrt")
    assert factor(root, 85, 100) == pytest.approx(1 - math.sqrt(0.25))


@given(config=configs, epoch=st.floats(0, 60))
def test_every_factor_is_between_zero_and_one(config: ScheduleConfig, epoch: float) -> None:
    assert -1e-12 <= factor(config, epoch, 60) <= 1 + 1e-12


@given(config=configs, epoch=st.floats(0, 60))
def test_after_warm_up_no_factor_is_under_the_minimum(config: ScheduleConfig, epoch: float) -> None:
    if config.name != "one-cycle" and epoch >= config.warmup_epochs:
        assert factor(config, epoch, 60) >= config.min_factor - 1e-12


@given(config=configs.filter(lambda c: c.warmup_epochs > 1e-3), at=st.floats(0, 1), before=st.floats(0, 1))
def test_warm_up_rises_and_meets_the_schedule(config: ScheduleConfig, at: float, before: float) -> None:
    low, high = sorted((at * config.warmup_epochs, before * config.warmup_epochs))
    assert factor(config, low, 60) <= factor(config, high, 60) + 1e-12
    just_before = factor(config, math.nextafter(config.warmup_epochs, 0), 60)
    assert just_before == pytest.approx(factor(config, config.warmup_epochs, 60), abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step", "plateau", "one-cycle", "wsd"])
def test_schedules_without_restarts_have_no_jump(name: ScheduleName) -> None:
    warmup = 0.0 if name == "one-cycle" else 3.0
    config = ScheduleConfig(name=name, warmup_epochs=warmup, start_factor=1e-6)
    assert planned_jumps(config, 40, steps_per_epoch=25) == ()


def test_restart_of_the_origin_is_named_with_its_epoch() -> None:
    (jump,) = planned_jumps(ScheduleConfig(name="cosine-restarts", t_0=30), 60, steps_per_epoch=100)
    assert (jump.step, jump.epoch_number, jump.after) == (3000, 31, 1.0)
    assert jump.before < 1e-5
    assert "epoch 31" in str(jump)


def test_restart_inside_an_epoch_and_by_per_epoch_steps() -> None:
    config = ScheduleConfig(name="cosine-restarts", t_0=2.5, t_mult=2, warmup_epochs=1, min_factor=0.01)
    assert [jump.epoch for jump in planned_jumps(config, 20, steps_per_epoch=10)] == [3.5, 8.5, 18.5]
    assert [jump.epoch for jump in planned_jumps(config, 20, steps_per_epoch=1)] == [4.0, 9.0, 19.0]


def test_small_restarts_are_no_jump() -> None:
    config = ScheduleConfig(name="cosine-restarts", t_0=5, min_factor=0.4)
    assert planned_jumps(config, 20, steps_per_epoch=50) == ()
    assert len(planned_jumps(config, 20, steps_per_epoch=50, ratio=2.0)) == 3


def test_what_makes_no_schedule_is_refused() -> None:
    with pytest.raises(ValidationError, match="no_such"):
        ScheduleConfig.model_validate({"name": "cosine", "no_such": 1})
    with pytest.raises(ValidationError, match="own warm-up"):
        ScheduleConfig(name="one-cycle", warmup_epochs=2)
    with pytest.raises(UsageError, match="not longer than its warm-up"):
        factor(ScheduleConfig(warmup_epochs=5), 1, 5)
    with pytest.raises(UsageError, match="not longer"):
        factor(ScheduleConfig(), 0, math.nan)
    with pytest.raises(UsageError, match="not a place"):
        factor(ScheduleConfig(), -1, 5)
    with pytest.raises(UsageError, match="steps per epoch"):
        planned_jumps(ScheduleConfig(), 5, steps_per_epoch=0)


def test_every_name_has_a_function() -> None:
    assert tuple(SCHEDULES) == NAMES
