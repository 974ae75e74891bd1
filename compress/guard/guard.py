"""See trouble coming while training: what is wrong, since when, and in which layer. Pure decisions; knows no torch.

Every step is judged against the last steps of this very run (`WINDOW`), every epoch against the best one. One odd step
is a notice; it is serious when it repeats or is gross, and only serious trouble stops or rolls back a run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["not finite", "weights", "gradient", "loss spike", "collapse", "overfitting", "rate", "dead units"]
Action = Literal["warn", "rollback", "stop"]

CURABLE: frozenset[Kind] = frozenset({"not finite", "weights", "gradient", "loss spike", "collapse"})
"""What a lower rate from an earlier state can cure."""

WINDOW = 200
"""Steps that a step is compared with."""
FEWEST = 20
"""Steps before any is judged; also how often the quantiles are taken anew."""
EXPLODED = 10.0
"""A gradient norm so many times the 95 % quantile is an explosion; 1000 times is serious at once."""
GROSS = 1000.0
SPIKE = 5.0
"""A loss so many 5–95 % ranges above the 95 % quantile is a spike."""
OUTGROWN = 10.0
"""Weights so many times those of up to `FEWEST` steps before have exploded; a third of it is to blame for gradients."""
REPEATS, WITHIN = 3, 10
"""So many notices of a kind within so many steps are serious."""
COLLAPSED = 0.1
"""A metric so much under its best, as a share of it, has collapsed."""
GAP, STALE = 0.15, 5
"""Training accuracy so far above validation, with no better epoch for so many evaluations, is overfitting."""


@dataclass(frozen=True)
class Trouble:
    """Something that a person should know.

    Attributes:
        kind: what is wrong.
        message: one line with the numbers.
        layer: the parameter or module it was met in first, where one is to blame.
        serious: act, if the action is not "warn".
    """

    kind: Kind
    message: str
    layer: str | None = None
    serious: bool = False


@dataclass(frozen=True)
class StepFacts:
    """What the guard looks at before a step reaches the weights.

    Attributes:
        step: global 0-based number.
        loss: its value.
        layer_norms: (P,) gradient norm of each parameter.
        rate: what the optimizer is about to use.
        planned_rate: what the schedule says.
    """

    step: int
    loss: float
    layer_norms: NDArray[np.float64]
    rate: float
    planned_rate: float


class Guard:
    """Judges the steps and epochs of one run.

    Args:
        layers: (P,) names of the trained parameters, in the order of `StepFacts.layer_norms`.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._layers = tuple(layers)
        # a column per layer, then the total norm, then the loss
        self._seen = np.zeros((WINDOW, len(layers) + 2), np.float32)
        self._count = 0
        self._low: NDArray[np.float64] | None = None
        self._high: NDArray[np.float64] | None = None
        self._weights: NDArray[np.float64] | None = None
        self._weighed_at = 0
        self._odd: dict[Kind, deque[int]] = {}
        self._said: dict[str, int] = {}

    def step(self, facts: StepFacts, weigh: Callable[[], NDArray[np.float64]]) -> list[Trouble]:
        """Return what is wrong with this step; each kind at most once in `WINDOW` steps, once more when serious.

        Args:
            facts: of the step.
            weigh: measures (P,) the norm of each parameter; called rarely.
        """
        total = float(np.sqrt(np.square(facts.layer_norms).sum()))
        now = np.array([*facts.layer_norms, total, facts.loss])
        found = self._judge(facts, now, weigh) if self._high is not None else []
        if self._count % FEWEST == 0:
            found += self._weigh(facts.step, weigh())
        if facts.planned_rate > 0 and not math.isclose(facts.rate, facts.planned_rate, rel_tol=1e-6):
            said = f"the learning rate is {facts.rate:.3g}, planned is {facts.planned_rate:.3g}"
            found.append(Trouble("rate", said, serious=True))
        self._remember(now)
        return [trouble for trouble in found if self._is_news(trouble, facts.step)]

    def _judge(
        self, facts: StepFacts, now: NDArray[np.float64], weigh: Callable[[], NDArray[np.float64]]
    ) -> list[Trouble]:
        assert self._low is not None and self._high is not None
        found = []
        total, usual = now[-2], self._high[-2]
        if total > EXPLODED * max(usual, 1e-12):
            said = f"the gradient's norm is {total:.3g}, {total / max(usual, 1e-12):.3g} times its usual {usual:.3g}"
            layer, blame = self._blame(facts, weigh())
            gross = total > GROSS * usual
            found.append(self._odd_step("gradient", f"{said}; {blame}", facts.step, layer, gross=gross))
        low, high = self._low[-1], self._high[-1]
        if facts.loss > high + SPIKE * max(high - low, 0.05 * abs(high)):
            said = f"the loss is {facts.loss:.4g}; 90 % of the last steps lay between {low:.4g} and {high:.4g}"
            found.append(self._odd_step("loss spike", said, facts.step))
        return found

    def _weigh(self, step: int, weights: NDArray[np.float64]) -> list[Trouble]:
        """Compare the weights with those of the last weighing, and keep them for the next."""
        found = []
        if self._weights is not None:
            layer, growth = self._outgrown(weights)
            if growth > OUTGROWN:
                said = f"the weights of {layer} grew {growth:.3g} times in {step - self._weighed_at} steps"
                found.append(Trouble("weights", said, layer, serious=True))
        self._weights, self._weighed_at = weights, step
        return found

    def _outgrown(self, weights: NDArray[np.float64]) -> tuple[str, float]:
        """Return the layer whose weights grew most since the last weighing; small ones count by what is usual."""
        assert self._weights is not None
        usual = 0.1 * float(np.median(self._weights))  # else every bias that starts at 0 grows without bound
        growth = weights / np.maximum(np.maximum(self._weights, usual), 1e-12)
        at = int(growth.argmax())
        return self._layers[at], float(growth[at])

    def _blame(self, facts: StepFacts, weights: NDArray[np.float64]) -> tuple[str, str]:
        """Return the layer behind a large gradient, and why.

        Weights that exploded show in the gradients of the layers before theirs, so they are asked first.
        """
        if self._weights is not None:
            layer, growth = self._outgrown(weights)
            if growth > OUTGROWN / 3:
                steps = facts.step - self._weighed_at
                return layer, f"the weights of {layer} grew {growth:.3g} times in the last {steps} steps"
        layer, times = self._loudest(facts.layer_norms)
        return layer, f"most in {layer}, {times:.3g} times its usual"

    def _loudest(self, norms: NDArray[np.float64]) -> tuple[str, float]:
        """Return the layer with the largest rise among those that matter in the total norm, and its rise."""
        assert self._high is not None
        matters = norms >= 0.1 * norms.max()
        rise = np.where(matters, norms / np.maximum(self._high[:-2], 1e-12), 0.0)
        at = int(rise.argmax())
        return self._layers[at], float(rise[at])

    def _odd_step(
        self, kind: Kind, message: str, step: int, layer: str | None = None, *, gross: bool = False
    ) -> Trouble:
        recent = self._odd.setdefault(kind, deque(maxlen=REPEATS))
        recent.append(step)
        repeated = len(recent) == REPEATS and step - recent[0] < WITHIN
        return Trouble(kind, message, layer, serious=gross or repeated)

    def _remember(self, now: NDArray[np.float64]) -> None:
        self._seen[self._count % WINDOW] = now
        self._count += 1
        if self._count % FEWEST == 0:
            # taken rarely: cheap, and a norm that climbs step by step does not lift its own measure
            ordered = np.sort(self._seen[: min(self._count, WINDOW)], axis=0).astype(np.float64)
            at = (len(ordered) - 1) * np.array([0.05, 0.95])
            self._low, self._high = ordered[math.floor(at[0])], ordered[math.ceil(at[1])]

    def _is_news(self, trouble: Trouble, step: int) -> bool:
        key = f"{trouble.kind}{'!' if trouble.serious else ''}"
        last = self._said.get(key)
        if last is not None and step - last < WINDOW:
            return False
        self._said[key] = step
        return True

    def forget(self) -> None:
        """Start the count of odd steps anew: the run was rolled back."""
        self._odd.clear()
        self._said.clear()
        self._weights = None

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed guard needs, as arrays and plain values."""
        return {
            "seen": self._seen,
            "count": self._count,
            "low": self._low,
            "high": self._high,
            "weights": self._weights,
            "weighed_at": self._weighed_at,
            "odd": {kind: list(steps) for kind, steps in self._odd.items()},
            "said": dict(self._said),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; that of another model is left alone, as the window fills again."""
        if not state or state["seen"].shape != self._seen.shape:
            return
        self._seen, self._count = state["seen"].copy(), state["count"]
        self._low, self._high = state["low"], state["high"]
        self._weights, self._weighed_at = state["weights"], state["weighed_at"]
        self._odd = {kind: deque(steps, maxlen=REPEATS) for kind, steps in state["odd"].items()}
        self._said = dict(state["said"])


