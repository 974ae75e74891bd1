"""Learning-curve models for the forecast: what is left to gain, as a non-negative sum of a few shapes.

Every model writes the deficit z(t) = best possible value − metric (for a loss, the loss itself) as

    z(t) = a + b·ψ(progress) [+ d·ρ(rate)]        a, b, d >= 0

so the three coefficients come from non-negative least squares, and the shape's own parameters from a grid. All grid
points are kept and weighted by how well they fit: the spread of the curves is the model's uncertainty. Knows no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ModelName = Literal[
    "power", "exponential", "mmf", "janoschek", "last-level", "annealed-power", "annealed-exponential", "annealed-time"
]

EXPONENTS = np.geomspace(0.15, 3.0, 10)
SPEEDS = np.geomspace(0.2, 20.0, 12)
LAGS = (0.0, 0.5)
"""Part of the noise temperature that is left after an epoch: the metric cools down behind the rate."""
RATE_POWERS = (1.0, 2.0)
RATE_SHARES = (0.05, 0.15, 0.3)
"""Prior: the part of today's deficit that falls away when the rate goes from its highest to zero. What step decays and
warmup-stable-decay runs gain lies in this range; a log whose rate has not moved yet cannot say more."""
SHARE_SPREAD = 0.1
RECENCY = 1.0
"""Epoch t of n weighs (t/n)^RECENCY: a curve must be right about now before it is right about the start."""
EVIDENCE = 1.0
"""Part of the epochs that count as independent when grid points are weighted by their fit."""


@dataclass(frozen=True)
class Timeline:
    """The epochs of a forecast: those seen, then those ahead.

    Attributes:
        epochs: (N,) strictly increasing, > 0.
        rate: (N,) learning rate in each epoch relative to the highest seen, planned for those ahead; None if unknown.
        seen: the first `seen` epochs have been measured.
    """

    epochs: FloatArray
    rate: FloatArray | None
    seen: int


@dataclass(frozen=True)
class Curves:
    """A fitted model: one curve for each grid point.

    Attributes:
        deficit: (G, N) predicted deficit at every epoch of the timeline.
        weight: (G,) sums to 1.
    """

    deficit: FloatArray
    weight: FloatArray

    @property
    def mean(self) -> FloatArray:
        """The weighted mean curve (N,)."""
        return self.weight @ self.deficit


@dataclass(frozen=True)
class Model:
    """A family of curves.

    Attributes:
        shapes: timeline -> (G, N, K) non-negative shapes, K = 2, or 3 with the rate's shape last.
        scheduled: it needs the learning rate.
    """

    shapes: Callable[[Timeline], FloatArray]
    scheduled: bool


def _stack(progress: FloatArray, rate: FloatArray | None = None) -> FloatArray:
    """Join progress shapes (P, N) and rate shapes (R, N) to every pair (P·R, N, 2 or 3), with the constant first."""
    if rate is None:
        return np.stack([np.ones_like(progress), progress], axis=-1)
    first, second = (index.ravel() for index in np.indices((len(progress), len(rate))))
    return np.stack([np.ones_like(progress[first]), progress[first], rate[second]], axis=-1)


def _relative(timeline: Timeline) -> FloatArray:
    """Return epochs in units of the seen part: 1 is now."""
    now = float(timeline.epochs[timeline.seen - 1])
    return timeline.epochs / now


def power(timeline: Timeline) -> FloatArray:
    """t^−c: the power law of learning curves (Domhan et al. 2015, "pow3")."""
    return _stack(timeline.epochs[None] ** -EXPONENTS[:, None])


def exponential(timeline: Timeline) -> FloatArray:
    """exp(−k·t) ("exp3" there)."""
    return _stack(np.exp(-SPEEDS[:, None] * _relative(timeline)))


def mmf(timeline: Timeline) -> FloatArray:
    """1 / (1 + (t/τ)^c): Morgan–Mercer–Flodin, which with an offset is the log-power model too ("mmf", "logpower")."""
    pairs = np.array(list(itertools.product((0.05, 0.2, 0.5, 1.0), np.geomspace(0.5, 4.0, 5))))
    return _stack(1.0 / (1.0 + (_relative(timeline) / pairs[:, :1]) ** pairs[:, 1:]))


def janoschek(timeline: Timeline) -> FloatArray:
    """exp(−k·t^c): Janoschek, a stretched exponential ("Janoschek")."""
    pairs = np.array(list(itertools.product(SPEEDS, (0.3, 0.5, 0.7))))
    return _stack(np.exp(-pairs[:, :1] * _relative(timeline) ** pairs[:, 1:]))


def last_level(timeline: Timeline) -> FloatArray:
    """A start that is over and a level that stays: what a finished curve looks like."""
    return _stack(np.exp(-np.geomspace(8.0, 80.0, 5)[:, None] * _relative(timeline)))


def annealed_power(timeline: Timeline) -> FloatArray:
    """S^−c + ρ, with S the sum of rates: the scaling law with learning-rate annealing (arXiv 2408.11029 eq. 1)."""
    return _stack(_rate_sum(timeline)[None] ** -EXPONENTS[:, None], temperatures(timeline))


def annealed_exponential(timeline: Timeline) -> FloatArray:
    """exp(−k·S) + ρ: as `annealed_power` for runs that saturate."""
    total = _rate_sum(timeline)
    return _stack(np.exp(-SPEEDS[:, None] * total / total[timeline.seen - 1]), temperatures(timeline))


def annealed_time(timeline: Timeline) -> FloatArray:
    """t^−c + ρ: for optimizers whose progress does not slow down with the rate."""
    return _stack(timeline.epochs[None] ** -EXPONENTS[:, None], temperatures(timeline))


MODELS: Mapping[ModelName, Model] = {
    "power": Model(power, scheduled=False),
    "exponential": Model(exponential, scheduled=False),
    "mmf": Model(mmf, scheduled=False),
    "janoschek": Model(janoschek, scheduled=False),
    "last-level": Model(last_level, scheduled=False),
    "annealed-power": Model(annealed_power, scheduled=True),
    "annealed-exponential": Model(annealed_exponential, scheduled=True),
    "annealed-time": Model(annealed_time, scheduled=True),
}


def _rate(timeline: Timeline) -> FloatArray:
    assert timeline.rate is not None, "a scheduled model is asked only where the rate is known"
    return timeline.rate


def _rate_sum(timeline: Timeline) -> FloatArray:
    """Return S, the sum of rate × epochs up to each epoch, > 0."""
    lengths = np.diff(timeline.epochs, prepend=0.0)
    return np.maximum(np.cumsum(_rate(timeline) * np.maximum(lengths, 1e-9)), 1e-6)


def temperatures(timeline: Timeline) -> FloatArray:
    """Return ρ (R, N) in [0, 1+]: the rate to some power, followed at once upwards and with a lag downwards.

    With lag λ this is 1 − (1 − λ)·S2 for the annealing area S2 of arXiv 2408.11029 §3, except after a rise: a
    restart heats a net within an epoch, while cooling takes several.
    """
    shapes = []
    for power_, lag in itertools.product(RATE_POWERS, LAGS):
        rate = _rate(timeline) ** power_
        shape = rate.copy()
        for at in range(1, len(rate)):
            shape[at] = max(rate[at], lag * shape[at - 1] + (1.0 - lag) * rate[at])
        shapes.append(shape)
    return np.array(shapes)


def fit(model: Model, timeline: Timeline, deficit: FloatArray, noise: float) -> Curves:
    """Fit every grid point of `model` to the seen deficits and predict the whole timeline.

    Args:
        model: the family.
        timeline: N epochs, the first `seen` of them measured.
        deficit: (seen,) measured deficits, >= 0.
        noise: standard deviation of one measurement, in the deficit's unit.
    """
    shapes = model.shapes(timeline)
    seen = shapes[:, : timeline.seen]
    recency = (np.arange(1, timeline.seen + 1) / timeline.seen) ** RECENCY
    gram = np.einsum("gnk,gnl,n->gkl", seen, seen, recency)
    moment = np.einsum("gnk,n->gk", seen, recency * deficit)
    if model.scheduled:
        gram, moment, shapes = (np.concatenate([part] * len(RATE_SHARES)) for part in (gram, moment, shapes))
        share = np.repeat(RATE_SHARES, len(seen))
        trust = (noise / (SHARE_SPREAD * max(deficit[-1], noise))) ** 2
        gram[:, 2, 2] += trust
        moment[:, 2] += trust * share * deficit[-1]
    coefficients = nonnegative_least_squares(gram, moment)
    curves = np.einsum("gnk,gk->gn", shapes, coefficients)
    misfit = ((curves[:, : timeline.seen] - deficit) ** 2) @ recency / recency.sum() + (0.1 * noise) ** 2
    evidence = -0.5 * EVIDENCE * timeline.seen * np.log(misfit)
    weight = np.exp(evidence - evidence.max())
    return Curves(curves, weight / weight.sum())


def nonnegative_least_squares(gram: FloatArray, moment: FloatArray) -> FloatArray:
    """Return the x >= 0 (G, K) that minimises x'Ax/2 − b'x for each A (G, K, K) and b (G, K), K <= 3.

    So few unknowns allow to try every set of them that may be non-zero, for all G problems at once.
    """
    groups, size = moment.shape
    best = np.zeros((groups, size))
    best_cost = np.zeros(groups)
    scale = np.sqrt(np.maximum(np.einsum("gkk->gk", gram), 1e-300))
    scaled = gram / (scale[:, :, None] * scale[:, None, :])
    for count in range(1, size + 1):
        for chosen in itertools.combinations(range(size), count):
            block = scaled[:, chosen, :][:, :, chosen] + 1e-10 * np.eye(count)
            right = (moment / scale)[:, chosen]
            x = np.linalg.solve(block, right[:, :, None])[:, :, 0]
            cost = -0.5 * np.einsum("gk,gk->g", x, right)
            better = (x >= 0).all(axis=1) & (cost < best_cost)
            best_cost[better] = cost[better]
            full = np.zeros((groups, size))
            full[:, chosen] = x / scale[:, chosen]
            best[better] = full[better]
    return best
