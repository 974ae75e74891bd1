"""The guard names trouble before it is too late, and stays quiet over healthy runs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.compress.guard.guard import WINDOW, Guard, StepFacts, Trouble, judge_epoch, ran_out_of_patience

LAYERS = ("stem.weight", "blocks.0.weight", "head.weight")


def weigh() -> NDArray[np.float64]:
    return np.array([5.0, 8.0, 2.0])


def healthy(guard: Guard, steps: int, *, first: int = 0, seed: int = 0) -> list[Trouble]:
    """Feed steps of an ordinary training: log-normal norms, a loss that falls and jitters."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(first, first + steps):
        loss = 1.0 + 2.0 * np.exp(-step / 100) + 0.1 * rng.normal()
        norms = np.exp(0.5 * rng.normal(size=3)) * (1.0, 0.1, 3.0)
        found += guard.step(StepFacts(step, float(loss), norms, 0.01, 0.01), weigh)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_left_in_peace(seed: int) -> None:
    assert healthy(Guard(LAYERS), 1000, seed=seed) == []


def test_the_exploding_layer_is_named_and_gets_serious_when_it_goes_on() -> None:
    guard = Guard(LAYERS)
    healthy(guard, 100)
    found = []
    for number in range(12):
        norms = np.array([1.0, 0.1 * 3.0**number, 3.0])
        found += guard.step(StepFacts(100 + number, 1.0, norms, 0.01, 0.01), weigh)
    assert [trouble.kind for trouble in found] == ["gradient"] * len(found)
    assert {trouble.layer for trouble in found} == {"blocks.0.weight"}
    assert not found[0].serious
    assert found[-1].serious
    assert len(found) == 2  # a notice, and once more when it is serious


def test_weights_that_grow_take_the_blame_and_are_named_without_a_gradient_too() -> None:
    """Exploding weights show in the gradients of the layers before theirs, and in none where the loss is 0."""
    heavy = lambda: np.array([5.0, 8.0, 2.0 * 20.0])  # noqa: E731
    guard = Guard(LAYERS)
    healthy(guard, 105)
    (found,) = guard.step(StepFacts(105, 1.0, np.array([100.0, 10.0, 3.0]), 0.01, 0.01), heavy)
    assert (found.kind, found.layer) == ("gradient", "head.weight")
    assert "grew 20 times in the last 5 steps" in found.message
    quiet = Guard(LAYERS)
    told = []
    for step in range(60):
        told += quiet.step(StepFacts(step, 0.0, np.zeros(3), 0.01, 0.01), heavy if step >= 30 else weigh)
    (found,) = told
    assert (found.kind, found.layer, found.serious) == ("weights", "head.weight", True)


def test_one_odd_step_is_a_notice_said_once_in_a_window() -> None:
    guard = Guard(LAYERS)
    healthy(guard, 100)
    odd = np.array([200.0, 0.1, 3.0])
    (found,) = guard.step(StepFacts(100, 1.0, odd, 0.01, 0.01), weigh)
    assert (found.kind, found.layer, found.serious) == ("gradient", "stem.weight", False)
    healthy(guard, 30, first=101)
    assert guard.step(StepFacts(131, 1.0, odd, 0.01, 0.01), weigh) == []
    healthy(guard, WINDOW, first=132)
    assert len(guard.step(StepFacts(132 + WINDOW, 1.0, odd, 0.01, 0.01), weigh)) == 1


def test_a_loss_spike_and_a_rate_out_of_plan() -> None:
    guard = Guard(LAYERS)
    healthy(guard, 100)
    (spike,) = guard.step(StepFacts(100, 40.0, np.ones(3), 0.01, 0.01), weigh)
    assert spike.kind == "loss spike"
    assert "40" in spike.message
    (rate,) = guard.step(StepFacts(101, 1.5, np.ones(3), 0.01, 0.002), weigh)
    assert rate.kind == "rate"
    assert "0.002" in rate.message


def test_a_restored_guard_judges_as_the_one_that_was_saved() -> None:
    one, other = Guard(LAYERS), Guard(LAYERS)
    healthy(one, 110)
    other.restore(one.state())
    for step in range(110, 120):
        facts = StepFacts(step, 1.0, np.array([1.0, 9.0, 50.0]) * (step - 108), 0.01, 0.01)
        assert one.step(facts, weigh) == other.step(facts, weigh)
    other.restore({})
    Guard(LAYERS[:2]).restore(one.state())  # another model's: left alone


def rows(*values: float, train: float | None = None) -> list[dict[str, float]]:
    made = [{"epoch": float(at), "val_acc": value} for at, value in enumerate(values, 1)]
    return made if train is None else [{**row, "train_acc": train} for row in made]


def test_the_end_of_the_origin_is_a_collapse_and_its_good_days_are_none() -> None:
    good = (0.31, 0.44, 0.52, 0.56, 0.60, 0.63, 0.66, 0.6907)
    assert all(judge_epoch(rows(*good[:at]), "val_acc") == [] for at in range(1, 9))
    (found,) = judge_epoch(rows(*good, 0.486), "val_acc")
    assert (found.kind, found.serious) == ("collapse", True)
    assert "best of epoch 8" in found.message
    assert judge_epoch(rows(*good, 0.486, 0.49), "val_acc") == []  # told already
    assert len(judge_epoch(rows(*good, 0.486, 0.66, 0.49), "val_acc")) == 1  # it had recovered
    assert judge_epoch(rows(0.1, 0.5, 0.2, 0.6, 0.3), "val_acc") == []  # as unsteady as ever


def test_overfitting_is_the_gap_that_grew_while_nothing_got_better() -> None:
    memorised = rows(0.60, 0.70, 0.69, 0.69, 0.68, 0.69, 0.68)
    for at, row in enumerate(memorised):
        row["train_acc"] = 0.7 + 0.04 * at
    assert judge_epoch(memorised[:6], "val_acc") == []
    (found,) = judge_epoch(memorised, "val_acc")
    assert (found.kind, found.serious) == ("overfitting", False)
    assert judge_epoch(rows(0.60, 0.70, 0.71, 0.72, 0.73, 0.74, 0.75, train=0.99), "val_acc") == []


def test_patience() -> None:
    assert not ran_out_of_patience(rows(0.5, 0.6, 0.6, 0.6), "val_acc", 3)
    assert ran_out_of_patience(rows(0.5, 0.6, 0.6, 0.6, 0.5), "val_acc", 3)
    assert not ran_out_of_patience(rows(*[0.5] * 99), "val_acc", 0)
    assert not ran_out_of_patience(rows(0.5), "val_acc", 1)