def judge_epoch(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Trouble]:
    """Return what has become wrong with the last of these epoch rows; higher is better in `metric`.

    What was wrong an evaluation before already is not told again.
    """
    rows = [row for row in rows if metric in row]
    known = {trouble.kind for trouble in _judge_evaluations(rows[:-1], metric)}
    return [trouble for trouble in _judge_evaluations(rows, metric) if trouble.kind not in known]


def _judge_evaluations(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Trouble]:
    values = [float(row[metric]) for row in rows]
    if len(values) < 3:
        return []
    found = []
    best_at = int(np.argmax(values))
    best, now = values[best_at], values[-1]
    usual = float(np.median(np.abs(np.diff(values[:-1]))))
    if best > 0 and best - now > max(COLLAPSED * best, 3 * usual):
        said = f"{metric} fell to {now:.4g}, {best - now:.4g} under its best of epoch {rows[best_at]['epoch']}"
        found.append(Trouble("collapse", said, serious=True))
    if len(values) - 1 - best_at >= STALE and metric == "val_acc" and "train_acc" in rows[-1]:
        gaps = [float(row["train_acc"]) - float(row[metric]) for row in (rows[best_at], rows[-1])]
        if gaps[1] > GAP and gaps[1] > gaps[0] + 0.02:
            said = (
                f"overfitting: training accuracy is {100 * gaps[1]:.0f} points above validation, "
                f"{100 * (gaps[1] - gaps[0]):.0f} more than at the best epoch, {rows[best_at]['epoch']}"
            )
            found.append(Trouble("overfitting", said))
    return found


def ran_out_of_patience(rows: Sequence[Mapping[str, Any]], metric: str, patience: int) -> bool:
    """Return whether the last `patience` evaluations brought no better value; never with patience 0."""
    values = [float(row[metric]) for row in rows if metric in row]
    return 0 < patience < len(values) and max(values[-patience:]) <= max(values[:-patience])
