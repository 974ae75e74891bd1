"""A planned restart is refused before the first step, with what to do; what only rises in its warm-up is not."""

from __future__ import annotations

import pytest

from edgekit.compress.guard.plan_ahead import refuse_restarts
from edgekit.compress.recipe import FitConfig
from edgekit.compress.training.schedule import SCHEDULES, ScheduleConfig
from edgekit.errors import UsageError

RESTARTS = FitConfig(epochs=60, lr=0.05, schedule=ScheduleConfig(name="cosine-restarts", t_0=30))


def test_the_restart_of_the_origin_is_named_with_its_epoch_its_price_and_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_restarts(RESTARTS, 100)
    message = str(caught.value)
    assert "epoch 31" in message
    assert "20.5 points" in message
    assert "--allow-restarts" in message
    assert "\n" not in message


def test_all_restarts_are_counted() -> None:
    with pytest.raises(UsageError, match=r"epoch 11.*and 4 more"):
        refuse_restarts(RESTARTS.model_copy(update={"schedule": ScheduleConfig(name="cosine-restarts")}), 7)


def test_whoever_allows_it_may_and_so_may_who_has_it_behind() -> None:
    refuse_restarts(RESTARTS.model_copy(update={"allow_restarts": True}), 100)
    refuse_restarts(RESTARTS, 100, done_steps=3001)
    with pytest.raises(UsageError):
        refuse_restarts(RESTARTS, 100, done_steps=3000)


def test_the_advice_holds() -> None:
    floor = RESTARTS.schedule.model_copy(update={"min_factor": 0.34})
    refuse_restarts(RESTARTS.model_copy(update={"schedule": floor}), 100)
    lower = RESTARTS.schedule.model_copy(update={"min_factor": 0.33})
    with pytest.raises(UsageError):
        refuse_restarts(RESTARTS.model_copy(update={"schedule": lower}), 100)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "cosine-restarts"])
def test_no_other_schedule_is_refused_with_or_without_a_warm_up(name: str) -> None:
    for warmup in (0.0, 2.0):
        if name == "one-cycle" and warmup:
            continue
        schedule = ScheduleConfig.model_validate({"name": name, "warmup_epochs": warmup, "start_factor": 0.0})
        refuse_restarts(RESTARTS.model_copy(update={"schedule": schedule}), 20)
